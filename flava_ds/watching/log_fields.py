"""Every field of a log record: unit and meaning; docs/observability.md and Prometheus show them."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Field:
    """A field of a record. A name such as "loss/<objective>" stands for one key per objective.

    Gauges are current values or values over the steps since the last record; counters grow over a run; counts
    are increments since the last record.
    """

    name: str
    unit: str
    meaning: str
    kind: Literal["gauge", "counter", "count", "text"] = "gauge"

    @property
    def metric(self) -> str:
        """The field's name in Prometheus, which spells units out."""
        name = re.sub("_s$", "_seconds", self.name.split("/<")[0].replace("/", "_"))
        return f"flava_ds_{name}" + ("_total" if self.kind in ("counter", "count") else "")

    def labels(self, key: str) -> dict[str, str] | None:
        """Returns the values of the placeholders in `key`, or None if the key is not of this field."""
        found = re.fullmatch(re.sub(r"<(\w+)>", r"(?P<\1>.+)", self.name), key)
        return None if found is None else found.groupdict()


FIELDS = (
    Field("step", "steps", "the record's last optimizer step, counted from 0"),
    Field("time", "s", "when the record was written, in seconds since 1970"),
    Field("kind", "", "kind of the last step: pair, image or text", "text"),
    Field("source", "", "source of the last step", "text"),
    Field("lr", "", "learning rate of the last step"),
    Field("grad_norm", "", "global gradient norm of the last step, before clipping; null if not finite"),
    Field("loss/<objective>", "nats", "mean over all terms of all ranks since the last record"),
    Field("accuracy/<objective>", "share", "correct predictions among the same terms"),
    Field(
        "metric/<metric>/<objective>",
        "",
        (
            "another metric of an objective: its mean over the same terms; or what one of its training "
            "states reports"
        ),
    ),
    Field("weight/<objective>", "", "its weight in the loss, if the run balances its objectives"),
    Field(
        "gradient_norm/<objective>",
        "",
        "gradient norm of the objective's weighted loss on all encoders, from rank 0's micro-batches",
    ),
    Field("encoder_gradient_norm/<objective>/<encoder>", "", "the part of gradient_norm on one encoder"),
    Field(
        "gradient_cosine/<objective>/<other>/<encoder>",
        "",
        "cosine of two objectives' gradients on one encoder: 1 where they agree, below 0 where they conflict",
    ),
    Field(
        "evaluation/<task>/<number>",
        "",
        "a result of a task that ran since the last record (flava-ds evaluate --list lists the tasks)",
    ),
    Field(
        "evaluation_reference/<of>/<task>/<number>",
        "",
        (
            "the same before the first step (start) and of raw pixels (pixels), once in a run with "
            "evaluation.references"
        ),
    ),
    Field(
        "evaluation_lower_is_better",
        "",
        "the names of those results of which lower is better, such as losses; of all others, higher is",
        "text",
    ),
    Field("evaluation_seconds", "s", "how long these tasks paused training"),
    Field(
        "samples_per_second",
        "samples/s",
        "samples of all ranks per second since the last record, without checkpoints",
    ),
    Field("seconds_per_step", "s", "time per step since the last record, without checkpoints"),
    Field("data_wait", "share", "share of that time spent waiting for the loader, mean over ranks"),
    Field(
        "device_behind_s",
        "s",
        "on GPUs: how far rank 0's device was behind its host when the record was due; near 0, the device "
        "waits for Python, and a larger micro-batch costs little",
    ),
    Field(
        "flops_per_second",
        "FLOP/s",
        "model FLOPs of all ranks, forward and backward, computed from the batches' lengths",
    ),
    Field(
        "mfu",
        "share",
        "flops_per_second over the devices' rate of plain matrix products in the run's precision, the best "
        "of a few that all ranks take at once at the start",
    ),
    Field(
        "mfu_with_targets",
        "share",
        "the same with the work of frozen networks that compute targets, such as the image codebook",
    ),
    Field(
        "peak_memory_gib",
        "GiB",
        "peak allocated device memory since the last record, largest over ranks; on a CPU, the process's",
    ),
    Field(
        "rank_seconds/median",
        "s",
        "time per step until a rank first waits for others (loader, copies, forward), median over ranks",
    ),
    Field("rank_seconds/slowest", "s", "the same of the slowest rank"),
    Field("slowest_rank", "rank", "the rank of rank_seconds/slowest"),
    Field("slowest_host", "", "its host", "text"),
    Field("slowest_in", "", "where it loses time to the median rank: data or compute", "text"),
    Field("source_share/<source>", "share", "share of the run's steps so far that drew the source"),
    Field("source_target/<source>", "share", "the share that its weight asks for, weight changes included"),
    Field("epoch/<source>", "epochs", "passes over the source's samples"),
    Field(
        "skipped_samples/<source>/<reason>",
        "samples",
        "unusable samples on all ranks since the last record",
        "count",
    ),
    Field(
        "cut_tokens/<source>",
        "share",
        "tokens cut off beyond the source's max_tokens, of all its text tokens since the last record",
    ),
    Field(
        "padding/<source>",
        "share",
        "padding among the text tokens that the model computes, since the last record; only with "
        "training.pad_to_multiple_of",
    ),
    Field(
        "skipped_updates",
        "steps",
        "updates skipped because a loss or gradient was not finite, over the whole run",
        "counter",
    ),
    Field(
        "loss_scale",
        "",
        "what the next step's gradients are multiplied by; only with training.precision fp16",
    ),
    Field("rollbacks", "", "how often the run diverged and rolled back to a good checkpoint", "counter"),
    Field("eta_s", "s", "time left to training.total_steps, at each source's own pace, pauses left out"),
)


@functools.cache
def field_of(key: str) -> tuple[Field, dict[str, str]]:
    """Returns the field of a record's key and the values of its placeholders.

    Raises: KeyError if the table has no such field.
    """
    for field in FIELDS:
        if (labels := field.labels(key)) is not None:
            return field, labels
    raise KeyError(key)


def metric_key(shown: str, objective: str) -> str:
    """Returns the key of an objective's metric; some have fields of their own, e.g. accuracy/<objective>."""
    own = f"{shown}/<objective>"
    return (
        f"{shown}/{objective}"
        if any(field.name == own for field in FIELDS)
        else f"metric/{shown}/{objective}"
    )
