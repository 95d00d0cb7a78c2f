"""transformers' FLAVA with random weights, built from its own classes, for the tests of this folder."""

from __future__ import annotations

import pytest
import torch

from flava_ds.config import Config
from flava_ds.families.flava.hf_names import flava_entries, tied_biases
from flava_ds.families.flava.task import FlavaTask, build_task
from flava_ds.layouts import to_ours

transformers = pytest.importorskip("transformers")


def their_config(config: Config) -> transformers.FlavaConfig:
    """Spells out transformers' configuration by hand, so that it does not rest on the exporter."""
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "layer_norm_eps")
    shapes = {
        part: {name: getattr(getattr(config.model, part), name) for name in names}
        for part in ("image", "text", "multimodal")
    }
    image, text = config.model.image, config.model.text
    image_more = dict(
        image_size=image.image_size, patch_size=image.patch_size, vocab_size=config.codebook.vocab_size
    )
    text_more = dict(
        vocab_size=text.vocab_size,
        max_position_embeddings=text.max_position_embeddings,
        pad_token_id=text.pad_token_id,
    )
    return transformers.FlavaConfig(
        image_config={**shapes["image"], **image_more},
        text_config={**shapes["text"], **text_more},
        multimodal_config=shapes["multimodal"],
        hidden_size=config.model.multimodal.hidden_size,
        projection_dim=config.model.projection_dim,
        init_codebook=False,
    )


def their_model(config: Config, *, std: float = 0.02) -> transformers.FlavaForPreTraining:
    """Builds FlavaForPreTraining with every tensor random: also positions, CLS, mask token, biases,
    LayerNorms and the padding row.
    """
    model = transformers.FlavaForPreTraining(their_config(config))
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=std, generator=draw)
            if "ayernorm" in name.lower() and name.endswith("weight"):
                parameter.add_(1.0)
        # A middle scale keeps the contrastive softmax away from both uniform and one-hot.
        model.flava.logit_scale.fill_(1.5)
    return model.train()


def their_state(model: torch.nn.Module, *, poolers: bool = False) -> dict[str, torch.Tensor]:
    """Returns the live state dict without the second names of tied biases and, unless wanted, without the
    encoders' poolers.
    """
    state = model.state_dict(keep_vars=True)
    aliases = tied_biases(state)
    return {
        name: tensor
        for name, tensor in state.items()
        if name not in aliases and (poolers or "_model.pooler." not in name)
    }


def our_model(config: Config, theirs: transformers.FlavaForPreTraining) -> FlavaTask:
    """Builds our model with their weights."""
    module = build_task(config).to(theirs.dtype)
    state = {
        name: tensor.detach() for name, tensor in their_state(theirs, poolers=config.model.poolers).items()
    }
    module.load_state_dict(to_ours(state, flava_entries(config), "transformers"))
    return module
