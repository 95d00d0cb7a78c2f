"""Counting in disassembled kernels: written by hand, and one compiled for the purpose and compared with what
ptxas says.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from flava_kernels import assembly

SASS = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P2 BRA `(.L_x_0) ;
.L_x_1:
        /*0020*/                   LDGSTS.E.BYPASS.LTC128B.128 [R7], desc[UR4][R2.64] ;
        /*0030*/              @P0  LDG.E.U16 R4, desc[UR4][R2.64] ;
.L_x_2:
        /*0040*/                   HMMA.16816.F32.BF16 R8, R4, R6, R8 ;
        /*0050*/                   MUFU.EX2 R9, R9 ;
{}
        /*0100*/              @!P1 BRA `(.L_x_2) ;
        /*0110*/                   STL.64 [R1+0x8], R4 ;
        /*0120*/                   LDL.LU R4, [R1+0x8] ;
        /*0130*/              @!P2 BRA `(.L_x_1) ;
.L_x_0:
        /*0140*/                   REDUX.SUM UR4, R4 ;
        /*0150*/                   RED.E.ADD.F32 desc[UR4][R2.64], R5 ;
        /*0160*/                   STG.E desc[UR4][R2.64], R5 ;
        /*0170*/                   EXIT ;
.L_x_3:
        /*0180*/                   BRA `(.L_x_3);
""".format(
    "\n".join(
        f"        /*{address:04x}*/                   FADD R1, R1, R1 ;"
        for address in range(0x60, 0x100, 0x8)
    )
)

AMDGCN = """	.amdgcn_target "amdgpu9.42-amd-amdhsa-unknown-gfx942"
	s_load_dwordx2 s[2:3], s[0:1], 0x0
.LBB0_1:                               ; =>This Inner Loop Header: Depth=1
	global_load_dwordx4 v[54:57], v[18:19], off
	v_mfma_f32_32x32x8_bf16 v[0:15], v[176:177], v[24:25], v[0:15]
	v_exp_f32_e32 v1, v2
{}
	s_cbranch_scc0 .LBB0_1
	global_store_short v[0:1], v2, off
	global_atomic_add_f32 v[0:1], v2, off
	s_endpgm
    .vgpr_count:     226
    .vgpr_spill_count: 3
""".format("\n".join("	v_add_f32_e32 v1, v1, v2" for _ in range(20)))


def test_the_innermost_loop_with_dots():
    loop = assembly.inner_loop(SASS)
    assert loop[0].startswith("HMMA") and loop[-1].startswith("BRA")
    assert len(loop) == 23
    assert assembly.matrix_flops(loop) == 2 * 16 * 8 * 16
    assert assembly.bytes_moved(loop) == 0


def test_counts():
    code = assembly.instructions(SASS)
    assert assembly.count(assembly.LOAD, code) == 2
    assert assembly.count(assembly.WIDE_LOAD, code) == 1
    assert assembly.count(assembly.ATOMIC, code) == 1  # REDUX adds within a warp
    assert assembly.count(assembly.SPECIAL, code) == 1
    assert assembly.bytes_moved(code) == 16 + 2 + 4
    assert assembly.spilled_bytes(SASS) == 8 + 4


def test_amd():
    code, loop = assembly.instructions(AMDGCN), assembly.inner_loop(AMDGCN)
    assert len(loop) == 24 and loop[0].startswith("global_load")
    assert assembly.matrix_flops(loop) == 2 * 32 * 32 * 8
    assert assembly.bytes_moved(loop) == 16
    assert assembly.bytes_moved(code) == 18
    assert assembly.count(assembly.ATOMIC, code) == 1
    assert assembly.count(assembly.WIDE_LOAD, code) == 1
    assert assembly.spilled_bytes(AMDGCN) == 12


def test_shapes_of_matrix_instructions():
    assert (
        assembly.matrix_flops(["HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], RZ, !UPT"])
        == 2 * 64 * 128 * 16 // 4
    )
    assert assembly.matrix_flops(["UTCHMMA gdesc[UR6], gdesc[UR18], tmem[UR17]"]) is None
    assert assembly.matrix_flops(["FFMA R1, R2, R3, R4"]) == 0


def test_without_a_loop_all_counts():
    assert assembly.inner_loop("        /*0000*/                   EXIT ;\n") == ["EXIT"]


@pytest.mark.aot
def test_a_kernel_that_spills_has_the_bytes_that_ptxas_counts():
    script = Path(__file__).with_name("spilling_kernel.py")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", script], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    counted, stores_and_loads = map(int, done.stdout.split())
    assert counted == stores_and_loads > 1000
