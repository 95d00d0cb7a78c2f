"""What half precision must not touch: the weights that a run starts from."""

from __future__ import annotations

from test_engine import stages_in
from toy import Toy, full_weights, toy_config

from flava_ds.ranks.distributed import start
from flava_ds.training.engine import Engine


def farthest(stages: tuple[str, ...]) -> dict[str, tuple[float, float]]:
    """By stage, before any update: the largest differences of the optimizer's weights from those that the
    engine was given, and of the module's from the same ones in half precision.
    """
    world, given = start(60), {name: own.detach().clone() for name, own in Toy().named_parameters()}
    found = {}
    for stage in stages:
        engine = Engine(Toy(), toy_config(stage, precision="bf16"), world)
        weights = full_weights(engine)
        distances = [float((weights[name].view_as(own) - own).abs().max()) for name, own in given.items()]
        rounded = [
            float((own.detach().view_as(given[name]) - given[name].bfloat16()).abs().max())
            for name, own in engine.module.named_parameters()
            if engine.stage < 3
        ]
        found[stage] = max(distances), max(rounded, default=0.0)
    return found


def test_a_run_in_half_precision_starts_from_the_weights_that_it_was_given(run_ranks, tmp_path):
    stages = tuple(stage for stage in stages_in(tmp_path) if stage != "zero0")  # refused in half precision
    for found in run_ranks(farthest, 3, stages):
        assert set(found.values()) == {(0.0, 0.0)}, found
