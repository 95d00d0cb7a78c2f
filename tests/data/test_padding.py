"""Padded batches: the losses and gradients of exact ones, and the same calls for all of one padded length."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from data.test_collate import collator_of, samples
from families.clip import peers as clip
from flava_kernels import checks
from sample_batches import denominators, make_batch, masked_share_of, samples_of, tiny_config
from torch.fx.experimental.proxy_tensor import make_fx

from flava_ds.batch import IGNORE_INDEX, Batch
from flava_ds.config import TrainingConfig
from flava_ds.config.data_checks import check_padding
from flava_ds.data.padding import padded, padding_bytes, padding_ends, rounded_up
from flava_ds.errors import ConfigError
from flava_ds.families.bert.config import BertConfig
from flava_ds.families.clip.task import build_task as build_clip
from flava_ds.families.flava.task import build_task
from flava_ds.families.flava.views import Kind
from flava_ds.objectives.hard_matching import HardMatchingConfig
from flava_ds.scaling.trace import trace_step
from flava_ds.training.task import fold_biases

MULTIPLE, LONGEST = 48, 13


def with_padding(batch: Batch, multiple: int = MULTIPLE, longest: int = LONGEST) -> Batch:
    tensors, numbers = padded(batch.tensors, batch.numbers, multiple, longest)
    return replace(batch, tensors=tensors, numbers=numbers)


def losses_and_gradients(task, batch):
    task.zero_grad()
    losses = task.losses(batch)
    weighted = task.weighted(losses, denominators(task, batch))
    sum(weighted.values()).backward()
    of_parameters = {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}
    told = {name: (loss.count, loss.metrics["correct"].item()) for name, loss in losses.items()}
    return {name: loss.sum.detach() for name, loss in losses.items()}, of_parameters, told


def share_of_pairs(config):
    batch = make_batch(Kind.PAIR, config, size=6, mismatched=(1, 4))
    return masked_share_of(batch, (0, 1, 3), samples_of(batch, (0, 1, 3)))


BATCHES = {
    "pair": lambda config: make_batch(Kind.PAIR, config),
    "no pair matched": lambda config: make_batch(Kind.PAIR, config, mismatched=(0, 1, 2, 3)),
    "share of pairs": share_of_pairs,
    "image": lambda config: make_batch(Kind.IMAGE, config),
    "text": lambda config: make_batch(Kind.TEXT, config),
}


def assert_equal_steps(task, batch):
    losses, gradients, told = losses_and_gradients(task, batch)
    for multiple, longest in ((MULTIPLE, LONGEST), (7, 32), (1, 13)):
        more, found, counted = losses_and_gradients(task, with_padding(batch, multiple, longest))
        torch.testing.assert_close(more, losses, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found, gradients, rtol=1e-9, atol=1e-12)
        assert counted == told


@pytest.mark.parametrize("name", BATCHES)
def test_losses_and_gradients_are_those_of_exact_batches(name):
    config = tiny_config()
    task, batch = build_task(config).double(), BATCHES[name](config)
    assert_equal_steps(task, batch)
    assert task.flops(with_padding(batch)) == task.flops(batch), "FLOPs that count are those of data"


@pytest.mark.parametrize("name", BATCHES)
def test_folded_biases_change_no_bit_of_a_padded_step(name):
    config = tiny_config()
    plain, folding, batch = build_task(config), build_task(config), with_padding(BATCHES[name](config))
    fold_biases(folding, True)
    (losses, gradients, _), (found, ours, _) = (losses_and_gradients(own, batch) for own in (plain, folding))
    assert found == losses and ours.keys() == gradients.keys()
    assert [own for own, gradient in gradients.items() if not torch.equal(ours[own], gradient)] == []


def test_clip_reads_no_padding():
    config = clip.tiny_config()
    task, batch = build_clip(config).double(), clip.make_batch(config, (5, 12, 2, 9))
    batch = replace(batch, numbers={"max_seqlen": 12})
    assert_equal_steps(task, batch)


def calls_of_a_step(task, batch):
    """What a micro-step, forward and backward, calls on the meta device, where no value can be read."""
    batch, ones = batch.to("meta"), {name: torch.ones((), device="meta") for name in task.active(batch.kind)}
    step = trace_step(task, lambda: task("step", batch, ones).loss, batch.tensors.values(), 0.0)
    return [(call.name, call.flops, call.bytes, call.product) for call in step.calls]


def two_of_one_length(config):
    """Two batches of pairs that differ in all their lengths, and in how many match."""
    shape = {"kind": Kind.PAIR, "config": config, "size": 3}
    one = make_batch(**shape, seed=1, lengths=(9, 4, 12))
    return one, make_batch(**shape, seed=2, lengths=(7, 11, 10), mismatched=())


def test_micro_steps_of_one_padded_length_make_the_same_calls():
    config = tiny_config()
    with torch.device("meta"):
        task = build_task(config)
    one, two = two_of_one_length(config)
    first, second = (calls_of_a_step(task, with_padding(batch)) for batch in (one, two))
    assert first == second and len(first) > 100
    assert calls_of_a_step(task, one) != calls_of_a_step(task, two)


def test_a_graph_of_one_micro_step_is_that_of_all_of_its_padded_length(monkeypatch):
    """As a CUDA graph would be: calls recorded with one batch, then run with the tensors of another."""
    monkeypatch.setattr(checks, "readable", lambda tensor: False)  # as on a GPU
    config = tiny_config()
    task, (one, two) = build_task(config).double(), map(with_padding, two_of_one_length(config))
    weights = [p for name, p in task.named_parameters() if Kind.PAIR in task.users().get(name, ())]

    def step(*tensors):
        batch = replace(one, tensors=dict(zip(one.tensors, tensors, strict=True)))
        loss = task("step", batch, denominators(task, one)).loss
        return loss, *torch.autograd.grad(loss, weights)

    recorded = make_fx(step)(*one.tensors.values())
    with torch.no_grad():
        replayed = recorded(*(two[name] for name in one.tensors))
    loss = task("step", two, denominators(task, one)).loss
    for ours, expected in zip(replayed, (loss, *torch.autograd.grad(loss, weights)), strict=True):
        assert torch.equal(ours, expected.detach())
    assert len(weights) > 50 and not torch.equal(replayed[0], step(*one.tensors.values())[0])


@pytest.mark.parametrize("masked_rows", [None, np.array([1, 4, 5])])
def test_collators_pad_to_multiples_and_keep_what_is_there(make_config, masked_rows):
    config = make_config()
    training = replace(config.training, pad_to_multiple_of=MULTIPLE)
    exact, ours = (
        collator_of(own, "pairs")(samples(6), borrowed={2: "a blue house"}, masked_rows=masked_rows)
        for own in (config, replace(config, training=training))
    )
    assert ours.tensors.keys() - exact.tensors.keys() <= {"padding_ends", "masked_padding_ends"}
    fillers = {"mlm_rows": -1, "mim_rows": -1, "matched_rows": -1, "mlm_labels": IGNORE_INDEX}
    fillers |= {"input_ids": 0, "input_ids_masked": 0}
    for name, tensor in exact.tensors.items():
        length = len(tensor)
        assert torch.equal(ours[name][:length], tensor) and ours[name].dtype == tensor.dtype
        if name in fillers:
            assert ours.listed(name) == length and len(ours[name]) == rounded_up(length, MULTIPLE)
            assert (ours[name][length:] == fillers[name]).all()
        else:
            assert len(ours[name]) == length
    most = config.data.sources["pairs"].max_tokens
    assert ours.numbers["max_seqlen"] == most and exact.numbers["max_seqlen"] < most
    bounds = ours.bounds()
    assert bounds[-1] == len(ours["input_ids"]) and 0 <= bounds.diff().min() <= bounds.diff().max() <= most
    added = sum(t.numel() * t.element_size() for t in ours.tensors.values()) - sum(
        t.numel() * t.element_size() for t in exact.tensors.values()
    )
    assert 0 < added <= padding_bytes(MULTIPLE)


def test_padding_has_as_many_sequences_for_every_length():
    for multiple, longest in ((48, 13), (8, 77), (1, 5), (64, 1)):
        for total in (1, max(1, multiple - 1), multiple, multiple + 1):
            ends = [total, *padding_ends(total, multiple, longest).tolist()]
            lengths = np.diff(ends)
            assert ends[-1] == rounded_up(total, multiple) and len(ends) == 1 + -(-(multiple - 1) // longest)
            assert (lengths >= 0).all() and (lengths <= longest).all()
    assert rounded_up(0, 48) == 48, "a list without rows has the shape of others"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": BertConfig()}, "the family 'bert' would take padding for text; use --training.pad-to-"),
        ({"objectives": {"own": HardMatchingConfig()}}, "objectives.own would take padding for data; leave"),
    ],
)
def test_what_would_take_padding_for_data_is_refused(changes, message):
    config = replace(tiny_config(), training=TrainingConfig(pad_to_multiple_of=8))
    check_padding(config)
    check_padding(replace(tiny_config(), **changes))  # exact batches suit all
    with pytest.raises(ConfigError, match=f"training.pad_to_multiple_of: {message}"):
        check_padding(replace(config, **changes))
