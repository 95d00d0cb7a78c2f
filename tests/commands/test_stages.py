"""A sequence of stages: stopped and gone on with, weights passed on, and what is refused before anything
runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shutil
import signal

import pytest
import torch
from real_runs import steps_of, train_all
from safetensors.torch import load_file, save_file
from stranger_runs import numbers_of, stranger_config

from flava_ds import config as configuration
from flava_ds.cli import main
from flava_ds.commands import stages as command
from flava_ds.config import EvaluationConfig, SourceConfig
from flava_ds.errors import CheckpointError, ConfigError, UserError
from flava_ds.objectives.dino import DinoConfig
from flava_ds.objectives.global_contrastive import GlobalContrastiveConfig
from flava_ds.objectives.masked_text import MaskedTextConfig
from flava_ds.ranks.launch import Launch
from flava_ds.recipes.stages import Inherited, Stages, in_sequence, resolve_stages

OPTIONS = argparse.Namespace(
    ranks=1,
    max_restarts=0,
    master_port=None,
    dry_run=False,
    debug=False,
    plugin=[],
    recipe="mine",
    help=False,
)
DINO = DinoConfig(
    num_prototypes=24,
    head_hidden_size=16,
    bottleneck_size=8,
    local_crops=2,
    local_size=8,
    teacher_momentum=0.5,
)


def sequence_in(folder) -> Stages:
    """Image by DINO, text by MLM, then pairs."""
    pairs = stranger_config(folder, objectives={"global_contrastive": GlobalContrastiveConfig()})
    shards = pairs.data.sources["drawings"].shards

    def on(kind: str, **objectives):
        sources = {kind: SourceConfig(kind=kind, seed=0, shards=shards, max_tokens=16)}
        return lambda: dataclasses.replace(pairs.with_sources(sources), objectives=objectives)

    image = Inherited(stage="image", prefixes=("model.image_encoder.",), average="dino.teacher")
    text = Inherited(stage="text", prefixes=("model.text_encoder.",))
    return in_sequence(
        "all",
        ("image", on("image", dino=DINO), ()),
        ("text", on("text", mlm=MaskedTextConfig()), ()),
        ("joint", lambda: pairs, (image, text)),
    )


@pytest.fixture
def launched(monkeypatch, run_ranks):
    """Trains what is launched on forked ranks, which start sooner; keeps the configurations. `stop` says
    after which step a stage is stopped."""
    started, stop = [], {}

    def wait(launch: Launch) -> int:
        config = configuration.load(launch.arguments[-1])
        started.append(config)
        ((status,),) = run_ranks(train_all, 1, ((config, stop.pop(config.name, None)),))
        return status

    monkeypatch.setattr(Launch, "wait", wait)
    return started, stop


@pytest.mark.distributed
@pytest.mark.slow
def test_stages_go_on_where_they_were_and_pass_weights_on(launched, tmp_path, capsys):
    sequence, (started, stop) = sequence_in(tmp_path), launched
    still = ["--joint.optimizer.lr", "0"]
    stop["all/text"] = 1
    assert command.train(sequence, OPTIONS, still) == 128 + signal.SIGTERM
    assert "stage 2 of 3, 'text': ended with status 143" in capsys.readouterr().out
    assert command.train(sequence, OPTIONS, still) == 0
    assert [config.name for config in started] == ["all/image", "all/text", "all/text", "all/joint"]
    text, joint = started[2], started[3]
    assert "resumed" in (text.run_path / "log.jsonl").read_text().splitlines()[0]
    assert [line["step"] for line in steps_of(text.run_path)] == list(range(5))

    of_image, of_text, of_joint = (numbers_of(config) for config in (started[0], text, joint))
    passed = load_file(joint.initial_weights)
    assert {name.split(".")[1] for name in passed} == {"image_encoder", "text_encoder"}
    for name, own in passed.items():
        image = name.startswith("model.image_encoder.")
        given = of_image[f"average.dino.teacher/{name}"] if image else of_text[f"weight/{name}"]
        assert torch.equal(own.flatten(), given) and torch.equal(own.flatten(), of_joint[f"weight/{name}"])
    patches = "model.image_encoder.patch_embedding.weight"
    assert not torch.equal(of_image[f"weight/{patches}"], passed[patches].flatten())

    capsys.readouterr()
    for options in (OPTIONS, argparse.Namespace(**{**vars(OPTIONS), "dry_run": True})):
        assert command.train(sequence, options, [*still, "--text.optimizer.lr", "0.1"]) == 0
        assert len(started) == 4
        told = capsys.readouterr().out
        assert told.count("finished") == 3 and "another setting: optimizer.lr 0.0005 -> 0.1" in told
        assert "it began from another checkpoint" not in told
    gone = ["--text.data.sources.text.shards", str(tmp_path / "deleted")]
    assert command.train(sequence, OPTIONS, [*still, *gone]) == 0 and len(started) == 4
    assert "deleted" in capsys.readouterr().out, "a finished stage needs no data, which may be gone"
    text.run_path.rename(tmp_path / "aside")
    assert command.train(sequence, OPTIONS, [*still, "--text.seed", "7"]) == 0 and len(started) == 5
    told = capsys.readouterr().out
    assert f"it began from another checkpoint of stage 'text' than {text.run_path}" in told
    assert told.count("another checkpoint") == 1 and f"remove {joint.run_path} to train it again" in told
    shutil.rmtree(text.run_path)
    (tmp_path / "aside").rename(text.run_path)
    shutil.rmtree(joint.run_path)
    file, ones = tmp_path / "own.safetensors", torch.ones(2)
    save_file({"objectives.own": ones, patches: torch.zeros_like(passed[patches])}, file)
    asked = resolve_stages(sequence, ["--joint.initial-weights", str(file)])
    both = load_file(command.with_inherited(asked, asked.stages[2]).initial_weights)
    assert both.keys() == passed.keys() | {"objectives.own"} and torch.equal(both["objectives.own"], ones)
    assert all(torch.equal(both[name], own) for name, own in passed.items())

    weights = next((started[0].run_path / "checkpoints" / "step_00000005").glob("weights_*"))
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="weights_00000.safetensors is damaged"):
        command.train(sequence, OPTIONS, still)


def test_a_finished_stage_whose_folder_is_removed_meanwhile_is_trained_again(tmp_path, monkeypatch):
    answers = iter([[], [], [], None])  # what is finished before the first stage, and then the first stage
    monkeypatch.setattr(command, "finished_with", lambda stage: next(answers))
    monkeypatch.setattr(Launch, "wait", lambda launch: 7)
    assert command.train(sequence_in(tmp_path), OPTIONS, []) == 7


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--text.model.text.intermediate-size", "48"],
            "stage 'text' passes on 'model.text_encoder.transformer.blocks.0.mlp_up.weight' of shape "
            r"\[48, 24\], but stage 'joint' has \[40, 24\]; give both the same",
        ),
        (["--image.optimizer.lrr", "1"], "stage 'image': unknown option '--optimizer.lrr'; did you mean"),
        (["--imag.optimizer.lr", "1"], "unknown option '--imag.optimizer.lr'; did you mean 'image'"),
        (["--joint.data.sources.drawings.shards", "gone"], "no folder or .tar at 'gone'"),
    ],
)
def test_what_cannot_work_is_one_line_before_anything_runs(launched, tmp_path, words, message):
    with pytest.raises(UserError, match=message) as caught:
        command.train(sequence_in(tmp_path), OPTIONS, words)
    assert "\n" not in str(caught.value) and launched[0] == []


def test_overrides_reach_one_stage_or_all(tmp_path):
    words = ["--seed", "3", "--text.seed=5", "--name", "other", "--image.data.no-shuffle"]
    sequence = sequence_in(tmp_path)
    told = json.loads(command.described(sequence, words))
    configs = {name: own["config"] for name, own in told["stages"].items()}
    assert {name: own["seed"] for name, own in configs.items()} == {"image": 3, "text": 5, "joint": 3}
    assert [own["name"] for own in configs.values()] == ["other/image", "other/text", "other/joint"]
    assert [own["data"]["shuffle"] for own in configs.values()] == [False, True, True]
    backwards = dataclasses.replace(sequence, stages=sequence.stages[::-1])
    with pytest.raises(ConfigError, match="'joint' inherits from 'image', which is none before it"):
        command.described(backwards, [])
    *before, last = sequence.stages
    of_ema = dataclasses.replace(last.inherits[0], average="ema")
    averaged = dataclasses.replace(
        sequence, stages=(*before, dataclasses.replace(last, inherits=(of_ema, *last.inherits[1:])))
    )
    with pytest.raises(
        ConfigError, match="'joint' inherits the average 'ema' of '.*', which keeps none; set"
    ):
        command.described(averaged, [])
    command.described(averaged, [f"--{of_ema.stage}.training.weight-average", "0.9"])


OUTSIDE = """
from pathlib import Path

from flava_ds import config
from flava_ds.recipes.stages import Inherited, in_sequence


def base():
    return config.load(Path(__file__).with_name("base.json"))


def twice():
    first = Inherited(stage="first", prefixes=("model.",))
    return in_sequence("twice", ("first", base, ()), ("again", base, [first]))
"""


def test_a_sequence_of_ones_own_is_named_by_its_place(tmp_path, capsys):
    base = stranger_config(tmp_path, objectives={"global_contrastive": GlobalContrastiveConfig()})
    configuration.save(base, tmp_path / "base.json")
    (tmp_path / "my_stages.py").write_text(OUTSIDE)
    place = f"{tmp_path / 'my_stages.py'}:twice"
    assert main(["train", place, "--dry-run", "--ranks", "1", "--again.seed", "4"]) == 0
    said = capsys.readouterr().out
    begins = re.findall(r"stage \d of 2, '(\w+)'; \S+/(\w+\.json) is written when it begins", said)
    assert begins == [("first", "first.json"), ("again", "again.json")]
    assert said.count("parameters: ") == 2 and said.count("memory of a rank") == 2
    assert said.count(f"--plugin={tmp_path / 'my_stages.py'}\n") == 2
    assert main(["train", place, "--help"]) == 0
    assert "again: 5 steps of global_contrastive, beginning with model. of first" in capsys.readouterr().out
    assert main(["codebook", "train", "nowhere", "--out", str(tmp_path / "c"), "--recipe", "demo_full"]) == 2
    assert "is several runs in a row" in capsys.readouterr().err


def test_a_stage_says_again_what_its_file_cannot(tmp_path, launched):
    """Code that the sequence names, which the file that the stage is started from is not trusted with."""
    sequence = sequence_in(tmp_path)
    joint = sequence.stages[-1].config
    assert command.said_again(joint) == []
    sources = {
        name: dataclasses.replace(own, reading="stream", allow_code=True)
        for name, own in joint.data.sources.items()
    }
    evaluation = EvaluationConfig(every_steps=2, tasks=("mine.py", "zero_shot"), data_root=".")
    words = command.said_again(dataclasses.replace(joint.with_sources(sources), evaluation=evaluation))
    (name,) = sources
    assert words == ["--evaluation.tasks", "mine.py", "zero_shot", f"--data.sources.{name}.allow-code"]


def test_a_dry_run_prints_the_commands(launched, tmp_path, capsys):
    dry = argparse.Namespace(**{**vars(OPTIONS), "dry_run": True})
    sequence = sequence_in(tmp_path)
    assert command.train(sequence, dry, []) == 0
    said = capsys.readouterr().out
    begins = re.findall(r"/(\w+\.json) is written when it begins", said)
    assert begins == ["image.json", "text.json", "joint.json"]
    assert launched[0] == [] and not sequence.stages[0].config.run_path.exists()
    assert "joint: 5 steps of global_contrastive, beginning with" in command.help_of(sequence)
