"""Occupancy and cycles against numbers computed by hand."""

import importlib

import pytest
from flava_kernels import roofline
from flava_kernels.roofline import Estimate, Occupancy


@pytest.mark.parametrize(
    ("arch", "registers", "shared", "warps", "expected"),
    [
        ("sm_90", 135, 40 * 1024, 4, Occupancy(3, "registers")),  # 135 * 32 -> 4352 a warp, 17408 a block
        ("sm_90", 82, 24 * 1024, 4, Occupancy(5, "registers")),  # 2816 a warp
        ("sm_90", 178, 73 * 1024, 4, Occupancy(2, "registers")),
        ("sm_90", 32, 100 * 1024, 4, Occupancy(2, "shared memory")),  # 101 KiB of 228
        ("sm_90", 16, 0, 1, Occupancy(32, "blocks")),
        ("sm_80", 32, 167 * 1024, 4, Occupancy(0, "shared memory")),
        ("gfx942", 256, 24576, 4, Occupancy(2, "registers")),  # two waves of 256 in a lane's 512
        ("gfx942", 128, 65536, 4, Occupancy(1, "shared memory")),
    ],
)
def test_occupancy(arch, registers, shared, warps, expected):
    assert roofline.occupancy(roofline.MACHINES[arch], registers, shared, warps) == expected


def test_cycles_of_a_loop():
    loop = [
        "HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8]",
        "MUFU.EX2 R1, R2",
        "LDG.E.128 R4, desc[UR4][R2.64]",
        "FADD R1, R2, R3",
        "BRA `(.L_x_1)",
    ]
    found = roofline.estimate(
        roofline.MACHINES["sm_90"], loop, num_warps=8, loop_dot_flops=0, from_memory=0.25
    )
    assert found.issue == 5 * 2
    assert found.special == 8 * 2
    assert found.matrix == 2 * 64 * 64 * 16 * 2 / 4096  # eight warps are two groups of four
    assert found.cache == 16 * 32 * 8 / 64
    assert found.memory == pytest.approx(16 * 32 * 8 / 4 / (3350 / 132 / 1.755))


def test_dots_without_a_matrix_instruction_run_on_the_vector_units():
    found = roofline.estimate(
        roofline.MACHINES["sm_90"],
        ["FFMA R1, R2, R3, R4"],
        num_warps=4,
        loop_dot_flops=2 * 64 * 64 * 64,
        from_memory=1.0,
    )
    assert found.matrix == 2 * 64 * 64 * 64 / 256


def test_dots_in_tensor_memory_take_their_shape_from_the_source():
    found = roofline.estimate(
        roofline.MACHINES["sm_100"],
        ["UTCHMMA gdesc[UR6], gdesc[UR18], tmem[UR17]"],
        num_warps=4,
        loop_dot_flops=2 * 128 * 128 * 64,
        from_memory=1.0,
    )
    assert found.matrix == 2 * 128 * 128 * 64 / 8192


def test_the_largest_bounds():
    found = Estimate(issue=400, special=272, matrix=256, cache=200, memory=100)
    assert found.bound == "issue"
    assert found.share == 256 / 400


def test_bytes_that_an_operator_moves_once():
    """By hand: at 512 tokens a program of 64 queries reads all keys and values, eight programs do, and 4 rows
    a token move.

    Causal, the first program reads 64 of them, the last all 512.
    """
    attention, contrastive = (
        importlib.import_module(f"flava_kernels.triton_ops.{name}") for name in ("attention", "contrastive")
    )
    found = {
        launch.name: launch.from_memory
        for module in (attention, contrastive)
        for launch in module.launches()
        if launch.arch == "sm_90"
    }
    rows = 512
    asked = 8 * 2 * rows
    assert found["varlen_attention.forward.bf16.64.long"] == 4 * rows / asked
    assert found["varlen_attention.forward.bf16.64.long.causal"] == 4 * rows / (2 * 64 * sum(range(1, 9)))
    assert found["varlen_attention.forward.bf16.64.16"] == 1.0
    assert found["info_nce.forward.bf16"] == (4096 + 32768) / (32 * 256 * (128 + 128))
