"""The log-sum-exp exchange against autograd through the whole matrix, on one rank and on several."""

import csv
from pathlib import Path

import flava_kernels
import flava_kernels.contrastive as contrastive
import op_checks
import pytest
import torch
import torch.distributed as dist
from flava_kernels.cases.contrastive import features
from flava_kernels.contrastive import definition, info_nce
from rank_processes import run_ranks

BATCH, WIDTH = 6, 5
GRAD = 3.0
REST = "log_scale", "row_mask"


def inputs_of(ranks: int, batch: int = BATCH) -> dict[str, torch.Tensor]:
    """Features in fp64, scale and mask of all ranks; with several ranks the second has no match."""
    inputs = features(
        torch.Generator().manual_seed(ranks), rows=ranks * batch, width=WIDTH, scale=8.0, matched=0.6
    )
    if ranks > 1:
        inputs["row_mask"][batch : 2 * batch] = 0
    return inputs


def whole_matrix(inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor], float]:
    """Loss, gradients of GRAD * loss and number of right rows from the full matrix."""
    leaves = {name: tensor.clone().requires_grad_(name != "row_mask") for name, tensor in inputs.items()}
    loss, correct = definition(**leaves)
    (GRAD * loss).backward()
    return loss.detach(), [leaves[name].grad for name in ("image", "text", "log_scale")], float(correct)


@pytest.mark.parametrize("rows_at_a_time", [1, 4, 100])
def test_equals_autograd_on_one_rank(monkeypatch, rows_at_a_time):
    monkeypatch.setattr(contrastive, "CHUNK_BYTES", rows_at_a_time * 8 * BATCH)
    inputs = inputs_of(1)
    leaves = [inputs[name].clone().requires_grad_() for name in ("image", "text", "log_scale")]
    loss, correct = info_nce(*leaves, inputs["row_mask"])
    (GRAD * loss).backward()
    expected, gradients, right = whole_matrix(inputs)
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-13, atol=1e-13)
    assert float(correct) == right
    for leaf, gradient in zip(leaves, gradients, strict=True):
        torch.testing.assert_close(leaf.grad, gradient, rtol=1e-12, atol=1e-13)


def test_the_reference_never_holds_more_than_its_budget(monkeypatch):
    monkeypatch.setattr(contrastive, "CHUNK_BYTES", 7 * 100 * 4)
    rows, columns = torch.ones(20, WIDTH), torch.ones(100, WIDTH)
    parts = list(contrastive.chunks(rows, columns))
    assert [(chunk.start, chunk.stop) for chunk, _ in parts] == [(0, 7), (7, 14), (14, 20)]
    assert {part.untyped_storage().data_ptr() for _, part in parts} == {
        parts[0][1].untyped_storage().data_ptr()
    }
    assert parts[0][1].untyped_storage().nbytes() == 7 * 100 * 4


def test_gradcheck():
    image, text, log_scale, mask = inputs_of(1).values()
    leaves = [tensor.clone().requires_grad_() for tensor in (image, text, log_scale)]
    assert torch.autograd.gradcheck(lambda i, t, s: info_nce(i, t, s, mask)[0], leaves)


def test_no_match_gives_zero_with_a_graph():
    image, text, log_scale, mask = inputs_of(1).values()
    leaf = image.clone().requires_grad_()
    loss, correct = info_nce(leaf, text, log_scale, torch.zeros_like(mask))
    loss.backward()
    assert float(loss.detach()) == float(correct) == float(leaf.grad.abs().sum()) == 0.0


def check_rank_by_rank(ranks: int, batch: int, dtype: torch.dtype, tolerance: float) -> None:
    """Plays all ranks one after the other with the custom operators; the parts must make up the
    whole matrix."""
    inputs = inputs_of(ranks, batch)
    expected, gradients, right = whole_matrix(inputs)
    image, text, mask, scale = (inputs[name].to(dtype) for name in ("image", "text", "row_mask", "log_scale"))
    scale, mask = scale.exp(), mask
    parts = [slice(rank * batch, (rank + 1) * batch) for rank in range(ranks)]
    rows = [contrastive._forward(image[part], text, scale, part.start, False) for part in parts]
    columns = [contrastive._forward(text[part], image, scale, part.start, False) for part in parts]
    row_lse, column_lse, own, first = (
        torch.cat(values)
        for values in (
            [r[0] for r in rows],
            [c[0] for c in columns],
            [r[2] for r in rows],
            [r[3] for r in rows],
        )
    )
    assert (first * mask).sum() == right
    torch.testing.assert_close(
        (mask * ((row_lse + column_lse) / 2 - own)).sum(), expected.to(dtype), rtol=tolerance, atol=tolerance
    )
    row_vectors, column_vectors, grad = (
        torch.stack([row_lse, mask]),
        torch.stack([column_lse, mask]),
        torch.tensor(GRAD, dtype=dtype),
    )
    d_rows = [
        contrastive._backward(grad, image[p], text, scale, row_vectors[:, p], column_vectors, p.start, False)
        for p in parts
    ]
    d_columns = [
        contrastive._backward(grad, text[p], image, scale, column_vectors[:, p], row_vectors, p.start, False)
        for p in parts
    ]
    found = [
        torch.cat([d[0] for d in d_rows]),
        torch.cat([d[0] for d in d_columns]),
        sum(d[2] for d in d_rows),
    ]
    for gradient, reference in zip(found, gradients, strict=True):
        torch.testing.assert_close(
            gradient, reference.to(dtype), rtol=10 * tolerance, atol=tolerance * float(reference.abs().max())
        )


def test_ranks_one_after_the_other_equal_the_whole_matrix():
    check_rank_by_rank(3, BATCH, torch.float64, 1e-13)


@pytest.mark.triton
@pytest.mark.parametrize(("ranks", "batch"), [(3, BATCH), (2, 70), (4, 33)])
def test_kernels_on_ranks_one_after_the_other_equal_the_whole_matrix(monkeypatch, ranks, batch):
    monkeypatch.setenv("FLAVA_KERNELS", "triton")
    check_rank_by_rank(ranks, batch, torch.float32, 2e-6)


@pytest.mark.triton
def test_kernels_with_several_chunks_and_parts_equal_one_chunk(monkeypatch):
    """G in chunks of one row tile, and columns in as many parts as there are tiles or in one."""
    from flava_kernels.triton_ops import contrastive as kernels

    monkeypatch.setenv("FLAVA_KERNELS", "triton")
    inputs = features(torch.Generator().manual_seed(0), rows=150, width=WIDTH, scale=8.0, matched=0.6)
    expected, gradients, right = whole_matrix(inputs)
    for chunk_bytes, programs in ((1, 1), (1, 1000), (2**20, 2)):
        monkeypatch.setitem(kernels.CHUNK_BYTES, 4, chunk_bytes)
        monkeypatch.setattr(kernels, "TARGET_PROGRAMS", programs)
        leaves = [inputs[name].float().requires_grad_() for name in ("image", "text", "log_scale")]
        loss, correct = info_nce(*leaves, inputs["row_mask"])
        (GRAD * loss).backward()
        torch.testing.assert_close(loss.detach().double(), expected, rtol=1e-6, atol=0)
        assert float(correct) == right
        for leaf, gradient in zip(leaves, gradients, strict=True):
            torch.testing.assert_close(
                leaf.grad.double(), gradient, rtol=1e-5, atol=2e-6 * float(gradient.abs().max())
            )


@pytest.mark.triton
@pytest.mark.parametrize("name", ["70-masked", "150-masked-wide", "130-scale-100"])
def test_three_products_of_rounded_pieces_keep_the_limits_of_fp32(monkeypatch, name):
    """The interpreter multiplies fp32 exactly whatever it is told, so what the compiler makes of tf32x3 is
    done here: each operand as a sum of two numbers of 11 digits.
    """
    import numpy as np
    from triton.runtime import interpreter

    upstream, wanted, split = interpreter.InterpreterBuilder.create_dot, interpreter._ir.INPUT_PRECISION, []

    def rounded(values):
        return ((values.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)

    def pieces(handle):
        values = np.ascontiguousarray(handle.data, np.float32)
        large = rounded(values)
        return [interpreter.TensorHandle(part, handle.dtype) for part in (large, rounded(values - large))]

    def create_dot(self, left, right, start, precision, *more):
        if precision != wanted.TF32x3:
            return upstream(self, left, right, start, precision, *more)
        split.append(left)
        (a, small_a), (b, small_b) = pieces(left), pieces(right)
        for pair in ((small_a, b), (a, small_b), (a, b)):
            start = upstream(self, *pair, start, precision, *more)
        return start

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)
    monkeypatch.setenv("FLAVA_KERNELS", "triton")
    case = next(case for case in contrastive.OP.cases() if case.name == name)
    op_checks.check_case(contrastive.OP, case, torch.float32)
    assert split


@pytest.mark.parametrize("implementation", ["torch", pytest.param("triton", marks=pytest.mark.triton)])
def test_a_loss_scale_overflows_in_fp16_only_where_a_gradient_does(monkeypatch, implementation):
    monkeypatch.setenv("FLAVA_KERNELS", implementation)
    inputs = features(torch.Generator().manual_seed(0), rows=33, width=WIDTH, scale=8.0, matched=0.6)
    half = {name: inputs[name].half().requires_grad_() for name in ("image", "text")}
    exact = {name: tensor.detach().double().requires_grad_() for name, tensor in half.items()}
    for leaves, function in ((half, info_nce), (exact, definition)):
        rest = [inputs[name].to(torch.promote_types(leaves["image"].dtype, torch.float32)) for name in REST]
        (function(*leaves.values(), *rest)[0] * 2.0**12).backward()
    for name, leaf in half.items():
        scale = float(exact[name].grad.abs().max())
        torch.testing.assert_close(leaf.grad.double(), exact[name].grad, rtol=5e-3, atol=2e-3 * scale)


def test_every_compiled_product_of_features_is_on_the_matrix_units():
    """In every dtype, on every GPU, with both versions of Triton."""
    with (Path(flava_kernels.__file__).parents[1] / "aot.csv").open(encoding="utf-8") as table:
        rows = [row for row in csv.DictReader(table) if row["name"].startswith("info_nce.")]
    assert {row["name"].split(".")[2] for row in rows} == {"bf16", "fp16", "fp32"}
    assert not [(row["arch"], row["name"]) for row in rows if not int(row["matrix_instructions"])]


def _rank_result() -> tuple[torch.Tensor, float, list[torch.Tensor]]:
    """One of several gloo ranks: loss, right rows, gradients."""
    dist.init_process_group("gloo")
    inputs, rank = inputs_of(dist.get_world_size()), dist.get_rank()
    local = slice(rank * BATCH, (rank + 1) * BATCH)
    leaves = [
        tensor.clone().requires_grad_()
        for tensor in (inputs["image"][local], inputs["text"][local], inputs["log_scale"])
    ]
    loss, correct = info_nce(*leaves, inputs["row_mask"][local])
    (GRAD * loss).backward()
    return loss.detach(), float(correct), [leaf.grad for leaf in leaves]


@pytest.mark.distributed
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_together_equal_one_process(ranks):
    parts = run_ranks(_rank_result, ranks)
    expected, (d_image, d_text, d_scale), right = whole_matrix(inputs_of(ranks))
    torch.testing.assert_close(sum(loss for loss, _, _ in parts), expected, rtol=1e-13, atol=1e-13)
    assert sum(correct for _, correct, _ in parts) == right
    torch.testing.assert_close(torch.cat([grads[0] for *_, grads in parts]), d_image, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(torch.cat([grads[1] for *_, grads in parts]), d_text, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(sum(grads[2] for *_, grads in parts), d_scale, rtol=1e-12, atol=1e-13)


def test_among_equal_entries_the_first_counts_as_the_largest():
    same = torch.ones(4, 3) / 3**0.5
    _, correct = info_nce(same, same, torch.tensor([1.0]), torch.ones(4))
    assert float(correct) == 1.0


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype, both):
    image, text, log_scale, mask = (tensor.float() for tensor in inputs_of(1).values())
    image, text = image.to(dtype), text.to(dtype)
    torch.library.opcheck(contrastive._forward, (image, text, log_scale.exp(), 0, both))
    vectors = torch.stack([torch.ones(BATCH), mask])
    torch.library.opcheck(
        contrastive._backward, (torch.tensor(1.0), image, text, log_scale.exp(), vectors, vectors, 0, both)
    )


def test_compiles_into_one_graph():
    inputs = inputs_of(1)
    compiled = torch.compile(info_nce, fullgraph=True, backend="aot_eager")
    leaves = [inputs[name].clone().requires_grad_() for name in ("image", "text", "log_scale")]
    loss, correct = compiled(*leaves, inputs["row_mask"])
    (GRAD * loss).backward()
    expected, gradients, right = whole_matrix(inputs)
    torch.testing.assert_close(loss.detach(), expected)
    assert float(correct) == right
    for leaf, gradient in zip(leaves, gradients, strict=True):
        torch.testing.assert_close(leaf.grad, gradient)


def test_says_why_kernels_do_not_take_an_input():
    inputs = inputs_of(1)
    assert "float64" in contrastive.supports(**inputs)
    inputs = {name: tensor.float() for name, tensor in inputs.items()}
    assert contrastive.supports(**inputs) is None
    assert "bfloat16" in contrastive.supports(**inputs | {"text": inputs["text"].bfloat16()})
    assert (
        contrastive.supports(**inputs | {"image": inputs["image"][:0], "text": inputs["text"][:0]})
        == "there are no features"
    )
