"""Scenes: what a seed decides, where drawings may be, that pixels are those of the drawings, and colours."""

from pathlib import Path

import numpy as np
import pytest
import torch

from flava_ds.demo.dataset import unpack
from flava_ds.demo.scenes import (
    COLOURS,
    Drawings,
    Scene,
    colour_names,
    colour_of,
    draw_scene,
    iou,
    offset,
    paint,
    read_drawings,
    without_margins,
)
from flava_ds.errors import DataError


@pytest.fixture(scope="module")
def drawings() -> Drawings:
    return read_drawings(unpack(), "unseen_concepts")


def test_a_scene_is_a_function_of_seed_and_index(drawings):
    assert draw_scene(drawings, 0, 5) == draw_scene(drawings, 0, 5)
    scenes = {draw_scene(drawings, seed, index) for seed in range(2) for index in range(50)}
    assert len(scenes) == 100


def test_drawings_lie_on_the_canvas_apart_from_each_other(drawings):
    counts = set()
    for index in range(300):
        scene = draw_scene(drawings, 0, index)
        counts.add(len(scene))
        assert len({drawings.labels[row] for row in scene.rows}) == len(scene)
        for place, box in enumerate(scene.boxes):
            x1, y1, x2, y2 = box
            assert 0 <= x1 < x2 <= 96 and 0 <= y1 < y2 <= 96 and 24 <= max(x2 - x1, y2 - y1) <= 48
            height, width = drawings.pictures[scene.rows[place]].shape[1:]
            assert abs((x2 - x1) * height - (y2 - y1) * width) <= max(height, width)
            for other in scene.boxes[:place]:
                assert iou(box, other) <= 0.2 and max(map(abs, offset(box, other))) >= 12
    assert counts == {2, 3, 4}
    assert iou((0, 0, 2, 2), (1, 0, 3, 2)) == 1 / 3 and iou((0, 0, 1, 1), (5, 5, 6, 6)) == 0
    assert offset((0, 0, 2, 4), (4, 0, 6, 2)) == (-4, 1)


def test_a_painting_shows_the_drawings_in_their_boxes_and_white_elsewhere(drawings):
    pictures = (torch.full((3, 30, 20), 90, dtype=torch.uint8), torch.zeros(3, 40, 40, dtype=torch.uint8))
    pictures[1][0] = 200  # dark red
    own = Drawings("own", pictures, ("a", "b"), ("a", "b"), ("x", "y"), (None, "red"))
    canvas = paint(own, Scene((0, 1), ((2, 3, 22, 33), (12, 23, 52, 63))))
    assert canvas[:, :, 60:].eq(255).all() and canvas[:, :3].eq(255).all()
    assert canvas[:, 3:23, 2:22].eq(90).all()
    assert canvas[:, 33:63, 12:52].flatten(1).unique(dim=1).flatten().tolist() == [200, 0, 0]
    assert canvas[:, 23:33, 12:22].flatten(1).unique(dim=1).flatten().tolist() == [90, 0, 0]  # the darker
    halved = paint(own, Scene((0,), ((0, 0, 10, 15),)))
    assert halved[:, :15, :10].eq(90).all() and halved[:, 15:].eq(255).all()


def test_margins_are_cut_and_what_white_paper_hides_is_left_out():
    picture = torch.full((3, 20, 30), 255, dtype=torch.uint8)
    assert without_margins(picture) is None
    picture[1, 4:15, 6:26] = 100
    assert without_margins(picture).shape == (3, 11, 20)
    picture[1, 4:12] = 255
    assert without_margins(picture) is None  # three rows are too thin


def test_colours_are_called_what_people_call_them():
    known = {
        (0, 0, 0): "black", (30, 40, 60): "black", (130, 130, 130): "grey", (220, 30, 40): "red",
        (255, 130, 20): "orange", (120, 70, 30): "brown", (255, 205, 50): "yellow", (70, 170, 60): "green",
        (40, 120, 220): "blue", (0, 160, 210): "blue", (130, 60, 190): "purple", (250, 120, 190): "pink",
        (250, 170, 170): "pink",
    }  # fmt: skip
    named = colour_names(np.array(list(known), dtype=np.uint8))
    assert [COLOURS[place] for place in named] == list(known.values())
    half = torch.tensor([220, 30, 40]).byte()[:, None, None].repeat(1, 10, 10)
    assert colour_of(half) == "red"
    half[:, :5] = torch.tensor([40, 120, 220]).byte()[:, None, None]
    assert colour_of(half) is None
    half[:, :9] = 255  # paper is no colour
    assert colour_of(half) == "red" and colour_of(torch.full((3, 4, 4), 255, dtype=torch.uint8)) is None


def test_drawings_of_a_split_are_those_of_its_folder(drawings, tmp_path):
    assert drawings.name == "unseen_concepts" and 1050 < len(drawings) <= 1102
    heart = drawings.labels.index("flamingo")
    assert (drawings.subgroups[heart], drawings.concepts[heart]) == ("animal-bird", "flamingo")
    with pytest.raises(DataError, match="no split 'test'; choose of train, unseen_style, unseen_concepts"):
        read_drawings(Path(tmp_path), "test")
