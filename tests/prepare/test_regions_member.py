"""Shards with regions: what is in a member, how a stopped command goes on, and what is refused."""

from pathlib import Path

import pytest
import torch
from data.shard_files import caption, picture, read_tar, write_tar
from safetensors import safe_open
from safetensors.torch import load

from flava_ds.cli import main
from flava_ds.data.decode import decode_image
from flava_ds.evaluation.preprocessing import WHOLE_TRANSFORM
from flava_ds.prepare.regions import encoded
from flava_ds.regions.detector import Regions, load_detector


@pytest.fixture
def shards(tmp_path) -> Path:
    for shard in range(2):
        members = []
        for number in range(2 * shard, 2 * shard + 2):
            members += [(f"{number}.webp", picture(number, 30)), (f"{number}.txt", caption(number).encode())]
        (tmp_path / "in").mkdir(exist_ok=True)
        write_tar(tmp_path / "in" / f"{shard:05d}.tar", members)
    return tmp_path / "in"


def test_a_member_holds_what_the_detector_finds_and_a_second_call_writes_nothing(shards, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["prepare", "regions", str(shards), str(out), "--detector", "demo"]
    assert main(command) == 0
    assert "shards: 2 written; samples: 4\nuse them: --data.sources.NAME.shards" in capsys.readouterr().out
    detector = load_detector("demo")
    for shard in range(2):
        old, new = (read_tar(folder / f"{shard:05d}.tar") for folder in (shards, out))
        assert {name: data for name, data in new.items() if not name.endswith(".regions.safetensors")} == old
        pixels = torch.stack(
            [WHOLE_TRANSFORM(decode_image(old[f"{2 * shard + n}.webp"]), 96) for n in (0, 1)]
        )
        regions = detector(pixels)
        for number in range(2):
            (tmp_path / "member").write_bytes(new[f"{2 * shard + number}.regions.safetensors"])
            found, rows = load((tmp_path / "member").read_bytes()), slice(*regions.cu_seqlens[number:][:2])
            torch.testing.assert_close(found["features"], regions.features[rows].half())
            torch.testing.assert_close(found["boxes"], regions.boxes[rows])
            torch.testing.assert_close(found["classes"].float(), regions.classes[rows], rtol=2e-3, atol=1e-6)
            assert found["boxes"][0].tolist() == [0, 0, 1, 1] and not found["classes"][0].any()
            with safe_open(tmp_path / "member", "pt") as opened:
                assert opened.metadata() == {"tags": detector.tags(regions)[number]}
    (out / "00001.tar").unlink()
    assert main(command) == 0
    assert "shards: 1 written, 1 kept from before; samples: 4" in capsys.readouterr().out


def test_probabilities_do_not_exceed_one_in_sum_after_rounding():
    classes = torch.full((2, 97), 0.0)
    classes[1] = torch.rand(97, generator=torch.Generator().manual_seed(0)).softmax(0)
    regions = Regions(torch.zeros(2, 64), torch.zeros(2, 4), classes, torch.tensor([0, 2]), 2)
    [data] = encoded(load_detector("demo"), regions)
    assert 0.998 < load(data)["classes"][1].double().sum() <= 1


def test_what_is_refused_says_so_in_one_line(shards, tmp_path, capsys):
    (tmp_path / "texts").mkdir()
    write_tar(tmp_path / "texts" / "00000.tar", [("a.txt", b"no picture")])
    cases = {
        (str(tmp_path / "absent"), "demo"): "no folder or .tar at",
        (str(shards), "dmo"): "no detector there; did you mean 'demo'?",
        (str(tmp_path / "texts"), "demo"): "has no picture that can be read, so no regions",
    }
    for (place, detector), words in cases.items():
        assert main(["prepare", "regions", place, str(tmp_path / "out2"), "--detector", detector]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert words in line
    assert main(["prepare", "regions", str(shards), str(shards), "--detector", "demo"]) == 2
    assert "is the folder of the shards themselves" in capsys.readouterr().err
