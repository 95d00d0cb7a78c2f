"""One hash for weights: of a codebook, of a model that was evaluated, of an encoder that is fine-tuned."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def hash_of_tensors(tensors: Mapping[str, Tensor], about: object = "") -> str:
    """Hashes names, dtypes, shapes and values, in any order of names; `about` is hashed by its repr.

    Returns 16 hexadecimal digits.
    """
    digest = hashlib.sha256(f"{about!r}".encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
