"""Layers with fused operators: LayerNorm, residual add + LayerNorm, linear + activation.

Each keeps the parameters, and their names, of the torch layer that it extends.

A linear layer may leave the gradient of its bias to the operator behind it, which has the gradient of the
layer's result in registers (flava_kernels/folded_bias.py): then `folds` is True, `unsummed` adds the bias
detached, and whoever takes its result takes the bias too. That is right only where nothing stands between
the two.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from flava_kernels.folded_bias import add
from flava_kernels.layer_norm import add_layer_norm, layer_norm
from flava_kernels.linear_gelu import gelu_linear, linear_gelu
from torch import Tensor, nn


class LayerNorm(nn.LayerNorm):
    """Normalises rows: [T d] -> [T d]."""

    def forward(self, hidden: Tensor) -> Tensor:
        return layer_norm(hidden, self.weight, self.bias, self.eps)


class Branch(NamedTuple):
    """What a sublayer adds to its residual stream.

    Shapes:
        rows  [T d]
        bias  [d]    in the rows, and its gradient is left to whoever adds them; None for none
    """

    rows: Tensor
    bias: Tensor | None = None

    def onto(self, stream: Tensor) -> Tensor:
        """Adds it to the stream: [T d] -> [T d]."""
        return add(self.rows, stream, self.bias)


class ResidualLayerNorm(nn.LayerNorm):
    """Adds a branch to its residual stream and normalises: [T d], [T d] -> normalised [T d], sum [T d].

    The branch is None where the stream is still the input.
    """

    def forward(  # type: ignore[override]  # it has LayerNorm's parameters and another task
        self, branch: Branch | Tensor | None, stream: Tensor
    ) -> tuple[Tensor, Tensor]:
        if branch is None:
            return layer_norm(stream, self.weight, self.bias, self.eps), stream
        rows, bias = branch if isinstance(branch, Branch) else (branch, None)
        return add_layer_norm(rows, stream, self.weight, self.bias, self.eps, bias)


class FoldingLinear(nn.Linear):
    """Linear layer that may leave the gradient of its bias to the operator behind it: [T d] -> [T f]."""

    folds = False

    def unsummed(self, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns the result, and the bias whose gradient is left; None where the layer sums it itself."""
        return (self(hidden, detached=True), self.bias) if self.folds else (self(hidden), None)

    def forward(self, hidden: Tensor, *, detached: bool = False) -> Tensor:
        return F.linear(hidden, self.weight, self.bias.detach() if detached else self.bias)


class LinearGELU(nn.Linear):
    """Linear layer followed by GELU in its erf form: [T d] -> [T f]."""

    activates = True
    """False where the layer after it applies GELU (GELULinear)."""

    def forward(self, hidden: Tensor) -> Tensor:
        return linear_gelu(hidden, self.weight, self.bias) if self.activates else super().forward(hidden)


class GELULinear(FoldingLinear):
    """Linear layer that may apply GELU to its input first, and then keeps no result of it: [T f] -> [T d]."""

    activates = False

    def forward(self, hidden: Tensor, *, detached: bool = False) -> Tensor:
        if not self.activates:
            return super().forward(hidden, detached=detached)
        return gelu_linear(hidden, self.weight, self.bias.detach() if detached else self.bias)


class LinearQuickGELU(nn.Linear):
    """Linear layer followed by x * sigmoid(1.702 x), CLIP's approximation of GELU: [T d] -> [T f]."""

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = super().forward(hidden)
        return hidden * (1.702 * hidden).sigmoid()


ACTIVATIONS: dict[str, type[nn.Linear]] = {"gelu": LinearGELU, "quick_gelu": LinearQuickGELU}
"""The first layer of a block's MLP, by activation."""
