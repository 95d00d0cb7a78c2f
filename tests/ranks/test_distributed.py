"""Agreeing on counts, and starting with and without a launcher."""

import os
import socket

import pytest
import torch

from flava_ds.errors import DataError, UserError
from flava_ds.ranks import distributed
from flava_ds.ranks.distributed import (
    DisagreementError,
    all_reduce_counts,
    from_main,
    gather_numbers,
    gather_objects,
    raise_together,
    start,
)
from flava_ds.watching.communication import CollectiveLog


def agree(difference: str) -> object:
    """Reduces counts that depend on the rank; one of the other numbers may differ on rank 1."""
    world = start(30)
    own = {"step": 5, "source": 2, "kind": 1, "layered": 3}
    if difference and world.rank == 1:
        own[difference] += 1
    try:
        return all_reduce_counts(world, [10 + world.rank, 0, 3], **own, note=world.rank)
    except DisagreementError as error:
        return str(error)


@pytest.mark.distributed
def test_counts_are_summed_and_notes_reach_every_rank(run_ranks):
    assert run_ranks(agree, 2, "") == [([21, 0, 6], [0, 1])] * 2


@pytest.mark.distributed
@pytest.mark.parametrize("difference", ["step", "kind"])
def test_ranks_on_different_steps_are_noticed_before_the_forward_pass(run_ranks, difference):
    for said in run_ranks(agree, 2, difference):
        assert "rank 1 is on step" in said and "rank 0" in said


@pytest.mark.distributed
def test_ranks_with_hooks_on_other_layers_are_noticed(run_ranks):
    """Gradients of their blocks become ready in another order."""
    for said in run_ranks(agree, 2, "layered"):
        assert said.startswith("rank 1 runs 4 transformer blocks layer by layer, but rank 0 3, so")


def fail_on_one() -> str:
    """Rank 1 alone meets an error."""
    world = start(30)
    assert gather_objects(world, world.rank) == [0, 1]
    raise_together(world, None)
    try:
        raise_together(world, DataError("shard 7 is missing") if world.rank == 1 else None)
    except DataError as error:
        return str(error)
    return "went on"


@pytest.mark.distributed
def test_an_error_on_one_rank_is_raised_on_all(run_ranks):
    assert run_ranks(fail_on_one, 2) == ["shard 7 is missing"] * 2


def gather_rows() -> tuple[list[list[list[int]]], list[str]]:
    """Gathers two tables one after the other; returns them and the messages that this rank has sent."""
    world, tables = start(30), []
    with CollectiveLog() as log:
        for turn in range(2):
            tables.append(gather_numbers(world, [world.rank, turn, -(2**40) * world.rank]))
    return tables, [f"{call.part} {call.collective} {call.payload}" for call in log.calls]


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("ranks", "rows_sent"), [(1, []), (2, [1]), (3, [1, 1]), (5, [1, 2, 1]), (8, [1, 2, 4])]
)
def test_numbers_are_gathered_in_as_few_messages_as_ranks_can_be_doubled(run_ranks, ranks, rows_sent):
    expected = [[[rank, turn, -(2**40) * rank] for rank in range(ranks)] for turn in range(2)]
    messages = [f"counts send {24 * rows}" for rows in rows_sent]
    assert run_ranks(gather_rows, ranks) == [(expected, 2 * messages)] * ranks


def send_one() -> tuple[str, int]:
    """Sends an object of 1 MB to all ranks; returns what arrived, and the bytes of collectives."""
    world = start(30)
    with CollectiveLog() as log:
        found = from_main(world, "0123456789" * 10**5 if world.is_main else f"of rank {world.rank}")
    return found, sum(call.payload for call in log.calls)


@pytest.mark.distributed
@pytest.mark.parametrize("ranks", [1, 3])
def test_an_object_of_rank_0_reaches_all_ranks_and_moves_once(run_ranks, ranks):
    for found, moved in run_ranks(send_one, ranks):
        assert found == "0123456789" * 10**5 and 10**6 < moved < 1.01 * 10**6


def alone() -> tuple:
    """Starts without any of a launcher's variables."""
    for name in (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
        "OMP_NUM_THREADS",
    ):
        os.environ.pop(name, None)
    world = start(30)
    return (
        world.rank,
        world.size,
        world.is_main,
        world.device.type,
        torch.get_num_threads() == len(os.sched_getaffinity(0)),
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="about CPU")
def test_a_process_without_launcher_is_a_world_of_its_own(run_ranks):
    assert run_ranks(alone, 1) == [(0, 1, True, "cpu", True)]


def test_a_port_that_is_taken_is_one_line_that_says_what_to_do(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        variables = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "OMP_NUM_THREADS": "1"}
        for name, value in (variables | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match=f"rank 0 .* at 127.0.0.1:{port} .*set another one .MASTER_PORT"):
            distributed.start(5)
        with pytest.raises(UserError, match="meet the others .*Connect timeout.*; see whether all ranks are"):
            with distributed._meeting(0):
                raise RuntimeError("Gloo connectFullMesh failed with [pair.h:311] Connect timeout [none]")
        monkeypatch.setenv("MASTER_PORT", "many")
        with pytest.raises(UserError, match="MASTER_PORT is 'many'"):
            distributed.start(5)


def test_a_network_that_this_machine_lacks_is_one_line_too(monkeypatch):
    variables = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "OMP_NUM_THREADS": "1"}
    for name, value in (variables | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nowhere")
    with pytest.raises(UserError, match="GLOO_SOCKET_IFNAME has to name a network of this machine"):
        distributed.start(5)


def test_cores_are_shared_among_the_ranks_of_a_host(monkeypatch):
    asked = []
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    for ranks in (1, 3, 16):
        distributed._share_cores(ranks)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    distributed._share_cores(1)
    assert asked == [8, 2, 1]


def end_with_own_status() -> tuple[bool, int]:
    """Every rank ends with an error and a status of its own, rank 1 first."""
    world = start(30)
    if world.rank == 1:
        answer = distributed.agree_on_end(2)
    gather_objects(world, None)
    return answer if world.rank == 1 else distributed.agree_on_end(1)


@pytest.mark.distributed
def test_first_rank_to_end_speaks_and_its_status_is_everybodys(run_ranks):
    assert run_ranks(end_with_own_status, 2) == [(False, 2), (True, 2)]
