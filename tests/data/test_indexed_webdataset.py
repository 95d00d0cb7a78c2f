"""The shards are webdataset's: what it writes is read here, and what is written here it reads."""

import io

import numpy as np
import webdataset as wds
from data.whole_sources import iterate_once
from PIL import Image

from flava_ds.config import Config, SourceConfig


def test_reads_what_webdataset_writes(tmp_path):
    draw = np.random.default_rng(0)
    pictures = [draw.integers(0, 256, (9, 7, 3), dtype=np.uint8) for _ in range(5)]
    with wds.ShardWriter(str(tmp_path / "%05d.tar"), maxcount=3, verbose=0) as writer:
        for number, picture in enumerate(pictures):
            encoded = io.BytesIO()
            Image.fromarray(picture).save(encoded, format="PNG")
            writer.write(
                {
                    "__key__": f"sample{number}",
                    "png": encoded.getvalue(),
                    "txt": f"caption {number}",
                    "json": {"width": 7},
                }
            )
    config = Config(name="x").with_sources({"pairs": SourceConfig(kind="pair", shards=str(tmp_path))})
    samples = [sample for batch in iterate_once(config, "pairs") for sample in batch]
    assert [sample.key for sample in samples] == [f"sample{number}" for number in range(5)]
    assert [sample.captions[0] for sample in samples] == [f"caption {number}" for number in range(5)]
    assert all(
        (sample.image.permute(1, 2, 0).numpy() == picture).all()
        for sample, picture in zip(samples, pictures, strict=True)
    )


def test_webdataset_reads_the_demo_shards(tmp_path):
    from flava_ds.demo.dataset import unpack

    shards = sorted(unpack(tmp_path / "demo").glob("pairs-train/*.tar"))
    sample = next(iter(wds.WebDataset([str(shards[0])], shardshuffle=False)))
    assert Image.open(io.BytesIO(sample["webp"])).size == (64, 64)
    assert sample["txt"].decode() and b"captions" in sample["json"]
