"""Written captions: what names a concept, and what is measured of a model and of the true captions."""

import numpy as np
from sample_runs import frozen, world

from flava_ds.demo.evaluation.writing import measure, names, write_captions


def test_a_text_names_a_label_by_whole_words_in_order():
    found = names(["A drawing of Red kite", "kites, red"], ["kite", "red kite", "kite red"])
    assert found.tolist() == [[True, True, False], [False, False, False]]


def test_written_and_true_captions_are_measured_alike(tmp_path):
    inputs, module = world(tmp_path)
    model = frozen(inputs, module)
    metrics = measure(model, inputs)
    numbers = ("text_to_image_recall_at_1", "text_to_image_recall_at_5", "names_the_concept")
    every = {f"writing/{what}/{number}" for what in ("written", "caption") for number in numbers}
    assert metrics.keys() == every | {f"{name}/chance" for name in every}
    assert all(0 <= value <= 1 for value in metrics.values())
    # "a drawing of WORD" names its own of twelve concepts and no other.
    assert metrics["writing/caption/names_the_concept"] == 1
    assert metrics["writing/caption/names_the_concept/chance"] == 1 / 12
    texts = write_captions(model, inputs.unseen_style)
    labels = inputs.unseen_style.column("label")
    share = np.mean([label in text.split() for text, label in zip(texts, labels, strict=True)])
    assert metrics["writing/written/names_the_concept"] == share
    assert not any("[" in text for text in texts)
