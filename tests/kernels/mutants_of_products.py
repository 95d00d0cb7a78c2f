"""Bugs in the kernels that multiply matrices."""

from planted_bug import bug

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
    bug(
        "last numbers of a product skipped",
        "range(0, inner, BLOCK_K)",
        "range(0, inner - BLOCK_K, BLOCK_K)",
        NCE,
        "70-masked",
    ),
    bug(
        "products of a sum not added",
        "tl.dot(left, right, total,",
        "tl.dot(left, right, 0.0 * total,",
        NCE,
        "70-masked",
    ),
)

SIGMOID = "sigmoid_loss"
SIGMOID_LOSS = (
    bug(
        "outside columns ranked",
        'tl.where(counted[None, :], similarity, float("-inf"))',
        "similarity",
        SIGMOID,
        "40-opposite",
    ),
    bug(
        "texts that are left out ranked",
        'tl.where(counted[None, :], similarity, float("-inf"))',
        'tl.where(column_valid[None, :], similarity, float("-inf"))',
        SIGMOID,
        "150-masked-wide",
    ),
    bug("texts that are left out count", "other=0.0) > 0\n", "other=-1.0) >= 0\n", SIGMOID, "70-masked"),
    bug("outside counts in the loss", "tl.where(inside, loss, 0.0)", "loss", SIGMOID, "70-masked"),
    bug(
        "outside counts in G",
        "tl.where(inside, tl.where(own, -logistic, logistic), 0.0)",
        "tl.where(own, -logistic, logistic)",
        SIGMOID,
        "70-masked",
    ),
    bug(
        "the last of equal entries counts",
        "tl.min(tl.where(shown == largest[:, None], column[None, :], num_columns), 1)",
        "tl.max(tl.where(shown == largest[:, None], column[None, :], 0), 1)",
        SIGMOID,
        "96-twins",
    ),
    bug(
        "own text of another rank",
        "(row + offset)[:, None] == column",
        "row[:, None] == column",
        SIGMOID,
        checks=("sigmoid_loss_of_the_second_rank",),
    ),
    bug("bias missing", "logits = similarity + tl.load(bias)", "logits = similarity", SIGMOID, "33-all"),
    bug(
        "sign of the positives",
        "tl.where(own, -logits, logits)",
        "tl.where(own, logits, logits)",
        SIGMOID,
        "33-all",
    ),
    bug("small exponentials rounded away", "_log1p(e)\n", "tl.math.log(1.0 + e)\n", SIGMOID, "40-learned"),
    bug("series cut short", "series = series * square + 0.2\n", "series = 0.2\n", SIGMOID, "150-masked-wide"),
    bug(
        "logistic function of the other sign",
        "tl.where(against >= 0, 1.0, e)",
        "tl.where(against < 0, 1.0, e)",
        SIGMOID,
        "33-all",
    ),
    bug("scale's gradient", "tl.sum(g * similarity)", "tl.sum(g * logits)", SIGMOID, "33-all"),
    bug(
        "bias's gradient",
        "part_d_bias + program, tl.sum(g)",
        "part_d_bias + program, tl.sum(logistic)",
        SIGMOID,
        "33-all",
    ),
)
