"""Shapes and values that would be read beyond a tensor are refused in one line, values on a CPU always."""

import pytest
import torch
from flava_kernels import OPS, checks, dispatch
from flava_kernels.attention import varlen_attention
from flava_kernels.fusing import fuse_sequences
from flava_kernels.linear_cross_entropy import linear_cross_entropy
from flava_kernels.packing import pack, unpack

BOTH = pytest.mark.parametrize("custom", [False, True], ids=["function", "custom operator"])


def bounds(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


@BOTH
@pytest.mark.parametrize(
    ("cu_seqlens", "longest", "equal", "message"),
    [
        (bounds(0, 3, 7), 3, False, "the longest sequence is 1 with 4 rows, but at most 3 were promised"),
        (bounds(0, 5, 3, 7), 7, False, "must not fall, but sequence 1 has -2 rows"),
        (bounds(0, 3, 6), 7, False, "ends at 6, but there are 7 rows"),
        (bounds(1, 3, 7), 7, False, "must start with 0"),
        (bounds(0, 3, 7), 4, True, "equal_lengths promises 4 rows, but sequence 0 has 3"),
    ],
)
def test_sequences_that_do_not_fit(monkeypatch, custom, cu_seqlens, longest, equal, message):
    monkeypatch.setattr(dispatch, "needs_custom_operator", lambda example: custom)
    with pytest.raises(ValueError, match=f"varlen_attention: .*{message}"):
        varlen_attention(torch.zeros(7, 3, 1, 8), cu_seqlens, longest, equal_lengths=equal)


@pytest.mark.parametrize("inference", [False, True])
def test_sequences_that_passed_are_asked_again_when_they_or_the_promises_change(inference):
    with torch.inference_mode(inference):
        given = bounds(0, 3, 7)
        checks.sequences("op", given, 7, 4)
        checks.sequences("op", given, 7, 4)
        for rows, longest, equal in ((8, 4, False), (7, 3, False), (7, 4, True)):
            with pytest.raises(ValueError, match="op: "):
                checks.sequences("op", given, rows, longest, equal_lengths=equal)
        given[1] = 2
        with pytest.raises(ValueError, match="the longest sequence is 1 with 5 rows"):
            checks.sequences("op", given, 7, 4)


def test_sequences_are_read_once_and_not_once_per_layer(monkeypatch):
    read, tolist = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: read.append(self) or tolist(self))
    given, qkv = bounds(0, 3, 7), torch.zeros(7, 3, 1, 8, requires_grad=True)
    for _ in range(3):
        varlen_attention(qkv, given, 4).sum().backward()
    assert sum(tensor is given for tensor in read) == 1


def of_shape(*size: int) -> torch.Tensor:
    return torch.zeros(size)


def classes(*size: int) -> torch.Tensor:
    return torch.zeros(size, dtype=torch.int64)


NORM, SUM, LOSS = "layer_norm", "add_layer_norm", "linear_cross_entropy"
X, D, FEW = of_shape(6, 8), of_shape(8), of_shape(3)
ONES = of_shape(1), of_shape(1)
HEAD, QKV = (of_shape(5, 8), of_shape(5)), of_shape(6, 3, 1, 8)
WRONG_SHAPES = [
    (NORM, (X, FEW, D, 1e-5), "weight has shape \\[3], but \\[8] is wanted"),
    (NORM, (X, of_shape(1), D, 1e-5), "weight has shape \\[1]"),
    (NORM, (X, D, FEW, 1e-5), "bias has shape"),
    (NORM, (X, D, None, 1e-5), "bias is None, but \\[8] is wanted"),
    (SUM, (X, X[:1], D, D, 1e-5), "residual has shape \\[1, 8], but \\[6, 8] is wanted"),
    (SUM, (X, X, of_shape(16), D, 1e-5), "weight has shape"),
    (SUM, (X, X, D, FEW, 1e-5), "bias has shape"),
    ("linear_gelu", (X, HEAD[0], FEW), "bias has shape \\[3], but \\[5] is wanted"),
    ("gelu_linear", (X, HEAD[0], FEW), "bias has shape"),
    (LOSS, (X, HEAD[0], FEW, classes(6)), "bias has shape"),
    (LOSS, (X, *HEAD, classes(9)), "labels has shape \\[9], but \\[6] is wanted"),
    (LOSS, (X, *HEAD, classes(1)), "labels has shape"),
    (LOSS, (X, *HEAD, classes(2), classes(4)), "labels has shape \\[2], but \\[4] is wanted"),
    (LOSS, (of_shape(2, 3, 8), *HEAD, classes(6)), "hidden has shape \\[2, 3, 8], but \\[2, 8] is wanted"),
    ("fuse_sequences", (FEW, X, X, bounds(0, 2, 6), 4), "cls_token has shape"),
    ("fuse_sequences", (D, X, of_shape(6, 4), bounds(0, 2, 6), 4), "text has shape"),
    ("fuse_sequences", (D, X[:5], X, bounds(0, 2, 6), 4), "image has 5 rows, which are not as many for each"),
    (
        "varlen_attention",
        (of_shape(6, 24), bounds(0, 6), 6),
        "qkv has shape \\[6, 24], but \\[T 3 h e] is wanted",
    ),
    ("varlen_attention", (of_shape(6, 2, 1, 8), bounds(0, 6), 6), "qkv has shape"),
    ("info_nce", (X, X[:4], of_shape(1), of_shape(6)), "text has shape"),
    ("info_nce", (X, X, of_shape(1), of_shape(3)), "row_mask has shape"),
    ("info_nce", (X, X.double(), of_shape(1), of_shape(6)), "text is torch.float64 and image torch.float32"),
    ("sigmoid_loss", (X, X[:4], *ONES, of_shape(6)), "text has shape"),
    ("sigmoid_loss", (X, X, *ONES, of_shape(3)), "text_mask has shape"),
    ("sigmoid_loss", (X, X.double(), *ONES, of_shape(6)), "text is torch.float64 and image torch.float32"),
    (NORM, (X, D, D, -1e-5), "eps is -1e-05; it must be at least 0"),
    (SUM, (X, X, D, D, float("nan")), "eps is nan"),
    (SUM, (X, X, D, D, 1e-5, FEW), "x_bias has shape"),
    ("varlen_attention", (QKV, bounds(0, 6).float(), 6), "cu_seqlens is torch.float32; a tensor of int32"),
    ("varlen_attention", (QKV, [0, 6], 6), r"cu_seqlens is \[0, 6]; a tensor of int32 is wanted"),
    ("pack", (of_shape(2, 4, 8), bounds(0, 2, 3, 6), 6), "cu_seqlens has shape \\[4], but \\[3] is wanted"),
]


@pytest.mark.parametrize(("op", "arguments", "message"), WRONG_SHAPES, ids=[row[0] for row in WRONG_SHAPES])
def test_shapes_that_do_not_belong_together(op, arguments, message):
    """torch would broadcast some of them, and the kernels would read beyond others."""
    with pytest.raises(ValueError, match=f"{op}: {message}"):
        OPS[op].function(*arguments)


def test_a_bias_that_is_only_differentiated_has_the_shape_of_its_layer():
    with pytest.raises(ValueError, match="varlen_attention: qkv_bias has shape \\[7], but \\[24] is wanted"):
        varlen_attention(QKV, bounds(0, 6), 6, qkv_bias=of_shape(7))


@BOTH
def test_other_operators_ask_too(monkeypatch, custom):
    monkeypatch.setattr(dispatch, "needs_custom_operator", lambda example: custom)
    rows, too_long = torch.zeros(5, 8), bounds(0, 1, 5)
    for call in (
        lambda: pack(torch.zeros(2, 3, 8), too_long, 5),
        lambda: unpack(rows, too_long, 3),
        lambda: fuse_sequences(torch.zeros(8), torch.zeros(4, 8), rows, too_long, 3),
    ):
        with pytest.raises(ValueError, match="with 4 rows, but at most 3 were promised"):
            call()


@BOTH
@pytest.mark.parametrize("width", [2, 12], ids=["keeps dW", "keeps G"])
@pytest.mark.parametrize(
    ("labels", "rows", "message"),
    [
        ([0, 9, 1], None, "label 9 is none of 9 classes; rows that do not count have -100"),
        ([0, -1, 1], None, "label -1 is none"),
        ([0, 8, -100], [0, 3, 1], "row 3 is named, but hidden has 3 rows"),
        ([0, 8, -100], [0, 1, 1], "1 of the named rows repeat another"),
    ],
)
def test_labels_and_rows_out_of_range(monkeypatch, custom, width, labels, rows, message):
    monkeypatch.setattr(dispatch, "needs_custom_operator", lambda example: custom)
    rows = None if rows is None else torch.tensor(rows)
    with pytest.raises(ValueError, match=f"linear_cross_entropy: {message}"):
        linear_cross_entropy(
            torch.zeros(3, width), torch.zeros(9, width), torch.zeros(9), torch.tensor(labels), rows
        )


def test_elsewhere_only_the_variable_lets_values_be_read(monkeypatch):
    elsewhere = torch.empty(1, device="meta")
    assert checks.readable(torch.empty(1)) and not checks.readable(elsewhere)
    monkeypatch.setenv(checks.VARIABLE, "1")
    assert checks.readable(elsewhere)
