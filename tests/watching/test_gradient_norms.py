"""Gradient norms of single objectives against plain autograd, and the steps at which they are measured."""

import types

import pytest
import torch
from sample_batches import denominators, make_batch, tiny_config
from test_engine import batches_of
from test_trainer import toy_trainer
from toy import gradients_alone, update_of

from flava_ds.families.flava.task import build_task
from flava_ds.families.flava.views import Kind
from flava_ds.watching.gradient_norms import GradientNorms


def measured_against_autograd() -> tuple[dict, dict]:
    """The measured norms and those of each loss taken alone."""
    trainer = toy_trainer("unused", objective_gradient_norms_every=1)
    batch = batches_of(Kind.PAIR, 0, 1, 1)[0][0]
    denominators = {"mmm_text": torch.tensor(2.0), "itm": torch.tensor(4.0)}
    watch = next(watcher for watcher in trainer.watchers if isinstance(watcher, GradientNorms))
    update = update_of(batches=[batch], denominators=denominators, gradients=[None])
    found = watch.measure(update)
    alone = gradients_alone(trainer.engine.module, batch, denominators)
    expected = {
        f"encoder_gradient_norm/{name}/{encoder}": float(own.norm()) for (encoder, name), own in alone.items()
    }
    for name in denominators:
        expected[f"gradient_norm/{name}"] = (
            sum(value**2 for key, value in expected.items() if f"/{name}/" in key) ** 0.5
        )
    return {name: float(value) for name, value in found.items()}, expected


def test_norms_are_those_of_each_loss_alone_by_encoder(run_ranks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ((found, expected),) = run_ranks(measured_against_autograd, 1)
    assert found == pytest.approx(expected, rel=1e-5) and len(found) == 8 and min(found.values()) > 0


def norms_of(task, batch, counts: dict, scale: float) -> dict[str, float]:
    """What is measured of an engine with this task and loss scale, which has no DeepSpeed."""
    world = types.SimpleNamespace(device=torch.device("cpu"), is_main=True)
    engine = types.SimpleNamespace(stage=1, world=world, module=task, loss_scale=scale)
    update = update_of(batches=[batch], denominators=counts, gradients=[None])
    return {
        name: float(value) for name, value in GradientNorms(engine, 1, metrics=None).measure(update).items()
    }


def test_an_encoder_that_an_objective_does_not_reach_has_no_norm():
    config = tiny_config()
    task, batch = build_task(config), make_batch(Kind.PAIR, config)
    found = norms_of(task, batch, denominators(task, batch), 1.0)
    of_contrast = {name for name in found if name.startswith("encoder_gradient_norm/global_contrastive/")}
    assert {name.rpartition("/")[2] for name in of_contrast} == {"image_encoder", "text_encoder"}
    assert "encoder_gradient_norm/itm/multimodal_encoder" in found
    assert all(value > 0 for value in found.values()), found


def test_fp16_gradients_of_large_batches_are_measured_with_the_loss_scale():
    """Without it half of these norms would be 0 or several per cent off."""
    config = tiny_config()
    task, batch = build_task(config), make_batch(Kind.PAIR, config)
    counts = {name: 10_000 * count for name, count in denominators(task, batch).items()}
    expected = norms_of(task, batch, counts, 1.0)
    assert norms_of(task.half(), batch, counts, 2.0**16) == pytest.approx(expected, rel=5e-3)


def norms(every: int, stage: int = 1) -> GradientNorms:
    engine = type("Engine", (), {"stage": stage, "world": type("World", (), {"is_main": True})})
    return GradientNorms(engine, every, metrics=None)


def test_every_kind_has_its_first_step_of_every_window_measured():
    kinds = [Kind.PAIR, Kind.PAIR, Kind.TEXT, Kind.PAIR, Kind.IMAGE, Kind.TEXT, Kind.TEXT, Kind.PAIR]
    measured = norms(4)
    assert [step for step, kind in enumerate(kinds) if measured.due(step, kind)] == [0, 2, 4, 5, 7]
    never = norms(0)
    assert not any(never.due(step, kind) for step, kind in enumerate(kinds))


def test_zero3_is_refused_once(caplog, monkeypatch):
    monkeypatch.setattr("flava_ds.ranks.distributed.log.propagate", True)
    assert not norms(4, stage=3).due(0, Kind.PAIR)
    assert "ZeRO-3 keeps no full gradients" in caplog.text


def test_only_trainable_parameters_of_encoders_count():
    task = build_task(tiny_config())
    task.model.text_encoder.final_norm.weight.requires_grad_(False)
    found, all_of = (
        task.encoders(),
        {name: len(list(part.parameters())) for name, part in task.model.named_children()},
    )
    assert list(found) == ["image_encoder", "text_encoder", "multimodal_encoder"]
    assert [all_of[name] - len(group) for name, group in found.items()] == [0, 1, 0]
