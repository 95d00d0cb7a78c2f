"""Every field of a log record: unit and meaning. docs/observability.md and the HELP lines for Prometheus are
made from this table.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Field:
    """A field of a record. A name such as "loss/<objective>" stands for one key per objective.

    Gauges are values of the moment or of the steps since the last line; counters grow over a run; counts are
    what was added since the last line.
    """

    name: str
    unit: str
    meaning: str
    kind: Literal["gauge", "counter", "count", "text"] = "gauge"

    @property
    def metric(self) -> str:
        """The field's name for Prometheus."""
        return (
            "flava_ds_"
            + self.name.split("/<")[0].replace("/", "_")
            + ("_total" if self.kind in ("counter", "count") else "")
        )

    def labels(self, key: str) -> dict[str, str] | None:
        """Returns what the placeholders stand for in `key`, or None when it is no key of this field."""
        found = re.fullmatch(re.sub(r"<(\w+)>", r"(?P<\1>.+)", self.name), key)
        return None if found is None else found.groupdict()


FIELDS = (
    Field("step", "steps", "the last optimizer step of the line, counted from 0"),
    Field("time", "s", "when the line was written, in seconds since 1970"),
    Field("kind", "", "kind of the last step: pair, image or text", "text"),
    Field("source", "", "source of the last step", "text"),
    Field("lr", "", "learning rate of the last step"),
    Field(
        "grad_norm", "", "global gradient norm of the last step, before clipping; null when it was not finite"
    ),
    Field("loss/<objective>", "nats", "mean over all terms of all ranks since the last line"),
    Field("accuracy/<objective>", "share", "correct predictions among the same terms"),
    Field(
        "metric/<metric>/<objective>",
        "",
        "another number that an objective declares: its mean over the same terms",
    ),
    Field(
        "gradient_norm/<objective>",
        "",
        (
            "gradient norm of the objective's weighted loss on all encoders together, from the micro-batches "
            "of rank 0"
        ),
    ),
    Field(
        "encoder_gradient_norm/<objective>/<encoder>",
        "",
        "the part of gradient_norm that lies on one encoder",
    ),
    Field(
        "evaluation/<task>/<number>",
        "",
        (
            "a number of a task that has run since the last line (evaluation.every_steps); flava-ds evaluate "
            "--list tells the tasks"
        ),
    ),
    Field("evaluation_seconds", "s", "how long training stood for these tasks"),
    Field(
        "samples_per_second",
        "samples/s",
        "samples of all ranks over the time since the last line, without checkpoints",
    ),
    Field("seconds_per_step", "s", "time since the last line over its steps, without checkpoints"),
    Field("data_wait", "share", "part of that time in which a rank waited for its loader, mean over ranks"),
    Field(
        "flops_per_second",
        "FLOP/s",
        "model FLOPs of all ranks, forward and backward, by arithmetic on the batches' lengths",
    ),
    Field(
        "mfu",
        "share",
        (
            "flops_per_second over what the same devices reach on plain matrix products, all measured at "
            "once at the start"
        ),
    ),
    Field(
        "peak_memory_gib",
        "GiB",
        (
            "largest over ranks: peak of the device's allocated memory since the last line; on a CPU, of the "
            "process since its start"
        ),
    ),
    Field(
        "rank_seconds/median",
        "s",
        (
            "time a rank spends on a step until it first waits for the others (loader, copies, forward "
            "pass), median over ranks"
        ),
    ),
    Field("rank_seconds/slowest", "s", "the same of the slowest rank"),
    Field("slowest_rank", "rank", "the rank of rank_seconds/slowest"),
    Field("slowest_host", "", "its host", "text"),
    Field("slowest_in", "", "what costs it more than the median rank: data or compute", "text"),
    Field("source_share/<source>", "share", "steps that drew the source, of all steps of the run so far"),
    Field("source_target/<source>", "share", "the same by its weight, weight changes included"),
    Field("epoch/<source>", "epochs", "how often the source's samples have been read"),
    Field(
        "skipped_samples/<source>/<reason>",
        "samples",
        "unusable samples met by all ranks since the last line",
        "count",
    ),
    Field(
        "cut_tokens/<source>",
        "share",
        "tokens of the source's texts beyond its max_tokens, which were left out, of all since the last line",
    ),
    Field(
        "skipped_updates",
        "steps",
        "updates left out because a loss or a gradient was not finite, over the whole run",
        "counter",
    ),
    Field(
        "rollbacks", "", "how often the run has gone back to a good checkpoint because it diverged", "counter"
    ),
    Field("eta_s", "s", "time left to training.total_steps at the rate of this line"),
)


@functools.cache
def field_of(key: str) -> tuple[Field, dict[str, str]]:
    """Returns the field of a record's key and what its placeholders stand for.

    Raises: KeyError when the table lacks it.
    """
    for field in FIELDS:
        if (labels := field.labels(key)) is not None:
            return field, labels
    raise KeyError(key)


def metric_key(shown: str, objective: str) -> str:
    """Returns the key of an objective's metric: a field of its own where the table has one, e.g.
    accuracy/<objective>.
    """
    own = f"{shown}/<objective>"
    return (
        f"{shown}/{objective}"
        if any(field.name == own for field in FIELDS)
        else f"metric/{shown}/{objective}"
    )
