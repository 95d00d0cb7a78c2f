"""What a task is whatever the family: which parameters a step moves, what each state is told, how views and
rows are shared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from flava_ds.batch import Batch
from flava_ds.config import Config
from flava_ds.errors import ConfigError
from flava_ds.objectives.base import Features, Loss, Objective, PooledObjective
from flava_ds.objectives.masked_text import MaskedTextConfig
from flava_ds.objectives.state import TrainingState
from flava_ds.training.task import Pass, Task, built_objectives


@dataclass
class Vectors:
    hidden: Tensor
    asked: Tensor

    def rows(self, rows: Tensor) -> Tensor:
        assert set(rows.tolist()) <= set(self.asked.tolist()), "only rows that were announced are read"
        return self.hidden[rows]


class Model(nn.Module):
    """Two views; counts how often each is encoded."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Sequential(nn.Linear(3, 2)), nn.Sequential(nn.Linear(3, 2))
        self.unused, self.single = nn.Linear(2, 2), nn.Linear(2, 2)
        self.left[0].bias.requires_grad_(False)
        self.encoded: list[tuple[str, list[int]]] = []

    def encode(self, batch: Batch, views, reads: Mapping[str, Tensor]) -> dict[str, Vectors]:
        self.encoded += [(view, reads[view].tolist()) for view in views]
        return {view: Vectors(getattr(self, view)(batch["numbers"]), reads[view]) for view in views}

    def parameters_of(self, view: str, *, read_directly: bool) -> set[str]:
        return {f"{view}.0.weight", f"{view}.0.bias"}


class Reader(Objective):
    """Sums what it reads of its views."""

    kinds = frozenset({"a"})
    metrics: ClassVar[Mapping[str, str]] = {"seen": "seen"}

    def __init__(
        self, needs: set[str], rows: list[int], weight: float = 1.0, kinds: set[str] = frozenset({"a"})
    ) -> None:
        super().__init__(weight)
        self.needs, self.kinds, self.chosen = frozenset(needs), frozenset(kinds), rows
        self.head, self.fixed = nn.Linear(2, 1), nn.Linear(1, 1).requires_grad_(False)

    def count(self, batch: Batch) -> int:
        return len(self.chosen)

    def reads(self, model, batch: Batch) -> dict[str, Tensor]:
        return {view: torch.tensor(self.chosen) for view in self.needs}

    def forward(self, model, hidden: Mapping[str, Tensor], batch: Batch) -> Loss:
        total = sum(self.head(rows).sum() for rows in hidden.values())
        return Loss(
            total,
            self.count(batch),
            {"seen": torch.tensor(float(self.count(batch)))},
            {"width": torch.ones(2)},
        )

    def states(self, model) -> dict[str, TrainingState]:
        return {"memory": TrainingState()}

    def flops(self, model, batch: Batch) -> float:
        return 7.0


class Pool(PooledObjective):
    """Everything times everything."""

    kinds, needs = frozenset({"b"}), frozenset({"left"})
    metrics: ClassVar[Mapping[str, str]] = {}

    def count(self, batch: Batch) -> int:
        return batch.size

    def reads(self, model, batch: Batch) -> dict[str, Tensor]:
        return {"left": torch.arange(batch.size)}

    def features(self, model, hidden: Mapping[str, Tensor], batch: Batch) -> Features:
        return Features({"left": hidden["left"]})

    def pooled_loss(self, features: Features) -> tuple[Tensor, dict[str, Tensor]]:
        return (features.samples["left"] @ features.samples["left"].t()).square().sum(), {}

    def exchanged_bytes(self, model, global_batch: int) -> tuple[int]:
        return (0,)


class CountedTask(Task):
    def passes(self, batch: Batch) -> list[Pass]:
        return [Pass("left", 10.0), Pass("right", 20.0)]


def batch_of(kind: str, size: int = 4, seed: int = 0) -> Batch:
    numbers = torch.randn(size, 3, generator=torch.Generator().manual_seed(seed))
    return Batch(kind=kind, source="s", size=size, tensors={"numbers": numbers})


def two_readers() -> CountedTask:
    objectives = {
        "one": Reader({"left"}, [3, 0]),
        "two": Reader({"left", "right"}, [1], weight=2.0, kinds={"a", "b"}),
    }
    return CountedTask(Model(), objectives)


def test_the_union_of_views_is_encoded_once_for_the_rows_that_are_read():
    task = two_readers()
    losses = task.losses(batch_of("a"))
    assert sorted(task.model.encoded) == [("left", [0, 1, 3]), ("right", [1])]
    assert list(losses) == ["one", "two"] and list(task.losses(batch_of("b"))) == ["two"] == list(
        task.losses(batch_of("a"), only=["two"])
    )


def test_a_step_weighs_the_means_and_names_what_it_sums():
    task, batch = two_readers(), batch_of("a")
    losses = task.losses(batch)
    output = task("step", batch, {"one": torch.tensor(2.0), "two": torch.tensor(4.0)})
    torch.testing.assert_close(output.loss, losses["one"].sum / 2 + 2.0 * losses["two"].sum / 4)
    assert set(output.sums) == {"one/loss", "one/seen", "two/loss", "two/seen"} and set(
        output.statistics
    ) == {"one/width", "two/width"}
    assert not any(value.requires_grad for value in output.sums.values())
    assert task.counts(batch) == {"one": 2, "two": 1} and task.counts(batch_of("b")) == {"two": 1}


def test_users_are_the_trained_parameters_that_get_a_gradient():
    task = two_readers()
    users = task.users()
    assert users.keys() == {name for name, parameter in task.named_parameters() if parameter.requires_grad}
    for kind in ("a", "b"):
        task.zero_grad()
        task("step", batch_of(kind), {"one": torch.tensor(1.0), "two": torch.tensor(1.0)}).loss.backward()
        assert {name for name, kinds in users.items() if kind in kinds} == {
            n for n, p in task.named_parameters() if p.grad is not None
        }
    assert (
        users["model.unused.weight"] == frozenset()
        and "model.left.0.bias" not in users
        and "objectives.one.fixed.bias" not in users
    )


def test_an_objective_that_names_no_parameter_of_the_model_is_a_mistake():
    task = CountedTask(Model(), {"one": Reader({"left"}, [0])})
    task.objectives["one"].model_parameters = lambda model: {"middle.weight"}
    with pytest.raises(
        AssertionError, match="objective 'one' uses 'model.middle.weight', which is no parameter of Model"
    ):
        task.users()


def test_a_state_is_told_of_its_own_objective_alone():
    task = two_readers()
    assert list(task.states) == ["one.memory", "two.memory"]
    task.states["queue"] = TrainingState()
    totals = {"one/width": torch.ones(1), "one/count": torch.ones(2), "two/width": torch.ones(3)}
    assert {name: value.numel() for name, value in task.statistics_of("one.memory", totals).items()} == {
        "width": 1,
        "count": 2,
    }
    assert list(task.statistics_of("two.memory", {"one/width": torch.ones(1)})) == []
    assert task.statistics_of("queue", totals).keys() == totals.keys(), "a family's state hears of all"


def test_work_and_encoders():
    task = two_readers()
    assert task.flops(batch_of("a")) == 3 * (30 + 14) and task.flops(batch_of("b")) == 3 * (30 + 7)
    assert {name: len(own) for name, own in task.encoders().items()} == {"left": 1, "right": 2}, (
        "parts of more than one layer"
    )
    assert task.kinds == ("a", "b") and task.metrics["one"] == {"seen": "seen"}


def test_two_passes_are_the_loss_of_the_whole_step():
    task, batches = Task(Model(), {"pool": Pool(1.0)}), [batch_of("b", seed=seed) for seed in (1, 2)]
    whole = batch_of("b", size=8).having(numbers=torch.cat([batch["numbers"] for batch in batches]))
    (expected,) = torch.autograd.grad(
        task("step", whole, {"pool": torch.tensor(8.0)}).loss, [task.model.left[0].weight]
    )
    assert list(task.pooled("b")) == ["pool"] and task.pooled("a") == {}
    with torch.no_grad():
        features = [task("features", batch)["pool"] for batch in batches]
        parts = task.objectives["pool"].step_gradients("pool", features)
    outputs = [
        task("step", batch, {"pool": torch.tensor(8.0)}, {"pool": part})
        for batch, part in zip(batches, parts, strict=True)
    ]
    (found,) = torch.autograd.grad(sum(output.loss for output in outputs), [task.model.left[0].weight])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        sum(output.sums["pool/loss"] for output in outputs),
        task("step", whole, {"pool": torch.tensor(1.0)}).loss.detach(),
    )


def test_an_objective_cannot_have_the_name_of_a_method_of_the_dict_that_holds_it():
    for name in ("items", "training"):
        config = Config(name="run", objectives={name: MaskedTextConfig()})
        with pytest.raises(ConfigError, match=f"objectives: '{name}' cannot name an objective, as torch's"):
            built_objectives(config)


@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        (
            lambda loss: replace(loss, sum=loss.sum.detach()),
            "has a loss without gradient, so it trains nothing",
        ),
        (
            lambda loss: replace(loss, sum=loss.sum * torch.ones(4, 2)),
            r"a tensor of shape \[4, 2\] and torch.fl",
        ),
        (lambda loss: replace(loss, sum=loss.sum.long()), r"a tensor of shape \[\] and torch.int64; sum its"),
        (lambda loss: replace(loss, sum=1.0), "has as its loss an object of the class float; sum its terms"),
        (lambda loss: loss.sum, "returns a tensor of shape .*; its forward.* returns a Loss"),
        (lambda loss: replace(loss, metrics={}), "returns the metrics none and declares seen; name in its"),
        (lambda loss: replace(loss, metrics=None), "returns the metrics None; its forward.* returns a Loss"),
        (
            lambda loss: replace(loss, sum=loss.sum.new_zeros(()), count=0),
            r"of a batch without terms it is rows.sum\(\) \* 0",
        ),
        (
            lambda loss: replace(loss, metrics={"hits": loss.sum.detach()}),
            "returns the metrics hits and declares",
        ),
    ],
)
def test_a_loss_that_cannot_train_or_be_logged_names_its_objective(mistake, told):
    task = two_readers()
    forward = task.objectives["two"].forward
    task.objectives["two"].forward = lambda *arguments: mistake(forward(*arguments))
    with pytest.raises(ConfigError, match=rf"objective 'two' \(test_task.Reader\) .*{told}"):
        task.losses(batch_of("a"))


def test_a_batch_without_terms_may_leave_metrics_out():
    task = two_readers()
    forward = task.objectives["two"].forward
    task.objectives["two"].forward = lambda *own: replace(forward(*own), count=0, metrics={})
    assert task.losses(batch_of("a"))["two"].count == 0


def test_a_loss_needs_no_gradient_where_none_is_computed():
    task = two_readers()
    with torch.no_grad():
        assert not task.losses(batch_of("a"))["one"].sum.requires_grad


def test_a_pooled_loss_without_gradient_names_its_objective():
    task = Task(Model(), {"pool": Pool(1.0)})
    task.objectives["pool"].pooled_loss = lambda features: (features.samples["left"].detach().sum(), {})
    with (
        torch.no_grad(),
        pytest.raises(ConfigError, match="objective .pool. .test_task.Pool. has a loss without gradie"),
    ):
        task.objectives["pool"].step_gradients("pool", [task("features", batch_of("b"))["pool"]] * 2)


def test_a_pooled_loss_without_metrics_names_its_objective():
    task = Task(Model(), {"pool": Pool(1.0)})
    task.objectives["pool"].pooled_loss = lambda features: features.samples["left"].sum()
    with pytest.raises(ConfigError, match=r"test_task.Pool returns a tensor of shape .*; its pooled_loss"):
        task.losses(batch_of("b"))


def test_rows_of_a_view_that_an_objective_does_not_need_are_a_mistake():
    task = two_readers()
    task.objectives["one"].reads = lambda model, batch: {"lef": torch.tensor([0])}
    with pytest.raises(ConfigError, match="'one' reads rows of the view 'lef', which .* `needs`: left"):
        task.losses(batch_of("a"))


def test_a_tensor_that_a_batch_lacks_is_named_beside_those_that_it_has():
    with pytest.raises(KeyError, match="no pixels in this a batch, which holds numbers"):
        batch_of("a")["pixels"]
