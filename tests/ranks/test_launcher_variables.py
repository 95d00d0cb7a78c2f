"""What launchers, and those before them, leave in the environment."""

import os

import pytest

from flava_ds import train
from flava_ds.errors import UserError
from flava_ds.ranks.launcher_variables import ALONE, OPEN_MPI, complete


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    """Removes all of these variables, and what a test sets at its end."""
    for name in (*ALONE, *OPEN_MPI.values()):
        monkeypatch.setenv(name, "gone")  # noted by monkeypatch, so that what is set below goes again
        monkeypatch.delenv(name)


def put(monkeypatch, **variables: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def found() -> dict[str, str]:
    complete()
    return {name: os.environ[name] for name in ALONE}


def test_half_an_environment_is_refused(monkeypatch):
    put(monkeypatch, RANK="0", WORLD_SIZE="2")
    with pytest.raises(UserError, match="set RANK, WORLD_SIZE but not LOCAL_RANK, MASTER_ADDR, MASTER_PORT"):
        complete()


def test_open_mpi_names_the_rank_and_the_launcher_the_address(monkeypatch):
    """Without it, each of mpirun's processes would be a world of its own, all writing into one
    run directory."""
    own = dict(zip(OPEN_MPI.values(), ("5", "8", "1", "4"), strict=True))
    put(monkeypatch, **own)
    with pytest.raises(UserError, match="but not MASTER_ADDR, MASTER_PORT"):
        complete()
    put(monkeypatch, MASTER_ADDR="node1", MASTER_PORT="29500")
    assert list(found().values()) == ["5", "8", "1", "4", "node1", "29500"]


@pytest.mark.parametrize(
    "left",
    [
        {},
        {"OMPI_COMM_WORLD_SIZE": "1"},
        {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
        {"RANK": "0", "WORLD_SIZE": "1"},
        {"WORLD_SIZE": "1"},
        {"LOCAL_RANK": "many", "MASTER_PORT": "x"},
    ],
)
def test_what_says_that_a_process_is_alone_is_enough(monkeypatch, left):
    put(monkeypatch, **left)
    assert found() == ALONE


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"RANK": "x"}, "RANK is 'x', which is no number; unset it"),
        ({"RANK": "-1"}, "RANK is '-1'"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE is ''"),
        ({"LOCAL_RANK": "1.5"}, "LOCAL_RANK is '1.5'"),
        ({"LOCAL_WORLD_SIZE": "two"}, "LOCAL_WORLD_SIZE is 'two'"),
        ({"LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE is 0"),
        ({"RANK": "2"}, "RANK is 2 and WORLD_SIZE is 2; ranks count from 0"),
    ],
)
def test_variables_that_are_no_place_among_ranks_are_one_line(monkeypatch, capsys, wrong, said):
    put(monkeypatch, **{**ALONE, "WORLD_SIZE": "2"})
    put(monkeypatch, **wrong)
    with pytest.raises(UserError, match=said):
        complete()
    assert train.main([], lambda _: complete() or 0) == 2
    assert capsys.readouterr().err.startswith(f"error: {said}")
