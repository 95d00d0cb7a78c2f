"""The sigmoid loss against autograd through the whole matrix and open_clip's, on one rank and on several."""

import csv
from pathlib import Path

import flava_kernels
import kernel_checks
import pytest
import torch
import torch.distributed as dist
from flava_kernels import contrastive
from flava_kernels.cases.sigmoid_loss import features
from flava_kernels.sigmoid_loss import OP, _forward, definition, sigmoid_loss
from rank_processes import run_ranks

BATCH, WIDTH = 6, 5
GRAD = 3.0
LEAVES = "image", "text", "log_scale", "bias"


def inputs_of(ranks: int, batch: int = BATCH, bias: float = -3.0) -> dict[str, torch.Tensor]:
    """Features in fp64, scale, bias and mask of all ranks; with several ranks the second has no match."""
    drawn = features(
        torch.Generator().manual_seed(ranks),
        rows=ranks * batch,
        width=WIDTH,
        scale=8.0,
        bias=bias,
        matched=0.6,
    )
    if ranks > 1:
        drawn["text_mask"][batch : 2 * batch] = 0
    return drawn


def run(function, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, float, list[torch.Tensor]]:
    """Loss, right rows, and gradients of GRAD * loss."""
    leaves = {name: inputs[name].clone().requires_grad_() for name in LEAVES}
    loss, correct = function(**leaves, text_mask=inputs["text_mask"])
    assert loss.requires_grad and not correct.requires_grad
    (GRAD * loss).backward()
    return loss.detach(), float(correct), [leaf.grad for leaf in leaves.values()]


def check(found, expected, rtol: float = 1e-12, atol: float = 1e-13) -> None:
    torch.testing.assert_close(found[0], expected[0].to(found[0].dtype), rtol=rtol, atol=atol)
    assert found[1] == expected[1]
    for ours, theirs in zip(found[2], expected[2], strict=True):
        scale = max(1.0, float(theirs.abs().max()))
        torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=rtol, atol=atol * scale)


@pytest.mark.parametrize("rows_at_a_time", [1, 4, 100])
@pytest.mark.parametrize("bias", [-10.0, -2.0, 30.0])
def test_equals_autograd_on_one_rank(monkeypatch, rows_at_a_time, bias):
    monkeypatch.setattr(contrastive, "CHUNK_BYTES", rows_at_a_time * 8 * BATCH)
    inputs = inputs_of(1, bias=bias)
    check(run(sigmoid_loss, inputs), run(definition, inputs))


def test_open_clip_agrees():
    losses = pytest.importorskip("open_clip").loss
    inputs = inputs_of(1)
    inputs["text_mask"].fill_(1.0)

    def theirs(image, text, log_scale, bias, text_mask):
        loss = losses.SigLipLoss()(image, text, log_scale.exp(), bias)  # a mean over images
        return loss * BATCH, definition(image, text, log_scale, bias, text_mask)[1]

    check(run(sigmoid_loss, inputs), run(theirs, inputs))


def test_gradcheck():
    *leaves, mask = inputs_of(1).values()
    leaves = [tensor.clone().requires_grad_() for tensor in leaves]
    assert torch.autograd.gradcheck(lambda *values: sigmoid_loss(*values, mask)[0], leaves)


def check_only(names: tuple[str, ...], dtype: torch.dtype, rtol: float, atol: float) -> None:
    """Asserts that the named gradients, and no others, are those that all together have."""
    inputs = inputs_of(1, batch=9)
    expected = dict(zip(LEAVES, run(definition, inputs)[2], strict=True))
    leaves = {name: tensor.to(dtype).requires_grad_(name in names) for name, tensor in inputs.items()}
    (GRAD * sigmoid_loss(**leaves)[0]).backward()
    for name in LEAVES:
        found, wanted = leaves[name].grad, expected[name].to(dtype) if name in names else None
        torch.testing.assert_close(found, wanted, rtol=rtol, atol=atol)


PARTS = [("text", "log_scale", "bias"), ("image", "bias"), ("bias",), ("log_scale",), ("text",)]


@pytest.mark.parametrize("names", PARTS, ids=", ".join)
def test_only_gradients_that_are_asked_for(names):
    check_only(names, torch.float64, 1e-12, 1e-13)


@pytest.mark.triton
@pytest.mark.parametrize("names", PARTS, ids=", ".join)
def test_kernels_give_only_gradients_that_are_asked_for(monkeypatch, names):
    monkeypatch.setenv("FLAVA_KERNELS", "triton")
    check_only(names, torch.float32, 1e-5, 2e-5)


def test_no_match_gives_zero_with_a_graph():
    inputs = inputs_of(1)
    inputs["text_mask"].zero_()
    loss, correct, gradients = run(sigmoid_loss, inputs)
    assert float(loss) == correct == 0.0
    assert not any(bool(gradient.any()) for gradient in gradients)


def test_a_text_that_is_in_the_batch_twice_is_no_negative_of_its_image():
    inputs = inputs_of(1)
    inputs["text"][1] = inputs["text"][0]
    inputs["text_mask"][:2] = torch.tensor([1.0, 0.0])
    without = {name: tensor if len(tensor) == 1 else tensor.clone() for name, tensor in inputs.items()}
    without["text"][1] = -inputs["text"][0]
    assert run(sigmoid_loss, inputs)[:2] == run(sigmoid_loss, without)[:2]


def test_a_loss_without_gradients():
    loss, _ = sigmoid_loss(**inputs_of(1))
    assert not loss.requires_grad and torch.equal(loss, run(sigmoid_loss, inputs_of(1))[0])


@pytest.mark.triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_of_a_later_rank(dtype):
    kernel_checks.sigmoid_loss_of_the_second_rank(dtype)


@pytest.mark.triton
def test_kernels_with_several_chunks_equal_one(monkeypatch):
    from flava_kernels.triton_ops import contrastive as kernels

    monkeypatch.setenv("FLAVA_KERNELS", "triton")
    inputs = inputs_of(1, batch=150)
    expected = run(definition, inputs)
    for chunk_bytes in (1, 2**20):
        monkeypatch.setitem(kernels.CHUNK_BYTES, 4, chunk_bytes)
        found = run(sigmoid_loss, {name: tensor.float() for name, tensor in inputs.items()})
        check(found, expected, rtol=1e-5, atol=2e-6)


def test_every_compiled_product_of_features_is_on_the_matrix_units():
    """In every dtype, on every GPU, with both versions of Triton."""
    with (Path(flava_kernels.__file__).parents[1] / "aot.csv").open(encoding="utf-8") as table:
        rows = [row for row in csv.DictReader(table) if row["name"].startswith("sigmoid_loss.")]
    assert {row["name"].split(".")[2] for row in rows} == {"bf16", "fp16", "fp32"}
    assert not [(row["arch"], row["name"]) for row in rows if not int(row["matrix_instructions"])]


def _rank_result() -> tuple[torch.Tensor, float, list[torch.Tensor]]:
    """One of several gloo ranks."""
    dist.init_process_group("gloo")
    inputs, rank = inputs_of(dist.get_world_size()), dist.get_rank()
    local = slice(rank * BATCH, (rank + 1) * BATCH)
    own = {name: tensor[local] if len(tensor) > 1 else tensor for name, tensor in inputs.items()}
    return run(sigmoid_loss, own)


@pytest.mark.distributed
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_together_equal_one_process(ranks):
    losses, correct, gradients = zip(*run_ranks(_rank_result, ranks), strict=True)
    images, texts, *shared = zip(*gradients, strict=True)
    together = [torch.cat(images), torch.cat(texts), *(sum(parts) for parts in shared)]
    check((sum(losses), sum(correct), together), run(definition, inputs_of(ranks)))


def test_among_equal_entries_the_first_counts_as_the_largest():
    same, one = torch.ones(4, 3) / 3**0.5, torch.tensor([1.0])
    assert float(sigmoid_loss(same, same, one, -10 * one, torch.ones(4))[1]) == 1.0


@pytest.mark.parametrize("gradients", [[True, True], [False, True], [False, False]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype, gradients):
    image, text, *rest = (tensor.float() for tensor in inputs_of(1).values())
    torch.library.opcheck(_forward, (image.to(dtype), text.to(dtype), *rest, 0, gradients))


def test_compiles_into_one_graph():
    compiled = torch.compile(sigmoid_loss, fullgraph=True, backend="aot_eager")
    check(run(compiled, inputs_of(1)), run(definition, inputs_of(1)))


def test_says_why_kernels_do_not_take_an_input():
    inputs = inputs_of(1)
    assert "float64" in OP.supports(**inputs)
    inputs = {name: tensor.float() for name, tensor in inputs.items()}
    assert OP.supports(**inputs) is None
    assert "bfloat16" in OP.supports(**inputs | {"text": inputs["text"].bfloat16()})
