"""Which of a finished run's checkpoints passes its weights on."""

import pytest
from checkpoint_helpers import small_weights, write_checkpoint

from flava_ds.checkpoints.files import place_of
from flava_ds.checkpoints.inheritance import to_pass_on
from flava_ds.config import CheckpointConfig, Config, LoggingConfig
from flava_ds.errors import CheckpointError

NUMBER = "evaluation/held_out_losses/mlm_loss"


@pytest.mark.parametrize(
    ("best_metric", "step"), [("", 30), ("loss/mlm", 30), (NUMBER, 20), ("evaluation/other/share", None)]
)
def test_the_best_by_an_evaluation_or_else_the_last(tmp_path, best_metric, step):
    config = Config(
        name="text",
        logging=LoggingConfig(run_directory=str(tmp_path)),
        checkpoint=CheckpointConfig(best_metric=best_metric),
    )
    place = place_of(config.run_path, config)
    for made, loss in ((10, 3.0), (20, 2.0), (30, 2.5)):
        metric = {"name": NUMBER, "value": loss, "step": made - 1, "higher_is_better": False}
        write_checkpoint(place, made, small_weights(), metric=metric)
    if step is None:
        with pytest.raises(CheckpointError, match="no checkpoint has 'evaluation/other/share'"):
            to_pass_on(config)
    else:
        assert to_pass_on(config).name == f"step_{step:08}"
