"""Peers that can be had compute what the operator's definition does; others say why not."""

import dataclasses

import pytest
import torch
from flava_kernels import OPS
from flava_kernels.bench.__main__ import draw, played_ranks
from flava_kernels.bench.measure import error, exact
from flava_kernels.bench.peers import PEERS, UnavailableError, clip_loss, library, peers, siglip_loss
from flava_kernels.bench.workloads import workloads

HERE = [(op, peer) for op in PEERS if op in OPS for peer in PEERS[op]]


@pytest.mark.parametrize(("op", "peer"), HERE, ids=[f"{op}-{peer.name}" for op, peer in HERE])
def test_a_peer_equals_the_definition_or_says_why_not(op, peer):
    for workload in workloads(op, "quick"):
        if workload.ranks > 1:
            continue
        arguments = draw(workload, torch.device("cpu"), torch.float32, 0)
        try:
            call = peer.build(OPS[op], "cpu")
            found = error(call, arguments, exact(OPS[op].definition, arguments))
        except UnavailableError as reason:
            assert any(
                words in str(reason)
                for words in ("cannot be imported", "GPUs only", f"torch {torch.__version__} has no")
            )
            return
        except RuntimeError as refused:
            assert "No available kernel" in str(refused) or "No viable backend" in str(refused)
            return
        assert found < 1e-5


def test_what_torch_has_runs_on_a_cpu():
    """So that the test above cannot pass with refusals alone."""
    for op, name in (
        ("varlen_attention", "SDPA flash"),
        ("info_nce", "open_clip's ClipLoss"),
        ("sigmoid_loss", "open_clip's SigLipLoss"),
    ):
        if op in OPS:
            peer = next(peer for peer in peers(op) if peer.name == name)
            arguments = draw(workloads(op, "quick")[0], torch.device("cpu"), torch.float32, 0)
            assert error(peer.build(OPS[op], "cpu"), arguments, exact(OPS[op].definition, arguments)) < 1e-5


def test_a_ninth_shape_is_still_compiled(monkeypatch):
    """torch gives up on a function after eight shapes and runs it in eager mode; every workload of a GPU has
    its own.
    """
    compiled, compile_ = [], torch.compile
    monkeypatch.setattr(
        torch,
        "compile",
        lambda function, **options: compile_(
            function, backend=lambda graph, _: compiled.append(1) or graph.forward, **options
        ),
    )
    op = dataclasses.replace(OPS["layer_norm"], definition=lambda x: x * 2)
    (peer,) = (peer for peer in peers("layer_norm") if peer.name == "torch.compile")
    for rows in range(2, 12):
        peer.build(op, "cuda")(torch.zeros(rows))
    assert len(compiled) == 10


def test_a_missing_library_is_named():
    with pytest.raises(UnavailableError, match="no_such_library cannot be imported"):
        library("no_such_library")
    with pytest.raises(UnavailableError, match="json runs on GPUs only"):
        library("json", gpu_only="cpu")


@pytest.mark.parametrize(("op", "peer"), [("info_nce", clip_loss), ("sigmoid_loss", siglip_loss)])
def test_ranks_are_played_with_this_rank_s_features(op, peer):
    workload = next(workload for workload in workloads(op, "quick") if workload.ranks > 1)
    arguments = draw(workload, torch.device("cpu"), torch.float32, 0)
    with played_ranks(workload.ranks):
        ours, _ = OPS[op].function(**arguments.inputs)
        theirs = peer(**arguments.inputs)
    repeated = {
        name: value if name in ("log_scale", "bias") else torch.cat([value] * workload.ranks)
        for name, value in arguments.inputs.items()
    }
    whole, _ = OPS[op].definition(**repeated)
    torch.testing.assert_close(ours * workload.ranks, whole)
    torch.testing.assert_close(theirs * workload.ranks, whole)
    assert not torch.distributed.is_initialized()
