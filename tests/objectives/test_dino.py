"""DINO against the published loss written out, its schedules, its watch over collapse, and a run in every
topology.
"""

from __future__ import annotations

import dataclasses
import math

import flava_kernels.flops  # noqa: F401  registers the formulas
import looks
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from evaluation.color_world import write_image_folder
from real_runs import steps_of
from sample_batches import tiny_config
from stranger_runs import STEPS, numbers_of, prove, split, stranger_config
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flava_ds import cli
from flava_ds import config as configuration
from flava_ds.batch import Batch
from flava_ds.checkpoints.reader import load_weights
from flava_ds.config import EvaluationConfig, ImageTransformConfig
from flava_ds.data.plan import Draft
from flava_ds.errors import ConfigError
from flava_ds.evaluation.datasets.image_folder import ImageFolder
from flava_ds.evaluation.frozen_model import Described
from flava_ds.evaluation.opening import freeze
from flava_ds.evaluation.runner import find_data
from flava_ds.families.flava.task import build_task
from flava_ds.objectives.dino import DinoConfig
from flava_ds.objectives.dino_masks import CropMasks
from flava_ds.objectives.dino_states import TRIALS, CollapseWatch, measure
from flava_ds.objectives.simdino import SimdinoConfig

SMALL = DinoConfig(
    num_prototypes=24,
    head_hidden_size=16,
    bottleneck_size=8,
    local_crops=3,
    local_size=8,
    teacher_temperature_end=0.07,
    teacher_temperature_steps=4,
    teacher_momentum=0.8,
    stochastic_depth=0.0,
    watch_every_steps=2,
)


def task_of(**changed):
    own = dataclasses.replace(SMALL, **changed)
    return build_task(tiny_config(objectives={"dino": own}))


def crops_of(task, size: int = 5) -> Batch:
    """A batch of random crops."""
    draw = np.random.default_rng(0)
    edge, config = task.flava.image.image_size, next(iter(task.objectives.values())).crops_config
    shapes = {"global_crops": (size, 2, 3, edge, edge)}
    if config.local_crops:
        shapes["local_crops"] = (size, config.local_crops, 3, config.local_size, config.local_size)
    tensors = {
        name: torch.from_numpy(draw.integers(0, 256, shape, dtype=np.uint8)) for name, shape in shapes.items()
    }
    return Batch(kind="image", source="images", size=size, tensors=tensors, step=2)


@pytest.mark.parametrize("local_crops", [0, 3])
def test_the_loss_is_the_published_one(local_crops):
    task = task_of(local_crops=local_crops)
    objective, states = task.objectives["dino"], task.states
    centre, teacher = states["dino.centre"].mean, states["dino.teacher"]
    centre.copy_(torch.randn(24, generator=torch.Generator().manual_seed(1)))
    with torch.no_grad():
        for number, parameter in enumerate(teacher.network.parameters()):
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(number))
        (batch,) = teacher.complete_step([teacher.complete(crops_of(task))])

    def scores(encoder, head, crops):
        whole = encoder(crops, any_size=True)[0].last_hidden_state()
        first = whole.view(len(crops), -1, whole.shape[-1])[:, 0]
        hidden = F.gelu(F.linear(first, head.mlp[0].weight, head.mlp[0].bias))
        hidden = F.gelu(F.linear(hidden, head.mlp[1].weight, head.mlp[1].bias))
        hidden = F.linear(hidden, head.mlp[2].weight, head.mlp[2].bias)
        weight = head.prototypes.weight
        return (hidden / hidden.norm(dim=1, keepdim=True)) @ (weight / weight.norm(dim=1, keepdim=True)).T

    crops = [c for name in ("global_crops", "local_crops") if name in batch for c in batch[name].unbind(1)]
    student = [scores(task.model.image_encoder, objective.head, own) / 0.1 for own in crops]
    with torch.no_grad():
        taught = [scores(teacher.encoder, teacher.head, own) for own in crops[:2]]
    temperature = 0.04 + 0.03 * 2 / 4  # at step 2 of 4
    targets = [((own - centre) / temperature).softmax(1) for own in taught]
    terms = [
        -(target * own.log_softmax(1)).sum(1)
        for v, target in enumerate(targets)
        for u, own in enumerate(student)
        if u != v
    ]
    expected = torch.stack(terms).mean(0).sum()
    loss = objective(task.model, {}, batch)
    torch.testing.assert_close(loss.sum, expected, rtol=1e-5, atol=1e-5)
    assert len(terms) == 2 * (2 + local_crops) - 2 and loss.count == batch.size
    torch.testing.assert_close(loss.statistics["outputs"], torch.stack(taught).mean(0).sum(0))
    entropies = [-(target * target.log()).nan_to_num().sum(1) for target in targets]
    torch.testing.assert_close(loss.metrics["entropy"], torch.stack(entropies).mean(0).sum())
    gradients = torch.autograd.grad(loss.sum, list(objective.parameters()), retain_graph=True)
    wanted = torch.autograd.grad(expected, list(objective.parameters()))
    for ours, theirs in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def masked(task, batch: Batch) -> Batch:
    """The batch with masks as the loader draws them."""
    seeds = np.arange(3, 3 + batch.size, dtype=np.uint64)
    *_, masks = task.objectives["dino"].config.corruptions(task.config, None)
    found = masks(Draft(seeds=seeds, matched=np.ones(batch.size, dtype=bool)))
    return batch.having(**{name: torch.from_numpy(own) for name, own in found.items()})


def test_masked_patches_and_koleo_are_added_as_published():
    task = task_of(patch_weight=0.7, koleo_weight=0.1, min_patches_per_block=1, local_crops=0)
    plain = task_of(local_crops=0)
    objective, states, encoder = task.objectives["dino"], task.states, task.model.image_encoder
    with torch.no_grad():
        encoder.mask_token.normal_(generator=torch.Generator().manual_seed(0))
        states["dino.patch_centre"].mean.normal_(generator=torch.Generator().manual_seed(1))
    batch = masked(task, crops_of(task))
    (batch,) = states["dino.teacher"].complete_step([states["dino.teacher"].complete(batch)])
    loss = objective(task.model, {}, batch)

    teacher, crops, mask = states["dino.teacher"], batch["global_crops"].flatten(0, 1), batch["crop_mask"]

    def whole(network, mask):
        encoded = network(crops, mask, clean=mask is None)[0].last_hidden_state()
        return encoded.view(*mask_shape[:2], -1, encoded.shape[-1])

    mask_shape = mask.shape
    seen = whole(encoder, mask.flatten(0, 1))
    with torch.no_grad():
        told = whole(teacher.encoder, None)
    temperature = 0.04 + 0.03 * 2 / 4
    terms = []
    for image in range(batch.size):
        for view in range(2):
            hidden = mask[image, view].nonzero().flatten()
            if len(hidden):
                outputs = teacher.head(told[image, view, 1 + hidden])
                targets = ((outputs - states["dino.patch_centre"].mean) / temperature).softmax(1)
                scores = (objective.head(seen[image, view, 1 + hidden]) / 0.1).log_softmax(1)
                terms.append(-(targets * scores).sum(1).mean())
    assert 0 < len(terms) < 2 * batch.size
    patches = torch.stack(terms).sum() / 2
    torch.testing.assert_close(loss.metrics["patch"], patches.detach(), rtol=1e-5, atol=1e-5)
    near = 0.0
    for view in range(2):
        first = F.normalize(seen[:, view, 0], dim=1)
        distances = torch.cdist(first, first) + 10 * torch.eye(batch.size)
        near = near - distances.min(1).values.log().sum()
    torch.testing.assert_close(loss.metrics["koleo"], near.detach(), rtol=1e-4, atol=1e-4)
    # The rest is DINO's own loss, of the crops as the student sees them.
    scores = (objective.head(seen[:, :, 0].flatten(0, 1)) / 0.1).log_softmax(1).view(batch.size, 2, -1)
    own = -(batch["dino_targets"] * scores.flip(1)).sum() / 2
    torch.testing.assert_close(loss.sum, own + 0.7 * patches + 0.1 * near, rtol=1e-5, atol=1e-4)
    seen_by_teacher = batch["patch_outputs"]
    torch.testing.assert_close(loss.statistics["patch_outputs"], seen_by_teacher.sum(0))
    assert int(loss.statistics["patches"]) == int(mask.sum()) == len(seen_by_teacher)
    assert set(plain.objectives["dino"].metrics) == {"entropy", "divergence"} < set(objective.metrics)


def test_masks_of_crops_have_their_shares_and_are_the_samples_own():
    own = dataclasses.replace(SMALL, patch_weight=1.0, stochastic_depth=0.0)
    draw, samples = CropMasks(14, own), 400
    seeds = np.arange(samples, dtype=np.uint64)
    found = draw(Draft(seeds=seeds, matched=np.ones(samples, dtype=bool)))
    mask, rows, shares = found["crop_mask"], found["crop_mask_rows"], found["crop_mask_shares"]
    masked_crops = mask.any(-1)
    counts = mask.sum(-1)[masked_crops]
    assert abs(masked_crops.mean() - 0.5) < 4 * 0.5 / (2 * samples) ** 0.5
    assert counts.max() <= round(0.5 * 196) and abs(counts.mean() - 0.3 * 196) < 6
    assert np.array_equal(np.flatnonzero(mask), rows) and not np.array_equal(mask[:, 0], mask[:, 1])
    per_crop = np.bincount(rows // 196, shares, minlength=2 * samples)
    assert per_crop == pytest.approx(masked_crops.reshape(-1).astype(float), abs=1e-5)
    alone = draw(Draft(seeds=seeds[7:8], matched=np.ones(1, dtype=bool)))
    assert np.array_equal(alone["crop_mask"][0], mask[7])
    assert sum(part.nbytes for part in found.values()) <= samples * draw.bytes_per_sample(None)


@pytest.mark.parametrize("patch_weight", [0.0, 1.0])
def test_what_trains_is_what_gets_a_gradient(patch_weight):
    task = task_of(patch_weight=patch_weight, min_patches_per_block=1, masked_crops=1.0)
    given = masked(task, crops_of(task)) if patch_weight else crops_of(task)
    (batch,) = task.states["dino.teacher"].complete_step([task.complete(given)])
    task.step(batch, {"dino": torch.tensor(5.0)}).loss.backward()
    moved = {name for name, p in task.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {name for name, kinds in task.users().items() if kinds}
    assert "model.image_encoder.position_embeddings" in moved


def test_work_is_what_torch_counts():
    """Student three times, teacher once; also of the masked patches."""
    masks = {"patch_weight": 1.0, "min_patches_per_block": 1, "masked_crops": 1.0, "masked_least": 0.4}
    task = task_of(watch_every_steps=0, **masks)
    batch = masked(task, crops_of(task))
    with FlopCounterMode(display=False) as teacher, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        (seen,) = task.states["dino.teacher"].complete_step([task.complete(batch)])
    with FlopCounterMode(display=False) as student, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        task.step(seen, {"dino": torch.tensor(5.0)})
    counted = 3 * student.get_total_flops() + teacher.get_total_flops()
    assert task.flops(batch) == pytest.approx(counted, rel=1e-3)


def test_stochastic_depth_leaves_branches_out_and_scales_the_others():
    task = task_of(stochastic_depth=0.5)
    encoder, (first, last) = task.model.image_encoder, task.model.image_encoder.transformer.blocks
    crops = crops_of(task, 3)["global_crops"]
    draws = torch.full((3, 5, 2, 2), 0.9)
    draws[0, 1, 1, 0] = 0.4  # second crop of the first image: no attention in the last block
    draws[:, :, 0] = 0.0  # which the first block never heeds
    batch = Batch(kind="image", source="", size=3, tensors={"path_draws": draws})
    paths, of_local = task.objectives["dino"].paths(batch, torch.float32)
    assert paths.shape == (6, 2, 2) and of_local.shape == (9, 2, 2)
    assert paths[1].tolist() == [[1, 1], [0, 2]] and paths[2].tolist() == [[1, 1], [2, 2]]
    ours = encoder.first_tokens(crops.flatten(0, 1), paths)
    for number, crop in enumerate(crops.flatten(0, 1)):
        kept, length = paths[number], 1 + encoder.config.num_patches
        lengths, rest = torch.tensor([0, length], dtype=torch.int32), (length, True)
        patches = encoder.patch_embedding(crop[None])[0]
        stream = torch.cat([encoder.cls_token[None], patches]) + encoder.position_embeddings
        for block, (attends, thinks) in zip((first, last), kept, strict=True):
            context = block.attention(block.attention_norm(None, stream)[0], lengths, *rest)
            stream = stream + attends * block.attention.output(context)
            hidden = block.mlp_up(block.mlp_norm(None, stream)[0])
            stream = stream + thinks * block.mlp_down(hidden)
        torch.testing.assert_close(ours[number], encoder.final_norm(stream[:1])[0], rtol=1e-4, atol=1e-5)


def test_draws_of_paths_are_uniform_and_the_samples_own():
    (draw,) = dataclasses.replace(SMALL, stochastic_depth=0.1).corruptions(tiny_config(), None)
    seeds = np.arange(500, dtype=np.uint64)
    draws = draw(Draft(seeds=seeds, matched=np.ones(500, dtype=bool)))["path_draws"]
    assert draws.shape == (500, 5, 2, 2) and draws.nbytes == 500 * draw.bytes_per_sample(None)
    assert abs(draws.mean() - 0.5) < 4 * (1 / 12 / draws.size) ** 0.5 and draws.max() < 1
    alone = draw(Draft(seeds=seeds[7:8], matched=np.ones(1, dtype=bool)))["path_draws"]
    assert np.array_equal(alone[0], draws[7]) and SMALL.corruptions(tiny_config(), None) == ()


def test_schedules_are_functions_of_the_step():
    task = task_of(teacher_momentum=0.9, freeze_last_layer_steps=7)
    objective = task.objectives["dino"]
    total = objective.total_steps
    assert [objective.temperature(step) for step in (0, 2, 4, 400)] == pytest.approx(
        [0.04, 0.055, 0.07, 0.07]
    )
    assert [objective.momentum(step) for step in (0, total // 2, total)] == pytest.approx([0.9, 0.95, 1.0])
    assert task.first_steps() == {"objectives.dino.head.prototypes.weight": 7}


def statistics_of(targets: torch.Tensor, features: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the objective sums, by definition."""
    return {
        "probabilities": targets.sum(0),
        "likeliest": torch.bincount(targets.argmax(1), minlength=targets.shape[1]).float(),
        "features": features.sum(0),
        "products": features.T @ features,
        "entropy": -torch.xlogy(targets, targets).sum(),
        "crops": torch.tensor(float(len(targets))),
    }


def told(watch: CollapseWatch, targets, features) -> str | None:
    for step in range(TRIALS):
        assert watch.complaint({}) is None
        watch.after_update(step, engine=None, statistics=statistics_of(targets, features))
    return watch.complaint({name: float(value) for name, value in watch.report().items()})


def test_collapse_is_measured_and_told():
    corners = torch.eye(4).repeat(2, 1)  # 8 crops on 4 axes
    targets = torch.eye(5)[:4].repeat(2, 1)
    used, entropy, spread, rank, single, crops = measure(statistics_of(targets, corners)).tolist()
    # Four corners of a simplex: three equal variances, each dimension 1/4 of the time 1.
    assert (used, crops, single) == (4, 8, 0) and entropy == pytest.approx(math.log(4))
    assert rank == pytest.approx(3) and spread == pytest.approx(math.sqrt(3 / 16) * 2)
    assert told(CollapseWatch(5), targets, corners) is None
    same = told(CollapseWatch(5), targets[:1].expand(8, -1), corners[:1].expand(8, -1))
    assert same is not None and "the same of every image" in same and "1 of 5 prototypes used" in same
    nothing = told(CollapseWatch(5), torch.full((8, 5), 0.2), corners)
    assert nothing is not None and "says nothing of any image" in nothing and "1.61 of 1.61 nats" in nothing


def test_settings_that_cannot_work_are_one_line():
    config = tiny_config(objectives={"dino": dataclasses.replace(SMALL, local_size=9)})
    with pytest.raises(ConfigError, match="local_size 9 is not divisible by model.image.patch_size 4; use 8"):
        configuration.check(config)
    scale = dataclasses.replace(SMALL, local=ImageTransformConfig(crop_scale=(0.5, 0.2)))
    with pytest.raises(ConfigError, match="objectives.dino.local.crop_scale"):
        configuration.check(tiny_config(objectives={"dino": scale}))
    shares = dataclasses.replace(SMALL, masked_least=0.6)
    with pytest.raises(ConfigError, match="dino.masked_least 0.6 is above masked_most 0.5; swap them"):
        configuration.check(tiny_config(objectives={"dino": shares}))
    both = {"one": SMALL, "off": dataclasses.replace(SMALL, weight=0.0), "two": SimdinoConfig(local_size=8)}
    with pytest.raises(ConfigError, match="objectives.one and objectives.two each have a teacher"):
        configuration.check(tiny_config(objectives=both))


@pytest.mark.distributed
@pytest.mark.slow
def test_a_run_is_the_same_in_every_topology(run_ranks, tmp_path):
    own = dataclasses.replace(SMALL, freeze_last_layer_steps=3, stochastic_depth=0.4)
    own = dataclasses.replace(own, koleo_weight=0.1, patch_weight=1.0, min_patches_per_block=1)
    config = stranger_config(tmp_path, name="dino", kind="image", objectives={"dino": own})
    optimizer = dataclasses.replace(config.optimizer, weight_decay=0.04, weight_decay_end=0.4)
    training = dataclasses.replace(config.training, clip_each_parameter=True, gradient_clipping=0.3)
    sets = write_image_folder(tmp_path / "sets" / "image_folder", {"test": 2}).parent
    evaluation = EvaluationConfig(
        every_steps=2, tasks=(looks.__file__,), data_root=str(sets), average="dino.teacher", references=True
    )
    config = dataclasses.replace(config, optimizer=optimizer, training=training, evaluation=evaluation)
    curve = prove(run_ranks, config)
    numbers = {"teacher_entropy", "divergence", "used_prototypes", "batch_entropy", "spread"}
    numbers |= {"koleo", "patch_loss"}
    assert {f"metric/{name}/dino" for name in numbers} < set(curve[0]) and len(curve) == STEPS
    assert all(0 < line["metric/patch_loss/dino"] < line["loss/dino"] < 4 * math.log(24) for line in curve)
    for stage, file in (("zero1", "zero1"), ("zero3", "zero3")):
        saved = numbers_of(split(config, f"{stage}_whole", file, 1))
        student = saved["weight/objectives.dino.head.prototypes.weight"]
        teacher = saved["average.dino.teacher/objectives.dino.head.prototypes.weight"]
        assert not torch.equal(student, teacher)
        assert float(saved["state/dino.centre/mean"].abs().max()) > 0
        assert float(saved["state/dino.patch_centre/mean"].abs().max()) > 0
    check_evaluations(split(config, "zero3_whole", "zero3", 1), sets)


def check_evaluations(config, sets):
    """What a run logged of its teacher is what the teacher of its checkpoint reaches once it is converted,
    and once what it compares that with.
    """
    lines, found = steps_of(config.run_path), find_data(ImageFolder(), sets)
    reached, file = [], str(sets / "weights.safetensors")
    for words in (["--average", "dino.teacher"], []):
        assert cli.main(["convert", str(config.run_path), "--to", "safetensors", file, *words]) == 0
        task = build_task(config).eval()
        task.load_state_dict(load_weights(file))
        reached.append(
            looks.Looks().run(freeze(config, task, Described("alone", "flava")), found)["mean"].value
        )
    logged = [line["evaluation/looks/mean"] for line in lines if "evaluation/looks/mean" in line]
    assert logged[-1] == pytest.approx(reached[0], abs=1e-6) and len(logged) == 3
    assert abs(reached[0] - reached[1]) > 1e-5, "the student must differ, or this test could not fail"
    references = [{key for key in line if key.startswith("evaluation_reference/")} for line in lines]
    names = {f"evaluation_reference/{of}/looks/mean" for of in ("start", "pixels")}
    assert references == [names] + [set()] * (STEPS - 1)
    task = build_task(config).eval()
    start = looks.Looks().run(freeze(config, task, Described("alone", "flava")), found)["mean"].value
    assert lines[0]["evaluation_reference/start/looks/mean"] == pytest.approx(start, abs=1e-6)
