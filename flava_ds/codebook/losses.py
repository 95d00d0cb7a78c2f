"""The loss of the discrete VAE: Gumbel-softmax relaxation, logit-Laplace likelihood, KL to a uniform prior.

Source: Ramesh et al. 2021, "Zero-Shot Text-to-Image Generation", appendix A.2 (relaxation, weights) and A.3
(logit-Laplace).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class CodebookLoss(NamedTuple):
    """Scalars in nats: `reconstruction` per pixel value, `kl` and `usage` per code."""

    total: Tensor
    reconstruction: Tensor
    kl: Tensor
    usage: Tensor


def gumbel_softmax(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """Draws relaxed one-hot vectors, which approach samples of softmax(logits) as the temperature falls.

    Shapes:
        logits   [... v]  fp32
        returns  [... v]  fp32, sums to 1
    """
    minus_gumbel = torch.empty_like(logits).exponential_(generator=generator).log_()
    return ((logits - minus_gumbel) / temperature).softmax(-1)


def logit_laplace_nll(mapped_pixels: Tensor, output: Tensor) -> Tensor:
    """Returns the mean negative log-likelihood per value of pixels whose logit is Laplace-distributed.

    Shapes:
        mapped_pixels  [b c H W]    in (0, 1), e.g. map_pixels' [0.1, 0.9]
        output         [b 2*c H W]  means in logit space, then log scales
    """
    mean, log_scale = output.float().chunk(2, dim=1)
    mapped_pixels = mapped_pixels.float()
    density = (torch.logit(mapped_pixels) - mean).abs() * torch.exp(-log_scale) + log_scale
    return (density + torch.log(2 * mapped_pixels * (1 - mapped_pixels))).mean()


def codebook_loss(
    logits: Tensor, mapped_pixels: Tensor, output: Tensor, kl_weight: float, usage_weight: float
) -> CodebookLoss:
    """Returns the loss and its parts.

    The loss is reconstruction + kl_weight * KL(q(code | image) || uniform) + usage_weight * KL(batch mean of
    q || uniform).

    The sum is per pixel value, so each weight is divided by the number of values per code: 192 at 8x8x3,
    where DALL-E's 6.6 acts as 6.6 / 192. The usage term is not in the paper; with weight 0, the loss is the
    published one.

    Shapes:
        logits         [b gh gw v]  fp32
        mapped_pixels  [b c H W]
        output         [b 2*c H W]
    """
    values_per_code = mapped_pixels[0].numel() / (logits.shape[1] * logits.shape[2])
    log_probabilities = logits.log_softmax(-1)
    probabilities = log_probabilities.exp()
    log_vocab = math.log(logits.shape[-1])
    kl = (probabilities * log_probabilities).sum(-1).mean() + log_vocab
    marginal = probabilities.mean(dim=(0, 1, 2))
    usage = torch.xlogy(marginal, marginal).sum() + log_vocab
    reconstruction = logit_laplace_nll(mapped_pixels, output)
    total = reconstruction + (kl_weight * kl + usage_weight * usage) / values_per_code
    return CodebookLoss(total, reconstruction, kl, usage)


def code_usage(codes: Tensor, vocab_size: int) -> tuple[float, int]:
    """Returns the perplexity of the codes' frequencies and the number of codes used: [...] -> float, int.

    Perplexity is 1 at collapse and at most vocab_size.
    """
    counts = torch.bincount(codes.flatten(), minlength=vocab_size).double()
    shares = counts / counts.sum()
    return math.exp(-torch.xlogy(shares, shares).sum().item()), int((counts > 0).sum())
