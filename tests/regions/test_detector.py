"""The detector: what its cells mean, its regions, its tags, and its file."""

import dataclasses

import pytest
import torch
from safetensors.torch import save_file

from flava_ds.errors import CheckpointError, ConfigError, DataError
from flava_ds.regions.detector import Detector, DetectorConfig, Regions, load_detector, save_detector

CONFIG = DetectorConfig(
    class_names=("animal-bird", "heart", "tool"), image_size=64, widths=(4, 4, 8), num_blocks=1,
    feature_size=6, max_detections=2,
)  # fmt: skip


@pytest.fixture
def detector() -> Detector:
    torch.manual_seed(0)
    return Detector(CONFIG).requires_grad_(False).eval()


def test_a_cell_says_where_a_box_is(detector, monkeypatch):
    cells = torch.full((2, 5, 8, 8), -9.0)
    cells[:, 1:3] = 0.0
    # picture 0: three centres, and a weaker one in the same place as the best; picture 1: none
    wide = torch.tensor([0.5, 0.25]).log()
    cells[0, :, 3, 1] = torch.tensor([2.0, 0.25, -0.5, *wide])
    cells[0, 0, 3, 2] = 1.0  # no peak, as its neighbour is higher
    cells[0, :, 6, 6] = torch.tensor([1.0, 0, 0, *wide])
    cells[0, :, 0, 6] = torch.tensor([0.5, 0, 0, *wide])
    cells[0, :, 3, 3] = torch.tensor([1.5, -1.75, -0.5, *wide])  # a peak whose box is that of the best
    monkeypatch.setattr(detector, "centers", lambda hidden: cells)
    regions = detector(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
    assert regions.cu_seqlens.tolist() == [0, 3, 4] and regions.max_seqlen == 3
    assert regions.boxes[[0, 3]].tolist() == [[0, 0, 1, 1]] * 2 and not regions.classes[[0, 3]].any()
    # (1 + 0.5 + 0.25) / 8 and (3 + 0.5 - 0.5) / 8 are the middle of the first box, 6.5 / 8 of the other
    expected = {2.0: [0.0, 0.25, 0.46875, 0.5], 1.0: [0.5625, 0.6875, 1.0, 0.9375]}
    found = dict(zip(regions.classes[1:3].sum(1).logit().tolist(), regions.boxes[1:3].tolist(), strict=True))
    for logit, box in expected.items():
        own = min(found, key=lambda other: abs(other - logit))
        assert own == pytest.approx(logit, abs=1e-4) and found[own] == pytest.approx(box, abs=1e-6)
    best = regions.classes[1:3].amax(1)
    assert best[0] >= best[1]


def test_features_are_those_of_the_box_and_classes_follow_from_them(detector):
    regions = detector(
        torch.randint(0, 256, (3, 3, 50, 70), generator=torch.Generator().manual_seed(0)).byte()
    )
    assert regions.features.shape == (len(regions.boxes), 6) and regions.features.dtype == torch.float32
    assert (regions.boxes[:, :2] < regions.boxes[:, 2:]).all() and not regions.boxes.lt(0).any()
    logits = detector.classifier(regions.features).softmax(1)
    found = regions.classes / regions.classes.sum(1, keepdim=True).clamp(min=1e-9)
    rows = regions.classes.sum(1) > 0
    assert rows.sum() == len(rows) - 3 > 0 and regions.classes.sum(1).max() <= 1
    torch.testing.assert_close(found[rows], logits[rows])


def test_a_picture_s_regions_do_not_depend_on_the_others(detector):
    pixels = torch.randint(0, 256, (3, 3, 64, 64), generator=torch.Generator().manual_seed(1)).byte()
    together, alone = detector(pixels), detector(pixels[1:2])
    start, stop = together.cu_seqlens[1:3].tolist()
    for name in ("features", "boxes", "classes"):
        torch.testing.assert_close(getattr(together, name)[start:stop], getattr(alone, name))


def test_tags_are_words_of_likely_classes_best_first_and_once(detector):
    rows = [[0, 0, 0], [0.1, 0.6, 0.2], [0.5, 0, 0], [0, 0.4, 0], [0.1, 0, 0.19], [0, 0, 0]]
    classes = torch.tensor(rows)
    regions = Regions(torch.zeros(6, 6), torch.zeros(6, 4), classes, torch.tensor([0, 5, 6]), 5)
    assert detector.tags(regions) == ["heart animal bird", ""]


def test_a_file_gives_the_same_detector_in_half_precision(detector, tmp_path):
    file = tmp_path / "a.safetensors"
    save_detector(detector, file)
    again = load_detector(file)
    assert again.config == CONFIG and not any(p.requires_grad for p in again.parameters())
    halved = Detector(CONFIG)
    halved.load_state_dict({name: t.half().to(t.dtype) if t.is_floating_point() else t
                            for name, t in detector.state_dict().items()})  # fmt: skip
    assert again.fingerprint() == halved.fingerprint() != detector.fingerprint()


def test_what_is_refused(detector, tmp_path):
    with pytest.raises(CheckpointError, match="no detector there; did you mean 'demo'"):
        load_detector("dmo")
    (tmp_path / "a").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="a: not a detector's file"):
        load_detector(tmp_path / "a")
    save_file({"x": torch.zeros(1)}, tmp_path / "b")
    with pytest.raises(CheckpointError, match="b: not a detector's file .KeyError"):
        load_detector(tmp_path / "b")
    with pytest.raises(DataError, match=r"torch.float32 \[1, 3, 8, 8\]; expected uint8"):
        detector(torch.zeros(1, 3, 8, 8))
    for change, words in (({"image_size": 60}, "multiple of 8"), ({"class_names": ()}, "at least one class")):
        with pytest.raises(ConfigError, match=words):
            Detector(dataclasses.replace(CONFIG, **change))
