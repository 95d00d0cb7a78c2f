"""The ablation's rows differ in what the paper's do, and in nothing else."""

from fractions import Fraction

import pytest
from demo_flops import flops_of

from flava_ds import config as configuration
from flava_ds.data.order import source_seed
from flava_ds.data.round_robin import RoundRobin
from flava_ds.recipes import RECIPES, SEQUENCES, load_sequence
from flava_ds.recipes.ablation import EQUAL_COMPUTE, PAIR_STEPS, ROWS, ablation
from flava_ds.recipes.stages import Stages


def last(row):
    """Returns the run that a row is judged by."""
    found = ablation(row)
    return configuration.check(found.stages[-1].config if isinstance(found, Stages) else found)


def test_every_row_has_its_name():
    names = {f"ablation/{row}" for row in ROWS}
    assert {name for name in (*RECIPES, *SEQUENCES) if name.startswith("ablation/")} == names
    assert load_sequence("ablation/flava").names == ("image", "text", "joint")


@pytest.mark.parametrize("row", [row for row in ROWS if row not in (*EQUAL_COMPUTE, "untrained")])
def test_pair_steps_are_equal_and_in_equal_order(row):
    config = last(row)
    pair = config.data.sources["pair"]
    seeds = {name: source_seed(name, source.seed) for name, source in config.data.sources.items()}
    weights = {name: Fraction(str(source.weight)) for name, source in config.data.sources.items()}
    rotation = RoundRobin([(0, weights)], seeds, seed=config.seed)
    assert rotation.draws_before("pair", config.training.total_steps) == PAIR_STEPS
    reference = last("flava_c").data.sources["pair"]
    assert (pair.seed, pair.shards, pair.global_batch_size, pair.transform) == (
        *(reference.seed, reference.shards, reference.global_batch_size, reference.transform),
    )
    assert (config.optimizer, config.seed) == (last("flava_c").optimizer, 0)


def test_the_untrained_row_moves_nothing_in_its_only_step():
    config, whole = last("untrained"), last("flava_no_init")
    assert config.model == whole.model and config.training.total_steps == 1
    assert (config.optimizer.lr, config.schedule.min_lr) == (0.0, 0.0)


def test_rows_have_the_losses_of_the_paper():
    every = set(last("flava").objectives)
    assert every == set(last("flava_no_init").objectives) and len(every) == 6
    assert set(last("flava_mm").objectives) == every - {"mim", "mlm"}
    assert set(last("flava_c").objectives) == set(last("flava_c_local").objectives) == {"global_contrastive"}
    assert last("flava_c_local").objectives["global_contrastive"].type == "local_contrastive"
    assert [set(last(row).objectives) for row in ("mim", "mlm")] == [{"mim"}, {"mlm"}]
    assert last("clip").model.type == "clip"


def test_rows_at_equal_compute_have_the_flops_of_flava():
    whole = sum(flops_of(stage.config) for stage in ablation("flava").stages)
    for row in EQUAL_COMPUTE:
        assert flops_of(last(row)) == pytest.approx(whole, rel=0.03)
