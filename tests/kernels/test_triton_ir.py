"""Dots and exponentials of Triton's intermediate language, in and out of loops."""

from flava_kernels import triton_ir

IR = """module {
  tt.func public @kernel(%x: !tt.ptr<bf16>) {
    %first = tt.dot %a, %b, %zero : tensor<16x64xf32> * tensor<64x32xf32> -> tensor<16x32xf32> loc(#loc1)
    %0:2 = scf.for %i = %c0 to %n step %c1 iter_args(%acc = %zero) -> (tensor<64x64xf32>)  : i32 {
      %e = math.exp2 %y : tensor<64xf32> loc(#loc2)
      %1 = scf.for %j = %c0 to %n step %c1 iter_args(%sum = %zero) -> (tensor<64x64xf32>)  : i32 {
        %p = tt.dot %q, %k, %sum, inputPrecision = tf32 : SHAPES loc(#loc3)
        %r = "tt.reduce"(%p) <{axis = 1 : i32}> ({
        ^bb0(%u: f32, %v: f32):
          %w = arith.maxnumf %u, %v : f32
          tt.reduce.return %w : f32
        }) : (tensor<64x128xf32>) -> tensor<64xf32>
        %f = math.exp2 %p : tensor<64x128xf32> loc(#loc2)
        %g = math.exp2 %r : tensor<64xf32> loc(#loc2)
        %o = tt.dot %f, %v, %sum : tensor<64x128xbf16> * tensor<128x32xbf16> -> tensor<64x32xf32> loc(#loc3)
      } loc(#loc4)
      %2 = tt.dot %q, %k, %acc : tensor<16x16xbf16> * tensor<16x16xbf16> -> tensor<16x16xf32> loc(#loc3)
    } loc(#loc4)
    %last = math.log2 %y : tensor<64xf32> loc(#loc2)
    tt.return
  }
}
""".replace("SHAPES", "tensor<64x32xbf16> * tensor<32x128xbf16> -> tensor<64x128xf32>")


def test_dots_have_shapes_and_loops():
    found = triton_ir.dots(IR)
    assert [(dot.m, dot.k, dot.n, dot.type, len(dot.loops)) for dot in found] == [
        (16, 64, 32, "f32", 0),
        (64, 32, 128, "bf16", 2),
        (64, 128, 32, "bf16", 2),
        (16, 16, 16, "bf16", 1),
    ]
    assert found[0].flops == 2 * 16 * 64 * 32


def test_only_the_innermost_loop_counts():
    assert triton_ir.loop_flops(triton_ir.dots(IR)) == 2 * 2 * 64 * 32 * 128
    assert triton_ir.exponentials(IR) == 64 * 128 + 64


def test_a_kernel_without_loops_counts_whole():
    assert triton_ir.loop_flops(triton_ir.dots(IR.split("%0:2")[0])) == 2 * 16 * 64 * 32
    assert triton_ir.exponentials("%a = math.exp %y : tensor<8x4xf32>\n%b = math.exp %z : f32") == 33
    assert triton_ir.loop_flops([]) == 0 and triton_ir.exponentials("") == 0
