"""Layers with fused operators: LayerNorm, residual add + LayerNorm, linear + activation.

Each keeps the parameters, and their names, of the torch layer that it extends.
"""

from __future__ import annotations

from flava_kernels.layer_norm import add_layer_norm, layer_norm
from flava_kernels.linear_gelu import gelu_linear, linear_gelu
from torch import Tensor, nn


class LayerNorm(nn.LayerNorm):
    """Normalises rows: [T d] -> [T d]."""

    def forward(self, hidden: Tensor) -> Tensor:
        return layer_norm(hidden, self.weight, self.bias, self.eps)


class ResidualLayerNorm(nn.LayerNorm):
    """Adds a branch to its residual stream and normalises: [T d], [T d] -> normalised [T d], sum [T d].

    The branch is None where the stream is still the input.
    """

    def forward(self, branch: Tensor | None, stream: Tensor) -> tuple[Tensor, Tensor]:
        if branch is None:
            return layer_norm(stream, self.weight, self.bias, self.eps), stream
        return add_layer_norm(branch, stream, self.weight, self.bias, self.eps)


class LinearGELU(nn.Linear):
    """Linear layer followed by GELU in its erf form: [T d] -> [T f]."""

    activates = True
    """False where the layer after it applies GELU (GELULinear)."""

    def forward(self, hidden: Tensor) -> Tensor:
        return linear_gelu(hidden, self.weight, self.bias) if self.activates else super().forward(hidden)


class GELULinear(nn.Linear):
    """Linear layer that may apply GELU to its input first, and then keeps no result of it: [T f] -> [T d]."""

    activates = False

    def forward(self, hidden: Tensor) -> Tensor:
        return gelu_linear(hidden, self.weight, self.bias) if self.activates else super().forward(hidden)


class LinearQuickGELU(nn.Linear):
    """Linear layer followed by x * sigmoid(1.702 x), CLIP's approximation of GELU: [T d] -> [T f]."""

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = super().forward(hidden)
        return hidden * (1.702 * hidden).sigmoid()


ACTIVATIONS: dict[str, type[nn.Linear]] = {"gelu": LinearGELU, "quick_gelu": LinearQuickGELU}
"""The first layer of a block's MLP, by activation."""
