"""ALBEF's teacher after some steps, its losses in every split, and a run that is resumed."""

import dataclasses
import math

import pytest
import torch
from families.albef.albef_peers import tiny_config, tiny_model
from real_runs import train_all
from stranger_runs import SAMPLES, STEPS, curve, numbers_of, prove, split, stranger_config

from flava_ds import config as configuration
from flava_ds.checkpoints import checkpoint
from flava_ds.checkpoints.saver import Saver
from flava_ds.config import CheckpointConfig
from flava_ds.errors import CheckpointError, ConfigError
from flava_ds.families.albef.task import AlbefTask
from flava_ds.objectives.distilled_text import DistilledTextConfig
from flava_ds.objectives.global_contrastive import GlobalContrastiveConfig
from flava_ds.objectives.itm import ImageTextMatchingConfig
from flava_ds.objectives.masked_text import MultimodalMaskedTextConfig
from flava_ds.objectives.momentum_contrastive import MomentumContrastiveConfig
from flava_ds.optimizers.base import is_decayed
from flava_ds.ranks.distributed import start
from flava_ds.recipes import RECIPES
from flava_ds.scaling.captions import lengths_of
from flava_ds.scaling.measure import measure
from flava_ds.training.engine import Engine


def test_the_class_token_and_positions_decay_as_published():
    task, recipe = AlbefTask(tiny_config()), RECIPES["albef_base"]().optimizer
    decayed = {name for name, own in task.named_parameters() if is_decayed(name, own, recipe)}
    exempt = dict(task.named_parameters()).keys() - decayed
    assert {f"model.image_encoder.{name}" for name in ("cls_token", "position_embeddings")} < decayed
    assert all(name.endswith(("bias", "norm.weight", "temperature")) for name in exempt)


def test_the_planner_sees_three_texts_a_sample_and_the_teacher():
    config = RECIPES["demo_albef"]()
    work = measure(config, lengths_of(config, None), samples=4)
    kind = work.kinds["pair"]
    assert 2.5 < kind.parts["multimodal"].each / kind.parts["multimodal_masked"].each < 3
    whole = sum(part.each for part in kind.parts.values())
    # by the operators' own formulas; the cross-entropy finishes its gradients in the forward pass
    operators = [own for own in kind.operators if own.phase == "forward" and "entropy" not in own.name]
    forward = sum(own.flops.each * own.count for own in operators)
    assert forward == pytest.approx(whole - kind.parts["mlm"].each, rel=0.02)
    assert 0.2 * whole < kind.codebook_flops.each < 0.6 * whole
    assert work.frozen == sum(work.encoders.values()) - 2 * 193, "all but the matching head"


@pytest.mark.parametrize(
    ("objectives", "words"),
    [
        ({"gc": GlobalContrastiveConfig()}, "objectives.gc .* `logit_scale`"),
        ({"itm": ImageTextMatchingConfig()}, "objectives.itm .* type itm_hard"),
        (
            {"mlm": DistilledTextConfig(), "mmm": MultimodalMaskedTextConfig()},
            "objectives.mmm masks words of pairs as objectives.mlm does, .* masks a text once",
        ),
    ],
)
def test_objectives_of_other_families_are_one_line(objectives, words):
    with pytest.raises(ConfigError, match=words):
        configuration.check(tiny_config(objectives=objectives))


def test_encoders_of_two_widths_are_one_line():
    image = dataclasses.replace(tiny_model().image, hidden_size=48)
    with pytest.raises(ConfigError, match="image.hidden_size 48 is not text.hidden_size 24"):
        configuration.check(tiny_config(model=dataclasses.replace(tiny_model(), image=image)))


def albef_config(folder, **changed):
    """Five steps of eight pairs with dropout, the teacher's too; the queue holds three steps, so the fourth
    replaces the first.
    """
    objectives = {
        "itc": MomentumContrastiveConfig(queue_size=3 * SAMPLES, distillation_steps=2),
        "itm": tiny_config().objectives["itm"],
        "mlm": DistilledTextConfig(distillation_steps=2),
    }
    tiny = tiny_model()
    model = dataclasses.replace(tiny, text=dataclasses.replace(tiny.text, hidden_dropout=0.1))
    return stranger_config(folder, name="albef", model=model, objectives=objectives | changed)


@pytest.mark.distributed
@pytest.mark.slow
def test_a_run_is_the_same_in_every_topology(run_ranks, tmp_path, told):
    """One rank with one micro-batch and with four, two ranks under ZeRO 1 and 3, stopped and resumed; and the
    teacher is what its formula says of the weights of all steps.
    """
    config = albef_config(tmp_path)
    lines = prove(run_ranks, config, told=told)
    assert math.log(4 * SAMPLES) < lines[0]["loss/itc"] < 3 * math.log(4 * SAMPLES), "random, over 0.07"
    assert lines[0]["loss/itm"] == pytest.approx(math.log(2), abs=0.2)
    assert lines[0]["loss/mlm"] == pytest.approx(math.log(200), abs=0.3)
    saved = numbers_of(split(config, "zero1_whole", "zero1", 2))
    assert saved["state/itc.queue/place"].tolist() == [STEPS % 3 * SAMPLES]
    name = "model.fusion.transformer.blocks.0.cross_attention.query.weight"
    assert not torch.equal(saved[f"weight/{name}"], saved[f"average.teacher/{name}"])


@pytest.mark.distributed
def test_the_teacher_is_the_weighted_mean_of_the_weights_of_all_steps(run_ranks, tmp_path):
    """In closed form after k steps: m^k of the initial weights and (1 - m) m^(k-i) of those after step i."""
    every = CheckpointConfig(every_steps=1, keep_last=STEPS + 1)
    config = dataclasses.replace(albef_config(tmp_path), checkpoint=every)
    assert run_ranks(train_all, 1, ((config, None),)) == [[0]]
    initial = {name: p.detach().clone() for name, p in config.model.build(config).named_parameters()}
    saved = [numbers_of(config, step) for step in range(1, STEPS + 1)]
    followed = [name for name in initial if f"average.teacher/{name}" in saved[-1]]
    assert set(initial) - set(followed) == {"objectives.itm.head.weight", "objectives.itm.head.bias"}
    kept = config.model.teacher_momentum
    for name in followed:
        expected = kept**STEPS * initial[name].flatten()
        for step, numbers in enumerate(saved, start=1):
            expected = expected + (1 - kept) * kept ** (STEPS - step) * numbers[f"weight/{name}"]
        torch.testing.assert_close(saved[-1][f"average.teacher/{name}"], expected, rtol=1e-6, atol=1e-7)
    assert len(curve(config)) == STEPS


def refused(config) -> list[str]:
    """What is said of checkpoints without a teacher, and with another queue."""
    world, said = start(60), []
    checkpoint.prepare(config, world)
    untaught = AlbefTask(config)
    saver = Saver(Engine(untaught, config, world), config)
    saver.save(1, {}, spikes={"calm": True, "rollbacks": 0, "recent": {}, "streaks": {}})
    saver.finish()
    longer = {"itc": dataclasses.replace(config.objectives["itc"], queue_size=4 * SAMPLES)}
    other = AlbefTask(dataclasses.replace(config, objectives=config.objectives | longer))
    for task in (config.model.build(config), other):
        with pytest.raises(CheckpointError) as caught:
            checkpoint.resume(Engine(task, config, world), config)
        said.append(str(caught.value))
    return said


@pytest.mark.distributed
def test_a_checkpoint_without_the_teacher_or_with_another_queue_is_refused(run_ranks, tmp_path):
    ((without, other),) = run_ranks(refused, 1, albef_config(tmp_path))
    assert "has no 'average.teacher' of 'model." in without and "--name" in without
    assert (
        "training states: 'itc.queue/images' is [24, 16], but this configuration's model has [32, 16]"
        in other
    )
