"""Regions: what a member may hold, and their way from shards into batches."""

import json
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from region_files import CLASSES, WIDTH, member, regions, tags, with_regions, write_regions
from safetensors.numpy import save

from flava_ds.config.encoders import RegionsConfig
from flava_ds.config.family import FamilyConfig
from flava_ds.data.first_look import look_over
from flava_ds.data.indexed import IndexedShards
from flava_ds.data.plan import BatchPlan, RegionsPlan
from flava_ds.data.reader import BatchReader
from flava_ds.data.regions import read_regions
from flava_ds.data.sources import open_source
from flava_ds.data.tokenizer import WordPieceTokenizer
from flava_ds.errors import ConfigError, DataError
from flava_ds.objectives.masked_region_classes import MaskedRegionClassesConfig
from flava_ds.objectives.region_masks import RegionMask
from flava_ds.storage.faults import SampleFault


def read(data: bytes, classes: int = CLASSES):
    return read_regions(data, feature_size=WIDTH, num_classes=classes, most=6)


def test_a_member_comes_back_as_it_was_written():
    found, expected = read(member(4)), regions(4)
    for name, values in expected.items():
        assert np.array_equal(getattr(found, name), values) and getattr(found, name).dtype == values.dtype
    assert found.tags == tags(4) and found.boxes[0].tolist() == [0, 0, 1, 1]
    plain = {name: values for name, values in expected.items() if name != "classes"}
    without = read(save(plain), classes=0)
    assert without.classes is None and without.tags == ""


def changed(**tensors) -> bytes:
    own = regions(2)
    return save({name: values for name, values in (own | tensors).items() if values is not None})


def with_header(**changes) -> bytes:
    """A member whose header says something else about `boxes`."""
    data = save(regions(2))
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["boxes"] |= changes
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def boxes(*rows) -> np.ndarray:
    return np.array([[0, 0, 1, 1], *rows], dtype=np.float32)


def spoiled(name: str, value: float) -> np.ndarray:
    values = regions(2)[name].copy()
    values[1, 1] = value
    return values


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (b"", "0 bytes are too few"),
        (b"\x80\x05}", "3 bytes are too few"),
        ((2**63).to_bytes(8, "little") + b"{}", "too few for a safetensors header"),
        ((4).to_bytes(8, "little") + b"junk", "not JSON"),
        ((2).to_bytes(8, "little") + b"[]", "no tensor 'boxes'"),
        (changed(boxes=None), "no tensor 'boxes'"),
        (changed(features=None), "no tensor 'features'"),
        (changed(classes=None), "no tensor 'classes'"),
        (save(regions(2, count=0)), "0 regions"),
        (
            changed(features=regions(2)["features"][:, :4]),
            r"'features' has shape \[3, 4\], expected \[3, 6\]",
        ),
        (changed(features=regions(2)["features"][:2]), r"'features' has shape \[2, 6\], expected \[3, 6\]"),
        (changed(features=regions(2)["features"].astype(np.float64)), "dtype 'F64'; only F16 and F32"),
        (changed(features=spoiled("features", np.nan)), "'features' holds infinities or no numbers"),
        (changed(boxes=spoiled("boxes", np.inf)), "'boxes' holds infinities"),
        (changed(boxes=boxes([0, 0, 1.1, 1], [0, 0, 1, 1])), "a box outside"),
        (changed(boxes=boxes([0.5, 0, 0.5, 1], [0, 0, 1, 1])), "a box outside"),
        (
            changed(boxes=boxes([0, 0, 1, 1], [0, 0, 1, 1])[::-1].copy() * 0.9),
            "first region is not the whole",
        ),
        (changed(classes=spoiled("classes", -0.1)), "no probabilities"),
        (changed(classes=spoiled("classes", 1.0)), "no probabilities"),
        (
            member(2).replace(tags(2).encode(), b"\\ud800".ljust(len(tags(2)))),
            "tags hold half of a surrogate",
        ),
        (with_header(data_offsets=[0, 2**62]), "does not fit"),
        (with_header(data_offsets=[-48, 0]), "does not fit"),
        (with_header(data_offsets=[10**6, 10**6 + 48]), "does not fit"),
        (with_header(shape=[2**40, 4]), r"must be at least one|does not fit"),
        (with_header(shape=[True, 4]), "has shape"),
        (with_header(shape="34"), "has shape"),
    ],
)
def test_anything_else_is_refused_with_its_own_words(data, detail):
    with pytest.raises(SampleFault, match=detail) as caught:
        read(data)
    assert caught.value.reason == "bad regions"


def test_more_regions_than_the_source_may_have_are_a_reason_of_their_own():
    with pytest.raises(SampleFault, match="7, more than max_regions 6") as caught:
        read(save(regions(2, count=7)))
    assert caught.value.reason == "too many regions"


@dataclass(frozen=True, kw_only=True)
class RegionFamily(FamilyConfig):
    """Reads the regions of pairs."""

    image: RegionsConfig = field(
        default_factory=lambda: RegionsConfig(feature_size=WIDTH, num_classes=CLASSES)
    )

    @property
    def regions(self):
        return self.image

    def plan(self, config, source):
        return BatchPlan(
            kind="pair",
            tokenizer=WordPieceTokenizer(config.data.vocabulary),
            max_tokens=24,
            mismatch_probability=0.5,
            matches_apart=True,
            regions=RegionsPlan.of(config, source),
            corruptions=(RegionMask(0.15, 0.5),),
        )


@pytest.fixture
def region_config(make_config, tmp_path):
    config = make_config(objectives={"mrc": MaskedRegionClassesConfig()})
    source = with_regions(config.data.sources["pairs"], write_regions(tmp_path / "regions"))
    return replace(config.with_sources({"pairs": source}), model=RegionFamily())


def packed(batch, name: str) -> list[torch.Tensor]:
    return list(batch[name].split(batch["region_cu_seqlens"].diff().tolist()))


@pytest.mark.parametrize("reading", ["indexed", "stream"])
def test_batches_hold_what_the_shards_hold_and_no_image_is_opened(region_config, reading):
    source = replace(region_config.data.sources["pairs"], reading=reading)
    config = region_config.with_sources({"pairs": source})
    reader = BatchReader(config, open_source(config, "pairs"))
    batch = reader.batch(np.arange(24))
    assert not batch.read.skipped and "pixel_values" not in batch
    for name in ("features", "boxes", "classes"):
        found = dict(zip(batch.keys, packed(batch, f"region_{name}"), strict=True))
        for number in range(24):
            assert np.array_equal(found[f"{number:03d}"].numpy(), regions(number)[name]), (name, number)
    lengths = batch["region_cu_seqlens"].diff()
    assert batch["region_cu_seqlens"].dtype == torch.int32 and batch.numbers["region_max_seqlen"] == 6
    for prefix in ("", "matching_"):
        joint = batch[f"{prefix}cu_seqlens"].diff() + lengths
        assert batch.numbers[f"{prefix}joint_max_seqlen"] == int(joint.max())
    held = sum(own.nbytes for own in batch.tensors.values())
    assert held <= 24 * (reader.plan.bytes_per_sample() + 64)
    parts = [reader.batch(np.arange(start, start + 6)) for start in range(0, 24, 6)]
    joined = torch.cat([part["region_features"] for part in parts])
    assert torch.equal(joined, batch["region_features"])
    ends = np.cumsum([0, *(part["region_features"].shape[0] for part in parts)])
    for name in ("region_masked_rows", "region_hidden_rows"):
        rows = [part[name] + end for part, end in zip(parts, ends[:-1], strict=True)]
        assert torch.equal(torch.cat(rows), batch[name])


def test_a_draft_of_some_samples_has_their_regions(region_config):
    reader = BatchReader(region_config, IndexedShards(region_config, "pairs"))
    samples = list(reader.draws().samples(np.arange(8), reader.skips))
    draft, _ = reader.collator._draft(samples, [own.text for own in samples], {}, np.ones(8, bool), [])
    some = draft.at(np.array([1, 4, 5])).regions
    assert some.lengths.tolist() == [len(samples[row].regions.boxes) for row in (1, 4, 5)]
    for name in ("features", "boxes", "classes"):
        expected = np.concatenate([getattr(samples[row].regions, name) for row in (1, 4, 5)])
        assert np.array_equal(getattr(some, name), expected)


def test_shards_without_any_regions_say_what_adds_them(region_config, make_shard):
    shard = make_shard("plain/0.tar", [("a.txt", b"a cat"), ("a.json", b'{"captions": ["a cat"]}')])
    source = replace(region_config.data.sources["pairs"], shards=str(shard.parent), caption_key="captions")
    with pytest.raises(DataError, match="no regions 1; .*`flava-ds prepare regions SHARDS OUT` copies"):
        IndexedShards(region_config.with_sources({"pairs": source}), "pairs")


def test_samples_without_usable_regions_are_skipped_with_their_reason(region_config, make_shard):
    shard = make_shard(
        "bad/0.tar",
        [
            ("a.txt", b"a cat"),
            ("a.regions.safetensors", changed(boxes=None)),
            ("b.txt", b"a dog"),
            ("c.txt", b"a bird"),
            ("c.regions.safetensors", member(3)),
        ],
    )
    source = replace(region_config.data.sources["pairs"], shards=str(shard.parent), max_skipped_share=1.0)
    config = region_config.with_sources({"pairs": source})
    opened = IndexedShards(config, "pairs")
    assert opened.table.faults == {"no regions": 1} and len(opened) == 2
    batch = BatchReader(config, opened).batch(np.arange(2))
    assert set(batch.keys) == {"c"} and set(batch.read.skipped) == {"bad regions"}
    few = replace(config.data.sources["pairs"], global_batch_size=2)
    look_over(config.with_sources({"pairs": few}), {"pairs": opened})
    wider = replace(config.model, image=replace(config.model.image, feature_size=WIDTH + 1))
    other = replace(config.with_sources({"pairs": few}), model=wider)
    with pytest.raises(
        DataError, match=r"none of the first 2 samples can be used: bad regions .*expected \[4, 7\]"
    ):
        look_over(other, {"pairs": IndexedShards(other, "pairs")})


@pytest.mark.parametrize("most", [2, 4])
def test_a_source_with_more_regions_than_it_may_have_is_named_with_the_limit(region_config, tmp_path, most):
    """Most of the first samples: at once. Otherwise when too many have been met."""
    folder = write_regions(tmp_path / "own", range(240))
    changes = {"shards": str(folder), "max_regions": most, "global_batch_size": 2}
    config = region_config.with_sources({"pairs": replace(region_config.data.sources["pairs"], **changes)})
    opened = IndexedShards(config, "pairs")
    way = r"raise --data.sources.pairs.max-regions or --data.sources.pairs.max-skipped-share$"
    if most == 2:  # of six in a row, two may be read
        with pytest.raises(
            DataError, match=rf"20 of the first 32 samples .*more than max_regions 2.*; {way}"
        ):
            look_over(config, {"pairs": opened})
        loose = config.with_sources({"pairs": replace(config.data.sources["pairs"], max_skipped_share=0.9)})
        look_over(loose, {"pairs": IndexedShards(loose, "pairs")})
        return
    look_over(config, {"pairs": opened})
    reader = BatchReader(config, opened)
    with pytest.raises(
        DataError, match=rf"too many regions.*; last: .*more than max_regions 4.*\. R{way[1:]}"
    ):
        for start in range(0, 240, 24):
            reader.batch(np.arange(start, start + 24))


def test_settings_that_cannot_work_are_refused(region_config, tmp_path):
    source = region_config.data.sources["pairs"]
    other = region_config.with_sources({"pairs": replace(source, regions_key="regions.npy")})
    with pytest.raises(ConfigError, match="regions_key 'regions.npy' must end with safetensors"):
        IndexedShards(other, "pairs")
    with pytest.raises(ConfigError, match=r"reads the regions of images; write them with .*regions-key"):
        config = region_config.with_sources({"pairs": replace(source, regions_key=None)})
        config.model.check_regions(config)
    (tmp_path / "skip.txt").write_text(f"sha256 {'0' * 64}\n")
    listed = replace(source, skip_list=str(tmp_path / "skip.txt"))
    with pytest.raises(DataError, match="names images by content, but a source with regions"):
        IndexedShards(region_config.with_sources({"pairs": listed}), "pairs")
