"""What a shards string stands for."""

import os
import subprocess
import tracemalloc

import pytest

from flava_ds.errors import DataError
from flava_ds.storage.shards import expand_braces, expand_shards, list_shards


def test_folder_file_and_patterns_are_sorted_lists_of_tars(tmp_path):
    for name in ("00010.tar", "00002.tar", "00001.tar", "notes.txt", "00001.tar.index.npz"):
        (tmp_path / name).touch()
    names = ["00001.tar", "00002.tar", "00010.tar"]
    assert [path.name for path in expand_shards(str(tmp_path))] == names
    assert [path.name for path in expand_shards(str(tmp_path / "00002.tar"))] == ["00002.tar"]
    assert [path.name for path in expand_shards(str(tmp_path / "{00001..00002}.tar"))] == names[:2]
    assert [path.name for path in expand_shards(str(tmp_path / "{00010,00001}.tar"))] == [names[0], names[2]]
    (tmp_path / "list.txt").write_text("\ufeff00010.tar\n00001.tar\n")
    assert [path.name for path in expand_shards(str(tmp_path / "list.txt"))] == [names[0], names[2]]


@pytest.mark.parametrize(
    "pattern",
    ["/d/{098..102}.tar", "/d/{8..11}.tar", "{a,b}/{01..02}.tar", "x{3,1}.tar", "plain.tar", "{08..11}{x,y}"],
)
def test_braces_expand_as_in_bash(pattern):
    shell = subprocess.run(
        ["bash", "-c", f"echo {pattern}"], capture_output=True, text=True, check=True
    ).stdout.split()
    assert sorted(expand_braces(pattern)) == sorted(shell)


@pytest.mark.parametrize(
    "pattern",
    ["a{0..99999}{0..99999}", "{0..99999999999999999999999}", "a" + "{0,1}" * 40, "{0.." + "9" * 5000 + "}"],
)
def test_more_names_than_anybody_has_shards_are_refused_at_once(pattern, tmp_path):
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="more than 10000000 shards|too long") as caught:
            expand_braces(pattern)
        assert tracemalloc.get_traced_memory()[1] < 2**26 and len(str(caught.value)) < 500
    finally:
        tracemalloc.stop()


def test_lists_are_regular_files_of_some_size(tmp_path):
    os.mkfifo(tmp_path / "fifo.txt")
    (tmp_path / "endless.txt").touch()
    os.truncate(tmp_path / "endless.txt", 2**40)
    for name in ("fifo.txt", "endless.txt"):
        with pytest.raises(DataError, match=f"list of shards '.*{name}' cannot be read"):
            list_shards(str(tmp_path / name))


def test_what_is_missing_empty_or_refused_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("# nothing\n\n")
    (tmp_path / "b.txt").write_text("gone.tar\n")
    (tmp_path / "c.jpg").touch()
    cases = {
        str(tmp_path / "absent"): "absent' does not exist; name a folder",
        str(tmp_path / "absent.tar"): "source 'pairs': shard '.*absent.tar' does not exist",
        str(tmp_path / "empty"): "empty' holds no .tar file",
        str(tmp_path / "a.txt"): "list of shards '.*a.txt' is empty",
        str(tmp_path / "b.txt"): "shard '.*gone.tar' does not exist",
        str(tmp_path / "gone.txt"): "list of shards '.*gone.txt' cannot be read",
        str(tmp_path / "c.jpg"): "not a .tar file",
        str(tmp_path / "{3..1}.tar"): "runs backwards",
        "$DATA/{0..3}.tar": "does not exist; .*variables are not expanded, so write the path in full",
        "${DATA}/pairs": "does not exist; .*variables are not expanded",
        "simplecache::https://example.org/0.tar": "chains protocols",
        "nothing://example.org/x": "protocol 'nothing' cannot be used",
        "zip:///": "protocol 'zip' cannot be used",
    }
    for shards, message in cases.items():
        with pytest.raises(DataError, match=message):
            list_shards(shards, "pairs")


def test_files_that_are_nearly_shards_are_named(tmp_path, caplog):
    for name in ("00.tar", "01.tar.gz", "02.TAR", "03.tgz", "04.tar.zst", "00.tar.index.npz", "notes.txt"):
        (tmp_path / name).touch()
    for _ in range(2):
        assert [path.name for path in expand_shards(str(tmp_path))] == ["00.tar"]
    [said] = [record.message for record in caplog.records]
    assert said.endswith(
        "not read, as only .tar files are: 01.tar.gz, 02.TAR, 03.tgz and 1 more; unpack compressed ones, and "
        "name them .tar"
    )
    (tmp_path / "00.tar").unlink()
    with pytest.raises(DataError, match=r"holds no \.tar file, but 01\.tar\.gz, 02\.TAR"):
        list_shards(str(tmp_path), "pairs")


def test_a_list_names_files_patterns_and_folders_from_its_own_place(tmp_path):
    for name in ("a/0.tar", "a/1.tar", "b/0.tar", "c/7.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "list.txt").write_text(f"# two corpora\na/{{0..1}}.tar\n\n{tmp_path}/c\n  b/0.tar\na/1.tar\n")
    found = expand_shards(str(tmp_path / "list.txt"))
    assert [path.relative_to(tmp_path).as_posix() for path in found] == [
        "a/0.tar",
        "a/1.tar",
        "b/0.tar",
        "c/7.tar",
    ]
    (tmp_path / "mixed.txt").write_text("a/0.tar\nhttps://example.org/0.tar\n")
    with pytest.raises(DataError, match="mixes local and remote shards"):
        list_shards(str(tmp_path / "mixed.txt"))


def test_urls_are_expanded_and_written_without_their_query():
    shards = list_shards("https://example.org/d/{08..10}.tar?signature=secret")
    assert [str(shard) for shard in shards] == [f"https://example.org/d/{n}.tar" for n in ("08", "09", "10")]
    assert (
        shards[0].url.endswith("?signature=secret")
        and shards[0].beside("x.npz").url == "https://example.org/d/x.npz?signature=secret"
    )
    assert (shards[0].name, shards[0].parent) == ("08.tar", "https://example.org/d")
    with pytest.raises(DataError, match="0.tar' is a URL") as caught:
        expand_shards("https://example.org/0.tar?signature=secret")
    assert "secret" not in str(caught.value)


def test_pipes_run_nothing(tmp_path):
    with pytest.raises(DataError, match="shell command, which is not allowed"):
        expand_shards(f"pipe:touch {tmp_path / 'ran'}")
    assert not (tmp_path / "ran").exists()


def test_a_pattern_costs_one_look_at_each_shard(tmp_path, monkeypatch):
    """A file system of a cluster takes milliseconds for each."""
    names = [f"{number:05d}.tar" for number in range(40)]
    for name in names:
        (tmp_path / name).touch()
    looked, ask = [], os.stat
    monkeypatch.setattr(os, "stat", lambda path, **words: looked.append(path) or ask(path, **words))
    assert [path.name for path in list_shards(f"{tmp_path}/{{00000..00039}}.tar")] == names
    assert sum(str(path).endswith(tuple(names)) for path in looked) == len(names)
    looked.clear()
    with pytest.raises(DataError, match="00040.tar' does not exist"):
        list_shards(f"{tmp_path}/{{00040..99999}}.tar")
    assert len(looked) < 100, "more names were asked for than until the first that is missing"


def test_a_command_is_refused_with_the_options_that_allow_it():
    with pytest.raises(DataError) as caught:
        list_shards("pipe:cat 0.tar", "pmd")
    option = "--data.sources.pmd"
    assert str(caught.value).endswith(f"or allow it with {option}.reading stream {option}.allow-code")
