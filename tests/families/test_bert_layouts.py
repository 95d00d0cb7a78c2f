"""Image processors of exported folders: pictures of every mode, as training and flava_ds.load see them."""

import io
import json

import numpy as np
import pytest
import sample_batches
from families.align import align_peers
from families.clip import peers as clip_peers
from families.family_checks import with_words
from families.vilt import vilt_peers
from PIL import Image

from flava_ds.config.variants import tag_of
from flava_ds.data.decode import decode_image
from flava_ds.hf.foreign import layouts_of

CONFIGS = {
    "flava": sample_batches.tiny_config,
    "clip": clip_peers.tiny_config,
    "align": align_peers.tiny_config,
    "vilt": vilt_peers.tiny_config,
}


def pictures() -> dict[str, bytes]:
    """The same picture as a PNG of several modes."""
    draw = np.random.default_rng(0)
    image = Image.fromarray(draw.integers(0, 256, (48, 48, 4), dtype=np.uint8), "RGBA")
    files = {}
    for mode in ("RGBA", "LA", "L", "P"):
        own = image.convert("RGB").convert(mode) if mode == "P" else image.convert(mode)
        own.save(file := io.BytesIO(), "PNG")
        files[mode] = file.getvalue()
    return files


@pytest.mark.parametrize("family", CONFIGS)
def test_pictures_of_every_mode_become_the_pixels_of_training(family, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = with_words(CONFIGS[family](), tmp_path)
    settings = layouts_of(tag_of(config.model)).companions(config)["preprocessor_config.json"]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path, local_files_only=True)
    for mode, data in pictures().items():
        picture = Image.open(io.BytesIO(data))
        assert picture.mode == mode
        found = processor(picture, return_tensors="pt")["pixel_values"]
        expected = processor(decode_image(data), return_tensors="pt")["pixel_values"]
        # Pillow and this package may round a blend over white to different neighbours.
        assert (found - expected).abs().max() <= 1.5 / 255 / min(settings["image_std"]), mode
