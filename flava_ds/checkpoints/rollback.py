"""Takes a diverged run back to its last good checkpoint. The data does not go back with it: the steps in
between are jumped.
"""

from __future__ import annotations

from flava_ds.checkpoints import checkpoint, files
from flava_ds.checkpoints.reader import good_checkpoints
from flava_ds.config import Config
from flava_ds.ranks.distributed import gather_objects, log, together
from flava_ds.training.engine import Engine


def go_back(engine: Engine, config: Config) -> checkpoint.Resumed | None:
    """Puts the engine into the state of the last good checkpoint that is not damaged and deletes the later
    ones, so that `latest` is that one; None when there is none that is good.

    All ranks call it together, when no save is under way.

    Raises: CheckpointError on every rank when all that are good are damaged.
    """
    world, place, good = engine.world, files.place_of(config.run_path, config), []
    with together(world):
        if world.is_main:
            good = list(good_checkpoints(place))
    good = gather_objects(world, good)[0]
    if not good:
        return None
    found = checkpoint.newest_sound(world, good)
    resumed = checkpoint.restore(engine, found)
    with together(world):
        if world.is_main:
            for name in files.return_to(place, found):
                log.info("deleted %s, which was written while the run diverged", name)
    return resumed
