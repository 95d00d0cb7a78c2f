"""What evaluation during training needs is asked for before a run starts."""

import dataclasses

import pytest
from sample_batches import tiny_config

from flava_ds.config import CheckpointConfig, EvaluationConfig, check, from_dict, to_dict
from flava_ds.config.evaluation import higher_is_better
from flava_ds.config.tree import Config
from flava_ds.errors import ConfigError

GOOD = EvaluationConfig(every_steps=100, tasks=("cifar10_probe",), data_root="data")


def checked(evaluation, **checkpoint):
    return check(tiny_config(evaluation=evaluation, checkpoint=CheckpointConfig(**checkpoint)))


def test_a_good_one_passes_and_survives_json():
    config = checked(GOOD, keep_best=2, best_metric="evaluation/cifar10_probe/accuracy")
    assert from_dict(Config, to_dict(config)).evaluation == GOOD
    without = {key: value for key, value in to_dict(config).items() if key != "evaluation"}
    assert from_dict(Config, without).evaluation == EvaluationConfig()  # a run from before
    checked(
        EvaluationConfig(every_steps=1, tasks=("mine.py",), data_root="data"),
        best_metric="evaluation/of_mine/accuracy",
    )


def test_an_average_that_no_run_keeps_is_refused():
    good = dataclasses.replace(GOOD, average="ema")
    with pytest.raises(ConfigError, match="keeps no average of its weights; set training.weight_average"):
        checked(good)
    config = tiny_config(evaluation=good)
    check(dataclasses.replace(config, training=dataclasses.replace(config.training, weight_average=0.9)))


def test_the_best_metric_may_be_of_a_plain_method():
    """`zero_shot` is called own_zero_shot or image_folder_zero_shot in the log, by the layout of the data."""
    plain = EvaluationConfig(every_steps=1, tasks=("zero_shot", "linear_probe"), data_root="data")
    for task in ("own_zero_shot", "image_folder_zero_shot", "own_probe", "image_folder_probe"):
        checked(plain, keep_best=1, best_metric=f"evaluation/{task}/top1_accuracy")
    with pytest.raises(ConfigError, match="task 'own_retrieval' does not run"):
        checked(plain, keep_best=1, best_metric="evaluation/own_retrieval/recall")


def test_more_is_better_of_accuracies_and_as_tasks_say():
    lower = ["evaluation/held_out_losses/mim_loss"]
    for name in ("accuracy/itm", "evaluation/food101_probe/top1_accuracy"):
        assert higher_is_better(name, lower) and higher_is_better(name)
    for name in ("loss/itm", "metric/giou/boxes", "grad_norm", "seconds", *lower):
        assert not higher_is_better(name, lower)


@pytest.mark.parametrize(
    "evaluation, best_metric, words",
    [
        (EvaluationConfig(every_steps=5), "", "evaluation.tasks is empty"),
        (EvaluationConfig(every_steps=5, tasks=("a",)), "", "needs evaluation.data_root"),
        (
            EvaluationConfig(every_steps=5, tasks=("lab.mine",), data_root="d"),
            "",
            "'lab.mine' is no task; give a module of your own as its file, FILE.py",
        ),
        (EvaluationConfig(every_steps=-1), "", "evaluation.every_steps"),
        (EvaluationConfig(limit=0), "", "evaluation.limit"),
        (
            GOOD,
            "nonsense",
            "'nonsense', which the log does not have; use one such as loss/global_contrastive, ",
        ),
        (GOOD, "loss/itmm", "which the log does not have; did you mean 'loss/itm'"),
        (GOOD, "accuracy/none", "which the log does not have"),
        (GOOD, "metric/mim", "which the log does not have"),
        (GOOD, "evaluation/sst2_probe/accuracy", "task 'sst2_probe' does not run"),
        (
            EvaluationConfig(tasks=("a",), data_root="d"),
            "evaluation/a/accuracy",
            "set evaluation.every_steps",
        ),
    ],
)
def test_what_is_missing_is_named(evaluation, best_metric, words):
    with pytest.raises(ConfigError, match=words):
        checked(evaluation, best_metric=best_metric)
