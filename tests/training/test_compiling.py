"""Compiled blocks: the losses and gradients of eager ones, and nothing compiled again once lengths change."""

import pytest
import torch
from sample_batches import denominators, make_batch, tiny_config

from flava_ds.config import TrainingConfig
from flava_ds.errors import ConfigError
from flava_ds.families.flava.task import build_task
from flava_ds.families.flava.views import Kind
from flava_ds.training.compiling import check_compiler, compile_blocks
from flava_ds.training.task import fold_biases

LENGTHS = ((9, 4, 12), (5, 5, 7), (3, 11, 8), (12, 12, 12))


def step(module, kind, config, lengths, size=3):
    module.zero_grad()
    batch = make_batch(kind, config, size=size, lengths=lengths)
    loss = module("step", batch, denominators(module, batch)).loss
    loss.backward(retain_graph=True)  # as GradNorm takes several passes through one graph
    module.zero_grad()
    loss.backward()
    return loss.detach(), {
        name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None
    }


@pytest.fixture
def fresh():
    """Compiled code of other tests is dropped, and a limit restored."""
    limit = torch._dynamo.config.recompile_limit
    torch.compiler.reset()
    yield
    torch._dynamo.config.recompile_limit = limit
    torch.compiler.reset()


@pytest.mark.parametrize("folds", [False, True], ids=["", "folding"])
@pytest.mark.parametrize(
    "backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
)  # the same graphs, as they are and compiled to C++
def test_losses_are_the_same_and_lengths_compile_nothing_again(fresh, backend, folds, full):
    if backend == "inductor" and not full:
        pytest.skip("compiles C++ for a minute; --full does")
    config = tiny_config()
    eager, compiled = build_task(config), build_task(config)
    fold_biases(compiled, folds)
    assert compile_blocks(compiled, 1, backend) == sum(
        part.num_hidden_layers for part in (config.model.image, config.model.text, config.model.multimodal)
    )
    assert list(compiled.state_dict()) == list(eager.state_dict())
    for kind in Kind:
        for warm_up in LENGTHS[:2]:
            step(compiled, kind, config, warm_up)
    for kind in Kind:
        for lengths in LENGTHS[2:]:
            with torch.compiler.set_stance("fail_on_recompile"):
                loss, gradients = step(compiled, kind, config, lengths)
            expected, theirs = step(eager, kind, config, lengths)
            torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
            assert gradients.keys() == theirs.keys()
            for name, gradient in gradients.items():
                torch.testing.assert_close(gradient, theirs[name], rtol=1e-4, atol=1e-6, msg=name)


def test_what_does_not_compile_is_said(monkeypatch):
    with pytest.raises(ConfigError, match="does not go with ZeRO-3"):
        compile_blocks(torch.nn.Module(), 3)
    monkeypatch.setenv("CXX", "no-such-compiler")
    check_compiler(TrainingConfig())
    for name in ("compile_blocks", "compile_codebook"):
        with pytest.raises(ConfigError, match=f"training.{name} needs a C.. compiler, .*no-such-compiler"):
            check_compiler(TrainingConfig(**{name: True}))
