"""The ViT that encodes clean and masked images as packed sequences [CLS_I | patches]."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from flava_ds.config.encoders import VisionEncoderConfig
from flava_ds.families.flava.views import image_patch_rows
from flava_ds.layers.fused import LayerNorm
from flava_ds.layers.patches import PatchEmbedding, resized_positions
from flava_ds.layers.relative_positions import RelativeBlock
from flava_ds.layers.transformer import Encoded, Transformer, encode_versions, frozen_pooler


class ImageEncoder(nn.Module):
    """Encodes images; a mask token replaces masked patches before positions are added, unless the encoder
    masks none. With `relative_positions`, each layer's attention has BEiT's biases as well.

    Source: paper, section 3.1 and Table A.1.
    """

    def __init__(
        self,
        config: VisionEncoderConfig,
        *,
        pooler: bool = False,
        masks: bool = True,
        relative_positions: bool = False,
    ):
        super().__init__()
        self.config = config
        self.cls_token = nn.Parameter(torch.zeros(config.hidden_size))
        self.mask_token = nn.Parameter(torch.zeros(config.hidden_size)) if masks else None
        self.position_embeddings = nn.Parameter(torch.zeros(1 + config.num_patches, config.hidden_size))
        self.patch_embedding = PatchEmbedding(config)
        self.transformer = Transformer(config, block=RelativeBlock if relative_positions else None)
        self.final_norm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.pooler = frozen_pooler(config.hidden_size, pooler)

    def forward(
        self,
        pixel_values: Tensor,
        bool_masked_pos: Tensor | None = None,
        *,
        clean: bool = True,
        keep: Sequence[Tensor | None] | None = None,
        any_size: bool = False,
        paths: Tensor | None = None,
    ) -> list[Encoded]:
        """Encodes clean images (if `clean`), then masked ones (given a mask), in one packed call.

        With `any_size`, images may have another size than the configuration's; positions are interpolated.

        Shapes:
            pixel_values     [b c H W]  uint8 in [0, 255], or floats already normalised
            bool_masked_pos  [b n]      bool
            keep             for each version, the rows that will be read; see encode_versions
            paths            [v*b L 2]  factors of what attention and MLP of each block add to a sequence of
                             the v versions (stochastic depth); None for 1
            returns          one Encoded of [b*(1+n) d] for each version
        """
        patches = self.patch_embedding(pixel_values, any_size=any_size)
        positions: Tensor = self.position_embeddings
        height, width = (edge // self.config.patch_size for edge in pixel_values.shape[-2:])
        if (height, width) != (self.config.grid_size, self.config.grid_size):
            positions = resized_positions(positions, (height, width))
        versions = [patches] if clean else []
        if bool_masked_pos is not None:
            assert self.mask_token is not None  # only families that mask patches give a mask
            versions.append(torch.where(bool_masked_pos[..., None], self.mask_token, patches))
        stacked = torch.cat(versions)
        hidden = torch.cat([self.cls_token.expand(stacked.shape[0], 1, -1), stacked], dim=1) + positions
        length = hidden.shape[1]
        cu_seqlens = torch.arange(0, patches.shape[0] + 1, device=hidden.device, dtype=torch.int32) * length
        keep = keep or [None] * len(versions)
        return encode_versions(
            self.transformer,
            self.final_norm,
            rearrange(hidden, "b s d -> (b s) d"),
            (cu_seqlens, length),
            keep,
            equal_lengths=True,
            paths=None if paths is None else repeat(paths, "b l two -> l two (b s)", s=length),
        )

    def first_tokens(self, pixel_values: Tensor, paths: Tensor | None = None) -> Tensor:
        """Returns the CLS of images of any size after the final LayerNorm, and finishes no other row of the
        last block: [k c H W] -> [k d]."""
        height, width = (edge // self.config.patch_size for edge in pixel_values.shape[-2:])
        rows = torch.arange(pixel_values.shape[0], device=pixel_values.device) * (1 + height * width)
        (encoded,) = self(pixel_values, keep=[rows], any_size=True, paths=paths)
        return encoded.rows(rows)

    def tokens(
        self,
        pixel_values: Tensor,
        patches: Tensor,
        bool_masked_pos: Tensor | None = None,
        paths: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Returns the CLS of images, masked where asked, and some of their patches, after the final
        LayerNorm.

        Shapes:
            pixel_values     [k c H W]
            patches          [m]    int64, flat indices into [k n]
            bool_masked_pos  [k n]  bool
            paths            [k L 2]
            returns          [k d], [m d]
        """
        size, length = pixel_values.shape[0], 1 + self.config.num_patches
        first = torch.arange(size, device=patches.device) * length
        rows = image_patch_rows(patches, self.config.num_patches)
        keep = torch.cat([first, rows]).sort().values
        (encoded,) = self(
            pixel_values, bool_masked_pos, clean=bool_masked_pos is None, keep=[keep], paths=paths
        )
        return encoded.rows(first), encoded.rows(rows)
