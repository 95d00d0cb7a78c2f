"""Takes a diverged run back to its last good checkpoint. The data does not go back with it: the steps in between are jumped."""

from __future__ import annotations

from flava_ds.config import Config
from flava_ds.training import checkpoint
from flava_ds.training import checkpoint_files as files
from flava_ds.training.checkpoint_reader import newest_good
from flava_ds.training.distributed import gather_objects, log, together
from flava_ds.training.engine import Engine


def go_back(engine: Engine, config: Config) -> checkpoint.Resumed | None:
    """Puts the engine into the state of the last good checkpoint and deletes the later ones, so that `latest` is that one; None when there is none.

    All ranks call it together, when no save is under way.

    Raises: CheckpointError on every rank when the checkpoint is damaged.
    """
    world, place, found = engine.world, files.place_of(config.run_path, config), None
    with together(world):
        if world.is_main:
            found = newest_good(place)
    found = gather_objects(world, found)[0]
    if found is None:
        return None
    checkpoint.check(world, found)
    resumed = checkpoint.restore(engine, found)
    with together(world):
        if world.is_main:
            for name in files.return_to(place, found):
                log.info("deleted %s, which was written while the run diverged", name)
    return resumed
