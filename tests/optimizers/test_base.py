"""The groups that every optimizer is given."""

from unittest.mock import Mock

import pytest
import torch
from toy import Toy

from flava_ds.errors import ConfigError
from flava_ds.optimizers.adamw import AdamWConfig
from flava_ds.optimizers.base import Gated, TensorByTensor, check_optimizer, parameter_groups


def test_groups_are_kinds_by_decay_and_cover_every_parameter_once():
    module = Toy()
    groups = parameter_groups(
        module, module.users(), AdamWConfig(decay_norm_and_bias=False, weight_decay=0.1)
    )
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in module.parameters())
    names = {id(p): name for name, p in module.named_parameters()}
    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert set(group["kinds"]) == {str(kind) for kind in module.users()[name]}
            assert (group["weight_decay"] == 0.0) == (
                name.endswith(("bias", "gain", "cls_token", "logit_scale"))
            ), name
    # six sets of kinds (one of them empty), decayed or not; the encoder pairs and heads have both
    assert len(groups) == 12


def test_decaying_everything_halves_the_groups():
    module = Toy()
    assert len(parameter_groups(module, module.users(), AdamWConfig())) == 6


def test_two_dimensional_tables_are_exempt_by_name():
    module = torch.nn.Module()
    module.position_embeddings, module.word_embeddings = torch.nn.Embedding(4, 3), torch.nn.Embedding(4, 3)
    kinds = {name: frozenset({"text"}) for name, _ in module.named_parameters()}
    groups = parameter_groups(module, kinds, AdamWConfig(decay_norm_and_bias=False, weight_decay=0.1))
    assert {
        group["weight_decay"]: group["params"][0] is module.position_embeddings.weight for group in groups
    } == {0.0: True, 0.1: False}


class Both(Gated, torch.optim.Optimizer):
    """As before Gated was an optimizer itself."""

    moments = ("velocity",)


def test_a_vendors_own_methods_are_used():
    class Vendor(torch.optim.SGD):
        def zero_grad(self, set_to_none=True):
            calls.append("zero_grad")

        def add_param_group(self, param_group):
            calls.append("add_param_group")
            super().add_param_group(param_group)

    class Ours(Gated, Vendor):
        moments = ()

    calls: list[str] = []
    Ours([torch.nn.Parameter(torch.ones(2))], lr=0.1).zero_grad()
    assert calls == ["add_param_group", "zero_grad"]


def test_a_state_is_whole_or_not_there(monkeypatch):
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = Both([weight], {})
    with monkeypatch.context() as patch:
        patch.setattr(torch, "zeros_like", Mock(side_effect=torch.OutOfMemoryError))
        with pytest.raises(torch.OutOfMemoryError):
            optimizer.create_state(weight)
    assert set(optimizer.create_state(weight)) == {"step", "velocity"}


def test_an_optimizer_that_the_engine_cannot_use_says_what_it_lacks():
    class Still(TensorByTensor):
        moments = ("velocity",)

    class Forgetful(TensorByTensor):
        def move(self, parameter, group) -> None:
            pass

    weights = [torch.nn.Parameter(torch.ones(2))]
    good = Both(weights, {})
    assert check_optimizer(good) is good
    for built, told in (
        (
            torch.optim.SGD(weights),
            "optimizer: its config built an object of SGD, which cannot skip an update on the dev",
        ),
        (Still(weights, {}), r"optimizer: Still lacks move\(\), which updates one tensor; define it"),
        (
            Forgetful(weights, {}),
            "optimizer: Forgetful lacks `moments`, which names what it keeps; define it",
        ),
    ):
        with pytest.raises(ConfigError, match=told):
            check_optimizer(built)
