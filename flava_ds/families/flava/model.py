"""FLAVA: three encoders, two projections into the fused space, two into the contrastive space."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from flava_ds.batch import Batch, Packed
from flava_ds.families.flava.config import FlavaConfig
from flava_ds.families.flava.image_encoder import ImageEncoder
from flava_ds.families.flava.multimodal_encoder import MultimodalEncoder
from flava_ds.families.flava.text_encoder import TextEncoder
from flava_ds.families.flava.views import (
    FUSED_FROM,
    IMAGE_VIEWS,
    MASKED_VIEWS,
    TEXT_VIEWS,
    View,
    image_patch_rows,
    is_share,
    side_of,
)
from flava_ds.layers.heads import ContrastedModel
from flava_ds.layers.pairs import SequenceLayout
from flava_ds.layers.transformer import Encoded


class Flava(ContrastedModel):
    """Encodes the requested views of a batch, each once.

    Source: paper, section 3; docs/architecture.md lists the choices where the paper is silent.
    """

    def __init__(self, config: FlavaConfig):
        super().__init__()
        self.config = config
        self.image_encoder = ImageEncoder(
            config.image, pooler=config.poolers, relative_positions=config.relative_positions
        )
        self.text_encoder = TextEncoder(config.text, pooler=config.poolers)
        self.multimodal_encoder = MultimodalEncoder(config.multimodal, pooler=config.poolers)
        self.image_to_multimodal = nn.Linear(config.image.hidden_size, config.multimodal.hidden_size)
        self.text_to_multimodal = nn.Linear(config.text.hidden_size, config.multimodal.hidden_size)
        self.image_projection = nn.Linear(config.image.hidden_size, config.projection_dim)
        self.text_projection = nn.Linear(config.text.hidden_size, config.projection_dim)
        self.logit_scale = nn.Parameter(torch.tensor([config.logit_scale_init]))

    def layout(self, batch: Batch, view: str) -> SequenceLayout:
        """Returns the positions in the fused sequences of a pair batch, clean or masked."""
        side = side_of(batch, view)
        assert side.cu_seqlens is not None  # only pairs have fused views
        return SequenceLayout(
            self.config.image.num_patches, side.cu_seqlens, side.max_seqlen, padding_ends=side.padding_ends
        )

    def encode(
        self, batch: Batch, views: Collection[View], reads: Mapping[View, Tensor] | None = None
    ) -> dict[View, Encoded]:
        """Encodes the union of `views` and their inputs; clean and masked versions share one packed call.

        `reads` names the rows of a view that will be read, sorted [k]; the last block finishes only these. A
        view that the fused encoder reads is always complete. If only a share of the batch is masked, clean
        and masked views take two packed calls.
        """
        wanted = set(views)
        keep: dict[View, Tensor | None] = {**(reads or {})}
        for fused, below in FUSED_FROM.items():
            if fused in wanted:
                wanted |= set(below)
                keep |= dict.fromkeys(below)
        calls = [wanted - MASKED_VIEWS, wanted & MASKED_VIEWS] if is_share(batch) else [wanted]
        encoded: dict[View, Encoded] = {}
        for together in calls:
            encoded |= self._encode(batch, together, keep)
        return encoded

    def _encode(
        self, batch: Batch, wanted: set[View], keep: Mapping[View, Tensor | None]
    ) -> dict[View, Encoded]:
        """Encodes views that share their packed calls: a whole batch, or its clean or masked side."""
        encoded: dict[View, Encoded] = {}
        image_views = [view for view in IMAGE_VIEWS if view in wanted]
        if image_views:
            side = side_of(batch, image_views[0])
            mask = side.bool_masked_pos if View.IMAGE_MASKED in wanted else None
            kept = [keep.get(view) for view in image_views]
            outputs = self.image_encoder(side.pixel_values, mask, clean=View.IMAGE in wanted, keep=kept)
            encoded |= zip(image_views, outputs, strict=True)
        text_views = [view for view in TEXT_VIEWS if view in wanted]
        if text_views:
            side = side_of(batch, text_views[0])
            versions = [side.input_ids if view == View.TEXT else side.masked_ids for view in text_views]
            kept = [keep.get(view) for view in text_views]
            outputs = self.text_encoder(versions, side.bounds, side.max_seqlen, keep=kept)
            encoded |= zip(text_views, outputs, strict=True)
        for fused, (image, text) in FUSED_FROM.items():
            if fused in wanted:
                layout = self.layout(batch, fused)
                packed = encoded[image].packed, encoded[text].packed
                encoded[fused] = self.fuse(*packed, layout, keep=keep.get(fused))
        return encoded

    def fuse(
        self, image: Packed, text: Packed, layout: SequenceLayout, *, keep: Tensor | None = None
    ) -> Encoded:
        """Projects the encoders' states, taken before their final LayerNorm, and encodes them together."""
        image_hidden = self.image_to_multimodal(image.hidden)
        text_hidden = self.text_to_multimodal(text.hidden)
        return self.multimodal_encoder(image_hidden, text_hidden, layout, keep=keep)

    def first_rows(self, view: str, batch: Batch) -> Tensor:
        """Returns the row of each sequence's CLS in a view's packed output: [b], or [m] of a masked share."""
        if view in IMAGE_VIEWS:
            rows = torch.arange(side_of(batch, view).size, device=batch["pixel_values"].device)
            return rows * (1 + self.config.image.num_patches)
        text = view in TEXT_VIEWS
        cu_seqlens = side_of(batch, view).cu_seqlens if text else self.layout(batch, view).cu_seqlens
        assert cu_seqlens is not None  # only batches with text have text views
        return cu_seqlens[:-1].long()

    def patch_rows(self, view: View, patches: Tensor, batch: Batch) -> Tensor:
        """Returns the rows of flat patch indices into [b n] in a view's packed output: [k] -> [k]."""
        if view in IMAGE_VIEWS:
            return image_patch_rows(patches, self.config.image.num_patches)
        return self.layout(batch, view).patch_rows(patches)

    def token_rows(self, view: View, tokens: Tensor, batch: Batch) -> Tensor:
        """Returns the rows of packed tokens in a view's packed output: [k] -> [k]."""
        return tokens if view in TEXT_VIEWS else self.layout(batch, view).text_rows(tokens)

    def parameters_of(self, view: View, *, read_directly: bool) -> set[str]:
        """Returns the names of the parameters that get a gradient when `view` does.

        With `read_directly`, an objective reads the view through its final LayerNorm; otherwise the fused
        encoder reads the states before that norm.
        """
        if view in FUSED_FROM:
            own = self._trainable("multimodal_encoder.", "image_to_multimodal.", "text_to_multimodal.")
            return own.union(*(self.parameters_of(below, read_directly=False) for below in FUSED_FROM[view]))
        encoder = "image_encoder." if view in IMAGE_VIEWS else "text_encoder."
        unused: tuple[str, ...] = () if read_directly else (encoder + "final_norm.",)
        if view == View.IMAGE:
            unused += ("image_encoder.mask_token",)
        return {name for name in self._trainable(encoder) if not name.startswith(unused or "\0")}

    def _trainable(self, *prefixes: str) -> set[str]:
        return {
            name
            for name, parameter in self.named_parameters()
            if parameter.requires_grad and name.startswith(prefixes)
        }


def initialize(module: nn.Module, initializer_range: float) -> None:
    """Initialises weights, tokens and position tables from N(0, initializer_range); biases are zero.

    The padding row is zero too. Source: both published implementations, except that they zero tokens and
    image positions. There the first LayerNorm, with an eps of 1e-12, amplifies their first gradient a million
    times, and Adam's second moments then freeze them for hundreds of steps.
    """
    for name, parameter in module.named_parameters():
        if name.endswith(("cls_token", "mask_token", "position_embeddings")):
            nn.init.normal_(parameter, std=initializer_range)
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=initializer_range)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
        if isinstance(part, nn.Embedding) and part.padding_idx is not None:
            with torch.no_grad():
                part.weight[part.padding_idx].zero_()
