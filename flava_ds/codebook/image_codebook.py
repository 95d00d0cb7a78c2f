"""The image tokenizer of MIM and MMM-image: pixels to codes and back, and its files. Networks: dvae.py."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from pathlib import Path
from typing import Any, cast

import torch
from einops import rearrange
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from flava_ds.codebook.dvae import CodebookDecoder, CodebookEncoder, map_pixels, unmap_pixels
from flava_ds.config import CodebookConfig, from_dict
from flava_ds.config.plain_files import loads
from flava_ds.errors import CheckpointError, ConfigError, DataError
from flava_ds.storage.atomic import write_json
from flava_ds.storage.tensor_files import save_tensors
from flava_ds.tensor_hash import hash_of_tensors

METADATA_KEY = "codebook_config"


HUGGINGFACE_CODEBOOK_GROUPS = 4
"""The number of groups that transformers' FlavaImageCodebook supports."""


class ImageCodebook(nn.Module):
    """Encodes pixels to codes and, with a decoder, codes to pixels. Computes in the dtype of its parameters.

    Shapes:
        pixel_values  [b c H W]  uint8 in [0, 255] or floating in [0, 1]; H and W multiples of 2**(num_groups
                                 - 1)
        codes         [b n]      int64, row by row
    """

    def __init__(self, config: CodebookConfig, decoder: bool = True) -> None:
        super().__init__()
        if config.hidden_size % 4 or config.image_size % 2 ** (config.num_groups - 1):
            raise ConfigError(
                f"codebook: hidden_size {config.hidden_size} must be divisible by 4 and image_size "
                f"{config.image_size} by {2 ** (config.num_groups - 1)}"
            )
        self.config = config
        self.encoder = CodebookEncoder(config)
        self.decoder = CodebookDecoder(config) if decoder else None
        self.memory_format = torch.contiguous_format

    def for_inference(self, *, compiled: bool = False) -> ImageCodebook:
        """Lays out weights and images channels-last, and compiles the encoder if wanted. Returns itself.

        Codes can differ where two of them score almost the same: sums are taken in another order.
        """
        self.memory_format = torch.channels_last
        cast(Any, self.encoder).to(memory_format=torch.channels_last)  # torch 2.13 has no type for it
        if compiled:
            self.encoder.compile(dynamic=False)
        return self

    def fingerprint(self) -> str:
        """Hashes all that determines the codes of an image: the encoder's weights, in their dtype."""
        return hash_of_tensors(self.encoder.state_dict(), self.config)

    def prepare(self, pixel_values: Tensor) -> Tensor:
        """Converts pixels to the encoder's range and dtype: [b c H W] -> [b c H W] in [0.1, 0.9].

        Raises: DataError for a wrong shape.
        """
        channels, stride = self.config.num_channels, 2 ** (self.config.num_groups - 1)
        wanted = pixel_values.ndim == 4 and pixel_values.shape[1] == channels
        if not wanted or pixel_values.shape[2] % stride or pixel_values.shape[3] % stride:
            raise DataError(
                f"codebook pixels have shape {list(pixel_values.shape)}; expected [b {channels} H W] "
                f"with H and W multiples of {stride}"
            )
        values = pixel_values.to(self.encoder.input.weight.dtype, memory_format=self.memory_format)
        return map_pixels(values / 255 if pixel_values.dtype == torch.uint8 else values)

    def logits(self, pixel_values: Tensor) -> Tensor:
        """Scores every code in every cell: [b c H W] -> [b v gh gw]."""
        return self.encoder(self.prepare(pixel_values))

    @functools.cached_property
    def flops_per_image(self) -> float:
        """FLOPs of the convolutions of `encode`; a multiply-add counts as 2."""
        encoder, size = self.encoder, self.config.image_size
        groups = list(enumerate(encoder.groups))  # each after the first halves the grid
        parts = [(0, encoder.input), *groups, (len(groups) - 1, encoder.output)]
        return sum(
            2.0 * layer.weight.numel() * (size >> halvings) ** 2
            for halvings, part in parts
            for layer in part.modules()
            if isinstance(layer, nn.Conv2d)
        )

    @torch.no_grad()
    def encode(self, pixel_values: Tensor) -> Tensor:
        """Returns the best code of every cell, row by row: [b c H W] -> [b n] int64."""
        return rearrange(self.logits(pixel_values).argmax(dim=1), "b gh gw -> b (gh gw)")

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Decodes square grids of codes to images: [b n] int64 -> [b c H W] fp32 in [0, 1].

        Raises: CheckpointError without a decoder; DataError when the codes are not a square grid of known
        codes.
        """
        decoder = self.need_decoder()
        grid = round(codes.shape[-1] ** 0.5)
        if codes.ndim != 2 or grid**2 != codes.shape[1] or codes.is_floating_point():
            raise DataError(
                f"codes have shape {list(codes.shape)} and dtype {codes.dtype}; expected integers [b n] "
                "with n a square number"
            )
        if codes.numel() and not 0 <= codes.min() <= codes.max() < self.config.vocab_size:
            raise DataError(
                f"codes span {codes.min()} .. {codes.max()}, but the codebook has 0 .. "
                f"{self.config.vocab_size - 1}"
            )
        grids = rearrange(codes, "b (gh gw) -> b gh gw", gh=grid)
        output = decoder.from_embeddings(decoder.embed(grids))
        mean, _ = output.float().chunk(2, dim=1)
        return unmap_pixels(mean.sigmoid())

    def need_decoder(self) -> CodebookDecoder:
        """Returns the decoder. Raises: CheckpointError without one."""
        if self.decoder is None:
            raise CheckpointError(
                "this codebook was loaded without a decoder and cannot decode; load a file written by "
                "`flava-ds codebook`"
            )
        return self.decoder


def save_codebook(codebook: ImageCodebook, path: Path) -> None:
    """Writes encoder and decoder into one safetensors file, atomically, with the configuration as metadata.

    Raises: CheckpointError when the file cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in codebook.state_dict().items()}
    save_tensors(tensors, path, {METADATA_KEY: json.dumps(dataclasses.asdict(codebook.config))})


def save_huggingface_codebook(codebook: ImageCodebook, folder: Path) -> None:
    """Writes the encoder in the layout of `transformers.FlavaImageCodebook`: config.json, model.safetensors.

    Raises: CheckpointError when the layout cannot hold this codebook (it has four groups), or a write fails.
    """
    config = codebook.config
    if config.num_groups != HUGGINGFACE_CODEBOOK_GROUPS:
        raise CheckpointError(
            f"{folder}: the Hugging Face layout has four groups, but this codebook has {config.num_groups}; "
            "keep it in the package's own file"
        )
    description = {
        "architectures": ["FlavaImageCodebook"],
        "model_type": "flava_image_codebook",
        "num_groups": config.num_groups,
        "input_channels": config.num_channels,
        "num_blocks_per_group": config.num_blocks_per_group,
        "hidden_size": config.hidden_size,
        "vocab_size": config.vocab_size,
        "freeze": True,
    }
    tensors = {
        huggingface_name(name): tensor.detach().cpu().contiguous()
        for name, tensor in codebook.encoder.state_dict().items()
    }
    save_tensors(tensors, folder / "model.safetensors")
    write_json(folder / "config.json", description)


def load_codebook(path: str | Path, config: CodebookConfig) -> ImageCodebook:
    """Loads a codebook from the package's file, or only the encoder from Hugging Face's layout.

    The codebook is frozen and in eval mode. Hugging Face's layout is a folder, a .safetensors, or a .bin/.pt
    state dict (read without running code in it). The prefix `image_codebook.` of a whole FLAVA and
    torchmultimodal's names are accepted, too. `config.image_size` may differ from the training size: FLAVA
    applies a tokenizer trained at 256 pixels to 112.

    Raises: CheckpointError when the file is missing, unreadable, or has another shape.
    """
    file = _codebook_file(Path(path))
    tensors, metadata = _read_tensors(file)
    if METADATA_KEY in metadata:
        _check_config(file, metadata[METADATA_KEY], config)
    else:
        tensors = _from_foreign_names(file, tensors)
    codebook = ImageCodebook(config, decoder=any(name.startswith("decoder.") for name in tensors))
    expected = codebook.state_dict()
    problems = [
        f"{k} is {list(tensors[k].shape)}, expected {list(v.shape)}"
        for k, v in expected.items()
        if k in tensors and tensors[k].shape != v.shape
    ]
    problems += [f"lacks {name}" for name in sorted(expected.keys() - tensors.keys())]
    problems += [f"has an unknown tensor {name}" for name in sorted(tensors.keys() - expected.keys())]
    if problems:
        raise CheckpointError(
            f"{file}: does not fit the configured codebook ({len(problems)} tensors differ; the first: "
            f"{problems[0]}); set codebook.hidden_size, num_groups, num_blocks_per_group and vocab_size to "
            "those of the file"
        )
    codebook.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return codebook.requires_grad_(False).eval()


def huggingface_name(name: str) -> str:
    """Translates the name of an encoder parameter to Hugging Face's.

    For example, groups.0.1.conv_2.weight -> blocks.group_1.group.block_2.res_path.path.conv_2.weight.
    """
    name = re.sub(
        r"^groups\.(\d+)\.(\d+)\.",
        lambda m: f"blocks.group_{int(m[1]) + 1}.group.block_{int(m[2]) + 1}.",
        name,
    )
    name = re.sub(r"^input\.", "blocks.input.", re.sub(r"^output\.", "blocks.output.conv.", name))
    return re.sub(r"\.(conv_\d\.(?:weight|bias))$", r".res_path.path.\1", name) if "block_" in name else name


_FOREIGN_NAME = re.compile(
    r"(?:image_codebook\.)?(?:encoder\.)?blocks\."
    r"(?:(?P<edge>input|output)(?:\.conv)?|group_(?P<group>\d+)\.(?:group\.)?block_(?P<block>\d+)\.(?:res_path\.(?:path\.)?)?(?P<conv>conv_\d|id_path))"
    r"\.(?P<kind>weight|bias|w|b)"
)


def _from_foreign_names(file: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Renames Hugging Face's or torchmultimodal's parameters, strictly, dropping other parts of a FLAVA."""
    if any(name.startswith("image_codebook.") for name in tensors):
        tensors = {name: tensor for name, tensor in tensors.items() if name.startswith("image_codebook.")}
    renamed = {}
    for name, tensor in tensors.items():
        match = _FOREIGN_NAME.fullmatch(name)
        if match is None:
            model = ", but to a whole model" if re.search(r"(image|text)_(model|encoder)\.", name) else ""
            raise CheckpointError(
                f"{file}: tensor '{name}' does not belong to an image codebook{model}; train one with "
                "`flava-ds codebook train SHARDS --out FILE`, or give a FlavaImageCodebook of Hugging Face"
            )
        where = match["edge"] or f"groups.{int(match['group']) - 1}.{int(match['block']) - 1}.{match['conv']}"
        renamed[f"encoder.{where}.{'weight' if match['kind'].startswith('w') else 'bias'}"] = tensor
    return renamed


def _check_config(file: Path, text: str, config: CodebookConfig) -> None:
    """Compares a file's configuration with the wanted one, except for image_size."""
    try:
        saved = from_dict(CodebookConfig, loads(text))
    except (ConfigError, ValueError) as error:
        raise CheckpointError(
            f"{file}: its metadata is not a codebook configuration ({error}); train the codebook again"
        ) from error
    for field in dataclasses.fields(CodebookConfig):
        have, want = getattr(saved, field.name), getattr(config, field.name)
        if have != want and field.name != "image_size":
            raise CheckpointError(
                f"{file}: was made with codebook.{field.name} {have}, but the configuration says {want}; "
                "change one of them"
            )


def _codebook_file(path: Path) -> Path:
    """Finds the weights in a folder, or returns the file itself."""
    candidates = [path]
    if path.is_dir():
        candidates = [
            path / name for name in ("codebook.safetensors", "model.safetensors", "pytorch_model.bin")
        ]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    wanted = " or ".join(c.name for c in candidates)
    raise CheckpointError(
        f"{path}: no image codebook there (looked for {wanted}); put it there, train one with `flava-ds "
        "codebook`, or give codebook_weights another path"
    )


def _read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads all tensors and the metadata of a safetensors file or a torch state dict."""
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, "pt") as opened:
                return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file}: not a readable safetensors file ({error})") from error
    try:
        state: Any = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(
            f"{file}: cannot be read ({error.strerror or error}); check the file and its permissions"
        ) from error
    except Exception as error:  # a damaged pickle can raise any kind of error
        raise CheckpointError(
            f"{file}: neither a .safetensors file nor a state dict written by torch.save; it contains "
            "something else, or is damaged"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(
            f"{file}: holds {type(state).__name__} instead of a state dict of tensors; convert it to "
            "safetensors"
        )
    return state, {}
