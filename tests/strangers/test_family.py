"""A stranger's model family: a convolutional image tower and a bag of words, trained with the package's
contrastive loss.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from stranger_runs import STEPS, prove, split, stranger_config
from torch import Tensor, nn

from flava_ds.batch import Batch
from flava_ds.config.family import FamilyConfig
from flava_ds.config.objectives import in_use
from flava_ds.data.plan import BatchPlan
from flava_ds.data.tokenizer import WordPieceTokenizer
from flava_ds.demo.evaluation.inputs import build_inputs
from flava_ds.errors import ConfigError
from flava_ds.evaluation.frozen_model import Described
from flava_ds.evaluation.opening import freeze, open_model
from flava_ds.evaluation.protocols import ImageFeatures
from flava_ds.layers.transformer import at_least_fp32
from flava_ds.objectives.global_contrastive import GlobalContrastiveConfig
from flava_ds.training.freezing import built
from flava_ds.training.task import Pass, Task


@dataclass(frozen=True, kw_only=True)
class TowersConfig(FamilyConfig, type="conv_and_words"):
    """Two towers."""

    image_size: int = 12
    width: int = 16
    vocab_size: int = 200
    projection_dim: int = 8

    kinds: ClassVar[Mapping[str, str]] = {"pair": "pair"}
    max_tokens: ClassVar[int] = 64

    def build(self, config: Any) -> Task:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            objectives = {name: own.build(config) for name, own in in_use(config.objectives).items()}
            return TowersTask(Towers(self), objectives)

    def plan(self, config: Any, source: Any) -> BatchPlan:
        pictures, words = {"pixel_values": self.image_size}, self.load_tokenizer(config)
        return BatchPlan(kind=source.kind, views=pictures, tokenizer=words, max_tokens=source.max_tokens)

    def load_tokenizer(self, config: Any) -> WordPieceTokenizer:
        return WordPieceTokenizer(config.data.vocabulary)

    def offers(self, task: Task, config: Any) -> tuple[tuple[object, ...], dict[str, str]]:
        return (Offered(task.model),), {}


@dataclass(frozen=True)
class Vectors:
    """A view of one row per sample: [b d]."""

    hidden: Tensor

    def rows(self, rows: Tensor) -> Tensor:
        return self.hidden.index_select(0, rows)


class Words(nn.Module):
    """The mean of a text's word vectors, and an MLP: [T] packed -> [b d]."""

    def __init__(self, config: TowersConfig) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(config.vocab_size, config.width, mode="mean")
        self.mlp = nn.Sequential(
            nn.Linear(config.width, config.width), nn.GELU(), nn.Linear(config.width, config.width)
        )

    def forward(self, input_ids: Tensor, cu_seqlens: Tensor) -> Tensor:
        return self.mlp(self.table(input_ids, cu_seqlens[:-1].long()))


class Towers(nn.Module):
    """The views "image" and "text", and what the contrastive objective asks of a model."""

    def __init__(self, config: TowersConfig) -> None:
        super().__init__()
        self.config, width = config, config.width
        self.image_tower = nn.Sequential(
            nn.Conv2d(3, width, 4, stride=4),
            nn.GELU(),
            nn.Conv2d(width, width, config.image_size // 4),
            nn.Flatten(),
        )
        self.text_tower = Words(config)
        self.image_projection = nn.Linear(width, config.projection_dim)
        self.text_projection = nn.Linear(width, config.projection_dim)
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def encode(
        self, batch: Batch, views: Collection[str], reads: Mapping[str, Tensor] | None = None
    ) -> dict[str, Vectors]:
        towers = {
            "image": lambda: self.image_tower(self.scaled(batch["pixel_values"])),
            "text": lambda: self.text_tower(batch["input_ids"], batch["cu_seqlens"]),
        }
        return {view: Vectors(towers[view]()) for view in views}

    def scaled(self, pixels: Tensor) -> Tensor:
        return pixels.to(self.image_projection.weight.dtype) / 127.5 - 1

    def embedding_rows(self, batch: Batch) -> dict[str, Tensor]:
        rows = torch.arange(batch.size, device=batch["pixel_values"].device)
        return {"image": rows, "text": rows}

    def image_embeddings(self, rows: Tensor) -> Tensor:
        return F.normalize(at_least_fp32(self.image_projection(rows)), dim=-1)

    def text_embeddings(self, rows: Tensor) -> Tensor:
        return F.normalize(at_least_fp32(self.text_projection(rows)), dim=-1)

    def parameters_of(self, view: str, *, read_directly: bool) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.startswith(f"{view}_tower.")}

    def contrastive_parameters(self) -> set[str]:
        return {
            name for name, _ in self.named_parameters() if "_projection." in name or name == "logit_scale"
        }


@dataclass(frozen=True)
class Offered:
    """What evaluations may ask of it: one state per picture."""

    model: Towers

    @torch.no_grad()
    def image_features(self, pixels: Tensor) -> Tensor:
        return self.model.image_tower(self.model.scaled(pixels))


class TowersTask(Task):
    """Says what work a batch is."""

    def passes(self, batch: Batch) -> Iterator[Pass]:
        config, width = self.model.config, self.model.config.width
        grid = config.image_size // 4
        yield Pass("image_tower", 2 * batch.size * width * grid**2 * (3 * 16 + width))
        yield Pass("text_tower and projections", 2 * batch.size * 2 * width * (width + config.projection_dim))


@pytest.mark.distributed
@pytest.mark.slow
def test_a_family_of_two_other_towers(run_ranks, tmp_path):
    objectives = {"contrastive": GlobalContrastiveConfig()}
    config = stranger_config(tmp_path, name="towers", model=TowersConfig(), objectives=objectives)
    curve = prove(run_ranks, config)
    assert set(curve[0]) == {
        "step",
        "lr",
        "grad_norm",
        "loss/contrastive",
        "accuracy/contrastive",
        "metric/logit_scale/contrastive",
    }
    losses = [line["loss/contrastive"] for line in curve]
    assert len(losses) == STEPS and len(set(losses)) == STEPS and 0.5 < min(losses) < max(losses) < 5
    frozen = open_model(split(config, "zero3_whole", "zero1", 1).run_path, device="cpu").frozen()
    pictures = torch.zeros(2, 3, frozen.image_size, frozen.image_size, dtype=torch.uint8)
    assert frozen.need(ImageFeatures, "this test").image_features(pictures).shape == (2, config.model.width)


def test_its_pictures_may_be_of_another_size():
    pixels = torch.zeros(2, 3, 24, 24)
    assert Towers(TowersConfig(image_size=24)).image_tower(pixels).shape == (2, TowersConfig.width)


def test_the_demos_held_out_data_ask_the_family_for_its_vocabulary(tmp_path):
    """`evaluate RUN` and `report RUN` read them; the family has no `model.text`."""
    config = stranger_config(
        tmp_path, name="towers", model=TowersConfig(), objectives={"c": GlobalContrastiveConfig()}
    )
    build_inputs(config, tmp_path / "data")
    model = freeze(config, config.model.build(config), Described("towers", config.model.type))
    assert model.tokenizer.vocab_size == config.model.load_tokenizer(config).vocab_size


def test_what_a_built_in_head_asks_of_a_family_without_shapes_is_said():
    with pytest.raises(ConfigError, match="'conv_and_words' for the size of its view 'text'"):
        TowersConfig().shape_of("text")


def test_what_a_family_without_sections_has_to_define_is_said(monkeypatch):
    """An AttributeError about `text` would name nothing that its author wrote."""
    monkeypatch.delattr(TowersConfig, "max_tokens")
    with pytest.raises(ConfigError, match="no section `text`, so TowersConfig has to define max_tokens"):
        TowersConfig().max_tokens  # noqa: B018
    with pytest.raises(ConfigError, match="has to define text_vocab_size"):
        TowersConfig().text_vocab_size  # noqa: B018


def test_a_family_that_builds_its_model_alone_is_told_what_to_build(tmp_path, monkeypatch):
    config = stranger_config(
        tmp_path, name="towers", model=TowersConfig(), objectives={"c": GlobalContrastiveConfig()}
    )
    monkeypatch.setattr(TowersConfig, "build", lambda self, config: Towers(self))
    with pytest.raises(ConfigError, match="TowersConfig.build returns an object of the class Towers; it ret"):
        built(config)
