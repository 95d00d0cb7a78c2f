"""Rolls a diverged run back to its last good checkpoint. The data is not rolled back: it skips ahead."""

from __future__ import annotations

from contextlib import closing

from flava_ds.checkpoints import checkpoint, files
from flava_ds.checkpoints.reader import good_checkpoints
from flava_ds.config import Config
from flava_ds.ranks.distributed import gather_objects, log, together
from flava_ds.training.engine import Engine


def go_back(engine: Engine, config: Config) -> checkpoint.Resumed | None:
    """Restores the last good, undamaged checkpoint and deletes the later ones; None without a good one.

    All ranks call it together, while no save is in progress.

    Raises: CheckpointError on every rank when all good checkpoints are damaged.
    """
    world, place, good = engine.world, files.place_of(config.run_path, config), []
    with together(world):
        if world.is_main:
            # rank 0 alone looks, so that all ranks get the same list
            good = list(good_checkpoints(place))
    good = gather_objects(world, good)[0]
    if not good:
        return None
    with closing(checkpoint.newest_sound(world, good)) as reader:
        resumed = checkpoint.restore(engine, reader)
    with together(world):
        if world.is_main:
            for name in files.return_to(place, reader.folder):
                log.info("deleted %s, which was written while the run diverged", name)
    return resumed
