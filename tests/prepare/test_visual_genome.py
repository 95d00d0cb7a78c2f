"""Visual Genome: the regions of an image are its captions."""

import json

import pytest

from flava_ds.prepare.annotations import NO_CAPTION, Dropped
from flava_ds.prepare.visual_genome import read


@pytest.mark.parametrize("field", ["id", "image_id"])
def test_regions_become_captions_with_boxes(tmp_path, field):
    region = {"region_id": 1382, "image_id": 1, "synsets": []}
    regions = [
        region | {"x": 421, "y": 57, "width": 82, "height": 139, "phrase": "the clock is green in colour"},
        region | {"x": 0, "y": 0, "width": 1, "height": 1, "phrase": " "},
        region | {"x": 194, "y": 372, "width": 376, "height": 99, "phrase": "shade is along the street "},
    ]
    path = tmp_path / "region_descriptions.json"
    path.write_text(json.dumps([{"regions": regions, field: 1}, {"regions": [], field: 2}]))
    first, second = read([path])
    assert first.key == "vg-1" and first.captions == (
        "the clock is green in colour",
        "shade is along the street",
    )
    assert first.record == {"boxes": [[421, 57, 82, 139], [194, 372, 376, 99]]}
    assert first.images == ("1.jpg", "VG_100K/1.jpg", "VG_100K_2/1.jpg") and second == Dropped(NO_CAPTION)
