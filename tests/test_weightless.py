"""Modules without weights, and without drawn ones."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from flava_ds.weightless import shapes_of, undrawn, weightless

BUILD = """
import sys
from flava_ds.preview import meta_task
from flava_ds.recipes import resolve
for recipe in sys.argv[1:]:
    task = meta_task(resolve(recipe, []))
    assert all(parameter.is_meta for parameter in task.parameters()), recipe
    assert "torch._dynamo" not in sys.modules, recipe
"""
RECIPES = ("flava_base", "clip_base", "align_base", "bert_base", "vilt_base")
"""Those whose training states compute nothing while they are built."""


def test_a_model_is_built_without_torchs_compiler():
    done = subprocess.run(
        [sys.executable, "-c", BUILD, *RECIPES], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_shapes_are_those_of_a_module_with_weights():
    def build() -> nn.Module:
        made = nn.Sequential(nn.Linear(3, 5), nn.Embedding(7, 2), nn.BatchNorm1d(5))
        nn.init.trunc_normal_(made[0].weight)
        nn.init.normal_(tensor=made[1].weight, std=0.02)
        nn.init.kaiming_uniform_(made[0].weight)
        return made

    real = {name: tuple(tensor.shape) for name, tensor in build().state_dict().items()}
    assert shapes_of(build) == real


def test_weights_are_drawn_again_afterwards():
    with weightless():
        assert nn.Linear(3, 5).weight.is_meta
    weight = nn.init.normal_(torch.zeros(8))
    assert weight.device.type == "cpu" and weight.count_nonzero() == 8


def test_a_module_that_is_loaded_draws_nothing():
    before = torch.get_rng_state()
    made = undrawn(lambda: nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)))
    assert torch.equal(torch.get_rng_state(), before) and not made[0].weight.is_meta
    expected = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)).state_dict()
    made.load_state_dict(expected)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in made.state_dict().items())


class Holder(nn.Module):
    """Keeps numbers that no state dict has: those of a network beside it, and of a buffer."""

    def __init__(self, of_a_buffer):
        super().__init__()
        self.own = nn.Linear(2, 2)
        if of_a_buffer:
            self.register_buffer(
                "fixed", nn.init.normal_(nn.Parameter(torch.empty(4))).data, persistent=False
            )
        else:
            self.beside = [nn.Linear(2, 2)]


@pytest.mark.parametrize("of_a_buffer", [True, False])
def test_numbers_that_no_file_brings_are_drawn(of_a_buffer):
    def build():
        torch.manual_seed(3)
        return Holder(of_a_buffer)

    with torch.random.fork_rng():
        made, expected = undrawn(build), build()
    if of_a_buffer:
        assert torch.equal(made.fixed, expected.fixed)
    else:
        assert torch.equal(made.beside[0].weight, expected.beside[0].weight)


def test_constants_are_set():
    """A constructor may read them."""
    assert undrawn(lambda: nn.LayerNorm(3)).weight.tolist() == [1.0] * 3
