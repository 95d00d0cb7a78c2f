"""What a caller of the library gives: pictures in any form, texts, and lists of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from flava_ds.data.decode import check_decoded, decode_image, over_white, to_8_bits
from flava_ds.errors import DataError, UserError
from flava_ds.storage.faults import SampleFault

Picture = Image.Image | Path | str | Tensor
"""A PIL image, the path of a file, or a decoded [3 H W] uint8 tensor."""
Item = TypeVar("Item")


def check_texts(texts: Sequence[str]) -> None:
    """Raises UserError for what is no text, or has half of a surrogate pair."""
    if wrong := [text for text in texts if not isinstance(text, str)]:
        raise UserError(f"a text is {_shown(wrong[0])}; give strings")
    if wrong := [text for text in texts if not _is_unicode(text)]:
        raise UserError(f"a text is {_shown(wrong[0])}, with half of a surrogate pair; leave that out")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: object) -> str:
    """Returns the beginning of a wrong value, in one line."""
    return " ".join(repr(value)[:60].split())


def batches(items: Sequence[Item], size: int, what: str) -> Iterator[Sequence[Item]]:
    """Returns the items in batches.

    Raises: UserError when there are none, or for a single item or an iterator instead of a list.
    """
    listed = hasattr(items, "__len__") and not isinstance(items, str | Path | Image.Image | Mapping | Set)
    if not listed or not len(items):
        raise UserError(f"{what}: give a list of at least one, not {_shown(items)}")
    if not isinstance(size, int) or size < 1:
        raise UserError(f"batch_size {size}: use a whole number of at least 1")
    return (items[start : start + size] for start in range(0, len(items), size))


def _of_pillow(image: Image.Image) -> Tensor:
    """Returns a PIL image as the decoder returns a file with the same contents: [3 H W] uint8."""
    turned = ImageOps.exif_transpose(image)
    if turned.mode == "F":
        raise DataError("a PIL image has mode F, whose white is not defined; convert it to L or RGB")
    if turned.mode.startswith("I"):
        # Pillow cuts off at 255 where 65,535 is white
        wide = torch.from_numpy(np.array(turned).astype(np.int32)).clamp(0, 65535)
        return to_8_bits(wide).to(torch.uint8).expand(3, -1, -1).contiguous()
    alpha = turned.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in turned.info
    array = np.array(turned.convert("RGBA" if alpha else "RGB"))
    pixels = torch.from_numpy(array).permute(2, 0, 1).contiguous()
    return over_white(pixels) if alpha else pixels


def read_picture(image: Picture) -> Tensor:
    """Returns an image as RGB, with its EXIF orientation applied, transparency over white: [3 H W] uint8.

    Raises: DataError that names what cannot be read.
    """
    shape = image.shape[1:] if isinstance(image, Tensor) else getattr(image, "size", (1, 1))
    if isinstance(image, Tensor | Image.Image) and 0 in shape:
        raise DataError(f"an image has {' x '.join(str(edge) for edge in shape)} pixels, which is none")
    if isinstance(image, Tensor):
        check_decoded(image)
        return image.cpu()
    if isinstance(image, Image.Image):
        try:
            return _of_pillow(image)
        except OSError as error:  # PIL reads a file when its pixels are asked for
            where = getattr(image, "filename", "") or "a PIL image"
            raise DataError(f"{where}: cannot be read ({error}); get the file again") from error
    if not isinstance(image, str | Path):
        raise DataError(f"an image is {_shown(image)}; give a PIL image, a path or a uint8 tensor")
    try:
        return decode_image(Path(image).read_bytes())
    except OSError as error:
        raise DataError(f"{image}: cannot be read ({error.strerror}); give the path of an image") from error
    except SampleFault as fault:
        raise DataError(f"{image}: cannot be used: {fault}; give a JPEG, PNG or WebP") from fault
