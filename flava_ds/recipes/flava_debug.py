"""The smallest run that exercises everything: for debugging, tests and a first look, in seconds on a CPU."""

from pathlib import Path

from flava_ds.config import (
    CheckpointConfig,
    CodebookConfig,
    Config,
    CosineScheduleConfig,
    DataConfig,
    LoggingConfig,
    TrainingConfig,
)
from flava_ds.optimizers.adamw import AdamWConfig
from flava_ds.recipes.demo import VOCABULARY, demo_model, demo_objectives, demo_sources

CODEBOOK = Path(__file__).with_name("debug_codebook.safetensors")
"""A committed codebook of 64 codes, so that this recipe does not depend on another run."""


def flava_debug() -> Config:
    """Returns a tiny FLAVA that makes 20 steps on the demo data with all six losses."""
    model = demo_model(hidden_size=64, num_attention_heads=2, layers=(2, 2, 1))
    size = model.image.grid_size * 2**3  # four groups halve the image three times
    return Config(
        name="flava_debug",
        model=model,
        codebook=CodebookConfig(
            hidden_size=4,
            vocab_size=64,
            image_size=size,
            num_groups=4,
            num_blocks_per_group=1,
            decoder_init_size=4,
        ),
        codebook_weights=str(CODEBOOK),
        objectives=demo_objectives(),
        data=DataConfig(
            sources=demo_sources(global_batch_sizes=(16, 16, 16), masked_share=1.0),
            vocabulary=str(VOCABULARY),
            num_workers=0,
        ),
        training=TrainingConfig(
            total_steps=20, global_batch_size=16, precision="fp32", gradient_clipping=1.0
        ),
        optimizer=AdamWConfig(lr=1e-3),
        schedule=CosineScheduleConfig(warmup_steps=5),
        checkpoint=CheckpointConfig(every_steps=10),
        logging=LoggingConfig(every_steps=1),
    )
