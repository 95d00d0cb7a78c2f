"""Checks of kernels below their operators, for tests and for planted bugs. They run the kernels, so FLAVA_KERNELS is not asked."""

from __future__ import annotations

import op_checks
import torch


def gelu_backward_of_given_z(dtype: torch.dtype) -> None:
    """Asserts that dz is rounded once and that db is an fp32 sum of what is not rounded, in every dtype.

    Within the operator the rounding of z and of the products would hide that.
    """
    from flava_kernels import linear_gelu
    from flava_kernels.triton_ops import linear_gelu as kernels

    torch.manual_seed(0)
    grad, z = torch.randn(37, 70).to(dtype), torch.randn(37, 70).to(dtype)
    d_z, d_bias = kernels.backward(grad, z)
    exact, _ = linear_gelu.backward_reference(grad.double(), z.double())
    assert d_bias.dtype == torch.float32
    assert op_checks.relative_error(d_z, exact) < {torch.float32: 2e-7, torch.float16: 5e-4, torch.bfloat16: 3.5e-3}[dtype]
    assert op_checks.relative_error(d_bias, exact.sum(0)) < 1e-6


def cross_entropy_of_given_logits(dtype: torch.dtype) -> None:
    """Asserts that losses are exact given the logits: the product is rounded to the rows' dtype before the kernel sees it, then everything is fp32."""
    from flava_kernels.triton_ops import linear_cross_entropy as kernels

    torch.manual_seed(0)
    hidden, weight, bias = (torch.randn(*shape).to(dtype) for shape in ((9, 12), (4200, 12), (4200,)))
    labels = torch.randint(4200, (9,))
    losses, _, _ = kernels.forward(hidden, weight, bias, labels, False)
    exact = torch.nn.functional.cross_entropy((hidden @ weight.T).double() + bias.double(), labels, reduction="none")
    assert float((losses.double() - exact).abs().max()) < 5e-6
