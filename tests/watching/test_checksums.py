"""Ranks whose copies of the model differ in one bit."""

import pytest
import torch
from test_trainer import toy_trainer
from torch import nn
from toy import partition_everything

from flava_ds.errors import DesyncError
from flava_ds.watching import checksums


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool]
)
def test_one_changed_bit_changes_the_sum_and_the_layout_does_not(dtype, monkeypatch):
    monkeypatch.setattr(checksums, "CHUNK", 7)
    values = (torch.randn(5, 9) * 3).to(dtype)
    plain = int(checksums.checksum(values))
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()]
    assert (plain - sum(values.view(integers).flatten().tolist())) % 2**64 == 0
    assert plain == int(checksums.checksum(values.t().contiguous().t())), "strides do not matter"
    values.view(integers)[3, 4] ^= 1
    assert abs(int(checksums.checksum(values)) - plain) == 1
    assert (
        int(checksums.checksum(torch.empty(0, dtype=dtype))) == 0
        and int(checksums.checksum(torch.zeros((), dtype=dtype))) == 0
    )


def test_the_error_names_the_few_and_what_to_do():
    names, hosts = ["a.weight", "b.weight", "c.weight"], ["n1", "n1", "n2", "n2"]
    said = checksums.describe(names, [[1, 2, 3], [1, 2, 3], [1, 5, 4], [1, 2, 3]], hosts, 99, 50)
    assert said.startswith(
        "step 99: rank 2 on n2 differs from the other 3 ranks in 'b.weight' (2 of 3 tensors differ)"
    )
    assert "a checkpoint of step 50 or before" in said
    assert "and start again" in checksums.describe(names, [[1, 2, 3], [1, 5, 3]], hosts, 99, 0)
    start = checksums.describe(names, [[1, 2, 3], [1, 2, 3], [1, 5, 3]], hosts, None, 0)
    assert (
        start.startswith("at the start rank 2 on n2 differs from the other 2 ranks in 'b.weight'")
        and "the same files (codebook_weights" in start
    )
    tied = checksums.describe(names, [[1, 2, 3], [1, 2, 3], [1, 5, 4], [1, 5, 3]], hosts, 99, 50)
    assert (
        "rank 0 on n1, rank 1 on n1, rank 2 on n2, rank 3 on n2 differ from each other in 'b.weight'" in tied
    )
    two = checksums.describe(names, [[1, 2, 3], [0, 2, 3], [2, 2, 3], [1, 2, 3]], hosts, 99, 0)
    assert (
        "rank 1 on n1, rank 2 on n2 differ from the other 2 ranks in 'a.weight' (1 of 3 tensors differ)"
        in two
    )


def train_with_a_fault(folder: str, deepspeed_config: str, faulty_step: int) -> tuple[str, int]:
    """Rank 1's memory changes one parameter by one ulp after an update; returns how the run ended and the
    updates until then.
    """
    trainer = toy_trainer(folder, checksum_every_steps=4, deepspeed_config=deepspeed_config)
    update, updates = trainer.engine.update, 0

    def update_on_a_faulty_machine():
        nonlocal updates
        norm, step, updates = update(), updates, updates + 1
        if step == faulty_step and trainer.world.rank == 1:
            weight = trainer.engine.module.text_encoder.first.weight.data.view(-1)
            weight[5] = torch.nextafter(weight[5], torch.tensor(torch.inf))
        return norm

    trainer.engine.update = update_on_a_faulty_machine
    try:
        return str(trainer.fit()), updates
    except DesyncError as error:
        assert error.on_all_ranks
        return str(error), updates


def three_runs(folder: str, divided: str) -> tuple:
    """ZeRO-0 keeps a fault until the next comparison; with ZeRO-1 the next update mends it, unless the
    comparison comes before. ZeRO-3 divides all.
    """
    kept = train_with_a_fault(f"{folder}/zero0", "zero0", 5)
    fresh = train_with_a_fault(f"{folder}/zero1", "zero1", 3)
    trainer = toy_trainer(f"{folder}/zero3", deepspeed_config=divided)
    task = trainer.task
    task.frozen = {"codebook": nn.BatchNorm1d(3)}
    tensors = checksums.replicated(trainer.engine)
    checksums.check_equal(trainer.world, tensors, 0, 0)
    task.frozen = {"codebook": nn.Linear(2, 2, bias=False).requires_grad_(False)}
    task.frozen["codebook"].weight.fill_(float(trainer.world.rank))
    with pytest.raises(
        DesyncError, match=r"^at the start rank 0 .* in 'codebook.weight' \(1 of 1 tensors differ\)"
    ):
        trainer.fit()
    assert toy_trainer(f"{folder}/persistent", deepspeed_config="zero3", checksum_every_steps=2).fit() == 0, (
        "small parameters, which it keeps whole"
    )
    return kept, fresh, list(tensors)


@pytest.mark.distributed
def test_a_rank_that_is_off_by_one_ulp_ends_the_run_on_all_ranks(run_ranks, tmp_path):
    for kept, fresh, divided in run_ranks(three_runs, 2, str(tmp_path), partition_everything(tmp_path)):
        said, updates = kept
        assert (
            said.startswith("step 7: rank 0 on ")
            and "differ from each other in 'text_encoder.first.weight' (" in said
            and updates == 8
        )
        assert "a checkpoint of step 4 or before" in said
        said, updates = fresh
        assert said.startswith("step 3: ") and "'text_encoder.first.weight' (1 of" in said and updates == 4
        assert divided == [
            f"codebook.{name}"
            for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        ]
