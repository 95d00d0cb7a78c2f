"""Bytes of the collectives of real training steps, against what shapes say; the counter itself against
tensors of known size.
"""

import itertools
import json
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from sample_batches import tiny_config

from flava_ds.config.objectives import in_use
from flava_ds.families.flava.task import build_task
from flava_ds.objectives.base import Features
from flava_ds.objectives.sigmoid_contrastive import SigmoidContrastiveConfig
from flava_ds.objectives.simdino import SimdinoConfig
from flava_ds.ranks import distributed
from flava_ds.recipes import resolve
from flava_ds.scaling import traffic
from flava_ds.scaling.captions import lengths_of
from flava_ds.scaling.measure import measure
from flava_ds.scaling.zero import zero_of
from flava_ds.training.engine_config import read_settings, shipped_settings
from flava_ds.watching import communication
from flava_ds.watching.communication import Call, CollectiveLog, payloads, sent

RANKS, STEPS, BLOCK = 2, 24, 4
"""Three blocks of pairs, one of texts, one of pairs, one of images; ZeRO-3 has learnt a kind's order in the
fourth step.
"""
WHOLE = {
    "stage3_param_persistence_threshold": 0,
    "stage3_max_live_parameters": 0,
    "stage3_max_reuse_distance": 0,
    "stage3_prefetch_bucket_size": 0,
}
SETTINGS = [
    ("zero0", {}),
    ("zero1", {}),
    ("zero1", {"use_multi_rank_bucket_allreduce": False}),
    ("zero2", {}),
    ("zero3", {}),
    ("zero3", WHOLE),
]


def call_each() -> list[Call]:
    """Calls one collective of each kind with tensors of 10 and 20 numbers, and sends ten of them."""
    distributed.start(30)
    ten, twenty = torch.ones(10), torch.ones(20)
    with CollectiveLog() as log:
        dist.all_reduce(ten)
        dist.all_gather_into_tensor(twenty, ten)
        dist.all_gather([torch.empty(10), torch.empty(10)], ten)
        dist.reduce_scatter_tensor(ten, twenty)
        dist.broadcast(ten.double(), 0)
        dist.reduce(ten.bfloat16(), 0)
        sending = dist.isend(ten, 1 - dist.get_rank())
        dist.recv(twenty[:10], 1 - dist.get_rank())
        sending.wait()
    return log.calls


@pytest.mark.distributed
def test_payloads_are_whole_tensors(run_ranks):
    expected = [
        ("all_reduce", 40),
        ("all_gather", 80),
        ("all_gather", 80),
        ("reduce_scatter", 80),
        ("broadcast", 80),
        ("reduce", 20),
        ("send", 40),
    ]
    assert run_ranks(call_each, RANKS) == [[Call("other", *row) for row in expected]] * RANKS


def sent_and_said() -> list[tuple[float, float]]:
    """Calls pooled losses that gather features with their gradients; returns the bytes that leave a rank, and
    what the objectives say.
    """
    distributed.start(30)
    config = tiny_config(objectives={"sigmoid": SigmoidContrastiveConfig(), "simdino": SimdinoConfig()})
    task, samples, found = build_task(config), 4, []
    widths = {"sigmoid": config.model.projection_dim, "simdino": config.objectives["simdino"].bottleneck_size}
    for name, views in {"sigmoid": ("image", "text"), "simdino": ("first", "second")}.items():
        rows = {view: torch.randn(samples, widths[name], requires_grad=True) for view in views}
        shared = {"log_scale": torch.zeros(1), "logit_bias": torch.zeros(1)}
        own = task.objectives[name]
        with CollectiveLog() as log:
            own.pooled_loss(Features(rows, shared, {"matched": torch.ones(samples)}))[0].backward()
        said = sum(own.exchanged_bytes(task.model, RANKS * samples))
        found.append((sent(payloads(log.calls), RANKS), sent({("pooled", "all_gather"): said}, RANKS)))
    return found


@pytest.mark.distributed
def test_pooled_losses_exchange_what_they_say(run_ranks):
    for measured, said in itertools.chain(*run_ranks(sent_and_said, RANKS)):
        assert measured == said


def test_ring_volumes():
    payload = payloads(
        [
            Call("gradients", "all_reduce", 300),
            Call("weights", "all_gather", 100),
            Call("weights", "all_gather", 20),
        ]
    )
    assert payload == {("gradients", "all_reduce"): 300, ("weights", "all_gather"): 120}
    assert sent(payload, 1) == 0
    assert sent(payload, 4) == 2 * 0.75 * 300 + 0.75 * 120
    assert sent(payload | {("counts", "send"): 50}, 4) == 2 * 0.75 * 300 + 0.75 * 120 + 50


def measured_steps(folder: str) -> list[tuple]:
    """Trains under each setting; returns setting, kind, samples, calls, bytes used and bytes in all of the
    last block of each kind.
    """
    from flava_ds.build import build

    os.chdir(folder)
    rows = []
    for number, (base, changes) in enumerate(SETTINGS):
        settings = json.loads(shipped_settings()[base].read_text())
        settings["zero_optimization"] |= changes
        path, own = Path(f"setting{number}.json"), Path(f"setting{number}.json.rank{os.environ['RANK']}")
        own.write_text(json.dumps(settings))
        own.replace(path)  # every rank writes the same bytes
        overrides = [
            "--name",
            str(number),
            "--engine.deepspeed-config",
            str(path),
            "--training.total-steps",
            "1000",
            "--checkpoint.every-steps",
            "0",
        ]
        overrides += [
            "--data.block-steps",
            str(BLOCK),
            "--logging.every-steps",
            "1000",
            "--logging.no-tensorboard",
        ]
        trainer = build(resolve("flava_debug", overrides))
        kinds = trainer.engine.module.users()
        sizes = {
            name: 4 * shape.numel()
            for name, shape in ((name, torch.Size(shape)) for name, shape in trainer.engine.shapes().items())
        }
        last = {
            kind: (samples, calls)
            for kind, samples, calls in communication.measure(trainer, STEPS)[BLOCK - 1 :: BLOCK]
        }
        for kind, (samples, calls) in last.items():
            used = sum(sizes[name] for name, of in kinds.items() if kind in of)
            rows.append((number, kind, samples, calls, used, sum(sizes[name] for name in kinds)))
        trainer.recorder.close()
    return rows


def contrastive_payloads(global_batch: int, width: int) -> tuple[int, int, int]:
    """Payloads in fp32: image features, text features, and three numbers per sample."""
    return 4 * global_batch * width, 4 * global_batch * width, 4 * global_batch * 3


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.usefixtures("demo_data")
def test_steps_move_what_theory_says(run_ranks, tmp_path):
    first, second = run_ranks(measured_steps, RANKS, str(tmp_path))
    assert first == second, "every rank must call the same collectives"
    assert {(number, kind) for number, kind, *_ in first} == {
        (number, kind) for number in range(len(SETTINGS)) for kind in ("pair", "image", "text")
    }
    config = resolve("flava_debug", [])
    work = measure(config, lengths_of(config, None))
    sources = {part.kind: source for source, part in work.kinds.items()}
    for number, kind, samples, calls, used, trainable in first:
        measured = payloads(calls)
        base, changes = SETTINGS[number]
        settings, path = read_settings(base)
        settings["zero_optimization"] |= changes
        zero = zero_of(settings, path, "fp32", 1)
        theory = traffic.payloads(work, sources[kind], zero, RANKS, samples, len(in_use(config.objectives)))
        again = (
            measured["weights", "all_gather"] - theory["weights", "all_gather"]
            if SETTINGS[number] == ("zero3", WHOLE)
            else 0
        )
        assert 0 <= again < used / 1000, "modules that the forward pass calls twice, all of them small"
        assert measured == theory | (
            {("weights", "all_gather"): measured["weights", "all_gather"]} if again else {}
        ), (SETTINGS[number], kind)
        features = [call for call in calls if call.part == "contrastive loss"]
        assert [call.payload for call in features] == (
            list(contrastive_payloads(RANKS * samples, 64)) if kind == "pair" else []
        )
        assert {call.collective for call in features} <= {"all_gather"}, "no gradient of a feature travels"
        check_stage(number, measured, used, trainable)


def check_stage(number: int, measured: dict[tuple[str, str], int], used: int, trainable: int) -> None:
    """Compares gradients and weights with the volumes of the ZeRO paper, from the parameters' sizes alone;
    paddings are below a percent.
    """
    (base, changes), gradients = (
        SETTINGS[number],
        {key: size for key, size in measured.items() if key[0] == "gradients"},
    )
    weights = measured.get(("weights", "all_gather"), 0)
    if base == "zero0":
        assert gradients == {("gradients", "all_reduce"): trainable} and weights == 0
    elif base in ("zero1", "zero2"):
        assert gradients == {("gradients", "reduce" if changes else "all_reduce"): used}
        assert trainable <= weights < 1.01 * trainable
    else:
        assert (
            list(gradients) == [("gradients", "reduce_scatter")]
            and used <= sum(gradients.values()) < 1.01 * used
        )
        assert not changes or 2 * used <= weights < 2.01 * used
