"""Arrays come back; what a pickle wants to call otherwise is refused by name before it runs."""

import io
import os
import pickle

import numpy as np
import pytest

from flava_ds.storage.pickled_arrays import load_arrays


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_arrays_and_plain_values_come_back(protocol):
    kept = {"data": np.arange(6, dtype=np.uint8).reshape(2, 3), "labels": [1, 2], "name": "x"}
    found = load_arrays(io.BytesIO(pickle.dumps(kept, protocol=protocol)))
    np.testing.assert_array_equal(found["data"], kept["data"])
    assert found["labels"] == [1, 2] and found["name"] == "x"


def test_a_call_is_refused():
    class Runs:
        def __reduce__(self):
            return os.system, ("true",)

    with pytest.raises(pickle.UnpicklingError, match="wants to call posix.system"):
        load_arrays(io.BytesIO(pickle.dumps(Runs())))
