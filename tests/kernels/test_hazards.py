"""No kernel or its wrapper holds a known hazard, and every rule finds the one planted for it."""

import importlib
from pathlib import Path

import flava_kernels
import hazards
import pytest

PACKAGE = Path(flava_kernels.__file__).parent
SOURCES = sorted([*PACKAGE.glob("*.py"), *(PACKAGE / "triton_ops").glob("*.py")])


def types_in_launches() -> dict[str, dict[str, set[str]]]:
    """Collects the argument types of every kernel from what the operators launch."""
    types: dict[str, dict[str, set[str]]] = {}
    for module in {op.kernels for op in flava_kernels.OPS.values()}:
        for launch in importlib.import_module(module).launches():
            for argument, kind in launch.signature.items():
                types.setdefault(launch.kernel.fn.__name__, {}).setdefault(argument, set()).add(kind)
    return types


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_hazards(path):
    types = types_in_launches() if path.parent.name == "triton_ops" else {}
    found = hazards.in_source(path.read_text(encoding="utf-8"), types)
    assert not found, "\n".join(found)


def kernel(*lines: str) -> str:
    """A module with one kernel."""
    return "\n".join(
        [
            "import triton",
            "import triton.language as tl",
            "@triton.jit",
            "def kernel(x, w, index, out, n):",
            *(f"    {line}" for line in lines),
        ]
    )


SOUND = kernel(
    "at = tl.arange(0, 16)",
    "row = tl.load(index + at, mask=at < n, other=0)",
    "a = tl.load(x + row, mask=at < n, other=0.0).to(tl.float32)",
    "b = tl.load(x + row * 16)",
    "w_ = tl.load(w + at)",
    "s = tl.dot(b, tl.trans(b), input_precision='ieee') * 2.0 + w_",
    "tl.store(out + at, (a * 2.0).to(out.dtype.element_ty), mask=at < n, cache_modifier='.cs')",
)
TYPES = {
    "kernel": {"x": {"*bf16", "*fp32"}, "w": {"*fp32"}, "index": {"*i32"}, "out": {"*bf16"}, "n": {"i32"}}
}


def test_sound_kernels_pass():
    assert hazards.in_source(SOUND, TYPES) == []


@pytest.mark.parametrize(
    ("lines", "hazard"),
    [
        (["p = tl.make_block_ptr(x, (n,), (1,), (0,), (16,), (0,))"], "block pointers"),
        (["p = tl.advance(x, (16,))"], "block pointers"),
        (["a = tl.load(x, None, 0.0)"], "options by position"),
        (["tl.store(out, 1.0, x < n)"], "options by position"),
        (["a = tl.load(x, mask=n > 0)"], "without other"),
        (["a = tl.extra.libdevice.tanh(n)"], "libdevice"),
        (["a = tl.inline_asm_elementwise('', '', [n], tl.int32, True, 1)"], "inline assembly"),
        (["tl.atomic_add(out, 1.0)"], "order of programs"),
        (["a = tl.load(x) + 1.0"], "before .to(tl.float32)"),
        (["a = tl.load(x)", "b = 2.0 * a"], "before .to(tl.float32)"),
        (["a = tl.load(x)", "b = tl.trans(a)[:, None]", "c = -b"], "before .to(tl.float32)"),
        (["a = tl.load(x)", "b = tl.sum(tl.where(n > 0, a, 0.0), 0)"], "before .to(tl.float32)"),
        (["a = tl.math.exp2(tl.load(x))"], "before .to(tl.float32)"),
        (["p = x + n", "a = tl.load(p)", "a += 1.0"], "before .to(tl.float32)"),
        (["a = tl.load(w).to(x.dtype.element_ty)", "b = a * a"], "before .to(tl.float32)"),
        (["a = tl.load(x)", "b = a * 2.0", "a = a.to(tl.float32)"], "before .to(tl.float32)"),
        (["a, b = tl.load(w), tl.load(x)", "c = b * 2.0"], "before .to(tl.float32)"),
        (
            [
                "for i in range(n):",
                "    for j in range(n):",
                "        tl.store(out + j, tl.load(out + j) + 1)",
            ],
            "without tl.debug_barrier()",
        ),
    ],
)
def test_a_planted_hazard_in_a_kernel_is_found(lines, hazard):
    found = hazards.in_source(kernel(*lines), TYPES)
    assert any(hazard in what for what in found), found


@pytest.mark.parametrize(
    ("line", "hazard"),
    [
        ("return x.item()", ".item() waits"),
        ("return lengths.tolist()", ".tolist() waits"),
        ("return torch.nonzero(x)", ".nonzero() waits"),
        ("return torch.where(x)", "torch.where of a condition"),
        ("return x[x > 0]", "truth values"),
        ("return x[~mask, 0]", "truth values"),
        ("keep = labels != -100\n    return x[keep]", "truth values"),
        ("x[lengths.bool()] = 0", "truth values"),
        ("return x.repeat_interleave(lengths)", "repeat_interleave"),
        ("return float(x.sum())", "x.sum() waits"),
        ("return int(x.max() + 1)", "x.max() + 1 waits"),
        ("if x.sum() > 0:\n        return x", "x.sum() > 0 waits"),
        ("return x if torch.any(mask) else None", "torch.any(mask) waits"),
        ("if x.device.type != 'cpu':\n        return x.nonzero()", ".nonzero() waits"),
        ("if x.device.type == 'cpu':\n        return x\n    return x.nonzero()", ".nonzero() waits"),
        ("kernel[(1,)](x, num_warps=4)", "a launch without enable_fp_fusion, num_stages"),
    ],
)
def test_a_planted_hazard_in_a_wrapper_is_found(line, hazard):
    found = hazards.in_source(f"def wrapper(x, lengths, labels, mask):\n    {line}\n")
    assert any(hazard in what for what in found), found


def test_what_runs_on_a_cpu_alone_may_look_at_tensors():
    assert (
        hazards.in_source("class EagerOp:\n    def backward(ctx, grad):\n        return grad.item()\n") == []
    )
    assert (
        hazards.in_source(
            "def wrapper(x):\n    if x.device.type == 'cpu':\n        return x[x.nonzero()[:, 0]]\n    "
            "return x\n"
        )
        == []
    )


HELPER = [
    "@triton.jit",
    "def helper(a, factor):",
    "    b = a",
    "    return b * factor",
    "@triton.jit",
    "def between(a, factor):",
    "    return helper(factor=2.0, a=a)",
]


@pytest.mark.parametrize(
    ("loaded", "hazards_found"), [("tl.load(x)", 1), ("tl.load(x).to(tl.float32)", 0), ("tl.load(w)", 0)]
)
def test_a_helper_s_parameter_is_as_narrow_as_what_it_is_given(loaded, hazards_found):
    found = hazards.in_source("\n".join([kernel(f"a = between({loaded}, 2.0)"), *HELPER]), TYPES)
    assert len(found) == hazards_found and all("before .to(tl.float32)" in what for what in found)


def test_the_attention_kernel_needs_its_barrier():
    """No test that runs can miss it: in the interpreter one thread does everything."""
    source = (PACKAGE / "triton_ops" / "attention.py").read_text(encoding="utf-8")
    assert source.count("tl.debug_barrier()") == 1
    found = hazards.in_source(source.replace("tl.debug_barrier()", "pass"), types_in_launches())
    assert len(found) == 1 and "d_q_sums is stored and loaded again" in found[0]


@pytest.mark.parametrize(
    "line",
    [
        "return x[lengths]",
        "return x[0]",
        "return table[name is None]",
        "kernel[(1,)](x, **OPTIONS)",
        "return torch.where(x > 0, x, 0)",
        "return max(len(name), int(table.shape[0]))",
    ],
)
def test_sound_wrappers_pass(line):
    assert hazards.in_source(f"def wrapper(x, lengths, name, table):\n    {line}\n") == []


def test_a_check_may_read_values_after_it_has_asked():
    body = "if not readable(x):\n        return\n    x.tolist()\n"
    assert hazards.in_source(f"def check(x):\n    {body}") == []
    assert hazards.in_source(f"def check(x):\n    {body.replace('return', 'pass')}")


def test_libdevice_by_import_is_found():
    assert hazards.in_source("from triton.language.extra import libdevice")
