"""Bugs in the kernels that move, normalise and sum rows."""

from planted_bug import bug

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
        "grid = (ceil_div(length, TILE_ROWS), ceil_div(width, columns)",
        "grid = (ceil_div(length, TILE_ROWS), width // columns",
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

DROPOUT = (
    bug(
        "stream left out", "(stream.to(tl.uint64) + 1)", "(stream.to(tl.uint64) * 0 + 1)", "dropout", "37x64"
    ),
    bug(
        "stream of 32 bits",
        "(stream.to(tl.uint64) + 1)",
        "(stream + 1).to(tl.uint64)",
        "dropout",
        "most dropped",
    ),
    bug(
        "key of 32 bits",
        ".to(tl.uint64)\n    state",
        ".to(tl.uint32).to(tl.uint64)\n    state",
        "dropout",
        "37x64",
    ),
    bug("mix: first shift", "(value >> 30)", "(value >> 31)", "dropout", "37x64"),
    bug("mix: second shift", "(value >> 27)", "(value >> 26)", "dropout", "37x64"),
    bug("mix: last shift", "value ^ (value >> 31)", "value ^ (value >> 32)", "dropout", "37x64"),
    bug("upper half left out", " ^ high[:, None]", " ^ (high * 0)[:, None]", "dropout", "37x64"),
    bug("halves exchanged", "low, high = ", "high, low = ", "dropout", "37x64"),
    bug("fmix: first shift", "(hashed ^ (hashed >> 16)) * FMIX_1", "hashed * FMIX_1", "dropout", "37x64"),
    bug("fmix: second shift", "(hashed >> 13)", "(hashed >> 15)", "dropout", "37x64"),
    bug(
        "every tile the same columns",
        "tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)",
        "tl.arange(0, COLUMNS)",
        "dropout",
        "5x770",
    ),
    bug("keeps what it should drop", "hashed >= THRESHOLD", "hashed < THRESHOLD", "dropout", "37x64"),
    bug("not scaled up", "x.to(tl.float32) * scale", "x.to(tl.float32)", "dropout", "37x64"),
    bug("last row not written", "mask = (row < rows)", "mask = (row < rows - 1)", "dropout", "37x64"),
    bug("last column not written", "(column < width)", "(column < width - 1)", "dropout", "5x770"),
    bug("key of the tile's first row", "KEYS + row,", "KEYS + row * 0,", "dropout", "37x64"),
    bug("row of another tile", "* x_stride", "* (x_stride - 1)", "dropout", "37x64"),
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
        "_mean(x * x, COLUMNS, EXACT) + eps",
        "_mean(x * x, COLUMNS, EXACT)",
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
        "_mean(x * x, COLUMNS, EXACT) + eps",
        "_mean(x * x, BLOCK_COLUMNS, EXACT) + eps",
        NORM,
        "5x770",
    ),
    bug("gradient along the row", "- normed * along[:, None]", "+ normed * along[:, None]", NORM, "37x64"),
    bug(
        "gradient's mean missing",
        "weighted - _mean(weighted, COLUMNS, EXACT)[:, None]",
        "weighted",
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
        "return tl.where(inside, x - _mean(x, columns, EXACT)[:, None], 0.0)",
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
