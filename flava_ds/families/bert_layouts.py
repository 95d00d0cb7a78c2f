"""What the layouts of transformers have in common for families with BERT's blocks, words and heads."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from flava_ds.config import Config
from flava_ds.config.objectives import ObjectiveConfig, in_use
from flava_ds.data.tokenizer import SPECIAL_TOKENS, WordPieceTokenizer
from flava_ds.errors import CheckpointError
from flava_ds.layouts import Entry, Foreign, Layouts, renamed, to_ours, to_theirs, tuned_head
from flava_ds.objectives.masked_text import MaskedTextConfig
from flava_ds.weightless import shapes_of

log = logging.getLogger(__name__)

BLOCK = (
    (r"\.attention\.output\.", ".attention.output.dense."),
    (r"\.attention_norm\.", ".attention.output.LayerNorm."),
    (r"\.mlp_norm\.", ".output.LayerNorm."),
    (r"\.mlp_up\.", ".intermediate.dense."),
    (r"\.mlp_down\.", ".output.dense."),
)
"""Names within a post-norm block."""
EMBEDDINGS = (
    (r"embeddings\.words\.", "embeddings.word_embeddings."),
    (r"embeddings\.positions\.", "embeddings.position_embeddings."),
    (r"embeddings\.token_types\.", "embeddings.token_type_embeddings."),
    (r"embeddings\.norm\.", "embeddings.LayerNorm."),
)
"""Names within BERT's embeddings."""
BICUBIC = 3
"""Pillow's number of the filter, in the files of image processors."""


def head_names(masked: str, pair: str, part: str) -> tuple[tuple[str, str], ...]:
    """Returns the names of the head of masked words, `masked`, and of `part` of the two-way one, `pair`."""
    return (
        (rf"^objectives\.{masked}\.head\.dense\.", "cls.predictions.transform.dense."),
        (rf"^objectives\.{masked}\.head\.norm\.", "cls.predictions.transform.LayerNorm."),
        (rf"^objectives\.{masked}\.head\.bias$", "cls.predictions.bias"),
        (rf"^objectives\.{pair}\.{part}\.", "cls.seq_relationship."),
    )


def named_by_type(
    config: Config, weights: Mapping[str, Tensor], *, also: Mapping[str, str] | None = None
) -> tuple[Config, dict[str, Tensor]]:
    """Returns a run's configuration and weights with the objectives under the names of their types, by which
    transformers' heads are found; `also` names the type that another one counts as.

    Raises: CheckpointError for two in use of one type, for which transformers has one head.
    """
    named: dict[str, str] = {}
    for name, own in config.objectives.items():
        kind = (also or {}).get(str(own.type), str(own.type))
        other = named.setdefault(kind, name)
        if other != name and own.weight and config.objectives[other].weight:
            raise CheckpointError(
                f"objectives.{other} and objectives.{name} are both of type {kind}, for which transformers "
                "has one place; this run cannot be exported for it, use --to safetensors"
            )
        named[kind] = name if own.weight else other
    kinds = {f"objectives.{name}.": f"objectives.{kind}." for kind, name in named.items()}
    found = {}
    for name, tensor in weights.items():
        head = next((own for own in kinds if name.startswith(own)), "")
        found[kinds.get(head, "") + name.removeprefix(head)] = tensor
    objectives = {kind: config.objectives[name] for kind, name in named.items()}
    return dataclasses.replace(config, objectives=objectives), found


def tell_left_out(layout: str, weights: Collection[str], kept: Collection[str]) -> None:
    """Warns of trained heads that an export leaves out; `kept` names objectives whose heads it has."""
    heads = dict.fromkeys(name.split(".")[1] for name in weights if name.startswith("objectives."))
    if left := [name for name in heads if name not in kept]:
        log.warning("written as %s, without the heads of %s", layout, " and ".join(left))


def split_qkv(ours: str, theirs: str, shape: tuple[int, ...], within: str = "self") -> Entry:
    """Returns the entry of a tensor: transformers' blocks keep q, k and v apart, in BERT within `self`."""
    if ".attention.qkv." not in theirs:
        return Entry(ours, (theirs,), shape, shape)
    parts = ("query", "key", "value")
    names = tuple(theirs.replace(".attention.qkv.", f".attention.{within}.{part}.") for part in parts)
    return Entry(ours, names, shape, (shape[0] // 3, *shape[1:]))


def require(raw: Mapping[str, Any], supported: Mapping[str, Any], where: str) -> None:
    """Refuses settings with which the same weights would compute something else here.

    Raises: CheckpointError.
    """
    for name, value in supported.items():
        if raw.get(name, value) != value:
            raise CheckpointError(f"{where}: {name} is {raw[name]!r}; only {value!r} is supported")


def require_squares(raw: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    """Refuses sizes of images or patches that are pairs. Raises: CheckpointError."""
    for name in names:
        if not isinstance(raw.get(name, 0), int):
            raise CheckpointError(
                f"{where}: {name} is {raw[name]!r}; only squares, one number, are supported"
            )


def text_settings(text: Any) -> dict[str, Any]:
    """Returns the JSON of an encoder's fields, with transformers' names of what is dropped."""
    own = dataclasses.asdict(text)
    return own | {"hidden_dropout_prob": own.pop("hidden_dropout"), "attention_probs_dropout_prob": 0.0}


def pixel_settings(processor: str, image: Any, **own: Any) -> dict[str, Any]:
    """Returns the JSON of an image processor, with the statistics of `image` and settings of its own."""
    return {
        "image_processor_type": processor,
        "do_convert_rgb": True,  # grey pictures, palettes and transparency, as in training
        "do_resize": True,
        "resample": BICUBIC,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(image.image_mean),
        "image_std": list(image.image_std),
        **own,
    }


def tokenizer_files(config: Any, max_tokens: int) -> dict[str, Any]:
    """Returns the files of transformers' BertTokenizer for the run's WordPiece vocabulary."""
    tokenizer = WordPieceTokenizer(config.data.vocabulary)
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    words = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": tokenizer.lowercase,
        "model_max_length": max_tokens,
        **dict(zip(names, SPECIAL_TOKENS, strict=True)),
    }
    entries = "".join(f"{tokenizer.token(number)}\n" for number in range(tokenizer.vocab_size))
    return {"tokenizer_config.json": words, "vocab.txt": entries}


def cleaned(tensors: Mapping[str, Tensor], where: str, table: str) -> dict[str, Tensor]:
    """Drops constants and repeated tensors, and modernises the oldest names (LayerNorm.gamma and beta).

    `table` names the word embeddings.

    Raises: CheckpointError if a decoder differs from the word embeddings, to which it is tied here.
    """
    renames = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))
    found = {
        renamed(name, renames): tensor
        for name, tensor in tensors.items()
        if not name.endswith("position_ids")
    }
    tied = {"cls.predictions.decoder.weight": table, "cls.predictions.decoder.bias": "cls.predictions.bias"}
    for twin, name in tied.items():
        repeated = found.pop(twin, None)
        if repeated is not None and name in found and not torch.equal(repeated, found[name]):
            raise CheckpointError(f"{where}: '{twin}' differs from '{name}', to which this model ties it")
    return found


class BertLayouts(Layouts):
    """Implements flava_ds/layouts.py for a family with a class of transformers that has our heads, and one
    without.
    """

    model_type: ClassVar[str]
    classes: ClassVar[tuple[str, str]]
    """The classes with heads and without."""
    prefix: ClassVar[str]
    """Of the model's tensors in the class with heads."""
    heads: ClassVar[Mapping[str, ObjectiveConfig]]
    """The objectives whose heads the first class has; that of masked words comes first."""
    unused: ClassVar[tuple[str, ...]] = ()
    """Beginnings of the names of tensors without a place here."""
    tuned: ClassVar[tuple[str | nn.Module, ...]] = ()
    """The head of the class for one task, as of `tuned_head`; empty for none."""
    tuned_eps: ClassVar[float] = 1e-5

    def model_of(self, raw: Mapping[str, Any], where: str) -> Any:
        """Builds our configuration from theirs. Raises: CheckpointError.

        Dropout is ignored: it has no effect on what a trained model computes, and runs set their own.
        """
        raise NotImplementedError

    def settings_of(self, model: Any) -> dict[str, Any]:
        """Translates our configuration into theirs. Raises: CheckpointError."""
        raise NotImplementedError

    def their_name(self, name: str) -> str:
        """Returns the name of one of our tensors in the class with heads."""
        raise NotImplementedError

    def entry(self, ours: str, theirs: str, shape: tuple[int, ...]) -> Entry:
        """Returns the entry of a tensor."""
        return split_qkv(ours, theirs, shape)

    def entries(self, model: Any, *, heads: bool) -> tuple[Entry, ...]:
        """Builds the table between our names and transformers', with or without the heads."""
        config = Config(name="shapes", model=model, objectives=dict(self.heads))
        shapes = shapes_of(lambda: model.build(config))
        return tuple(
            self.entry(name, self.their_name(name).removeprefix("" if heads else self.prefix), shape)
            for name, shape in shapes.items()
            if heads or name.startswith("model.")
        )

    def read(self, settings: Mapping[str, Any] | None, tensors: Mapping[str, Tensor], where: str) -> Foreign:
        """Converts a model of the class with heads, or of the other, which brings none: a run that starts
        from it draws them anew. The class for one task brings the head of that.
        """
        raw, head = settings or {}, None
        model = self.model_of(raw, where)
        if raw.get("initializer_range") is not None:
            model = dataclasses.replace(model, initializer_range=raw["initializer_range"])
        own = cleaned(tensors, where, f"{self.prefix}embeddings.word_embeddings.weight")
        if self.tuned and not any(name.startswith("cls.") for name in own):
            head = tuned_head(own, self.tuned, raw, where, eps=self.tuned_eps)
        if head is not None:
            own = {name.removeprefix(self.prefix): tensor for name, tensor in own.items()}
        dropped = tuple(sorted(name for name in own if name.startswith(self.unused)))
        own = {name: tensor for name, tensor in own.items() if name not in dropped}
        heads = any(name.startswith("cls.") for name in own)
        weights = to_ours(own, self.entries(model, heads=heads), where)
        return Foreign(model, dict(self.heads), weights, dropped=dropped, head=head)

    def write(
        self, config: Config, weights: Mapping[str, Tensor]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Returns their configuration's JSON and the tensors of the class with heads, or of the other if the
        run does not train all heads as published, with a tied decoder; a warning names what is left out.
        """
        config, weights = named_by_type(config, weights)
        model: Any = config.model
        used = in_use(config.objectives)
        masked = used.get(next(iter(self.heads)))
        heads = used.keys() >= self.heads.keys() and cast(MaskedTextConfig, masked).tied_decoder
        tell_left_out(self.classes[0 if heads else 1], weights, self.heads if heads else ())
        settings = {
            "model_type": self.model_type,
            "architectures": [self.classes[0 if heads else 1]],
            "dtype": "float32",
            **self.settings_of(model),
            "initializer_range": model.initializer_range,
            "pad_token_id": model.load_tokenizer(config).pad_id,
        }
        kept = {name: own for name, own in weights.items() if heads or name.startswith("model.")}
        return settings, to_theirs(kept, self.entries(model, heads=heads), "the run's checkpoint")

    def companions(self, config: Config) -> dict[str, Any]:
        """Returns the files of the run's tokenizer."""
        return tokenizer_files(config, config.model.max_tokens)
