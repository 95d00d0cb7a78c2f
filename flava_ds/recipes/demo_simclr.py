"""SimCLR for the demo's image encoder, on drawings alone; docs/stages.md says what it learns in minutes."""

from flava_ds.config import Config, ImageTransformConfig
from flava_ds.objectives.simclr import SimclrConfig
from flava_ds.recipes.demo import demo_encoder


def demo_simclr() -> Config:
    """Returns the demo's model and optimizer with SimCLR on its images."""
    view = ImageTransformConfig(
        crop_scale=(0.4, 1.0),
        horizontal_flip=0.5,
        rotation_degrees=8.0,
        color_jitter=0.4,
        jitter_probability=0.8,
        grayscale=0.2,
        invert=0.1,
        edges=0.15,
        blur=0.3,
        blur_sigma=(0.1, 1.0),
    )
    simclr = SimclrConfig(temperature=0.2, head_hidden_size=256, projection_size=64, view=view)
    return demo_encoder("demo_simclr", {"simclr": simclr}, "image", global_batch_size=128)
