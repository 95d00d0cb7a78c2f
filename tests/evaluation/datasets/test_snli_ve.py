"""SNLI-VE's files: both names of the picture's field, and what is not there named."""

import pytest
from evaluation.language_world import write_snli_ve

from flava_ds.errors import DataError
from flava_ds.evaluation.datasets.snli_ve import SnliVe

DATA = SnliVe()


def test_sentences_classes_and_pictures(tmp_path):
    write_snli_ve(tmp_path)
    for split, count in {"train": 18, "test": 9}.items():
        samples = DATA.read(tmp_path / "snli_ve", split)
        assert len(samples) == count and samples.labels[:3].tolist() == [0, 1, 2]
        assert samples.texts[0] == "a kite flies" and samples.keys[1] == "4001"
        assert samples.load(1)[:4] == b"\x89PNG"


def test_pictures_may_lie_with_flickr30k(tmp_path):
    write_snli_ve(tmp_path)
    (tmp_path / "flickr30k").mkdir()
    (tmp_path / "snli_ve" / "flickr30k-images").rename(tmp_path / "flickr30k" / "flickr30k-images")
    assert len(DATA.read(tmp_path / "snli_ve", "dev")) == 6
    (tmp_path / "flickr30k" / "flickr30k-images").rename(tmp_path / "gone")
    with pytest.raises(DataError, match="the pictures are expected in .*flickr30k-images.*by hand"):
        DATA.read(tmp_path / "snli_ve", "dev")


@pytest.mark.parametrize(
    "line, words",
    [
        ('{"Flickr30K_ID": "4000", "sentence2": "x"}', "line 1 has no 'gold_label'"),
        (
            '{"Flickr30K_ID": "4000", "sentence2": "x", "gold_label": "-"}',
            "gold_label is '-', none of contra",
        ),
        ('{"image": 1, "sentence2": "x", "gold_label": "neutral"}', "line 1 has no 'Flickr30K_ID'"),
        ("{", "line 1 cannot be used"),
        ('{"Flickr30K_ID": "1", "sentence2": "x", "gold_label": "neutral"}', "1 pictures, 1.jpg among them"),
    ],
)
def test_another_layout_is_named(tmp_path, line, words):
    write_snli_ve(tmp_path)
    (tmp_path / "snli_ve" / "snli_ve_test.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=words):
        DATA.read(tmp_path / "snli_ve", "test")
