"""Gated AdamW against plain AdamW, and the groups it is given."""

import sys
import types

import pytest
import torch
from toy import Toy, toy_config

from flava_ds.config import OptimizerConfig
from flava_ds.errors import ConfigError
from flava_ds.families.flava.views import Kind
from flava_ds.training.optimizers import GatedAdamW, activate, build_optimizer, parameter_groups


def test_groups_are_kinds_by_decay_and_cover_every_parameter_once():
    module = Toy()
    groups = parameter_groups(module, module.users(), OptimizerConfig(decay_norm_and_bias=False, weight_decay=0.1))
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in module.parameters())
    names = {id(p): name for name, p in module.named_parameters()}
    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert set(group["kinds"]) == {str(kind) for kind in module.users()[name]}
            assert (group["weight_decay"] == 0.0) == (name.endswith(("bias", "gain", "cls_token", "logit_scale"))), name
    assert len(groups) == 12  # six sets of kinds (one of them empty), decayed or not; the encoder pairs and heads have both


def test_decaying_everything_halves_the_groups():
    module = Toy()
    assert len(parameter_groups(module, module.users(), OptimizerConfig())) == 6


def test_two_dimensional_tables_are_exempt_by_name():
    module = torch.nn.Module()
    module.position_embeddings, module.word_embeddings = torch.nn.Embedding(4, 3), torch.nn.Embedding(4, 3)
    kinds = {name: frozenset({Kind.TEXT}) for name, _ in module.named_parameters()}
    groups = parameter_groups(module, kinds, OptimizerConfig(decay_norm_and_bias=False, weight_decay=0.1))
    assert {group["weight_decay"]: group["params"][0] is module.position_embeddings.weight for group in groups} == {0.0: True, 0.1: False}


def pair_of_optimizers():
    torch.manual_seed(0)
    ours, theirs = ([torch.nn.Parameter(torch.randn(5, 3, generator=torch.Generator().manual_seed(i))) for i in range(2)] for _ in range(2))
    config = OptimizerConfig(lr=0.1, eps=1e-4)
    groups = [{"params": [p], "kinds": [kind], "active": True, "weight_decay": 0.1, "lr": 0.1} for p, kind in zip(ours, ("image", "text"), strict=True)]
    return ours, GatedAdamW(groups, config), theirs, torch.optim.AdamW(theirs, lr=0.1, eps=1e-4, weight_decay=0.1, foreach=False)


def test_idle_groups_move_as_with_no_gradient():
    ours, gated, theirs, plain = pair_of_optimizers()
    for step, kind in enumerate(("image", "text", "image", "image", "text")):
        activate(gated, Kind(kind), "frozen")
        for i, name in enumerate(("image", "text")):
            gradient = torch.randn(5, 3, generator=torch.Generator().manual_seed(10 * step + i))
            ours[i].grad = gradient if name == kind else torch.zeros(5, 3)
            theirs[i].grad = gradient if name == kind else None
        gated.step()
        plain.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    activate(gated, Kind.IMAGE, "zeros")
    assert all(group["active"] for group in gated.param_groups)


def test_the_flag_skips_and_the_scale_divides():
    ours, gated, theirs, plain = pair_of_optimizers()
    for step, bad in enumerate((False, True, False)):
        gated.found_inf, gated.grad_scale = torch.tensor(float(bad)), torch.tensor(4.0)
        for i in range(2):
            gradient = torch.randn(5, 3, generator=torch.Generator().manual_seed(10 * step + i))
            ours[i].grad, theirs[i].grad = gradient * (float("nan") if bad else 1.0), gradient / 4.0
        gated.step()
        if not bad:
            plain.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
        assert float(gated.state[a]["step"]) == 2.0


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without CUDA")
def test_deepspeed_fused_adam_says_that_it_needs_cuda():
    with pytest.raises(ConfigError, match="needs a CUDA device"):
        build_optimizer([], OptimizerConfig(name="deepspeed_fused_adam"))


def test_apex_is_told_from_its_namesake(monkeypatch):
    config = OptimizerConfig(name="apex_fused_adam")
    monkeypatch.setitem(sys.modules, "apex", None)
    with pytest.raises(ConfigError, match="apex is not installed.*APEX_CUDA_EXT=1"):
        build_optimizer([], config)
    monkeypatch.setitem(sys.modules, "apex", types.ModuleType("apex"))
    with pytest.raises(ConfigError, match="unrelated web toolkit"):
        build_optimizer([], config)
    optimizers = types.ModuleType("apex.optimizers")
    optimizers.FusedAdam = torch.optim.AdamW
    monkeypatch.setitem(sys.modules, "apex.optimizers", optimizers)
    monkeypatch.setitem(sys.modules, "amp_C", None)
    with pytest.raises(ConfigError, match="only apex's Python half"):
        build_optimizer([], config)


def test_a_vendor_optimizer_is_gated_too(monkeypatch):
    """apex's interface, with Rprop behind it, which knows no flag either: groups sleep, the flag skips, the scale divides."""

    class FusedAdam(torch.optim.Rprop):
        def __init__(self, params, lr, betas, eps, weight_decay, adam_w_mode):
            assert adam_w_mode
            super().__init__(params, lr=lr)

    optimizers = types.ModuleType("apex.optimizers")
    optimizers.FusedAdam = FusedAdam
    for name, module in (("apex", types.ModuleType("apex")), ("apex.optimizers", optimizers), ("amp_C", types.ModuleType("amp_C"))):
        monkeypatch.setitem(sys.modules, name, module)
    module, config = Toy(), toy_config()
    groups = parameter_groups(module, module.users(), config.optimizer)
    optimizer = build_optimizer(groups, OptimizerConfig(name="apex_fused_adam", lr=0.1))
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    for bad in (1.0, 0.0):
        activate(optimizer, Kind.IMAGE, "frozen")
        for parameter in module.parameters():
            parameter.grad = torch.full_like(parameter, 2.0)
        optimizer.found_inf, optimizer.grad_scale = torch.tensor(bad), torch.tensor(2.0)
        optimizer.step()
        moved = {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}
        expected = {name for name, kinds in module.users().items() if Kind.IMAGE in kinds}
        assert moved == (set() if bad else expected)
    assert all(torch.equal(p.grad, torch.ones_like(p)) for name, p in module.named_parameters() if name in expected)
