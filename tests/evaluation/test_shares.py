"""Ranks that share the work get the features of one that does it all; an error of one reaches all."""

import time

import pytest
import torch
from evaluation.color_world import KnowsColors, color_model, write_image_folder

from flava_ds.errors import DataError
from flava_ds.evaluation import frozen_model
from flava_ds.evaluation.registry import find
from flava_ds.evaluation.runner import evaluate, find_all
from flava_ds.evaluation.shares import Share
from flava_ds.ranks import roll_call
from flava_ds.ranks.distributed import start, stop

TASKS = ["image_folder_zero_shot", "image_folder_neighbours", "image_folder_probe"]


def shared(root, broken=None):
    """Evaluates on this rank's share; 5 pictures a batch, fewer batches a part than there are ranks."""
    world, knows = start(60), KnowsColors({"green": "red"})
    frozen_model.BATCH_ROWS, frozen_model.PART_BATCHES = 5, 1
    tasks = find(TASKS)
    model = color_model(knows, share=Share(world))
    try:
        results = evaluate(tasks, model, find_all(tasks, root))
    except (DataError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return {name: result.scores for name, result in results.items()}, sum(knows.calls)


@pytest.mark.distributed
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_together_find_what_one_finds_and_each_encodes_its_share(tmp_path, run_ranks, ranks):
    write_image_folder(tmp_path / "image_folder", {"train": 9, "test": 4})
    tasks = find(TASKS)
    alone = KnowsColors({"green": "red"})
    expected = {
        name: r.scores for name, r in evaluate(tasks, color_model(alone), find_all(tasks, tmp_path)).items()
    }
    found = run_ranks(shared, ranks, tmp_path)
    assert all(scores == expected for scores, _ in found)
    encoded = [count for _, count in found]
    assert sum(encoded) == sum(alone.calls) and max(encoded) - min(encoded) <= 5 * 4


@pytest.mark.distributed
def test_an_error_of_one_rank_is_that_of_all(tmp_path, run_ranks):
    """The seventh picture is in the second batch, which rank 1 decodes."""
    write_image_folder(tmp_path / "image_folder", {"train": 9, "test": 4})
    (tmp_path / "image_folder" / "test" / "green" / "2.png").write_bytes(b"no picture")
    found = run_ranks(shared, 2, tmp_path)
    assert (
        found[0] == found[1] and "DataError: image_folder: picture 'green/2.png' cannot be used" in found[0]
    )


class Fails:
    def image_features(self, pixels):
        if torch.distributed.get_rank() == 1:
            raise ValueError("only here")
        return pixels.float().flatten(1)


def fails_on_rank_1(root):
    tasks = find(["image_folder_neighbours"])
    world = start(60)
    frozen_model.BATCH_ROWS = 5
    try:
        evaluate(tasks, color_model(Fails(), share=Share(world)), find_all(tasks, root))
    except RuntimeError as error:
        return str(error)


@pytest.mark.distributed
def test_any_error_of_one_rank_ends_the_others_at_once(tmp_path, run_ranks):
    write_image_folder(tmp_path / "image_folder", {"train": 9, "test": 4})
    assert run_ranks(fails_on_rank_1, 2, tmp_path) == ["rank 1: ValueError: only here"] * 2


def waits_for_rank_1():
    """Rank 1 comes to its first exchange when rank 0 waits no more."""
    share = Share(start(2))
    try:
        if share.rank == 1:
            time.sleep(4)
        share.together(lambda: share.together(lambda: None))
    except RuntimeError as error:
        return str(error)
    finally:
        stop()  # such a group meets no more


@pytest.mark.distributed
def test_a_rank_that_does_not_come_is_told_as_that(run_ranks):
    """A second exchange, in which an error reaches all ranks, fails otherwise, which names no rank."""
    said, _ = run_ranks(waits_for_rank_1, 2)
    assert roll_call.TIMED_OUT.search(said), said
