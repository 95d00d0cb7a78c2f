"""make check finds the tests that belong to a change."""

import subprocess
import sys

import changed_tests
import import_graph
import pytest
from import_graph import ROOT


def names(*changed: str) -> list[str]:
    """The selection, by paths in the repository."""
    return [path.relative_to(ROOT).as_posix() for path in changed_tests.selected(changed)]


def test_the_mirror_comes_first_then_who_imports():
    found = names("flava_ds/data/collate.py")
    assert found[0] == "tests/data/test_collate.py"
    assert "tests/data/test_reader.py" in found, "reader.py imports collate.py"
    assert "tests/hf/test_export_weights.py" not in found


def test_aspects_of_a_module_belong_to_it():
    assert {"tests/data/test_loader.py", "tests/data/test_loader_resume.py"} <= set(
        names("flava_ds/data/loader.py")[:4]
    )


def test_kernels_and_helpers_of_tests():
    assert names("kernels/flava_kernels/triton_ops/attention.py")[0] == "tests/kernels/test_attention.py"
    assert "tests/kernels/test_mutations.py" in names("tests/kernels/mutants.py")
    assert names("tests/data/test_order.py")[0] == "tests/data/test_order.py"


def test_a_file_that_is_not_python_has_the_tests_that_name_it():
    assert "tests/test_packaging.py" in names(".ci/run_tests")
    assert names("LICENSE" + "-OF-NOBODY") == []


def test_changes_are_those_since_the_branch_began_and_of_the_working_tree(tmp_path, monkeypatch):
    def git(*arguments: str) -> None:
        subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )

    git("init", "-b", "main")
    for number, name in enumerate(("old.py", "edited.py", "gone.py", "committed.py", "new.py")):
        if number == 3:
            git("checkout", "-b", "branch")
        (tmp_path / name).write_text("x = 1\n")
        if name != "new.py":
            git("add", name)
            git("commit", "-m", name)
    (tmp_path / "edited.py").write_text("x = 2\n")
    (tmp_path / "gone.py").unlink()
    monkeypatch.setattr(changed_tests, "ROOT", tmp_path)
    assert sorted(changed_tests.changed()) == ["committed.py", "edited.py", "new.py"]


def test_imports_are_found_in_functions_packages_and_folders_of_tests():
    trainer = ROOT / "flava_ds" / "commands" / "__init__.py"
    assert trainer not in import_graph.imported_by(ROOT / "tests" / "rank_processes.py")
    assert ROOT / "tests" / "rotation.py" in import_graph.imported_by(
        ROOT / "tests" / "kernels" / "mutation_record.py"
    )
    assert ROOT / "kernels" / "flava_kernels" / "triton_ops" / "linear_gelu.py" in import_graph.imported_by(
        ROOT / "tests" / "kernels" / "kernel_checks.py"
    )
    reached = import_graph.all_imported_by([ROOT / "kernels" / "flava_kernels" / "attention.py"])
    assert ROOT / "kernels" / "flava_kernels" / "packing.py" in reached and not any(
        path.name == "__init__.py" for path in reached
    )


@pytest.mark.parametrize(("seconds", "said"), [("0", "skipped"), ("600", "passed")])
def test_what_has_not_begun_in_time_is_skipped_with_the_reason(seconds, said):
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-rs",
        "--seconds",
        seconds,
        "tests/test_changed_tests.py",
        "-k",
        "kernels_and_helpers",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and f"1 {said}" in done.stdout.splitlines()[-1], done.stdout
    assert ("no time left for it in make check" in done.stdout) == (seconds == "0")
