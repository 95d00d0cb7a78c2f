"""Rows of kernels/aot.csv hold for what they were compiled from, and for nothing else."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import flava_kernels
import pytest
from flava_kernels import aot, aot_hash, aot_row, aot_table

PACKAGE = Path(flava_kernels.__file__).parent
CONFIGURATION = "0123456789ab"

MADE_UP = """
from dataclasses import fields
from flava_kernels import aot, aot_hash, aot_row, aot_table
from flava_kernels.triton_ops import compiling
numbers = {field.name: {"int": 7, "float": 0.5, "str": ""}[field.type] for field in fields(aot_row.Row)}
rows = []
for _, launch in aot.launches():
    row = aot_row.Row(**numbers | {"triton": compiling.VERSION, "arch": launch.arch, "name": launch.name})
    rows.append(aot_row.with_hash(row, aot_hash.of_launch(launch, compiling.FULL_VERSION)))
aot_table.write_csv(aot_table.PATH, compiling.VERSION, rows, [(row.arch, row.name) for row in rows], False)
"""
STALE = """
import triton
triton.__version__ += {!r}
from flava_kernels import aot
aot.main(["--stale"])
"""


def run(kernels: Path, script: str) -> set[str]:
    """Runs a script on a copy of the package; returns the lines that it prints."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(kernels), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split("\n")) - {""}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A copy of the package with a table in which every row holds. Compiling would take minutes; the numbers
    are made up.
    """
    kernels = tmp_path_factory.mktemp("recorded")
    shutil.copytree(PACKAGE, kernels / "flava_kernels", ignore=shutil.ignore_patterns("__pycache__"))
    run(kernels, MADE_UP)
    return kernels


@pytest.fixture
def kernels(recorded, tmp_path):
    """The same, to edit."""
    return shutil.copytree(recorded, tmp_path / "kernels")


@pytest.fixture(scope="module")
def everything(recorded):
    return {f"{line['arch']} {line['name']}" for line in aot_table.read_csv(recorded / "aot.csv")}


@pytest.mark.aot
@pytest.mark.parametrize(
    ("file", "text", "replacement", "stale"),
    [
        (
            "triton_ops/attention.py",
            "if first_key > 0:",
            "if first_key >= 1:",
            r"varlen_attention\.backward\.",
        ),
        (
            "triton_ops/column_sums.py",
            "mask=(row < rows)",
            "mask=(row <= rows)",
            r"(add_layer_norm\.parameters|linear_gelu\.bias|varlen_attention\.qkv_bias)\.",
        ),
        (
            "triton_ops/contrastive.py",
            "GROUP = tl.constexpr(8)",
            "GROUP = tl.constexpr(4)",
            r"(info_nce\.gradient|sigmoid_loss\.forward)\.",
        ),
        (
            "triton_ops/contrastive_tiles.py",
            '"sm_80": Tiles(128, 128, 32, 8, 4)',
            '"sm_80": Tiles(128, 128, 32, 8, 3)',
            r"sm_80 (info_nce|sigmoid_loss)\.\w+\.(bf16|fp16)",
        ),
        ("assembly.py", "SPIN_LOOP = 16", "SPIN_LOOP = 17", ""),
        ("triton_ops/attention.py", '"""Attention kernels', '"""Kernels', "nothing"),
        (
            "triton_ops/attention.py",
            " " * 12 + "row = first_query",
            "\n" + " " * 12 + "# why\n" + " " * 12 + "row = first_query",
            "nothing",
        ),
    ],
)
def test_a_change_reaches_exactly_the_configurations_that_are_compiled_from_it(
    kernels, everything, file, text, replacement, stale
):
    path = kernels / "flava_kernels" / file
    source = path.read_text(encoding="utf-8")
    assert source.count(text) == 1
    path.write_text(source.replace(text, replacement), encoding="utf-8")
    expected = {name for name in everything if re.search(rf"(?<!\w){stale}", name)}
    assert run(kernels, STALE.format("")) == expected
    assert bool(expected) == (stale != "nothing")


@pytest.mark.aot
def test_another_version_of_the_compiler_reaches_all(kernels, everything):
    assert run(kernels, STALE.format("")) == set()
    assert run(kernels, STALE.format("+patched")) == everything


@pytest.mark.aot
def test_an_edited_number_reaches_its_row_and_is_an_error(kernels):
    lines = (kernels / "aot.csv").read_text(encoding="utf-8").splitlines()
    lines[5] = lines[5].replace(",7,", ",6,", 1)
    (kernels / "aot.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (stale,) = run(kernels, STALE.format(""))
    assert stale == " ".join(lines[5].split(",")[1:3])
    table = aot_table.rows_of(kernels / "aot.csv", lines[5].split(",")[0])
    launches = [
        (module, launch) for module, launch in aot.launches() if f"{launch.arch} {launch.name}" == stale
    ]
    todo = aot.work(launches, table, full=False, sample="")
    assert todo.left == launches and not todo.again
    (problem,) = todo.problems([])
    assert f"{stale} was edited" in problem


@pytest.mark.aot
def test_one_configuration_of_every_kernel_is_compiled_again_and_another_one_for_another_commit(recorded):
    wanted, table = (
        aot.launches(),
        aot_table.rows_of(recorded / "aot.csv", aot_table.read_csv(recorded / "aot.csv")[0]["triton"]),
    )
    drawn = [
        [(launch.arch, launch.name) for _, launch in aot.work(wanted, table, full=False, sample=text).again]
        for text in ("a", "b", "a")
    ]
    assert drawn[0] == drawn[2] != drawn[1]
    kernels = {launch.kernel for _, launch in wanted}
    assert len(drawn[0]) == len(kernels) > 10
    assert {launch.kernel for _, launch in wanted if (launch.arch, launch.name) in drawn[1]} == kernels
    assert len(aot.work(wanted, table, full=True, sample="a").again) == len(wanted)


def made_up_row(**numbers) -> aot_row.Row:
    """A row with its hash."""
    row = aot_row.Row(
        **{field.name: {"int": 7, "float": 0.5, "str": ""}[field.type] for field in fields(aot_row.Row)}
        | numbers
    )
    return aot_row.with_hash(row, CONFIGURATION)


def test_a_row_that_the_compiler_does_not_confirm_is_an_error():
    row = made_up_row(triton="3.9", arch="sm_90", name="op.forward")
    todo = aot.Work({}, {("sm_90", "op.forward"): row}, [], [])
    assert list(todo.problems([row])) == []
    (problem,) = todo.problems([made_up_row(triton="3.9", arch="sm_90", name="op.forward", registers=9)])
    assert "sm_90 op.forward does not compile to" in problem and "registers 7, now 9" in problem


def test_a_row_holds_for_its_configuration_and_its_numbers_only(tmp_path):
    row = made_up_row(triton="3.9", arch="sm_90", name="op.forward", share=0.25)
    aot_table.write_csv(tmp_path / "aot.csv", "3.9", [row], [("sm_90", "op.forward")], partial=False)
    assert aot_table.rows_of(tmp_path / "aot.csv", "3.9") == {("sm_90", "op.forward"): row}
    assert aot_row.is_of(row, CONFIGURATION) and not aot_row.edited(row)
    assert not aot_row.is_of(row, CONFIGURATION[::-1])
    for field in fields(row):
        old = getattr(row, field.name)
        changed = replace(row, **{field.name: f"{old} " if isinstance(old, str) else old + 1})
        assert aot_row.edited(changed) and not aot_row.is_of(changed, CONFIGURATION), field.name


def test_a_table_keeps_the_rows_of_other_versions_and_of_other_configurations(tmp_path):
    path, order = tmp_path / "aot.csv", [("sm_80", "a"), ("sm_80", "b"), ("sm_90", "a")]
    old = [
        made_up_row(triton="3.6", arch="sm_80", name="gone"),
        made_up_row(triton="3.9", arch="sm_80", name="gone"),
    ]
    for row in old:
        aot_table.write_csv(path, row.triton, [row], order, partial=False)
    new = [made_up_row(triton="3.9", arch=arch, name=name) for arch, name in reversed(order)]
    aot_table.write_csv(path, "3.9", new[1:], order, partial=False)
    assert [(line["triton"], line["arch"], line["name"]) for line in aot_table.read_csv(path)] == [
        ("3.6", "sm_80", "gone"),
        ("3.9", "sm_80", "a"),
        ("3.9", "sm_80", "b"),
    ]
    aot_table.write_csv(path, "3.9", new[:1], order, partial=True)
    assert [line["arch"] for line in aot_table.read_csv(path)] == ["sm_80", "sm_80", "sm_80", "sm_90"]


def test_code_is_what_python_reads():
    assert aot_hash.code(
        "def f(a):\n    '''Says.'''\n    # why\n    return (a +\n            1)\n"
    ) == aot_hash.code("def f(a):\n    return a + 1")
    assert aot_hash.code("x = 'text'") != aot_hash.code("x = 'other'")


TOLD_OTHERWISE = """
def f(a, *names, width=3):
    return f"{', '.join(names)} of {a:<{width}}{f'{a!r}' if a else ''}" + "'"
"""
"""Python 3.12 unparses its quotes, and ends its format, otherwise than 3.11 and 3.13 do."""


def test_code_hashes_alike_on_any_python():
    """The constant is what 3.11, 3.12 and 3.13 find."""
    assert aot_hash.digest(aot_hash.code(TOLD_OTHERWISE)) == "0197b0fb2149"


LISTED = [3]


def reads_a_list():
    return LISTED[0]


def test_what_has_no_hash_is_an_error():
    with pytest.raises(TypeError, match="reads_a_list reads LISTED, a list"):
        aot_hash.dependencies(reads_a_list)
