"""cases.csv: what has changed since it was recorded runs in every dtype, the rest in one in turn."""

from pathlib import Path

import case_record
import pytest
import rotation
import torch
from flava_kernels import OPS

PACKAGE = case_record.PACKAGE / "flava_kernels"
RECORDED = {name: case_record.hash_of(op) for name, op in OPS.items()}


def held() -> set[str]:
    """The operators whose rows of RECORDED hold."""
    return {name for name, op in OPS.items() if case_record.hash_of(op) == RECORDED[name]}


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_a_recorded_case_runs_in_one_dtype_in_turn_and_another_in_all(op):
    case = op.cases()[0]
    every = [dtype for dtype in case.dtypes if not op.supports(**case.inputs(dtype))]
    drawn = [case_record.to_run(op, case, RECORDED, str(seed)) for seed in range(40)]
    assert {len(dtypes) for dtypes in drawn} == {1} and {dtypes[0] for dtypes in drawn} == set(every)
    assert drawn[0] == case_record.to_run(op, case, RECORDED, "0")
    for lost in ({}, RECORDED | {op.name: "another"}):
        assert case_record.to_run(op, case, lost, "0") == every


def test_cases_of_a_commit_differ_in_their_dtypes():
    op = OPS["varlen_attention"]
    dtypes = [case_record.to_run(op, case, RECORDED, rotation.commit())[0] for case in op.cases()]
    assert set(dtypes) == {torch.float32, torch.bfloat16, torch.float16}


@pytest.mark.parametrize(
    ("file", "operators"),
    [
        ("triton_ops/dropout.py", {"dropout"}),
        ("cases/attention.py", {"varlen_attention", "varlen_cross_attention"}),
        ("op.py", set(OPS)),
    ],
)
def test_a_changed_file_reaches_the_operators_that_hang_on_it(monkeypatch, file, operators):
    read, changed = Path.read_text, PACKAGE / file
    monkeypatch.setattr(
        Path, "read_text", lambda path, **options: read(path, **options) + "\nx = 1" * (path == changed)
    )
    assert set(OPS) - held() == operators


def test_another_triton_or_other_checks_reach_all(monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "3.9.9")
    assert not held()
    monkeypatch.undo()
    assert held() == set(OPS)
    read, checks = Path.read_text, case_record.TESTS / "op_checks.py"
    monkeypatch.setattr(
        Path, "read_text", lambda path, **options: read(path, **options) + "\nx = 1" * (path == checks)
    )
    assert not held()
