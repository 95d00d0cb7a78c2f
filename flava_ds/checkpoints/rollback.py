"""Rolls a diverged run back to its last good checkpoint. The data is not rolled back: it skips ahead."""

from __future__ import annotations

from contextlib import closing

from flava_ds.checkpoints import checkpoint, files
from flava_ds.checkpoints.reader import good_checkpoints
from flava_ds.config import Config
from flava_ds.ranks.distributed import log, together
from flava_ds.training.engine import Engine


def go_back(engine: Engine, config: Config) -> checkpoint.Resumed | None:
    """Restores the last good, undamaged checkpoint and deletes the later ones; None without a good one.

    All ranks call it together, while no save is in progress.

    Raises: CheckpointError on every rank when all good checkpoints are damaged.
    """
    world, place = engine.world, files.place_of(config.run_path, config)
    reader = checkpoint.newest_sound(world, good_checkpoints(place))
    if reader is None:
        return None
    with closing(reader):
        resumed = checkpoint.restore(engine, reader)
    with together(world):
        if world.is_main:
            for name in files.return_to(place, reader.folder):
                log.info("deleted %s, which was written while the run diverged", name)
    return resumed
