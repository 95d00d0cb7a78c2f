"""The wrapped module: losses at random initialisation, gradients by step kind, nothing mutated, no NaN on
nothing.
"""

import dataclasses
import math

import pytest
import torch
from flava_kernels.contrastive import info_nce
from sample_batches import denominators, make_batch, masked_share_of, samples_of, tiny_config

from flava_ds.families.flava.config import flava_objectives
from flava_ds.families.flava.task import build_task
from flava_ds.families.flava.views import Kind
from flava_ds.objectives.global_contrastive import GlobalContrastiveConfig
from flava_ds.objectives.itm import ImageTextMatchingConfig
from flava_ds.training.task import fold_biases

CONTRASTIVE = "global_contrastive"


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("dropped", [None, "global_contrastive", "itm"])
def test_users_tell_which_parameters_get_a_gradient(kind, dropped):
    weights = {
        "global_contrastive": GlobalContrastiveConfig(weight=0.0),
        "itm": ImageTextMatchingConfig(weight=0.0),
    }
    config = tiny_config(objectives=flava_objectives(**({dropped: weights[dropped]} if dropped else {})))
    module, batch = build_task(config), make_batch(kind, config)
    module("step", batch, denominators(module, batch)).loss.backward()
    declared = {name for name, kinds in module.users().items() if kind in kinds}
    assert declared == {name for name, parameter in module.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("kind", list(Kind))
def test_first_losses_are_those_of_guessing(kind):
    config = tiny_config()
    module = build_task(config)
    batch = make_batch(kind, config, size=32)
    means = {name: float(loss.sum.detach()) / loss.count for name, loss in module.losses(batch).items()}
    vocabulary, codes = math.log(config.model.text.vocab_size), math.log(config.codebook.vocab_size)
    expected = {
        "mim": codes,
        "mmm_image": codes,
        "mlm": vocabulary,
        "mmm_text": vocabulary,
        "itm": math.log(2),
        "global_contrastive": math.log(32),
    }
    for name, mean in means.items():
        assert mean == pytest.approx(expected[name], abs=0.15 if name != "global_contrastive" else 2.5), name


def test_a_batch_without_terms_gives_zero_and_zero_gradients():
    config = tiny_config()
    module = build_task(config)
    batch = make_batch(Kind.PAIR, config, mismatched=(0, 1, 2, 3))
    output = module("step", batch, denominators(module, batch))
    assert module.counts(batch) == {"global_contrastive": 0, "mmm_image": 0, "mmm_text": 0, "itm": 4}
    for name in ("global_contrastive", "mmm_image", "mmm_text"):
        assert float(output.sums[f"{name}/loss"]) == 0.0
    output.loss.backward()
    assert all(
        torch.isfinite(parameter.grad).all()
        for parameter in module.parameters()
        if parameter.grad is not None
    )
    assert float(module.model.image_projection.weight.grad.abs().max()) == 0.0


def test_mismatched_pairs_are_left_out_whatever_the_itm_weight():
    config = tiny_config()
    without = dataclasses.replace(
        config, objectives=flava_objectives(itm=ImageTextMatchingConfig(weight=0.0))
    )
    batch = make_batch(Kind.PAIR, config, size=8, mismatched=(2, 5))
    full, reduced = build_task(config), build_task(without)
    reduced.load_state_dict(full.state_dict(), strict=False)
    ours, theirs = full.losses(batch), reduced.losses(batch)
    assert "itm" not in theirs and ours["global_contrastive"].count == theirs["global_contrastive"].count == 6
    for name, loss in theirs.items():
        assert torch.equal(loss.sum, ours[name].sum), name


WEIGHTS = {"global_contrastive": 2.0, "mim": 0.25, "mlm": 3.0, "mmm_image": 0.5, "mmm_text": 1.5, "itm": 4.0}


@pytest.mark.parametrize("kind", list(Kind))
def test_a_weight_multiplies_its_own_objective_in_the_loss_and_in_every_gradient(kind):
    plain_config, default = tiny_config(), flava_objectives()
    objectives = flava_objectives(
        **{name: dataclasses.replace(default[name], weight=weight) for name, weight in WEIGHTS.items()}
    )
    plain, weighted = (
        build_task(plain_config).double(),
        build_task(tiny_config(objectives=objectives)).double(),
    )
    batch = make_batch(kind, plain_config)
    shares = plain.weighted(plain.losses(batch), denominators(plain, batch))
    expected = sum(WEIGHTS[name] * share for name, share in shares.items())
    output = weighted("step", batch, denominators(weighted, batch))
    torch.testing.assert_close(output.loss, expected, rtol=1e-12, atol=1e-12)
    output.loss.backward()
    expected.backward()
    for (name, ours), theirs in zip(weighted.named_parameters(), plain.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-14, msg=name)


@pytest.mark.parametrize("kind", list(Kind))
def test_the_callers_tensors_are_never_changed(kind):
    config = tiny_config()
    module, batch = build_task(config), make_batch(kind, config)
    before = {name: value.clone() for name, value in batch.tensors.items()}
    module("step", batch, denominators(module, batch)).loss.backward()
    assert all(torch.equal(value, batch[name]) for name, value in before.items())


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize(
    "wanted",
    [("activation_checkpointing",), ("activation_checkpointing", "checkpoint_sums"), ("recompute_gelu",)],
    ids=" ".join,
)
def test_computing_again_changes_no_gradient(wanted, kind):
    config = tiny_config()
    plain = build_task(config)
    training = dataclasses.replace(config.training, **dict.fromkeys(wanted, True))
    recomputing = build_task(dataclasses.replace(config, training=training))
    batch = make_batch(kind, config)
    for module in (plain, recomputing):
        module("step", batch, denominators(module, batch)).loss.backward()
    for (name, ours), theirs in zip(plain.named_parameters(), recomputing.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        assert ours.grad is None or torch.equal(ours.grad, theirs.grad), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("wanted", [(), ("activation_checkpointing", "checkpoint_sums")], ids=["", "again"])
@pytest.mark.parametrize("kind", list(Kind))
def test_biases_whose_gradients_operators_sum_change_no_bit(kind, wanted, dtype):
    """As on a GPU (`fold_biases`); here the operators' references sum."""
    config = tiny_config()
    training = dataclasses.replace(config.training, **dict.fromkeys(wanted, True))
    config = dataclasses.replace(config, training=training)
    plain, folding = build_task(config).to(dtype), build_task(config).to(dtype)
    fold_biases(folding, True)
    batch = make_batch(kind, config, size=6, mismatched=(1, 4))
    losses = []
    for module in (plain, folding):
        losses.append(module("step", batch, denominators(module, batch)).loss)
        losses[-1].backward()
    assert torch.equal(*losses)
    for (name, ours), theirs in zip(folding.named_parameters(), plain.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        assert ours.grad is None or torch.equal(ours.grad, theirs.grad), name


def test_a_sample_does_not_depend_on_its_neighbours():
    """No padding: losses of samples taken alone add up to those of the batch (contrastive aside, whose
    negatives are the batch).
    """
    config = tiny_config(objectives=flava_objectives(global_contrastive=GlobalContrastiveConfig(weight=0.0)))
    module = build_task(config).double()
    short, long = (make_batch(Kind.TEXT, config, size=1, seed=s, lengths=(n,)) for s, n in ((1, 5), (2, 30)))
    both = dataclasses.replace(
        short,
        size=2,
        tensors={
            "input_ids": torch.cat([short["input_ids"], long["input_ids"]]),
            "input_ids_masked": torch.cat([short["input_ids_masked"], long["input_ids_masked"]]),
            "cu_seqlens": torch.tensor([0, 5, 35], dtype=torch.int32),
            "mlm_rows": torch.cat([short["mlm_rows"], long["mlm_rows"] + 5]),
            "mlm_labels": torch.cat([short["mlm_labels"], long["mlm_labels"]]),
        },
        numbers={"max_seqlen": 30},
    )
    alone = sum(module.losses(batch)["mlm"].sum for batch in (short, long))
    torch.testing.assert_close(module.losses(both)["mlm"].sum, alone, rtol=1e-12, atol=1e-12)


def test_a_batch_masked_as_a_whole_and_one_whose_masked_share_is_everything_are_the_same():
    config = tiny_config()
    module, batch = build_task(config).double(), make_batch(Kind.PAIR, config)
    for ours, theirs in zip(
        module.losses(batch).items(),
        module.losses(masked_share_of(batch, (0, 1, 2, 3), batch)).items(),
        strict=True,
    ):
        assert ours[0] == theirs[0] and ours[1].count == theirs[1].count
        torch.testing.assert_close(ours[1].sum, theirs[1].sum, rtol=1e-12, atol=1e-12)


def test_a_masked_share_is_what_the_masked_objectives_alone_see():
    config = tiny_config()
    module, batch = build_task(config).double(), make_batch(Kind.PAIR, config, size=6)
    rows = (0, 2, 5)
    share = samples_of(batch, rows)
    whole = masked_share_of(batch, rows, share)
    losses, clean, masked = module.losses(whole), module.losses(batch), module.losses(share)
    for name, loss in losses.items():
        expected = clean[name] if name == "global_contrastive" else masked[name]
        assert loss.count == expected.count == module.counts(whole)[name]
        torch.testing.assert_close(loss.sum, expected.sum, rtol=1e-12, atol=1e-12)


def test_two_passes_give_the_contrastive_gradient_of_the_whole_step():
    """Two micro-batches: what the two passes add up to, against both in one graph, beside the other
    objectives.
    """
    config = tiny_config()
    one, two = build_task(config).double(), build_task(config).double()
    batches = [
        make_batch(Kind.PAIR, config, seed=seed, mismatched=mismatched)
        for seed, mismatched in ((1, (0,)), (2, (1, 3)))
    ]
    whole = {
        name: torch.tensor(float(sum(one.counts(batch)[name] for batch in batches)))
        for name in one.counts(batches[0])
    }

    parts = [one.features(batch)[CONTRASTIVE] for batch in batches]
    image, text = (torch.cat([part.samples[name] for part in parts]) for name in ("image", "text"))
    matched = torch.cat([part.constants["matched"] for part in parts])
    loss, correct = info_nce(image, text, parts[0].shared["log_scale"], matched)
    others = [
        sum(part for name, part in one.weighted(one.losses(batch), whole).items() if name != CONTRASTIVE)
        for batch in batches
    ]
    (loss / whole[CONTRASTIVE] + sum(others)).backward()

    with torch.no_grad():
        features = [two("features", batch)[CONTRASTIVE] for batch in batches]
    gradients = two.objectives[CONTRASTIVE].step_gradients(CONTRASTIVE, features)
    outputs = [
        two("step", batch, whole, {CONTRASTIVE: part}) for batch, part in zip(batches, gradients, strict=True)
    ]
    sum(output.loss for output in outputs).backward()
    for metric, expected in (("loss", loss), ("correct", correct)):
        torch.testing.assert_close(
            sum(output.sums[f"{CONTRASTIVE}/{metric}"] for output in outputs), expected.detach()
        )
    for (name, ours), theirs in zip(two.named_parameters(), one.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-14, msg=name)
