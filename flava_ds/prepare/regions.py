"""Precomputes regions: copies shards and adds what a detector finds in each image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from flava_ds.data.regions import REGIONS_SUFFIX
from flava_ds.errors import DataError
from flava_ds.evaluation.preprocessing import WHOLE_TRANSFORM
from flava_ds.prepare.added_members import AddedMember, AddedReport, add_members
from flava_ds.regions.detector import Detector, Regions

_BELOW_ONE = 1 - 2**-10
"""Rounding to fp16 may add half of this to a probability; rows of classes must not exceed 1 in sum."""


def write_regions(
    shards: str,
    detector: Detector,
    out: Path,
    *,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    on_shard: Callable[[Path, int], None] = lambda shard, samples: None,
) -> AddedReport:
    """Copies every shard to folder `out`, adding a member KEY.regions.safetensors per image (`encoded`).

    The detector sees the whole picture, squeezed to a square. An interrupted run continues as in
    `add_members`.

    Raises: DataError for unreadable or clashing shards, and for shards without images.
    """
    maker = {"detector": detector.fingerprint()}
    detector = detector.to(device)
    member = AddedMember(
        what="regions", suffix=REGIONS_SUFFIX, maker=maker, compute=lambda images: _found(detector, images)
    )
    report = add_members(shards, member, out=out, batch_size=batch_size, on_shard=on_shard)
    if not report.samples:
        raise DataError(
            f"'{shards}': has no picture that can be read, so no regions; give shards with images"
        )
    return report


def _found(detector: Detector, images: list[Tensor]) -> list[bytes]:
    size = detector.config.image_size
    return encoded(detector, detector(torch.stack([WHOLE_TRANSFORM(image, size) for image in images])))


def encoded(detector: Detector, regions: Regions) -> list[bytes]:
    """Encodes the regions of each picture as safetensors, with the tags as metadata `tags`.

    Shapes, of each:
        features  [o y]  fp16
        boxes     [o 4]  fp32
        classes   [o z]  fp16
    """
    found, starts = [], regions.cu_seqlens.tolist()
    for start, stop, tags in zip(starts, starts[1:], detector.tags(regions), strict=False):
        tensors = {
            "features": regions.features[start:stop].half(),
            "boxes": regions.boxes[start:stop].float(),
            "classes": (regions.classes[start:stop] * _BELOW_ONE).half(),
        }
        plain = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        found.append(save(plain, metadata={"tags": tags}))
    return found
