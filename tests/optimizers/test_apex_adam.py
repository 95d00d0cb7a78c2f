"""apex's FusedAdam, capturable and gated, against torch's AdamW: sleeping groups, skips and clipping.

What stands behind it: a class with the habits of apex's own, always. Of the checkout that APEX_SOURCES names,
apex's Python source over its CUDA kernel spelled out in torch; and where torch has CUDA and there is a CUDA
compiler, over the kernel compiled from its own source: what it is handed is checked on any machine, what it
computes on a GPU. And on a GPU apex as installed.

    git clone https://github.com/NVIDIA/apex && git -C apex checkout 6424da3
    APEX_SOURCES=apex pytest -rs tests/optimizers/test_apex_adam.py
"""

import importlib
import importlib.util
import os
import sys
import types
from pathlib import Path

import amp_c
import pytest
import torch

from flava_ds.errors import ConfigError
from flava_ds.optimizers.adamw import AdamWConfig, GatedAdamW
from flava_ds.optimizers.apex_adam import gate
from flava_ds.optimizers.base import activate

CONFIG = AdamWConfig(lr=0.05, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.1)
SHAPES = {("image",): [(5, 3)], ("image", "text"): [(7,), (2, 2), (4,)], ("text",): [(3, 3), (6,)]}
"""Groups of other lengths, so that one that sleeps must not cost another its parameters."""
SKIPPED = (0, 4, 5, 11)
UPDATES = 20


def capturable(chunk, flag, lists, lr, beta1, beta2, eps, step, mode, correct, decay, inv_scale):
    """What amp_C.multi_tensor_adam_capturable does, as in csrc/multi_tensor_adam.cu."""
    assert mode == 1 and correct == 1 and flag.dtype == torch.int32 and step.dtype == torch.int32
    assert lr.dtype == inv_scale.dtype == torch.float32 and lr.numel() == inv_scale.numel() == 1
    if flag.item() == 1:
        return
    for gradient, parameter, first, second in zip(*lists, strict=True):
        gradient.mul_(inv_scale)
        first.lerp_(gradient, 1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = (second / (1 - beta2 ** step.item())).sqrt() + eps
        update = first / (1 - beta1 ** step.item()) / root + decay * parameter
        parameter.sub_(lr * update)


class FusedAdam(torch.optim.Optimizer):
    """The habits of apex's: counts before it reads the flag, pairs by position, wants rates as tensors."""

    def __init__(self, params, lr, betas, eps, weight_decay, adam_w_mode, capturable):
        assert adam_w_mode and capturable
        super().__init__(
            params, {"lr": torch.tensor(lr), "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )
        self.param_groups_master = [{"params": [None] * len(g["params"])} for g in self.param_groups]
        for group in self.param_groups:
            group["lr"] = group["lr"].to(group["params"][0].device)
        self._dummy_overflow_buf = torch.tensor([0], dtype=torch.int)

    def step(self, closure=None, grad_scaler=None):
        for group, masters in zip(self.param_groups, self.param_groups_master, strict=False):
            if "step" in group:
                group["step"] += (self._dummy_overflow_buf != 1).to(torch.int)
            else:
                group["step"] = torch.tensor([1], dtype=torch.int)
            lists = [[], [], [], []]
            for p, _ in zip(group["params"], masters["params"], strict=False):
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
                for own, tensor in zip(
                    lists, (p.grad, p.data, state["exp_avg"], state["exp_avg_sq"]), strict=True
                ):
                    own.append(tensor)
            self._dummy_overflow_buf.copy_(grad_scaler._check_inf_per_device(self)[group["params"][0].device])
            inverse = grad_scaler._get_scale_async().double().reciprocal().float()
            rates = (*group["betas"], group["eps"], group["step"], 1, 1, group["weight_decay"])
            capturable(2048, self._dummy_overflow_buf, lists, group["lr"], *rates, inverse)


@pytest.fixture(scope="module")
def sources() -> Path:
    """The checkout of apex."""
    if not (named := os.environ.get("APEX_SOURCES")):
        pytest.skip("APEX_SOURCES names no checkout of apex")
    return Path(named).resolve()


@pytest.fixture(scope="module")
def compiled(sources, tmp_path_factory) -> types.ModuleType:
    """amp_C with apex's own kernels of Adam."""
    if missing := amp_c.why_not():
        pytest.skip(missing)
    return amp_c.build(sources, tmp_path_factory.mktemp("amp_C"))


def apex_over(library: types.ModuleType, sources: Path, monkeypatch) -> types.ModuleType:
    """Imports apex/optimizers/fused_adam.py from the checkout, and of apex only what that needs."""
    monkeypatch.setitem(sys.modules, "amp_C", library)
    monkeypatch.syspath_prepend(str(sources))
    for name in [name for name in sys.modules if name.startswith("apex.")]:
        monkeypatch.delitem(sys.modules, name)
    for name, path in (("apex", "apex"), ("apex.optimizers", "apex/optimizers")):  # not what they import
        package = types.ModuleType(name)
        package.__path__ = [str(sources / path)]
        monkeypatch.setitem(sys.modules, name, package)
    return importlib.import_module("apex.optimizers.fused_adam")


@pytest.fixture(
    params=[
        "its habits",
        "its sources",
        pytest.param("its sources, compiled", marks=pytest.mark.gpu),
        pytest.param("installed", marks=pytest.mark.gpu),
    ]
)
def vendor(request, monkeypatch):
    """FusedAdam and its device."""
    if request.param == "its habits":
        return FusedAdam, torch.device("cpu")
    if request.param == "its sources":
        library = types.ModuleType("amp_C")
        for name in amp_c.FUNCTIONS:
            setattr(library, name, None)
        library.multi_tensor_adam_capturable = capturable
        module = apex_over(library, request.getfixturevalue("sources"), monkeypatch)
        monkeypatch.setattr(module, "torch", OnTheCpu())
        return module.FusedAdam, torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    if request.param == "its sources, compiled":
        library = request.getfixturevalue("compiled")
        module = apex_over(library, request.getfixturevalue("sources"), monkeypatch)
        return module.FusedAdam, torch.device("cuda", 0)
    if importlib.util.find_spec("amp_C") is None:
        pytest.skip("apex is not installed with its CUDA half")
    return importlib.import_module("apex.optimizers").FusedAdam, torch.device("cuda", 0)


class OnTheCpu:
    """torch, whose tensors for "cuda" are on the CPU."""

    def __getattr__(self, name):
        return getattr(torch, name)

    def tensor(self, *arguments, device=None, **keywords):
        return torch.tensor(*arguments, device="cpu" if device == "cuda" else device, **keywords)


def groups_on(device):
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "params": [torch.nn.Parameter(torch.randn(s, generator=generator).to(device)) for s in shapes],
            "kinds": list(kinds),
            "active": True,
            "weight_decay": CONFIG.weight_decay,
            "lr": CONFIG.lr,
        }
        for kinds, shapes in SHAPES.items()
    ]  # fmt: skip


def test_twenty_updates_are_torch_s(vendor):
    """With skips, at the first update too, sleeping groups, clipping, and a schedule."""
    kind, device = vendor
    theirs, ours = gate(kind)(groups_on(device), CONFIG), GatedAdamW(groups_on(device), CONFIG)
    for step in range(UPDATES):
        for optimizer in (theirs, ours):
            generator = torch.Generator().manual_seed(step)
            activate(optimizer, ("image", "text", "text")[step % 3], "frozen")
            bad = float("nan") if step in SKIPPED else 1.0
            for group in optimizer.param_groups:
                group["lr"] = CONFIG.lr * (1 - step / UPDATES)
                for p in group["params"]:
                    p.grad = (bad * torch.randn(p.shape, generator=generator)).to(device)
            optimizer.found_inf = torch.tensor(float(step in SKIPPED), device=device)
            optimizer.grad_scale = torch.tensor(1.5, device=device) if step % 2 else None
            optimizer.step()
    for their_group, group in zip(theirs.param_groups, ours.param_groups, strict=True):
        assert their_group["lr"] == group["lr"], "a number again, as schedules and logs want it"
        for their_p, p in zip(their_group["params"], group["params"], strict=True):
            torch.testing.assert_close(their_p, p, rtol=2e-5, atol=2e-6)
            assert theirs.updates_of(their_group, their_p) == ours.updates_of(group, p) > 4
            for moment in theirs.moments:
                torch.testing.assert_close(
                    theirs.state[their_p][moment], ours.state[p][moment], rtol=2e-5, atol=2e-6
                )


def test_the_compiled_kernel_takes_what_apex_hands_it(compiled, sources, monkeypatch):
    """Number, order and dtypes of arguments; it looks at the device last, and these tensors are on none."""
    module = apex_over(compiled, sources, monkeypatch)
    monkeypatch.setattr(module, "torch", OnTheCpu())
    optimizer = gate(module.FusedAdam)(groups_on("cpu"), CONFIG)
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    activate(optimizer, "text", "frozen")
    with pytest.raises(RuntimeError, match="expected input to be on cuda"):
        optimizer.step()
    for p in optimizer.param_groups[1]["params"]:
        optimizer.state[p]["step"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match="expected scalar type Int but found Float"):
        optimizer.step()


def test_the_count_of_a_checkpoint_goes_on(vendor):
    kind, device = vendor
    optimizer = gate(kind)(groups_on(device), CONFIG)
    group = optimizer.param_groups[1]
    optimizer.set_updates(group, group["params"][0], 7)
    for p in group["params"]:
        p.grad = torch.ones_like(p)
    activate(optimizer, "text", "frozen")
    optimizer.step()
    assert optimizer.updates_of(group, group["params"][1]) == 8
    assert optimizer.updates_of(optimizer.param_groups[0], optimizer.param_groups[0]["params"][0]) == 0


def test_parts_of_a_group_that_move_one_after_the_other_have_their_own_counts(vendor):
    """As ZeRO-3 calls it, with a group of more elements than sub_group_size."""
    kind, device = vendor
    start = [torch.randn(4, generator=torch.Generator().manual_seed(i)).to(device) for i in range(3)]
    moved = []
    for vendors in (gate(kind), GatedAdamW):
        parts = [torch.nn.Parameter(own.clone()) for own in start]
        optimizer = vendors([{"params": parts, "lr": CONFIG.lr, "weight_decay": 0.1}], CONFIG)
        (group,) = optimizer.param_groups
        for step in range(3):
            for part in parts:
                part.grad, group["params"] = torch.full_like(part, 1.0 + step), [part]
                optimizer.found_inf = torch.tensor(float(step == 1), device=device)
                optimizer.step()
                group["params"] = []
        moved.append(parts)
        assert [optimizer.updates_of(group, part) for part in parts] == [2, 2, 2]
    torch.testing.assert_close(*moved, rtol=2e-5, atol=2e-6)


def test_apex_is_told_from_its_namesake(monkeypatch):
    config = AdamWConfig(name="apex_fused_adam")
    monkeypatch.setitem(sys.modules, "apex", None)
    with pytest.raises(ConfigError, match="apex is not installed.*APEX_CUDA_EXT=1"):
        config.build([])
    monkeypatch.setitem(sys.modules, "apex", types.ModuleType("apex"))
    with pytest.raises(ConfigError, match="unrelated web toolkit"):
        config.build([])
    optimizers = types.ModuleType("apex.optimizers")
    optimizers.FusedAdam = FusedAdam
    monkeypatch.setitem(sys.modules, "apex.optimizers", optimizers)
    monkeypatch.setitem(sys.modules, "amp_C", None)
    with pytest.raises(ConfigError, match="only apex's Python half"):
        config.build([])
    monkeypatch.setitem(sys.modules, "amp_C", types.ModuleType("amp_C"))
    with pytest.raises(ConfigError, match="no capturable Adam"):
        config.build([])
