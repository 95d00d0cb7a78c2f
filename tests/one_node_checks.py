"""Runs a stack of blocks as one node each, and layer by layer."""

import copy

import torch
from flava_kernels.cases.packing import cu_seqlens_of
from flava_kernels.triton_ops import attention, layer_norm, linear_gelu
from torch import Tensor, nn

from flava_ds.batch import Packed
from flava_ds.config.encoders import EncoderConfig
from flava_ds.layers import transformer as transformers
from flava_ds.layers.transformer import Transformer
from flava_ds.training.task import fold_biases

LENGTHS = (5, 1, 12)


def stack(dtype=torch.float32, device="cpu", head_size=64, causal=False) -> Transformer:
    """Two blocks, the same at every call, that fold biases as on a GPU."""
    torch.manual_seed(0)
    shape = EncoderConfig(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=128 // head_size, intermediate_size=72
    )
    transformer = Transformer(shape, causal=causal).to(device, dtype)
    for parameter in transformer.parameters():
        nn.init.normal_(parameter, std=0.3)
    fold_biases(transformer, True)
    return transformer


class Launches:
    """Counts calls of the functions that launch kernels, by name and the shapes of their first tensor."""

    def __init__(self, monkeypatch):
        self.calls = []
        for module in (attention, layer_norm, linear_gelu):
            for name in ("forward", "backward"):
                monkeypatch.setattr(module, name, self._counted(module, name, getattr(module, name)))

    def _counted(self, module, name, function):
        def counted(first, *arguments):
            self.calls.append((module.__name__, name, tuple(first.shape)))
            return function(first, *arguments)

        return counted


def nodes(result: Tensor) -> list[str]:
    """Names of the nodes of a result's graph."""
    found, waiting = {}, [result.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found[node] = node.name()
            waiting += [following for following, _ in node.next_functions]
    return list(found.values())


def run(transformer: Transformer, *, lengths=LENGTHS, rows=None, **others):
    """Returns the result, gradients, bytes kept beside parameters, and how many blocks are one node."""
    reference = next(transformer.parameters())
    torch.manual_seed(1)
    hidden = torch.randn(sum(lengths), 128).to(reference).requires_grad_()
    bounds = cu_seqlens_of(lengths).to(reference.device)
    kept, own = {}, {parameter.data_ptr() for parameter in transformer.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = transformer(Packed(hidden, bounds, max(lengths, default=0)), rows=rows, **others)
    count = nodes(result).count("_PreNormBlockBackward")
    upstream = torch.randn(result.shape).to(result)
    result.backward(upstream)
    parameters = {name: own for name, own in transformer.named_parameters() if own.grad is not None}
    found = {f"d {name}": own.grad for name, own in parameters.items()}
    return found | {"result": result.detach(), "d hidden": hidden.grad}, sum(kept.values()), count


def run_layers(monkeypatch, transformer: Transformer, **options):
    """Does what `run` does, layer by layer."""
    with monkeypatch.context() as patched:
        patched.setattr(transformers, "run_as_one_node", lambda *arguments: None)
        return run(transformer, **options)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Bit for bit."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def assert_both_ways_agree(monkeypatch, transformer: Transformer, **options) -> None:
    """Runs a stack both ways: results, gradients, launches and kept bytes are the same."""
    layers = copy.deepcopy(transformer)
    launches = Launches(monkeypatch)
    found, kept, count = run(transformer, **options)
    launches.calls, own = [], launches.calls
    expected, theirs, none = run_layers(monkeypatch, layers, **options)
    assert (count, none) == (2, 0)
    assert_same(found, expected)
    assert own == launches.calls and len(own) == 2 * (8 if sum(options.get("lengths", LENGTHS)) else 6)
    assert kept == theirs
