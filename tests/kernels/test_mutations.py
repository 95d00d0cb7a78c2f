"""Every bug planted in a kernel is noticed by the cases of its operator, or was when nothing that this hangs
on was different.
"""

from dataclasses import replace
from pathlib import Path

import flava_kernels
import mutants
import mutation_record
import pytest
import rotation

KERNELS = Path(flava_kernels.__file__).parent / "triton_ops"

EVERYTHING = {module: [mutant.name for mutant in planted] for module, planted in mutants.MUTANTS.items()}


@pytest.mark.slow
@pytest.mark.triton
def test_every_mutant_dies(tmp_path, full):
    wanted = mutation_record.to_run(
        mutation_record.held_in({} if full else mutation_record.read()), rotation.commit()
    )
    assert len(wanted) >= len(mutants.MUTANTS) // 3
    for module, names in wanted.items():
        outcomes, said = mutation_record.run(module, names, tmp_path / module)
        assert set(names) <= outcomes.keys(), module
        assert not mutation_record.wrong(outcomes), f"{module}: {mutation_record.wrong(outcomes)}\n{said}"


def recorded(module: str, outcome: str = "caught") -> mutation_record.Record:
    """A record in which every mutant of a module has died."""
    return {
        (module, mutant.name): {"outcome": outcome, "hash": mutation_record.hash_of(module, mutant, outcome)}
        for mutant in mutants.MUTANTS[module]
    }


def test_recorded_mutants_run_in_turn():
    record = {key: row for module in mutants.MUTANTS for key, row in recorded(module).items()}
    held = mutation_record.held_in(record)
    assert held == EVERYTHING
    drawn = [mutation_record.to_run(held, str(seed)) for seed in range(200)]
    assert {len(wanted) for wanted in drawn} == {len(mutants.MUTANTS) // 3}
    assert all(len(names) == 1 for wanted in drawn for names in wanted.values())
    assert drawn[0] == mutation_record.to_run(held, "0")
    assert set().union(*drawn) == set(mutants.MUTANTS)
    packing = {name for wanted in drawn for name in wanted.get("packing", ())}
    assert packing == {mutant.name for mutant in mutants.PACKING}


def test_a_mutant_without_a_row_that_holds_always_runs():
    lost = mutants.PACKING[1].name
    record = recorded("packing")
    del record["packing", lost]
    packing = mutation_record.held_in(record)["packing"]
    assert packing == [name for name in EVERYTHING["packing"] if name != lost]
    held = EVERYTHING | {"packing": packing}
    assert all(lost in mutation_record.to_run(held, str(seed))["packing"] for seed in range(10))
    assert mutation_record.to_run(mutation_record.held_in({}), "0") == EVERYTHING


def test_a_record_holds_for_a_death_and_its_own_outcome_only():
    mutant = mutants.PACKING[0]
    assert mutation_record.holds(recorded("packing"), "packing", mutant)
    assert not mutation_record.holds(recorded("packing", "survived"), "packing", mutant)
    edited = recorded("packing", "survived")
    edited["packing", mutant.name]["outcome"] = "caught"
    assert not mutation_record.holds(edited, "packing", mutant)


@pytest.mark.parametrize(
    "change",
    [
        {"edits": (("a", "b"),)},
        {"cases": ("other",)},
        {"dtype": "float16"},
        {"times": 2},
        {"checks": ("one",)},
    ],
    ids=str,
)
def test_a_mutant_that_is_planted_otherwise_runs_again(change):
    mutant = mutants.PACKING[0]
    assert not mutation_record.holds(recorded("packing"), "packing", replace(mutant, **change))


@pytest.mark.parametrize(
    ("file", "modules"),
    [
        (
            "triton_ops/column_sums.py",
            {"column_sums", "layer_norm", "linear_gelu", "attention", "cross_attention"},
        ),
        ("triton_ops/packing.py", {"packing", "fusing", "attention", "cross_attention", "dropout"}),
        ("cases/attention.py", {"attention", "cross_attention"}),
        ("op.py", set(mutants.MUTANTS)),
    ],
)
def test_a_changed_file_reaches_the_mutants_that_hang_on_it_and_no_others(monkeypatch, file, modules):
    records, read = {module: recorded(module) for module in mutants.MUTANTS}, Path.read_text
    changed = KERNELS.parent / file
    monkeypatch.setattr(
        Path, "read_text", lambda path, **options: read(path, **options) + "\nx = 1" * (path == changed)
    )
    assert {
        module
        for module, record in records.items()
        if not mutation_record.holds(record, module, mutants.MUTANTS[module][0])
    } == modules


def test_another_triton_reaches_all(monkeypatch):
    records = {module: recorded(module) for module in mutants.MUTANTS}
    monkeypatch.setattr("importlib.metadata.version", lambda name: "3.9.9")
    held = [
        mutant.name
        for module, record in records.items()
        for mutant in mutants.MUTANTS[module]
        if mutation_record.holds(record, module, mutant)
    ]
    assert not held


def test_every_module_with_kernels_has_mutants():
    with_kernels = {
        path.stem for path in KERNELS.glob("*.py") if "\n@triton.jit" in path.read_text(encoding="utf-8")
    }
    assert set(mutants.MUTANTS) == with_kernels


@pytest.mark.parametrize("module", mutants.MUTANTS)
def test_every_mutant_still_finds_its_text(module):
    source = (KERNELS / f"{module}.py").read_text(encoding="utf-8")
    lost = [
        mutant.name
        for mutant in mutants.MUTANTS[module]
        for text, _ in mutant.edits
        if source.count(text) != mutant.times
    ]
    assert not lost
