"""Every fine-tuned task from end to end on its published layout; heads learn what can be learnt; a killed
fine-tuning ends with the bits of one that was not."""

import dataclasses
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation.color_world import write_own
from evaluation.language_world import WRITERS, write_snli_ve, write_sst2
from sample_runs import world_config

from flava_ds.errors import DataError
from flava_ds.evaluation.frozen_model import Described, Lacking, Workplace
from flava_ds.evaluation.opening import freeze
from flava_ds.evaluation.published import published
from flava_ds.evaluation.registry import tasks
from flava_ds.evaluation.runner import evaluate, find_all, find_data
from flava_ds.evaluation.shares import Share
from flava_ds.evaluation.tuning import fitting
from flava_ds.evaluation.tuning.goals import Classes
from flava_ds.evaluation.tuning.recipe import Recipe
from flava_ds.families.flava.task import build_task
from flava_ds.ranks.distributed import start

NUMBERS = {
    "glue_cola": {"accuracy": 8, "matthews": 8},
    "glue_sst2": {"accuracy": 8},
    "glue_mrpc": {"accuracy": 8, "f1": 8, "accuracy_and_f1": 8},
    "glue_qqp": {"accuracy": 8, "f1": 8, "accuracy_and_f1": 8},
    "glue_stsb": {"pearson": 9, "spearman": 9, "pearson_and_spearman": 9},
    "glue_mnli": {"accuracy": 15, "accuracy_matched": 9, "accuracy_mismatched": 6},
    "glue_qnli": {"accuracy": 8},
    "glue_rte": {"accuracy": 8},
    "vqav2": {"vqa_accuracy": 9},
    "snli_ve": {"accuracy": 9},
    "hateful_memes": {"accuracy": 10, "roc_area": 10},
}
QUICK = Recipe(samples=16, batch_size=8, lr=3e-3, updates=60, warmup_updates=6, judged_every=10)


def frozen(folder: Path, module=None, workplace=None, share=None):
    """A tiny model of random weights."""
    config = world_config(folder)
    module = module or build_task(config).eval().requires_grad_(False)
    return freeze(config, module, Described("tiny", "flava"), share).at(workplace or Workplace())


@pytest.mark.parametrize("name", NUMBERS)
def test_a_task_on_a_miniature_of_its_data(tmp_path, name):
    """With the published recipe, cut to the size of the set."""
    WRITERS[name](tmp_path)
    task, told = tasks()[name], []
    model = frozen(tmp_path, workplace=Workplace(tell=told.append))
    result = evaluate([task], model, find_all([task], tmp_path))[name]
    assert {number: score.n for number, score in result.scores.items()} == NUMBERS[name]
    assert all(-1 <= score.value <= 1 for score in result.scores.values())
    between = [(score.value, score.interval) for score in result.scores.values() if score.interval]
    assert all(low <= value <= high and low < high for value, (low, high) in between)
    assert any(published(name, number) for number in NUMBERS[name])
    assert result.facts["samples"] == max(NUMBERS[name].values())
    assert (result.facts["split"] == "dev_matched and dev_mismatched") == (name == "glue_mnli")
    ran = result.facts["fine_tuning"]
    assert ran["lr"] == task.recipe.lr and ran["seed"] == 0
    assert f"{name}: update {ran['last_update']:,} of {ran['last_update']:,}," in told[-1]
    assert ran["samples"] == len(find_data(task.data, tmp_path).read("train")) < ran["published"]["samples"]
    assert ran["published"]["updates"] == task.recipe.updates > ran["updates"] >= 1
    assert told and f"{name}: update" in told[-1] and "best" in told[-1] + "the best"


def learns(task, folder, **settings):
    """What a task finds with a recipe for which the tiny model is quick."""
    task = dataclasses.replace(task, recipe=dataclasses.replace(QUICK, **settings))
    return task.run(frozen(folder), find_data(task.data, folder))


def test_a_class_that_a_word_gives_away_is_learnt(tmp_path):
    write_sst2(tmp_path)
    assert learns(tasks()["glue_sst2"], tmp_path)["accuracy"].value == 1


def test_a_class_that_only_the_picture_gives_away_is_learnt(tmp_path):
    write_snli_ve(tmp_path)
    assert learns(tasks()["snli_ve"], tmp_path, samples=18, updates=80)["accuracy"].value == 1


def test_a_score_and_answers_are_learnt(tmp_path):
    WRITERS["glue_stsb"](tmp_path)
    WRITERS["vqav2"](tmp_path)
    assert learns(tasks()["glue_stsb"], tmp_path, samples=18)["pearson"].value > 0.9
    found = learns(tasks()["vqav2"], tmp_path, samples=24, updates=100, batch_size=24, lr=5e-3)
    assert found["vqa_accuracy"].value == 1  # of "two" and "2" together for the second answer


def test_weights_in_half_precision_are_trained_in_fp32(tmp_path, monkeypatch):
    """At this learning rate a gain of 1 moves by a hundredth of what bf16 can add to it."""
    write_sst2(tmp_path)
    task = dataclasses.replace(tasks()["glue_sst2"], recipe=dataclasses.replace(QUICK, lr=4e-5, updates=20))
    module = build_task(world_config(tmp_path)).eval().requires_grad_(False).bfloat16()
    seen, predict = [], fitting.Fitting.predict
    monkeypatch.setattr(fitting.Fitting, "predict", lambda self, i: seen.append(self) or predict(self, i))
    task.run(frozen(tmp_path, module), find_data(task.data, tmp_path))
    name = "encoder.text_encoder.final_norm.weight"
    master, parameter = seen[-1].masters[name], seen[-1].parameters[name]
    assert parameter.dtype == torch.bfloat16 and master.dtype == torch.float32
    assert torch.equal(parameter, master.bfloat16()) and not torch.equal(parameter.float(), master)
    assert 1e-4 < (master - 1).abs().max() < 1e-3


def test_your_own_pictures_and_texts_are_learnt_and_a_split_val_chooses_where_it_is(tmp_path):
    task, settings = tasks()["own_tuned"], dict(samples=18, updates=80)
    write_own(tmp_path / "own", {"train": 6, "test": 3})
    data = find_data(task.data, tmp_path)
    assert learns(task, tmp_path, **settings)["accuracy"].value == 1
    ran = task.settings(data)
    assert ran["chosen_on"] is None and ran["updates"] == 10 and "published" not in ran
    write_own(tmp_path / "own", {"val": 2})
    assert learns(task, tmp_path, **settings)["accuracy"].value == 1
    assert task.settings(find_data(task.data, tmp_path))["chosen_on"] == "val"
    assert task.settings(find_data(task.data, tmp_path, split="val"))["chosen_on"] is None  # not on itself


@dataclasses.dataclass(frozen=True)
class Interrupted(Classes):
    """Kills its process at a loss; `after` counts them."""

    after: int = 10**9
    seen: list = dataclasses.field(default_factory=list, compare=False, repr=False)

    def losses(self, logits, targets):
        self.seen.append(1)
        if len(self.seen) == self.after:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().losses(logits, targets)

    def __repr__(self) -> str:
        return "Interrupted"


def fitted(folder: Path, after: int, states: Path | None, name: str = "glue_sst2"):
    """Fine-tunes on SST-2 or another task, and returns the logits of the last weights and what was told."""
    task = dataclasses.replace(tasks()[name], recipe=QUICK, goal=Interrupted(after=after))
    told, logits = [], []
    predict = fitting.Fitting.predict

    def keep(self, inputs):
        logits.append(predict(self, inputs))
        return logits[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting.Fitting, "predict", keep)
        patch.setattr(fitting, "SAVED_EVERY_S", 0)
        model = frozen(folder, workplace=Workplace(states, told.append))
        scores = task.run(model, find_data(task.data, folder))
    return scores, logits[-1] if logits else None, told


def test_a_killed_fine_tuning_ends_with_the_same_bits(tmp_path):
    write_sst2(tmp_path)
    expected, found = killed_and_resumed(tmp_path, "glue_sst2")
    assert np.array_equal(found, expected)


def killed_and_resumed(folder, name):
    """The last weights' outputs without a kill, and with one in the 26th of some 60 updates: between two
    looks at a held-out split."""
    whole, expected, _ = fitted(folder, 10**9, None, name)
    states = folder / "states"
    child = os.fork()
    if not child:
        fitted(folder, 26, states, name)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert sorted(path.name for path in states.iterdir()) == [f".{name}.lock", f"{name}.safetensors"]
    scores, found, told = fitted(folder, 10**9, states, name)
    assert told[0] == f"{name}: resumes after update 25"
    assert scores == whole
    assert [path.name for path in states.iterdir()] == [f"{name}.json"]
    again, nothing, told = fitted(folder, 1, states, name)  # would die at once if it trained
    assert again == whole and nothing is None and "finished before" in told[0]
    return expected, found


def test_what_was_interrupted_is_not_mixed_with_something_else(tmp_path):
    write_sst2(tmp_path)
    states, task = tmp_path / "states", tasks()["glue_sst2"]
    fitted_on = find_data(task.data, tmp_path)

    class Stop(Exception):
        pass

    def stop(line):
        raise Stop

    def run(tell, recipe=QUICK, data=fitted_on, moved=0.0):
        module = build_task(world_config(tmp_path)).eval().requires_grad_(False)
        module.model.text_encoder.final_norm.bias += moved
        model = frozen(tmp_path, module, workplace=Workplace(states, tell))
        return dataclasses.replace(task, recipe=recipe).run(model, data)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(fitting, "SAVED_EVERY_S", 0)
        run(stop)
    for changed, words in (
        ({"moved": 0.1}, "with weights .* this one has"),
        ({"recipe": dataclasses.replace(QUICK, seed=1)}, "with recipe"),
        ({"data": find_data(task.data, tmp_path, limit=6)}, "with training samples"),
    ):
        with pytest.raises(DataError, match=f"glue_sst2.safetensors: an interrupted fine-tuning {words}"):
            run(print, **changed)
    three = dataclasses.replace(task.data, labels=("0", "1", "2"), class_names=("a", "b", "c"))
    with pytest.raises(DataError, match="outputs of the head 2, and this one has 3; delete the file"):
        run(print, data=find_data(three, tmp_path))
    (states / "glue_sst2.safetensors").write_bytes(b"cut")
    with pytest.raises(Exception, match="glue_sst2.safetensors is not a readable safetensors file"):
        run(print)


@pytest.mark.parametrize(
    "task, change, words",
    [
        ("glue_sst2", "one class", "train' has no sample of class 'positive', which split 'dev' has"),
        ("glue_mnli", "no mismatched", "dev_mismatched.tsv: cannot be read"),
        ("snli_ve", "no dev", "split dev of snli_ve, which chooses the weights, is missing"),
        (
            "glue_sst2",
            "no data",
            "no sst2 in .*SST-2.* expected train.tsv|dev.tsv.*7 MB.*licence: that of the",
        ),
    ],
)
def test_what_lacks_is_one_line(tmp_path, task, change, words):
    WRITERS[task](tmp_path)
    if change == "one class":
        (tmp_path / "SST-2" / "train.tsv").write_text("sentence\tlabel\nx\t0\ny\t0\n")
    elif change == "no mismatched":
        (tmp_path / "MNLI" / "dev_mismatched.tsv").unlink()
    elif change == "no dev":
        (tmp_path / "snli_ve" / "snli_ve_dev.jsonl").unlink()
    else:
        (tmp_path / "SST-2").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=words) as error:
        tasks()[task].run(frozen(tmp_path), find_data(tasks()[task].data, tmp_path))
    assert "\n" not in str(error.value)


def test_a_model_without_states_of_pairs_is_named(tmp_path):
    write_snli_ve(tmp_path)
    model = frozen(tmp_path)
    model._parts = ()
    with pytest.raises(
        Lacking, match="task snli_ve needs PairStates .states of image-text pairs that can be"
    ):
        evaluate([tasks()["snli_ve"]], model, find_all([tasks()["snli_ve"]], tmp_path))


def on_ranks(folder: Path):
    """Fine-tunes on this rank's share of each batch."""
    model = frozen(folder, share=Share(start(60)))
    task = dataclasses.replace(
        tasks()["snli_ve"], recipe=dataclasses.replace(QUICK, samples=18, updates=6, rows_at_once=3)
    )
    logits, predict = [], fitting.Fitting.predict
    fitting.Fitting.predict = lambda self, inputs: logits.append(predict(self, inputs)) or logits[-1]
    scores = task.run(model, find_data(task.data, folder))
    fitting.Fitting.predict = predict
    return scores, logits[-1]


@pytest.mark.distributed
def test_three_ranks_train_as_one_does(tmp_path, run_ranks):
    write_snli_ve(tmp_path)
    [(alone, expected)] = run_ranks(on_ranks, 1, tmp_path)
    found = run_ranks(on_ranks, 3, tmp_path)
    for scores, logits in found:
        assert scores == alone and np.abs(logits - expected).max() < 1e-4
        assert np.array_equal(logits, found[0][1])
