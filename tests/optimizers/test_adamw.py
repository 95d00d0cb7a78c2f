"""Gated AdamW against plain AdamW, and the vendors' implementations of it."""

import sys
import types

import pytest
import torch
from toy import Toy, toy_config

from flava_ds.errors import ConfigError
from flava_ds.optimizers.adamw import AdamWConfig, GatedAdamW
from flava_ds.optimizers.base import activate, parameter_groups


def pair_of_optimizers():
    torch.manual_seed(0)
    ours, theirs = (
        [torch.nn.Parameter(torch.randn(5, 3, generator=torch.Generator().manual_seed(i))) for i in range(2)]
        for _ in range(2)
    )
    config = AdamWConfig(lr=0.1, eps=1e-4)
    groups = [
        {"params": [p], "kinds": [kind], "active": True, "weight_decay": 0.1, "lr": 0.1}
        for p, kind in zip(ours, ("image", "text"), strict=True)
    ]
    return (
        ours,
        GatedAdamW(groups, config),
        theirs,
        torch.optim.AdamW(theirs, lr=0.1, eps=1e-4, weight_decay=0.1, foreach=False),
    )


def test_idle_groups_move_as_with_no_gradient():
    ours, gated, theirs, plain = pair_of_optimizers()
    for step, kind in enumerate(("image", "text", "image", "image", "text")):
        activate(gated, kind, "frozen")
        for i, name in enumerate(("image", "text")):
            gradient = torch.randn(5, 3, generator=torch.Generator().manual_seed(10 * step + i))
            ours[i].grad = gradient if name == kind else torch.zeros(5, 3)
            theirs[i].grad = gradient if name == kind else None
        gated.step()
        plain.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    activate(gated, "image", "zeros")
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
        AdamWConfig(name="deepspeed_fused_adam").build([])


def test_a_vendor_optimizer_is_gated_too(monkeypatch):
    """DeepSpeed's interface, with steps of one size behind it, which know no flag either, and count in the
    last tensor of a group: groups sleep, the flag skips, the scale divides, all tensors have the count.
    """

    class FusedAdam(torch.optim.Optimizer):
        def __init__(self, params, lr, betas, eps, weight_decay, adam_w_mode):
            assert adam_w_mode
            super().__init__(params, {"lr": lr})

        @torch.no_grad()
        def step(self, closure=None):
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter -= group["lr"] * parameter.grad.sign()
                        state = self.state[parameter]
                        if not state:
                            state["step"] = 0
                state["step"] += 1

    vendor = types.ModuleType("deepspeed.ops.adam")
    vendor.FusedAdam = FusedAdam
    monkeypatch.setitem(sys.modules, "deepspeed.ops.adam", vendor)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    module, config = Toy(), toy_config()
    groups = parameter_groups(module, module.users(), config.optimizer)
    optimizer = AdamWConfig(name="deepspeed_fused_adam", lr=0.1).build(groups)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    for bad in (1.0, 0.0):
        activate(optimizer, "image", "frozen")
        for parameter in module.parameters():
            parameter.grad = torch.full_like(parameter, 2.0)
        optimizer.found_inf, optimizer.grad_scale = torch.tensor(bad), torch.tensor(2.0)
        optimizer.step()
        moved = {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}
        expected = {name for name, kinds in module.users().items() if "image" in kinds}
        assert moved == (set() if bad else expected)
    assert all(
        torch.equal(p.grad, torch.ones_like(p)) for name, p in module.named_parameters() if name in expected
    )
    for group in optimizer.param_groups:
        counts = {optimizer.updates_of(group, parameter) for parameter in group["params"]}
        assert counts == {int("image" in group["kinds"])}
