"""Winoground's scores on examples whose fits are written down, and on its published layout."""

import numpy as np
import pytest
from evaluation.color_world import COLORS, KnowsColors, Matches, color_model
from evaluation.published_world import WRITERS

from flava_ds.errors import DataError
from flava_ds.evaluation.contrasts import EmbeddingContrast
from flava_ds.evaluation.registry import find
from flava_ds.evaluation.runner import evaluate, find_all, find_data
from flava_ds.evaluation.tasks.winoground import DATA


def test_scores_of_fits_written_down(tmp_path):
    """Rows are images, columns captions: all right; text only; image only; neither; a tie is wrong."""
    fits = np.array(
        [[[3, 1], [1, 3]], [[3, 1], [9, 10]], [[3, 9], [1, 10]], [[1, 3], [3, 1]], [[2, 2], [2, 2]]], float
    )

    class Scripted(EmbeddingContrast):
        def scores(self, model, samples):
            return fits

    WRITERS["winoground"](tmp_path)
    found = Scripted("scripted", DATA).run(color_model(), find_data(DATA, tmp_path))
    assert [found[f"{kind}_score"].value for kind in ("text", "image", "group")] == [0.4, 0.4, 0.2]


def test_a_model_that_knows_colours_tells_all_apart(tmp_path):
    WRITERS["winoground"](tmp_path)
    tasks, matches = find(["winoground_contrastive", "winoground_matching"]), Matches()
    results = evaluate(tasks, color_model(KnowsColors(), matches), find_all(tasks, tmp_path))
    for result in results.values():
        assert {name: score.value for name, score in result.scores.items()} == {
            "text_score": 1,
            "image_score": 1,
            "group_score": 1,
        }
    assert results["winoground_matching"].scores["text_score"].n == 4 and matches.asked == 8
    confused = color_model(KnowsColors({color: "red" for color in COLORS}))
    [task] = find(["winoground_contrastive"])
    scores = evaluate([task], confused, find_all([task], tmp_path))[task.name].scores
    assert scores["group_score"].value == 0


def test_a_limit_keeps_examples_whole(tmp_path):
    WRITERS["winoground"](tmp_path)
    cut = find_data(DATA, tmp_path, limit=3).test()
    assert len(cut) % 2 == 0 and all(
        a.split("_")[1] == b.split("_")[1] for a, b in zip(cut.keys[::2], cut.keys[1::2], strict=True)
    )
    assert cut.captions[0] == ("the blue one",)


def test_what_is_missing_is_named(tmp_path):
    WRITERS["winoground"](tmp_path)
    (tmp_path / "winoground/data/images/ex_1_img_0.png").unlink()
    with pytest.raises(DataError, match="ex_1_img_0.png is missing"):
        find_data(DATA, tmp_path).test()
    (tmp_path / "winoground/data/examples.jsonl").write_text('{"image_0": "a"}\n')
    with pytest.raises(DataError, match="line 1 has no 'image_1'; expected data.examples.jsonl with"):
        find_data(DATA, tmp_path).test()
