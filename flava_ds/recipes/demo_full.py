"""All stages on the demo's data: image encoder by SimCLR, text encoder by MLM, then the demo."""

from flava_ds.recipes.demo import demo
from flava_ds.recipes.demo_mlm import demo_mlm
from flava_ds.recipes.demo_simclr import demo_simclr
from flava_ds.recipes.stages import Inherited, Stages, in_sequence


def demo_full() -> Stages:
    """Returns three stages: `image`, `text` and `joint`."""
    return in_sequence(
        "demo_full",
        ("image", demo_simclr, ()),
        ("text", demo_mlm, ()),
        (
            "joint",
            demo,
            (
                Inherited(stage="image", prefixes=("model.image_encoder.",)),
                Inherited(stage="text", prefixes=("model.text_encoder.", "objectives.mlm.")),
            ),
        ),
    )
