"""Published numbers belong to tasks and numbers that exist, and are shares."""

from flava_ds.evaluation import published
from flava_ds.evaluation.registry import tasks


def test_every_published_number_has_its_task():
    write = {"accuracy"} | {
        f"{way}_recall_at_{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5)
    }
    for task, number in published._NUMBERS:
        assert task in tasks() and number in write
        assert all(
            0 < found.value < 1 and found.source and found.of for found in published.published(task, number)
        )


def test_a_number_of_another_protocol_has_none():
    assert published.published("sst2_probe", "accuracy") == ()
