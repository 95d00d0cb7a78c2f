"""The words of messages."""

import pytest

from flava_ds.errors import number_of


@pytest.mark.parametrize(("count", "said"), [(0, "0 shards"), (1, "1 shard"), (2, "2 shards")])
def test_one_thing_is_no_plural(count, said):
    assert number_of(count, "shard") == said
