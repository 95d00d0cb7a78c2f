"""A stranger's source: squares of colours with their names, which lie in no file."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pytest
import torch
from stranger_runs import STEPS, prove, stranger_config

from flava_ds.config import SourceConfig
from flava_ds.config.bounds import AtLeast
from flava_ds.config.readers import ReaderConfig
from flava_ds.data.first_look import look_over
from flava_ds.data.order import permuted, sample_seed, source_seed
from flava_ds.data.samples import Sample
from flava_ds.data.skip_log import SkipLog
from flava_ds.data.sources import Lane, Promises, open_source
from flava_ds.errors import DataError
from flava_ds.objectives.itm import ImageTextMatchingConfig

WORDS = ("apple", "bear", "cloud", "daisy", "eagle", "flame", "grape", "house")


@dataclass(frozen=True, kw_only=True)
class SquaresConfig(ReaderConfig, type="squares"):
    """So many pictures."""

    count: Annotated[int, AtLeast(1)] = 24
    edge: Annotated[int, AtLeast(1)] = 16

    def build(self, config: Any, name: str) -> Squares:
        return Squares(self, config, name)


class Squares:
    """Has any sample at any time, so its order is exact whatever the ranks."""

    promises = Promises(elastic=True, pooled_captions=True)

    def __init__(self, settings: SquaresConfig, config: Any, name: str) -> None:
        self.name, self.source, self.settings, self.run_seed = (
            name,
            config.data.sources[name],
            settings,
            config.seed,
        )
        self.kind, self.length, self.seed = (
            self.source.kind,
            settings.count,
            source_seed(name, self.source.seed),
        )

    def open(self, lane: Lane) -> Squares:
        return self

    def state(self) -> dict[str, Any]:
        return {
            "samples": self.length,
            "keys": f"squares of {self.settings.edge}",
            "order": "shuffled",
            "skip_list": None,
        }

    def seen(self) -> dict[str, Any]:
        return {"samples": self.length}

    def notes(self, lane: Lane) -> list[str]:
        return [f"source '{self.name}': {self.length} squares are drawn, none is read"]

    def samples(self, positions: np.ndarray, skips: SkipLog) -> Iterator[Sample]:
        for position in positions:
            skips.good()
            yield self._sample(int(position))

    def partners(
        self,
        positions: np.ndarray,
        rows: np.ndarray,
        draws: np.ndarray,
        batch: Sequence[Sample],
        *,
        tags: bool = False,
    ) -> Iterator[Iterator[str]]:
        """Offers the captions of other places of the global batch, from the one that the draw picks."""
        size = self.source.global_batch_size or STEP_SAMPLES
        for row, draw in zip(rows, draws, strict=True):
            first = int(positions[row]) // size * size
            places = (first + (int(draw * size) + further) % size for further in range(size))
            yield (self._sample(place).captions[0] for place in places)

    def _sample(self, position: int) -> Sample:
        epoch, place = divmod(position, self.length)
        key = sample_seed(self.run_seed, self.seed, np.array([epoch]), 0)
        index = int(permuted(np.array([place]), key, self.length)[0])
        colour = torch.tensor([37 * index % 256, 91 * index % 256, 53 * index % 256], dtype=torch.uint8)
        picture = colour[:, None, None].expand(3, self.settings.edge, self.settings.edge).contiguous()
        word = WORDS[index % len(WORDS)]
        seed = int(sample_seed(self.run_seed, self.seed, epoch, index))
        return Sample(
            key=f"square-{index}", index=index, seed=seed, image=picture, text=word, captions=(word,)
        )


STEP_SAMPLES = 8


@pytest.mark.distributed
@pytest.mark.slow
def test_a_source_that_draws_its_samples(run_ranks, tmp_path):
    config = stranger_config(
        tmp_path, name="squares", objectives={"matching": ImageTextMatchingConfig(mismatch_probability=0.5)}
    )
    drawn = dataclasses.replace(
        config.data.sources["drawings"],
        shards="",
        reader=SquaresConfig(count=20),
        global_batch_size=STEP_SAMPLES,
    )
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, sources={"squares": drawn}))
    curve = prove(run_ranks, config)
    assert len({line["loss/matching"] for line in curve}) == STEPS
    source = SquaresConfig(count=20).build(config, "squares")
    epochs = [[source._sample(20 * epoch + place).key for place in range(20)] for epoch in range(2)]
    assert all(len(set(epoch)) == 20 for epoch in epochs) and epochs[0] != epochs[1]


def test_too_few_samples_are_said_to_be_the_readers(tmp_path):
    few = SourceConfig(kind="pair", shards="", reader=SquaresConfig(count=3))
    config = stranger_config(tmp_path, name="squares", objectives={"matching": ImageTextMatchingConfig()})
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, sources={"squares": few}))
    with pytest.raises(
        DataError, match="'squares': 3 usable samples of its reader are fewer than the 8 .*; add samp"
    ):
        look_over(config, {"squares": open_source(config, "squares")})


@pytest.mark.parametrize("state", [None, {"keys": torch.ones(1)}, {"shape": (2, 3)}, {1: "one"}], ids=repr)
def test_a_state_that_no_checkpoint_holds_is_refused_before_the_first_step(tmp_path, monkeypatch, state):
    drawn = SourceConfig(kind="pair", shards="", reader=SquaresConfig())
    config = stranger_config(tmp_path, name="squares", objectives={"matching": ImageTextMatchingConfig()})
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, sources={"squares": drawn}))
    sources = {"squares": open_source(config, "squares")}
    look_over(config, sources)
    monkeypatch.setattr(Squares, "state", lambda self: state)
    with pytest.raises(
        DataError, match="'squares': its reader Squares has the state .*, which no checkpoint"
    ):
        look_over(config, sources)
