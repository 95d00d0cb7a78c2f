"""ImageNet-1k: class folders in order."""

import pytest

from flava_ds.errors import DataError
from flava_ds.prepare.imagenet import read


def test_walks_classes_in_order(tmp_path):
    for name in (
        "n01443537/n01443537_2.JPEG",
        "n01440764/n01440764_18.JPEG",
        "n01440764/n01440764_10026.JPEG",
        "n01440764/notes.txt",
        "n01440764/1.jpg",
        "n01443537/1.jpg",
        "beside.jpg",
        "n01443537/further/down.jpg",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = list(read([tmp_path]))
    assert [entry.key for entry in found] == [
        "n01440764_1",
        "n01440764_10026",
        "n01440764_18",
        "n01443537_1",
        "n01443537_2",
    ]
    assert (
        found[4].record == {"wnid": "n01443537", "class": 1}
        and found[4].file == tmp_path / "n01443537" / "n01443537_2.JPEG"
        and found[4].captions == ()
    )


def test_folder_without_classes_is_refused(tmp_path):
    with pytest.raises(DataError, match="has no class folders; give the folder that contains n01440764"):
        list(read([tmp_path]))
