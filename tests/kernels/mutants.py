"""Bugs to plant in the kernels, each with the cases that have to notice it; mutation_run.py runs them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

Edits = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Mutant:
    """`edits` are (text, replacement), each text occurring `times` in the module; `setup` are edits that
    change no result, for the unchanged run too.

    `cases` are the operator's, `checks` functions of kernel_checks.py.
    """

    name: str
    edits: Edits
    op: str
    cases: tuple[str, ...]
    dtype: str = "float32"
    times: int = 1
    setup: Edits = ()
    checks: tuple[str, ...] = ()


def bug(name: str, text: str, replacement: str, op: str, *cases: str, **options) -> Mutant:
    """A mutant with one edit."""
    return Mutant(name, ((text, replacement),), op, cases, **options)


def unchanged(planted: Iterable[Mutant]) -> list[Mutant]:
    """The cases of mutants without their bugs."""
    merged: dict[tuple, Mutant] = {}
    for mutant in planted:
        key = (mutant.op, mutant.dtype, mutant.setup)
        sofar = merged.get(key, replace(mutant, cases=(), checks=()))
        cases, checks = (
            tuple(dict.fromkeys((*old, *new)))
            for old, new in ((sofar.cases, mutant.cases), (sofar.checks, mutant.checks))
        )
        name = f"unchanged: {mutant.op}, {mutant.dtype}{', set up' if mutant.setup else ''}"
        merged[key] = replace(mutant, name=name, edits=(), cases=cases, checks=checks, times=1)
    return list(merged.values())


PACKING = (
    bug(
        "pack: wrong row",
        "target = packed + (start + row)",
        "target = packed + (sequence + row)",
        "pack",
        "mixed",
    ),
    bug(
        "pack: wrong length",
        "mask = (row < length)[:, None]",
        "mask = (row < length - 1)[:, None]",
        "pack",
        "mixed",
    ),
    bug(
        "pack: last columns skipped",
        "grid = (triton.cdiv(length, TILE_ROWS), triton.cdiv(width, columns)",
        "grid = (triton.cdiv(length, TILE_ROWS), width // columns",
        "pack",
        "mixed",
    ),  # fmt: skip
    bug(
        "unpack: reads the next sequence",
        "mask=(row < length)[:, None] & inside",
        "mask=(row <= length)[:, None] & inside",
        "unpack",
        "mixed",
    ),
    bug(
        "unpack: last row not written",
        "mask=(row < max_seqlen)[:, None]",
        "mask=(row < max_seqlen - 1)[:, None]",
        "unpack",
        "mixed",
    ),
)

FUSING = (
    bug(
        "wrong image row",
        "image + image_row[:, None] * image_stride",
        "image + (image_row - (row > 1))[:, None] * image_stride",
        "fuse_sequences",
        "mixed",
    ),
    bug(
        "image in the place of cls",
        "tl.where(of_image, from_image, from_cls[None, :])",
        "from_image",
        "fuse_sequences",
        "mixed",
    ),
    bug(
        "last row not written",
        "value,\n        mask=(row < length)[:, None] & inside,",
        "value,\n        mask=(row < length - 1)[:, None] & inside,",
        "fuse_sequences",
        "mixed",
    ),
    bug(
        "d_text: last row skipped",
        "value, mask=of_text & inside)",
        "value, mask=of_text & inside & (row < length - 1)[:, None])",
        "fuse_sequences",
        "mixed",
    ),
    bug(
        "d_image: mask of the text",
        "value, mask=of_image & inside)",
        "value, mask=of_text & inside)",
        "fuse_sequences",
        "mixed",
    ),
    bug(
        "d_cls: last tile skipped",
        "range(0, batch, ROWS)",
        "range(0, batch - ROWS, ROWS)",
        "fuse_sequences",
        "many",
    ),
    bug("d_cls: tiles not added", "total += tl.sum(", "total = tl.sum(", "fuse_sequences", "many"),
)

ATTENTION = (
    bug(
        "tail not masked",
        'scores = tl.where((key < length)[None, :], scores, float("-inf"))',
        "scores = scores",
        "varlen_attention",
        "to-32",
    ),
    bug("tail skipped", "if whole < length:", "if whole > length:", "varlen_attention", "head-64"),
    bug(
        "whole tiles skipped",
        "for first in range(0, whole, KEYS):",
        "for first in range(KEYS, whole, KEYS):",
        "varlen_attention",
        "head-64",
    ),
    bug(
        "scale missing in whole tiles",
        "SCALE * LOG2_E, MASKED=False",
        "LOG2_E, MASKED=False",
        "varlen_attention",
        "head-64",
    ),
    bug(
        "scale missing in the only tile",
        "row, key, length, token_stride, highest, total, weighted,\n            HEAD_SIZE, SCALE * LOG2_E",
        "row, key, length, token_stride, highest, total, weighted,\n            HEAD_SIZE, LOG2_E",
        "varlen_attention",
        "to-16",
    ),
    bug(
        "sum not rescaled",
        "total * shrink + tl.sum(p, 1)",
        "total + tl.sum(p, 1)",
        "varlen_attention",
        "head-64",
    ),
    bug("values not rescaled", "weighted * shrink[:, None]", "weighted", "varlen_attention", "head-64"),
    bug(
        "sign of the log-sum-exp",
        "highest + tl.math.log2(total)",
        "highest - tl.math.log2(total)",
        "varlen_attention",
        "to-16",
    ),
    bug("delta missing", "p * (d_p - delta[None, :])", "p * d_p", "varlen_attention", "to-16"),
    bug(
        "sign of delta",
        "p * (d_p - delta[None, :])",
        "p * (d_p + delta[None, :])",
        "varlen_attention",
        "to-16",
    ),
    bug(
        "padded keys not masked",
        "p = tl.where(real_key, p, 0.0)",
        "p = p",
        "varlen_attention",
        "alone-huge-logits",
    ),  # fmt: skip
    bug("dk not scaled", "(d_k * SCALE)", "(d_k)", "varlen_attention", "to-16"),
    bug(
        "dv from the queries",
        "tl.dot(p.to(d_o.dtype), d_o, d_v",
        "tl.dot(p.to(d_o.dtype), q, d_v",
        "varlen_attention",
        "to-16",
    ),
    bug(
        "dq: earlier keys forgotten", "if first_key > 0:", "if first_key < 0:", "varlen_attention", "head-64"
    ),
    bug(
        "last queries skipped",
        "else 0, length, QUERIES)",
        "else 0, length - QUERIES, QUERIES)",
        "varlen_attention",
        "head-64",
    ),
    bug(
        "causal: the query's own key masked",
        "key[None, :] <= row[:, None]",
        "key[None, :] < row[:, None]",
        "varlen_attention",
        "causal-to-16",
    ),
    bug(
        "causal: one key ahead",
        "key[None, :] <= row[:, None]",
        "key[None, :] <= row[:, None] + 1",
        "varlen_attention",
        "causal-to-16",
    ),
    bug(
        "causal: the diagonal not masked",
        "(tl.program_id(0) * QUERIES if CAUSAL else length)",
        "(tl.minimum(length, (tl.program_id(0) + 1) * QUERIES) if CAUSAL else length)",
        "varlen_attention",
        "causal-to-128",
    ),
    bug(
        "causal: second tile of the diagonal skipped",
        "tl.minimum(length, (tl.program_id(0) + 1) * QUERIES), KEYS, num_stages=1\n",
        "tl.program_id(0) * QUERIES + 1, KEYS, num_stages=1\n",
        "varlen_attention",
        "causal-to-128",
        dtype="float16",
    ),
    bug(
        "causal: keys behind the diagonal visited",
        "whole, tl.minimum(length, (tl.program_id(0) + 1) * QUERIES), KEYS",
        "whole, length, KEYS",
        "varlen_attention",
        checks=("causal_attention_of_any_tile",),
    ),
    bug(
        "causal: the query's own key without a gradient",
        "key[:, None] <= row[None, :]",
        "key[:, None] < row[None, :]",
        "varlen_attention",
        "causal-to-16",
    ),
    bug(
        "causal: queries before the keys visited",
        "first_key // QUERIES * QUERIES if CAUSAL",
        "0 if CAUSAL",
        "varlen_attention",
        checks=("causal_attention_of_any_tile",),
    ),
    bug(
        "causal: queries of the diagonal skipped",
        "QUERIES * QUERIES if CAUSAL",
        "QUERIES * QUERIES + QUERIES if CAUSAL",
        "varlen_attention",
        "causal-to-128",
    ),
    bug(
        "causal: probabilities of the diagonal not masked",
        "elif first_query < first_key + KEYS:",
        "elif first_query < first_key:",
        "varlen_attention",
        "causal-197",
    ),
    bug(
        "causal: half of the diagonal not masked",
        "elif first_query < first_key + KEYS:",
        "elif first_query <= first_key:",
        "varlen_attention",
        "causal-197",
    ),
    bug(
        "causal: dq never complete",
        "(tl.minimum(length, first_query + QUERIES) if CAUSAL else length)",
        "length",
        "varlen_attention",
        "causal-to-128",
    ),
    bug(
        "dq from the values",
        "d_q = tl.dot(tl.trans(d_scores), k",
        "d_q = tl.dot(tl.trans(d_scores), v",
        "varlen_attention",
        "to-32",
        dtype="bfloat16",
    ),
)

NORM = "add_layer_norm"
LAYER_NORM = (
    bug("sign of the residual", "x += tl.load(RESIDUAL", "x -= tl.load(RESIDUAL", NORM, "37x64"),
    bug(
        "residual's sum not kept",
        "tl.store(TOTAL + out, rounded, mask=inside)",
        "tl.store(TOTAL + out, rounded, mask=inside & (row < 1)[:, None])",
        NORM,
        "37x64",
    ),
    bug(
        "outside columns not masked",
        "x = tl.where(inside, x - center[:, None], 0.0)",
        "x = x - center[:, None]",
        NORM,
        "5x770",
    ),
    bug(
        "epsilon missing",
        "tl.sqrt(tl.sum(x * x, 1) / COLUMNS + eps)",
        "tl.sqrt(tl.sum(x * x, 1) / COLUMNS)",
        NORM,
        "constant rows",
    ),
    bug(
        "sign of the bias",
        "weight[None, :] + bias[None, :]",
        "weight[None, :] - bias[None, :]",
        NORM,
        "37x64",
    ),
    bug(
        "variance over the block",
        "tl.sum(x * x, 1) / COLUMNS + eps",
        "tl.sum(x * x, 1) / BLOCK_COLUMNS + eps",
        NORM,
        "5x770",
    ),
    bug("gradient along the row", "- normed * along[:, None]", "+ normed * along[:, None]", NORM, "37x64"),
    bug(
        "gradient's mean missing",
        "(weighted - (tl.sum(weighted, 1) / COLUMNS)[:, None]",
        "(weighted",
        NORM,
        "37x64",
    ),
    bug(
        "residual gradient missing",
        "d_total += tl.load(\n                GRAD_TOTAL",
        "d_total += 0.0 * tl.load(\n                GRAD_TOTAL",
        NORM,
        "37x64",
    ),
    bug(
        "d_weight: tiles not added",
        "d_weight += tl.sum(grad * normed, 0)",
        "d_weight = tl.sum(grad * normed, 0)",
        NORM,
        "5x770",
    ),
    bug(
        "last rows skipped",
        "range(program * BLOCK_ROWS, rows,",
        "range(program * BLOCK_ROWS, rows - BLOCK_ROWS,",
        NORM,
        "5x770",
    ),
    bug(
        "mean not corrected",
        "return tl.where(inside, x - (tl.sum(x, 1) / columns)[:, None], 0.0)",
        "return x",
        "layer_norm",
        "large mean",
    ),
    bug(
        "d_weight rounded to bf16",
        "d_weight.to(D_WEIGHT.dtype.element_ty)",
        "d_weight.to(tl.bfloat16).to(D_WEIGHT.dtype.element_ty)",
        NORM,
        "fp32 parameters",
        dtype="bfloat16",
    ),
    bug(
        "d_bias rounded to bf16",
        "d_bias.to(D_BIAS.dtype.element_ty)",
        "d_bias.to(tl.bfloat16).to(D_BIAS.dtype.element_ty)",
        NORM,
        "fp32 parameters",
        dtype="bfloat16",
    ),
    bug(
        "d_bias is d_weight",
        "tl.store(place + COLUMNS, d_bias,",
        "tl.store(place + COLUMNS, d_weight,",
        "layer_norm",
        "37x64",
    ),
)

COLUMN_SUMS = (
    bug(
        "last rows skipped",
        "range(0, rows, BLOCK_ROWS)",
        "range(0, rows - BLOCK_ROWS, BLOCK_ROWS)",
        NORM,
        "37x64",
    ),
    bug(
        "last row masked",
        "mask=(row < rows)[:, None]",
        "mask=(row < rows - 1)[:, None]",
        "linear_gelu",
        "37x24x40",
    ),
    bug(
        "wrong stride",
        "row[:, None].to(tl.int64) * stride",
        "row[:, None].to(tl.int64) * columns[None, :]",
        "linear_gelu",
        "37x24x40",
    ),
)

GELU = "linear_gelu"
LINEAR_GELU = (
    bug("sign of the error function", "0.5 + 0.5 * tl.math.erf", "0.5 - 0.5 * tl.math.erf", GELU, "37x24x40"),
    bug("tanh's scale", "0.7071067811865476", "0.7978845608028654", GELU, "37x24x40"),
    bug("density's exponent", "-0.7213475204444817", "-1.4426950408889634", GELU, "37x24x40"),
    bug("density missing", "(_distribution(z) + z * _density(z))", "_distribution(z)", GELU, "37x24x40"),
    bug(
        "last element not written",
        ".to(Y.dtype.element_ty), mask=place < elements)",
        ".to(Y.dtype.element_ty), mask=place < elements - 1)",
        GELU,
        "37x24x40",
    ),
    bug(
        "bias gradient before the activation",
        "d_bias += tl.sum(d_z, 0)",
        "d_bias += tl.sum(grad, 0)",
        GELU,
        "37x24x40",
    ),
    bug(
        "bias gradient: tiles not added",
        "d_bias += tl.sum(d_z, 0)",
        "d_bias = tl.sum(d_z, 0)",
        GELU,
        "37x24x40",
    ),
    bug(
        "last rows skipped",
        "range(program * BLOCK_ROWS, rows,",
        "range(program * BLOCK_ROWS, rows - BLOCK_ROWS,",
        GELU,
        "37x24x40",
    ),
    bug(
        "bias gradient: adds rounded numbers",
        "d_bias += tl.sum(d_z, 0)",
        "d_bias += tl.sum(d_z.to(D_Z.dtype.element_ty).to(tl.float32), 0)",
        GELU,
        dtype="bfloat16",
        checks=("gelu_backward_of_given_z",),
    ),
)

CE = "linear_cross_entropy"
LINEAR_CROSS_ENTROPY = (
    bug("tail not masked", 'tl.where(column < COLUMNS, z, float("-inf"))', "z", CE, "7 rows, 97 classes"),
    bug("tail skipped", "if WHOLE < COLUMNS:", "if WHOLE > COLUMNS:", CE, "3 rows, 4100 classes", times=2),
    bug(
        "first block skipped",
        "range(0, WHOLE, BLOCK)",
        "range(BLOCK, WHOLE, BLOCK)",
        CE,
        "3 rows, 8192 classes",
        times=2,
    ),
    bug(
        "sum not rescaled",
        "total * tl.math.exp2((largest - higher) * 1.4426950408889634)",
        "total",
        CE,
        "3 rows, 8192 classes",
    ),
    bug("bias of the label missing", " + tl.load(BIAS + label).to(tl.float32)", "", CE, "7 rows, 97 classes"),
    bug(
        "sign of the bias",
        "z += tl.load(BIAS + column",
        "z -= tl.load(BIAS + column",
        CE,
        "7 rows, 97 classes",
    ),
    bug("label missing in G", " - tl.where(column == label, count, 0.0)", "", CE, "7 rows, 97 classes"),
    bug(
        "ignored labels count",
        "tl.where(given == IGNORED, 0.0, 1.0)",
        "tl.where(given == IGNORED, 1.0, 1.0)",
        CE,
        "some labels ignored",
    ),
    bug("softmax not divided", "    factor = count / total", "    factor = count", CE, "7 rows, 97 classes"),
    bug("the label beats itself", "(column >= label)", "(column > label)", CE, "7 rows, 97 classes"),
    bug(
        "sign of the maximum",
        "(largest - target + tl.math.log(total))",
        "(target - largest + tl.math.log(total))",
        CE,
        "7 rows, 97 classes",
    ),
)

NCE = "info_nce"
ONE_PART = (("TARGET_PROGRAMS = 512", "TARGET_PROGRAMS = 1"),)
"""With 512, so few columns are never joined within a program."""
CONTRASTIVE = (
    bug(
        "outside columns not masked",
        'tl.where(column_valid[None, :], product * factor, float("-inf"))',
        "product * factor",
        NCE,
        "70-masked",
    ),
    bug(
        "own entry not scaled",
        "column[None, :], product * factor, 0.0)",
        "column[None, :], product, 0.0)",
        NCE,
        "33-all",
    ),
    bug(
        "sum not rescaled",
        "total * tl.math.exp2(largest - raised)",
        "total",
        NCE,
        "150-masked-wide",
        setup=ONE_PART,
    ),
    bug(
        "last columns skipped",
        "range(first_column, end, BLOCK_N)",
        "range(first_column, end - BLOCK_N, BLOCK_N)",
        NCE,
        "150-masked-wide",
        setup=ONE_PART,
    ),
    bug(
        "last features skipped",
        "range(0, width, BLOCK_K)",
        "range(0, width - BLOCK_K, BLOCK_K)",
        NCE,
        "70-masked",
        times=2,
    ),
    bug(
        "positive counts once",
        "tl.where(own, 2.0 * matched[:, None], 0.0)",
        "tl.where(own, matched[:, None], 0.0)",
        NCE,
        "70-masked",
    ),
    bug(
        "positive of mismatched pairs",
        "tl.where(own, 2.0 * matched[:, None], 0.0)",
        "tl.where(own, 2.0, 0.0)",
        NCE,
        "70-masked",
    ),
    bug(
        "sign of the columns' shift",
        "column_term = logits - tl.load(",
        "column_term = logits + tl.load(",
        NCE,
        "33-all",
    ),
    bug("column softmax missing", " + tl.math.exp2(column_term * 1.4426950408889634)", "", NCE, "70-masked"),
    bug(
        "the last of equal entries counts",
        "place = tl.where(tile_max > largest, tile_place, place)",
        "place = tl.where(tile_max >= largest, tile_place, place)",
        NCE,
        "96-twins",
        setup=ONE_PART,
    ),
    bug("scale's gradient", "tl.sum(g * logits)", "tl.sum(g)", NCE, "33-all"),
)

MUTANTS = {
    "packing": PACKING,
    "fusing": FUSING,
    "attention": ATTENTION,
    "layer_norm": LAYER_NORM,
    "column_sums": COLUMN_SUMS,
    "linear_gelu": LINEAR_GELU,
    "linear_cross_entropy": LINEAR_CROSS_ENTROPY,
    "contrastive": CONTRASTIVE,
}
"""By module of triton_ops."""
