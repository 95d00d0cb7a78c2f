"""Localized Narratives: sentences as captions, images of the data sets that were narrated."""

import json

from flava_ds.prepare.annotations import NO_CAPTION, Dropped
from flava_ds.prepare.localized_narratives import read, sentences


def line(dataset: str, image: str, caption: str) -> str:
    """A line with the published fields."""
    timed = [{"utterance": "In this", "start_time": 0.0, "end_time": 0.4}]
    traces = [[{"x": 0.2086, "y": -0.0533, "t": 0.022}]]
    fields = {
        "dataset_id": dataset,
        "image_id": image,
        "annotator_id": 93,
        "caption": caption,
        "timed_caption": timed,
        "traces": traces,
    }
    return json.dumps(fields | {"voice_recording": f"{dataset}/{image}_93.ogg"})


def test_one_sample_per_narrative_with_its_sentences(tmp_path):
    caption = (
        "In this image there are doughnuts kept on the grill. In the front there is a white color paper. "
        "On the right, a St. Bernard!"
    )
    path = tmp_path / "coco_val_localized_narratives.jsonl"
    path.write_text(
        "\n".join(
            [
                line("mscoco_val2017", "137576", caption),
                line("open_images_test", "0001eeaf4aed83f9", "A dog."),
                line("ADE20k_train", "x", " "),
            ]
        )
    )
    coco, open_images, empty = read([path])
    assert coco.key == "mscoco_val2017-137576-93"
    assert coco.captions[:2] == (
        "In this image there are doughnuts kept on the grill.",
        "In the front there is a white color paper.",
    )
    assert coco.images == ("000000137576.jpg", "val2017/000000137576.jpg", "mscoco_val2017/000000137576.jpg")
    assert coco.record == {"dataset_id": "mscoco_val2017", "image_id": "137576"}
    assert open_images.images[:2] == (
        "0001eeaf4aed83f9.jpg",
        "test/0001eeaf4aed83f9.jpg",
    ) and open_images.captions == ("A dog.",)
    assert empty == Dropped(NO_CAPTION)


def test_sentences():
    assert sentences("One. Two! Three? Four") == ("One.", "Two!", "Three?", "Four")
    assert sentences("3.5 metres of rope") == ("3.5 metres of rope",) and sentences("") == ()
