"""Builds a run's model, whose parts may keep their weights."""

from __future__ import annotations

from flava_ds.config import Config
from flava_ds.errors import ConfigError, did_you_mean
from flava_ds.layers.ghost_norm import GhostBatchNorm
from flava_ds.training.task import Task


def built(config: Config) -> Task:
    """Builds a configuration's model with its objectives, and freezes what it names.

    Raises: ConfigError for an objective that cannot work, or parts that cannot be frozen.
    """
    task = config.model.build(config)
    if not isinstance(task, Task):
        raise ConfigError(
            f"{type(config.model).__name__}.build returns an object of the class {type(task).__name__}; it "
            "returns a flava_ds.training.task.Task of the model and the objectives"
        )
    for name in config.training.frozen:
        _freeze(task, name)
    users = task.users()
    for name in task.objectives if config.training.frozen else ():
        if not task.used_by(name) & users.keys():
            raise ConfigError(
                f"training.frozen leaves nothing that objectives.{name} could train; take it out with "
                f"--objectives.{name}.weight 0, or freeze less"
            )
    return task


def _freeze(task: Task, name: str) -> None:
    """Lets a part of the model keep its weights.

    Raises: ConfigError if there is no such part, or it has batch norms.
    """
    model = task.model
    found = {n: own for n, own in model.named_parameters() if n == name or n.startswith(f"{name}.")}
    if not found:
        within, wrong, parts = _nearest(task, name)
        raise ConfigError(
            f"training.frozen: {within or 'the model'} has no part '{wrong}'{did_you_mean(wrong, parts)}; it "
            f"has {', '.join(parts)}"
        )
    norms = (n for n, part in model.named_modules() if isinstance(part, GhostBatchNorm))
    if moving := next((n for n in norms if f"{n}.".startswith(f"{name}.")), None):
        raise ConfigError(
            f"training.frozen: '{name}' has batch norms, e.g. {moving}, whose statistics follow the batches "
            "all the same; freeze parts without them"
        )
    for own in found.values():
        own.requires_grad_(False)


def _nearest(task: Task, name: str) -> tuple[str, str, list[str]]:
    """Returns the innermost part that the name leads to, what that part lacks, and the parts that it has."""
    within, own = "", [n for n, _ in task.model.named_parameters()]
    for word in name.split("."):
        parts = [*dict.fromkeys(n.split(".")[0] for n in own)]
        inner = [n.removeprefix(f"{word}.") for n in own if n.startswith(f"{word}.")]
        if not inner:
            break
        within, own = f"{within}.{word}".lstrip("."), inner
    return within, name.removeprefix(within).lstrip("."), parts
