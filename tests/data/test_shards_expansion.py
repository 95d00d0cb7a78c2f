"""What a shards string stands for."""

import subprocess

import pytest

from flava_ds.data.shards import expand_braces, expand_shards
from flava_ds.errors import DataError


def test_folder_file_and_patterns_are_sorted_lists_of_tars(tmp_path):
    for name in ("00010.tar", "00002.tar", "00001.tar", "notes.txt", "00001.tar.index.npz"):
        (tmp_path / name).touch()
    names = ["00001.tar", "00002.tar", "00010.tar"]
    assert [path.name for path in expand_shards(str(tmp_path))] == names
    assert [path.name for path in expand_shards(str(tmp_path / "00002.tar"))] == ["00002.tar"]
    assert [path.name for path in expand_shards(str(tmp_path / "{00001..00002}.tar"))] == names[:2]
    assert [path.name for path in expand_shards(str(tmp_path / "{00010,00001}.tar"))] == [names[0], names[2]]


@pytest.mark.parametrize("pattern", ["/d/{098..102}.tar", "/d/{8..11}.tar", "{a,b}/{01..02}.tar", "x{3,1}.tar", "plain.tar", "{08..11}{x,y}"])
def test_braces_expand_as_in_bash(pattern):
    shell = subprocess.run(["bash", "-c", f"echo {pattern}"], capture_output=True, text=True, check=True).stdout.split()
    assert sorted(expand_braces(pattern)) == sorted(shell)


def test_what_is_missing_empty_or_refused_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").touch()
    cases = {
        str(tmp_path / "absent"): "absent' is not a .tar file",
        str(tmp_path / "absent.tar"): "source 'pairs': shard '.*absent.tar' does not exist",
        str(tmp_path / "empty"): "empty' holds no .tar file",
        str(tmp_path / "a.txt"): "not a .tar file",
        str(tmp_path / "{3..1}.tar"): "runs backwards",
        "https://example.org/0.tar": "is a URL",
        "hf://datasets/x": "is a URL",
    }
    for shards, message in cases.items():
        with pytest.raises(DataError, match=message):
            expand_shards(shards, "pairs")


def test_pipes_run_nothing(tmp_path):
    with pytest.raises(DataError, match="shell command, which is refused"):
        expand_shards(f"pipe:touch {tmp_path / 'ran'}")
    assert not (tmp_path / "ran").exists()
