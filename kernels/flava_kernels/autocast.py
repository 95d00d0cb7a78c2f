"""Inputs of operators under torch.autocast, in the dtypes that torch gives its own operators there.

An operator casts its inputs before anything else, with a graph, and then runs in those dtypes: inside it
autocast is off (`eager.without_autocast`), so that forward and backward pass cannot disagree.
"""

from __future__ import annotations

import torch
from torch import Tensor


def enabled(device_type: str) -> bool:
    """Returns True inside a torch.autocast of this device type."""
    return device_type != "meta" and torch.is_autocast_enabled(device_type)


def like_linear(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Casts to autocast's dtype, as it does for linear layers and scaled_dot_product_attention."""
    device_type = tensors[0].device.type
    if not enabled(device_type):
        return tensors
    dtype = torch.get_autocast_dtype(device_type)
    return tuple(tensor if tensor.dtype == torch.float64 else tensor.to(dtype) for tensor in tensors)


def like_layer_norm(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Casts to fp32 on a GPU, as autocast does for layer_norm; on a CPU it leaves them as they are."""
    device_type = tensors[0].device.type
    if device_type == "cpu" or not enabled(device_type):
        return tensors
    return tuple(tensor if tensor.dtype == torch.float64 else tensor.float() for tensor in tensors)


def like_cat(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Casts to the widest dtype among them, as autocast does for cat and an addition does anyway."""
    if not enabled(tensors[0].device.type):
        return tensors
    widest = tensors[0].dtype
    for tensor in tensors[1:]:
        widest = torch.promote_types(widest, tensor.dtype)
    return tuple(tensor.to(widest) for tensor in tensors)
