"""Files that stand on a recipe: what they merge, in YAML and JSON alike, and one line for every slip."""

import dataclasses
import json

import pytest

from flava_ds.config import SourceConfig, WarmupStableDecayConfig, to_dict
from flava_ds.errors import ConfigError
from flava_ds.recipes import resolve

YAML = """
base: flava_tiny
training: {total_steps: 300}
optimizer:
  lr: 1e-4                     # a number, though YAML 1.1 takes it for text
schedule: {type: wsd, warmup_steps: 10}
objectives:
  mim: {weight: 0.5}
data:
  sources:
    pairs: {shards: mine/pairs, transform: {crop_scale: [0.5, 1.0]}}
    photos: {kind: image, shards: mine/photos, weight: 0.2}
"""
CHANGES = {
    "base": "flava_tiny",
    "training": {"total_steps": 300},
    "optimizer": {"lr": 1e-4},
    "schedule": {"type": "wsd", "warmup_steps": 10},
    "objectives": {"mim": {"weight": 0.5}},
    "data": {
        "sources": {
            "pairs": {"shards": "mine/pairs", "transform": {"crop_scale": [0.5, 1.0]}},
            "photos": {"kind": "image", "shards": "mine/photos", "weight": 0.2},
        }
    },
}


@pytest.mark.parametrize(("file", "text"), [("mine.yaml", YAML), ("mine.json", json.dumps(CHANGES))])
def test_a_file_changes_what_it_names_and_nothing_else(tmp_path, file, text):
    (tmp_path / file).write_text(text)
    base = resolve("flava_tiny", [])
    pairs = base.data.sources["pairs"]
    wide = dataclasses.replace(pairs.transform, crop_scale=(0.5, 1.0))
    expected = dataclasses.replace(
        base,
        name="mine",
        training=dataclasses.replace(base.training, total_steps=300),
        optimizer=dataclasses.replace(base.optimizer, lr=1e-4),
        # the exchanged variant keeps what the recipe had set, as on the command line
        schedule=WarmupStableDecayConfig(warmup_steps=10, min_lr=base.schedule.min_lr),
        objectives={**base.objectives, "mim": dataclasses.replace(base.objectives["mim"], weight=0.5)},
    ).with_sources(
        {
            "pairs": dataclasses.replace(pairs, shards="mine/pairs", transform=wide),
            "photos": SourceConfig(kind="image", shards="mine/photos", weight=0.2),
        }
    )
    assert resolve(str(tmp_path / file), []) == expected
    changed = resolve(str(tmp_path / file), ["--optimizer.lr", "3e-4", "--name", "other"])
    assert (changed.optimizer.lr, changed.name) == (3e-4, "other")


def test_options_may_mend_what_does_not_fit_together_in_a_file(tmp_path):
    (path := tmp_path / "short.yaml").write_text("base: flava_tiny\ntraining: {total_steps: 3}\n")
    assert resolve(str(path), ["--schedule.warmup-steps", "1"]).training.total_steps == 3
    for words in ([], ["--name", "other"]):
        with pytest.raises(ConfigError, match="short.yaml: schedule.warmup_steps .* exceeds"):
            resolve(str(path), words)
    (tmp_path / "above.yaml").write_text("base: short.yaml\nschedule: {warmup_steps: 2}\n")
    assert resolve(str(tmp_path / "above.yaml"), []).schedule.warmup_steps == 2
    with pytest.raises(ConfigError, match="^schedule.warmup_steps 5 exceeds"):
        resolve(str(path), ["--schedule.warmup-steps", "5", "--training.total-steps", "4"])


def test_a_file_may_stand_on_another_beside_it(tmp_path):
    (tmp_path / "first.yaml").write_text("base: flava_tiny\nseed: 3\n")
    (tmp_path / "second.yml").write_text("base: first.yaml\noptimizer: {lr: 2.0e-4}\n")
    config = resolve(str(tmp_path / "second.yml"), [])
    assert (config.name, config.seed, config.optimizer.lr) == ("second", 3, 2e-4)
    (tmp_path / "whole.json").write_text(json.dumps(to_dict(config)))
    assert resolve(str(tmp_path / "whole.json"), []) == config
    (tmp_path / "third.json").write_text('{"base": "whole.json", "seed": 4}')
    assert resolve(str(tmp_path / "third.json"), []).seed == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\n", "key 'base' is missing; it names the recipe that the file changes"),
        ("- a\n", "key 'base' is missing"),
        ("base: flava_tinny\n", "no recipe named 'flava_tinny'; did you mean 'flava_tiny'?"),
        ("base: code.py:mine\n", "base 'code.py:mine' is code, which a file cannot name"),
        ("base: mine.yaml\n", "mine.yaml: its key 'base' leads back to the file itself, or to more than 8"),
        (
            "base: flava_tiny\nobjectives: {mim: null}\n",
            "objectives.mim is null; to leave it out, set its we",
        ),
        ("base: flava_tiny\ndata: {sources: {pairs: null}}\n", "data.sources.pairs is null; to leave it out"),
        ("base: flava_tiny\ntrainning: {}\n", "unknown key 'trainning'; did you mean 'training'?"),
        (
            "base: flava_tiny\ndata: {sources: {pairs: {shard: x}}}\n",
            "unknown key 'data.sources.pairs.shard'; did you mean 'shards'?",
        ),
        (
            "base: flava_tiny\ndata: {sources: {photos: {shards: x}}}\n",
            "key 'data.sources.photos.kind' is missing",
        ),
        ("base: flava_tiny\noptimizer: {type: adam}\n", "optimizer.type 'adam' is none of adamw, lion"),
        ("base: flava_tiny\ndata:\n", "data is None; expected an object"),
        ("base: flava_tiny\nname: 2026-11-28\n", "name is datetime.date(2026, 11, 28); expected str"),
        ("base: flava_tiny\nseed: 1\nseed: 2\n", "line 3: key 'seed' occurs twice"),
        ("base: flava_tiny\n1: 2\n", "line 2: key 1 is no text"),
        ("base: &a flava_tiny\nname: *a\n", "line 2: aliases (*) are not read"),
        ("base: [flava_tiny\n", "line 2: "),
        ("base: !!python/name:os.system\n", "could not determine a constructor"),
        (
            "base: flava_tiny\ndata: {sources: {pairs: {reading: stream, allow_code: true, "
            "pipeline: 'x.py:y', shards: x}}}\n",
            None,
        ),
    ],
)
def test_slips_are_one_line(tmp_path, text, message):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    if message is None:  # what runs code is taken back, as from a saved configuration
        assert not resolve(str(file), []).data.sources["pairs"].allow_code
        return
    with pytest.raises(ConfigError) as caught:
        resolve(str(file), [])
    told = str(caught.value)
    assert told.startswith(str(file)) and message in told and "\n" not in told
    assert told.count(str(file)) == 1


def test_code_that_a_base_names_is_not_imported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hostile.py").write_text("from pathlib import Path\nPath('ran').touch()\n")
    (tmp_path / "mine.yaml").write_text("base: hostile.py:mine\n")
    with pytest.raises(ConfigError, match="base 'hostile.py:mine' is code, which a file cannot name"):
        resolve("mine.yaml", [])
    assert not (tmp_path / "ran").exists()
