"""What pictures show, from the .json of samples into batches, and samples that do not say it."""

import dataclasses
import json

import numpy as np
import pytest
from data.shard_files import caption, picture, write_tar

from flava_ds import config as configuration
from flava_ds.data.first_look import look_over
from flava_ds.data.reader import BatchReader
from flava_ds.data.sources import open_source
from flava_ds.errors import DataError
from flava_ds.recipes import RECIPES

SHOWN = ["owl", 7, "\ud800", "7", None, True, "owl", "kite", 8]


def opened(folder, key: str = "concept"):
    members = []
    for number, shown in enumerate(SHOWN):
        record = {} if shown is None else {"concept": shown}
        members += [
            (f"{number}.webp", picture(number)),
            (f"{number}.txt", caption(number).encode()),
            (f"{number}.json", json.dumps(record).encode()),
        ]
    write_tar(folder / "0.tar", members)
    config = RECIPES["demo_albef"]()
    source = dataclasses.replace(
        config.data.sources["pair"],
        **{
            "shards": str(folder),
            "caption_key": None,
            "identity_key": key,
            "global_batch_size": 6,
            "max_skipped_share": 0.9,
        },
    )
    data = dataclasses.replace(config.data, sources={"pair": source}, shuffle=False)
    config = configuration.check(dataclasses.replace(config, data=data))
    return config, open_source(config, "pair")


def test_equal_values_are_equal_numbers_in_a_batch(tmp_path):
    """A text and an integer that look alike are; samples without one are replaced and counted."""
    config, source = opened(tmp_path)
    batch = BatchReader(config, source).batch(np.arange(6))
    value = {key: SHOWN[int(key)] for key in batch.keys}
    found = dict(zip(batch.keys, batch["identities"].tolist(), strict=True))
    assert batch["identities"].shape == (6,) and min(found.values()) >= 0
    assert {*found} <= {*"013678"}
    for one, other in np.ndindex(6, 6):
        a, b = batch.keys[one], batch.keys[other]
        assert (found[a] == found[b]) == (str(value[a]) == str(value[b]))
    assert len(set(found.values())) > 1


def test_a_field_that_no_sample_has_is_one_line(tmp_path):
    config, source = opened(tmp_path, "conzept")
    with pytest.raises(DataError, match=r"no identity \(field 'conzept' holds NoneType\)"):
        look_over(config, {"pair": source})
