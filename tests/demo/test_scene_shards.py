"""Scenes as shards: pictures, captions and regions are the scenes' own; and what is refused."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from data.shard_files import read_tar
from safetensors.torch import load

from flava_ds.cli import main
from flava_ds.config import SourceConfig
from flava_ds.data.decode import decode_image
from flava_ds.demo import scene_shards
from flava_ds.demo.dataset import unpack
from flava_ds.demo.scenes import draw_scene, paint, read_drawings
from flava_ds.errors import DataError
from flava_ds.prepare.regions import write_regions
from flava_ds.ranks import launch
from flava_ds.recipes import resolve
from flava_ds.recipes.demo import DATA, SCENES
from flava_ds.regions.detector import load_detector


def members(folder) -> dict[str, bytes]:
    found = {}
    for path in sorted(folder.glob("*.tar")):
        found |= read_tar(path)
    return found


def test_shards_hold_scenes_with_the_regions_that_prepare_finds(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(scene_shards, "PER_SHARD", 50)
    words = ["prepare", "scenes", str(tmp_path / "a"), "--split", "unseen_concepts", "--scenes", "60"]
    assert main(words) == 0
    assert f"{tmp_path / 'a'}: 60 scenes; set caption_key to captions" in capsys.readouterr().out
    found, drawings = members(tmp_path / "a"), read_drawings(unpack(), "unseen_concepts")
    assert len(found) == 60 * 7
    for number in (0, 59):
        key, scene = f"unseen_concepts_2_{number:06d}", draw_scene(drawings, scene_shards.SEED, number)
        assert torch.equal(decode_image(found[f"{key}.png"]), paint(drawings, scene))
        record = json.loads(found[f"{key}.json"])
        assert record["boxes"] == [list(box) for box in scene.boxes]
        assert record["captions"][0] == found[f"{key}.txt"].decode()
    write_regions(str(tmp_path / "a"), load_detector("demo"), tmp_path / "b", batch_size=50)
    for name, data in members(tmp_path / "b").items():
        if name.endswith(".regions.safetensors"):
            for tensor, own in load(data).items():
                torch.testing.assert_close(load(found[name])[tensor], own)
        else:
            assert data == found[name]
    (tmp_path / "a" / "prepared.json").unlink()
    (tmp_path / "a" / "00001_stats.json").unlink()
    assert main(words) == 0 and members(tmp_path / "a") == found


def test_a_launch_gets_the_scenes_that_its_recipe_reads(tmp_path, monkeypatch, capsys):
    """Whole, once, and with an error where the folder holds something else."""
    unpacked = unpack()
    (tmp_path / DATA).mkdir(parents=True)
    (tmp_path / DATA / "pairs-train").symlink_to(unpacked / "pairs-unseen-concepts")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scene_shards, "SCENES", 3)
    config = resolve("demo_clip", [])
    config = config.with_sources({"scenes": SourceConfig(kind="pair", shards=str(SCENES))})
    for words in (f".{SCENES.name}.partial: 3 of 3 scenes", ""):
        launch.provide_demo_data(config)
        assert words in capsys.readouterr().out
        assert {path.name for path in SCENES.iterdir()} == {"00000.tar", "00000_stats.json", "prepared.json"}
    assert [path.name for path in DATA.glob(".*")] == []
    (SCENES / "prepared.json").unlink()
    (SCENES / "00000_stats.json").write_text("{}")
    with pytest.raises(DataError, match="00000_stats.json' is not a record of a conversion"):
        launch.provide_demo_data(config)


def test_an_interrupted_launch_is_continued_by_one_while_others_wait(tmp_path, monkeypatch):
    unpacked, out, drawn = unpack(), tmp_path / "scenes", []
    (tmp_path / "pairs-train").symlink_to(unpacked / "pairs-unseen-concepts")
    for name, value in {"SCENES": 3, "PER_SHARD": 1, "_AT_ONCE": 1, "POLL_S": 0.01}.items():
        monkeypatch.setattr(scene_shards, name, value)

    def draw(drawings, seed, number):
        drawn.append(number)
        if drawn == [0, 1, 2]:
            raise KeyboardInterrupt
        return draw_scene(drawings, seed, number)

    monkeypatch.setattr(scene_shards, "draw_scene", draw)
    with pytest.raises(KeyboardInterrupt):
        scene_shards.provide_scenes(tmp_path, out)
    assert not out.exists()
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: scene_shards.provide_scenes(tmp_path, out), range(3)))
    assert drawn == [0, 1, 2, 1, 2]  # a shard is finished when the next one begins
    assert len(list(out.glob("*.tar"))) == 3 and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    "extra, words",
    [
        (["--split", "test"], "scenes have no split 'test'"),
        (["--scenes", "0"], "0 scenes are none"),
        (["--detector", "dmo"], "no detector there; did you mean 'demo'?"),
    ],
)
def test_what_is_refused(extra, words, tmp_path, capsys):
    assert main(["prepare", "scenes", str(tmp_path / "a"), *extra]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert words in line and not (tmp_path / "a").exists()
