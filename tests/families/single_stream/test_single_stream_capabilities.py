"""What trained single streams offer: those of the training model itself, over what the detector finds."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from data.shard_files import write_tar
from families.bert.bert_peers import randomize
from families.family_checks import by_kind
from families.single_stream.single_stream_peers import SEP, TEXT, ends, word_file, words_of
from families.single_stream.test_single_stream_runs import FAMILIES

from flava_ds.batch import Batch
from flava_ds.config import Config, DataConfig
from flava_ds.data.regions import REGIONS_SUFFIX, read_regions
from flava_ds.evaluation.protocols import (
    Matcher,
    PairStates,
    Scorer,
    TextFeatures,
    TextStates,
)
from flava_ds.families.bert.capabilities import types_of_texts
from flava_ds.families.single_stream.capabilities import PairPart, offers
from flava_ds.families.single_stream.task import build_task
from flava_ds.objectives.masked_text import MaskedLanguageModeling
from flava_ds.prepare.regions import encoded
from flava_ds.recipes.demo import demo_regions
from flava_ds.regions.detector import load_detector


@pytest.fixture(scope="module")
def found():
    """Four pictures of blots, and what the demo's detector finds in them."""
    draw = np.random.default_rng(0)
    pixels = np.full((4, 3, 96, 96), 255, dtype=np.uint8)
    for picture, blots in zip(pixels, (3, 1, 2, 4), strict=True):
        for _ in range(blots):
            y, x = draw.integers(0, 64, 2)
            picture[:, y : y + 28, x : x + 28] = draw.integers(0, 255, (3, 1, 1))
    pixels = torch.from_numpy(pixels)
    return pixels, load_detector("demo")(pixels)


def config_of(family: str, folder, **changed) -> Config:
    model, objectives = FAMILIES[family]
    text = dataclasses.replace(TEXT, type_vocab_size=model.text.type_vocab_size)
    model = dataclasses.replace(model, image=demo_regions(), text=text, **changed)
    data = DataConfig(vocabulary=word_file(folder))
    return Config(name=family, model=model, objectives=objectives, data=data)


def batch_of(regions, texts):
    """A batch of the detector's regions with these ids, masked and not."""
    lengths, counts = torch.tensor([*map(len, texts)]), regions.cu_seqlens.diff()
    ids = torch.from_numpy(np.concatenate(texts))
    joint, longest = int((lengths + counts).max()), int(lengths.max())
    tensors = {
        f"region_{name}": getattr(regions, name) for name in ("features", "boxes", "classes", "cu_seqlens")
    }
    tensors |= dict.fromkeys(("input_ids", "input_ids_masked", "matching_input_ids"), ids)
    tensors |= dict.fromkeys(("cu_seqlens", "matching_cu_seqlens"), ends(lengths))
    tensors["token_types"] = types_of_texts(texts, SEP)
    numbers = {"region_max_seqlen": regions.max_seqlen}
    numbers |= {f"{prefix}max_seqlen": longest for prefix in ("", "matching_")}
    numbers |= {f"{prefix}joint_max_seqlen": joint for prefix in ("", "matching_")}
    return Batch(kind="pair", source="detector", size=len(texts), tensors=tensors, numbers=numbers)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "vlbert"])
def test_scores_are_those_of_the_training_model(family, found, tmp_path):
    """Log odds, predictions and states, from batches as training would see them."""
    (pixels, regions), config = found, config_of(family, tmp_path, detector="demo")
    task = randomize(build_task(config), std=0.05)
    parts = by_kind(*offers(task, config))
    captions = [
        own.numpy() for own in (words_of((n,), torch.Generator().manual_seed(n)) for n in (3, 6, 2, 4))
    ]
    read, head, columns, prior = captions, "head", (1, 0), 0.0
    if family == "visualbert":  # an empty first segment
        read = [np.r_[own[0], own[-1], own[1:]] for own in captions]
        head, columns = "classifier", (0, 1)
    if config.model.reads_tags:
        tokenizer = config.model.load_tokenizer(config)
        tags = tokenizer.encode_batch(load_detector("demo").tags(regions), 32)
        assert max(map(len, tags)) > 2, "the detector finds something"
        read = [
            np.concatenate([own, tag[1:]]) if len(tag) > 2 else own
            for own, tag in zip(captions, tags, strict=True)
        ]
        head, columns, prior = "classifier", (0, 2), math.log(2)
    view, batch = config.model.matching_view, batch_of(regions, read)
    encoded = task.model.encode(batch, {view})[view]
    states = task.model.pooled(encoded.rows(task.model.first_rows(view, batch)))
    matching = next(
        own for name, own in task.objectives.items() if name in ("itm", "sentence_image", "tag_contrast")
    )
    logits = getattr(matching, head)(states)
    one, other = parts[Matcher].log_odds(pixels, [captions, captions[::-1]])
    expected = logits[:, columns[0]] - logits[:, columns[1]] - prior
    torch.testing.assert_close(one, expected.detach(), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(one, other)
    tunable = parts[PairStates].pair_states()
    again = tunable(captions, pixels)
    if family != "visualbert":  # fine-tuning reads a text as it is
        torch.testing.assert_close(again, states, rtol=1e-4, atol=1e-5)
    again.sum().backward()
    trained = {name for name, own in tunable.named_parameters() if own.grad is not None}
    assert "model.pooler.dense.weight" in trained and any("regions" in name for name in trained)
    assert all(own.grad is None for own in task.parameters()) and tunable.image_size == 96


@pytest.mark.parametrize("family", ["vinvl", "visualbert"])
def test_texts_as_long_as_the_model_reads_leave_no_room_for_more(family, found, tmp_path):
    """For tags, or for the end of an empty first segment."""
    (pixels, _), config = found, config_of(family, tmp_path, detector="demo")
    task, longest = randomize(build_task(config), std=0.05), TEXT.max_position_embeddings
    generator = torch.Generator().manual_seed(0)
    texts = [words_of((longest - 2 - less,), generator).numpy() for less in (0, 1, 2, 3)]
    assert {len(own) for own in texts} == {longest - less for less in range(4)}
    (odds,) = by_kind(*offers(task, config))[Matcher].log_odds(pixels, [texts])
    assert odds.isfinite().all()
    part = PairPart(task.model, None, config.model.load_tokenizer(config), longest)
    tagged = part.tagged(texts, ["w150 w151 w152"] * 4)
    assert [len(own) for own in tagged] == [longest, longest - 1, longest, longest]
    part.most_tokens = longest - 2  # as long as the texts of its training
    assert [len(own) for own in part.tagged(texts[3:], ["w150 w151 w152"])] == [longest - 3]
    part.most_tokens = longest
    for own, text in zip(tagged, texts, strict=True):
        assert np.array_equal(own[: len(text)], text) and own[-1] == SEP


@pytest.mark.parametrize("family", FAMILIES)
def test_predictions_are_those_of_the_training_model(family, found, tmp_path):
    (pixels, regions), config = found, config_of(family, tmp_path, detector="demo")
    task = randomize(build_task(config), std=0.05)
    captions = [
        own.numpy() for own in (words_of((n,), torch.Generator().manual_seed(n)) for n in (3, 6, 2, 4))
    ]
    read, starts = captions, np.cumsum([0, *map(len, captions)])[:-1]
    if config.model.reads_tags:
        tags = config.model.load_tokenizer(config).encode_batch(load_detector("demo").tags(regions), 32)
        read = [
            np.concatenate([own, tag[1:]]) if len(tag) > 2 else own
            for own, tag in zip(captions, tags, strict=True)
        ]
    shifted = np.cumsum([0, *map(len, read)])[:-1]
    labels = torch.tensor([150, 151, 152, 153])
    batch = batch_of(regions, read).having(mlm_rows=torch.from_numpy(shifted + 1), mlm_labels=labels)
    reads = task.model.token_rows("multimodal_masked", batch["mlm_rows"], batch)
    hidden = task.model.encode(batch, {"multimodal_masked"})["multimodal_masked"].rows(reads)
    masked = next(own for own in task.objectives.values() if isinstance(own, MaskedLanguageModeling))
    expected = masked(task.model, {"multimodal_masked": hidden}, batch).sum
    scorer = by_kind(*offers(task, config))[Scorer]
    told, _ = scorer.read(captions, pixels).tokens(torch.from_numpy(starts + 1)).loss(labels)
    assert told.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_detector_texts_are_all_that_it_reads(family, tmp_path):
    config = config_of(family, tmp_path)
    task = build_task(config)
    offered, lacks = offers(task, config)
    parts = by_kind(offered, lacks)
    assert parts.keys() == {TextFeatures, TextStates} and config.model.image_size == 0
    for name in ("Matcher", "Scorer", "PairStates"):
        assert "give its weights as model.detector" in lacks[name]
        assert ("a folder of regions" in lacks[name]) == (name == "PairStates")  # the others take none
    texts = [words_of((n,), torch.Generator()).numpy() for n in (3, 6, 2, 4)]
    assert parts[TextFeatures].text_features(texts).shape == (4, TEXT.hidden_size)


def test_the_members_that_are_prepared_are_those_that_sources_read(found):
    pixels, regions = found
    members = encoded(load_detector("demo"), regions)
    read = [read_regions(own, feature_size=64, num_classes=97, most=9) for own in members]
    assert np.array_equal(np.concatenate([own.boxes for own in read]), regions.boxes.numpy())
    features = np.concatenate([own.features for own in read]).astype(np.float32)
    assert np.abs(features - regions.features.numpy()).max() < 5e-3
    assert [len(own.boxes) for own in read] == regions.cu_seqlens.diff().tolist()


@pytest.mark.parametrize("family", ["vinvl", "vlbert"])
def test_stored_regions_are_read_as_the_detectors_are(family, found, tmp_path):
    """Words of tags too; up to the fp16 of stored features."""
    pixels, regions = found
    detector, names = load_detector("demo"), ("owl", "kite", "cat", "dog")
    (tmp_path / "stored").mkdir()
    members = zip(names, encoded(detector, regions), strict=True)
    write_tar(tmp_path / "stored" / "0.tar", [(f"{name}.{REGIONS_SUFFIX}", own) for name, own in members])
    texts = [words_of((n,), torch.Generator().manual_seed(n)).numpy() for n in (3, 6, 2, 4)]
    states = []
    for place in ("demo", str(tmp_path / "stored")):
        config = config_of(family, tmp_path, detector=place)
        offered, lacks = offers(randomize(build_task(config), std=0.05), config)
        copy = by_kind(offered, lacks)[PairStates].pair_states()
        stored = copy.stored_regions
        images = pixels if stored is None else [stored.read(name) for name in names]
        with torch.no_grad():
            states.append(copy(texts, images))
    torch.testing.assert_close(states[0], states[1], atol=1e-3, rtol=1e-3)
    assert "only be fine-tuned" in lacks["Matcher"] and "only be fine-tuned" in lacks["Scorer"]
