"""The loaders that data_loader.py compares, one per process, timed in steady state.

    python benchmarks/loader_rows.py ROW SHARDS [--samples N]

Each is an endless stream of batches from the same shards. Prints one line of JSON: samples, seconds, and CPU
seconds (user and system) of this process and its workers, without start-up and warm-up.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import logging
import multiprocessing
import os
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from flava_kernels.bench.machine import version_of

BATCH, WORKERS, SIZE, CODEBOOK_SIZE, MAX_TOKENS = 64, 2, 224, 112, 77
SCALE, RATIO = (0.9, 1.0), (0.75, 4 / 3)
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
WARM_UP = 8 * BATCH

Stream = Iterator[int]
"""Yields the number of samples of each batch."""


def flava_ds(folder: Path, *, objectives: bool) -> Stream:
    """Our loader: uint8 pixels and packed tokens.

    With the objectives, two views, masks and mismatches; else one view for the contrastive loss.
    """
    from flava_ds.config import (
        CodebookConfig,
        Config,
        DataConfig,
        ImageTransformConfig,
        SourceConfig,
        TrainingConfig,
    )
    from flava_ds.data.loader import StepLoader
    from flava_ds.recipes.flava_base import published_model, published_objectives

    transform = ImageTransformConfig(crop_scale=SCALE, crop_ratio=RATIO)
    source = SourceConfig(kind="pair", seed=0, shards=str(folder), max_tokens=MAX_TOKENS, transform=transform)
    loader = StepLoader(
        Config(
            name="benchmark",
            model=published_model(),
            codebook=CodebookConfig(image_size=CODEBOOK_SIZE),
            objectives=published_objectives() if objectives else contrastive_alone(published_objectives()),
            data=DataConfig(sources={"photos": source}, num_workers=WORKERS),
            training=TrainingConfig(total_steps=10**6, global_batch_size=BATCH),
        )
    )
    for batches in loader:
        batch = batches[0]
        assert (
            batch["pixel_values"].shape == (BATCH, 3, SIZE, SIZE)
            and ("codebook_pixel_values" in batch) == objectives
        )
        yield batch.size


def contrastive_alone(objectives):
    """Removes the masked and matching losses."""
    return {name: own for name, own in objectives.items() if name == "global_contrastive"}


def open_clip(folder: Path) -> Stream:
    """open_clip's own train pipeline, as created by `--dataset-type webdataset --workers 2`."""
    import open_clip
    from open_clip.transform import image_transform
    from open_clip_train.data import get_data

    shards = sorted(folder.glob("*.tar"))
    arguments = SimpleNamespace(
        train_data=str(folder / f"{{00000..{len(shards) - 1:05d}}}.tar"),
        train_num_samples=10**8,
        train_data_upsampling_factors=None,
        dataset_type="webdataset",
        dataset_resampled=False,
        val_data=None,
        imagenet_val=None,
        imagenet_v2=None,
        batch_size=BATCH,
        workers=WORKERS,
        world_size=1,
        seed=0,
    )
    preprocess = image_transform(SIZE, is_train=True, mean=MEAN, std=STD)
    data = get_data(arguments, (preprocess, None), tokenizer=open_clip.get_tokenizer("ViT-B-32"))
    for images, texts in data["train"].dataloader:
        assert images.shape == (BATCH, 3, SIZE, SIZE) and texts.shape == (BATCH, MAX_TOKENS)
        yield len(images)


def webdataset_pillow(folder: Path, *, two_views: bool) -> Stream:
    """Plain webdataset with Pillow's decode and a Rust tokenizer per caption.

    Torchvision's usual transforms to float32, or FLAVA's two views in uint8.
    """
    import webdataset as wds
    from torchvision import transforms

    bicubic = transforms.InterpolationMode.BICUBIC
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE, SCALE, RATIO, bicubic),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    tokenize = padding_tokenizer()
    stages = (
        wds.decode("pilrgb", only=["jpg"]),
        wds.to_tuple("jpg", "txt"),
        wds.map(
            lambda sample: (
                *(pillow_views(sample[0], two_views=True) if two_views else [transform(sample[0])]),
                tokenize([sample[1].decode()])[0],
            )
        ),
    )
    return through_webdataset(folder, [*stages, wds.batched(BATCH, partial=False)])


def webdataset_uint8(folder: Path) -> Stream:
    """Plain webdataset with the fastest parts of torchvision.

    libjpeg-turbo to uint8, a tensor crop, and a Rust tokenizer on whole batches.
    """
    import webdataset as wds
    from torchvision.io import ImageReadMode, decode_jpeg
    from torchvision.transforms.v2 import InterpolationMode, RandomResizedCrop

    crop, tokenize = (
        RandomResizedCrop(SIZE, SCALE, RATIO, InterpolationMode.BICUBIC, antialias=True),
        padding_tokenizer(),
    )

    def transform(data: bytes) -> torch.Tensor:
        return crop(decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB))

    def tokens(batch: tuple) -> tuple:
        return batch[0], tokenize([text.decode() for text in batch[1]])

    return through_webdataset(
        folder,
        [
            wds.to_tuple("jpg", "txt"),
            wds.map_tuple(transform),
            wds.batched(BATCH, partial=False),
            wds.map(tokens),
        ],
    )


def through_webdataset(folder: Path, stages: list) -> Stream:
    """Reads shards endlessly with a shuffle buffer of 1000 samples, in WORKERS processes."""
    import webdataset as wds

    shards = [str(path) for path in sorted(folder.glob("*.tar"))]
    pipeline = wds.DataPipeline(
        wds.SimpleShardList(shards), wds.split_by_worker, wds.tarfile_to_samples(), wds.shuffle(1000), *stages
    )
    for *views, texts in wds.WebLoader(pipeline.repeat(10**6), batch_size=None, num_workers=WORKERS):
        assert views[0].shape == (BATCH, 3, SIZE, SIZE) and len(texts) == BATCH
        yield len(texts)


def padding_tokenizer() -> Callable[[list[str]], torch.Tensor]:
    """Returns BERT's tokenizer with padding to MAX_TOKENS."""
    from flava_ds.data.tokenizer import WordPieceTokenizer

    tokenizer = WordPieceTokenizer("bert_base_uncased")

    def tokenize(texts: list[str]) -> torch.Tensor:
        ids = torch.zeros(len(texts), MAX_TOKENS, dtype=torch.int64)
        for row, found in enumerate(tokenizer.encode_batch(texts, MAX_TOKENS)):
            ids[row, : len(found)] = torch.from_numpy(found)
        return ids

    return tokenize


def decode_and_crop(folder: Path, *, sizes: tuple[int, ...]) -> Stream:
    """Only our decoder and crop, on bytes in memory: no shards, text or transport."""
    from flava_ds.config import ImageTransformConfig
    from flava_ds.data.decode import decode_image
    from flava_ds.data.transforms import ImageTransform

    transform = ImageTransform(ImageTransformConfig(crop_scale=SCALE, crop_ratio=RATIO), sizes)
    for number, pictures in enumerate(in_memory(folder)):
        yield len(
            transform(
                [decode_image(data) for data in pictures],
                np.arange(number * BATCH, (number + 1) * BATCH, dtype=np.uint64),
            )[0]
        )


def pillow(folder: Path, *, two_views: bool) -> Stream:
    """Only Pillow's decode and crop, to uint8."""
    from PIL import Image

    for pictures in in_memory(folder):
        rows = [
            pillow_views(Image.open(io.BytesIO(data)).convert("RGB"), two_views=two_views)
            for data in pictures
        ]
        yield len([torch.stack(view) for view in zip(*rows, strict=True)][0])


def pillow_views(picture, *, two_views: bool) -> list[torch.Tensor]:
    """Crops with Pillow to uint8: 224 bicubic and, for the same crop, 112 Lanczos, like the released code."""
    from PIL import Image
    from torchvision.transforms import RandomResizedCrop

    top, left, height, width = RandomResizedCrop.get_params(picture, SCALE, RATIO)
    crop = picture.crop((left, top, left + width, top + height))
    views = [crop.resize((SIZE, SIZE), Image.Resampling.BICUBIC)]
    if two_views:
        views.append(crop.resize((CODEBOOK_SIZE, CODEBOOK_SIZE), Image.Resampling.LANCZOS))
    return [torch.from_numpy(np.array(view)).permute(2, 0, 1).contiguous() for view in views]


def in_memory(folder: Path) -> Iterator[list[bytes]]:
    """Yields batches of encoded images endlessly."""
    pictures = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            pictures += [tar.extractfile(member).read() for member in tar if member.name.endswith(".jpg")]
    endless = itertools.cycle(pictures)
    while True:
        yield list(itertools.islice(endless, BATCH))


ROWS: dict[str, Callable[[Path], Stream]] = {
    "decode_crop": lambda folder: decode_and_crop(folder, sizes=(SIZE,)),
    "flava_ds": lambda folder: flava_ds(folder, objectives=False),
    "open_clip": open_clip,
    "webdataset_pillow": lambda folder: webdataset_pillow(folder, two_views=False),
    "webdataset_uint8": webdataset_uint8,
    "pillow": lambda folder: pillow(folder, two_views=False),
    "flava_ds_two_views": lambda folder: flava_ds(folder, objectives=True),
    "decode_crop_two_views": lambda folder: decode_and_crop(folder, sizes=(SIZE, CODEBOOK_SIZE)),
    "webdataset_pillow_two_views": lambda folder: webdataset_pillow(folder, two_views=True),
    "pillow_two_views": lambda folder: pillow(folder, two_views=True),
}


ALONE = ("decode_crop", "decode_crop_two_views", "pillow", "pillow_two_views")
"""Rows without loader processes: WORKERS copies run in parallel, to share cores and caches equally."""


def cpu_seconds() -> float:
    """Returns user and system time of this process and its children, running and ended.

    Source: proc(5), /proc/PID/stat.
    """
    ticks, children = 0, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    for process in ("self", *children):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def measure(stream: Stream, samples: int) -> dict[str, float]:
    """Times `samples` of a stream after a warm-up.

    Batches are discarded, so the workers set the pace and build up no lead.
    """
    seen = 0
    while seen < WARM_UP:
        seen += next(stream)
    began, cpu_began, seen = time.perf_counter(), cpu_seconds(), 0
    while seen < samples:
        seen += next(stream)
    found = {
        "samples": seen,
        "seconds": time.perf_counter() - began,
        "cpu_seconds": cpu_seconds() - cpu_began,
    }
    stream.close()
    return found


def measure_row(row: str, folder: Path, samples: int) -> dict[str, float]:
    """Starts a row's stream and measures it."""
    return measure(ROWS[row](folder), samples)


def main() -> None:
    """Measures one row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("row", choices=ROWS)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--samples", type=int, default=2048)
    options = parser.parse_args()
    logging.getLogger("flava_ds").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    if options.row in ALONE:
        with multiprocessing.get_context("fork").Pool(WORKERS) as pool:
            parts = pool.starmap(
                measure_row,
                [(options.row, options.shards, options.samples // WORKERS)] * WORKERS,
                chunksize=1,
            )
        found = {name: sum(part[name] for part in parts) for name in parts[0]} | {
            "seconds": max(part["seconds"] for part in parts)
        }
    else:
        found = measure_row(options.row, options.shards, options.samples)
    versions = {
        name: version_of(name)
        for name in ("torch", "torchvision", "pillow", "webdataset", "tokenizers", "open_clip_torch")
    }
    print(json.dumps(found | {"versions": versions}), flush=True)


if __name__ == "__main__":
    main()
