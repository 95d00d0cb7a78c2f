"""The words of messages."""

import resource

import pytest

from flava_ds.errors import DataError, UserError, number_of
from flava_ds.storage.files import LocalFile


@pytest.mark.parametrize(("count", "said"), [(0, "0 shards"), (1, "1 shard"), (2, "2 shards")])
def test_one_thing_is_no_plural(count, said):
    assert number_of(count, "shard") == said


def test_too_many_open_files_are_told_with_the_limit_to_raise(tmp_path):
    """No shard has been moved then, and no other place would help."""
    (tmp_path / "0.tar").touch()
    _, most = before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, most))
    try:
        with pytest.raises(DataError) as of_shard:
            LocalFile(tmp_path / "0.tar")
        with pytest.raises(OSError) as of_file:
            (tmp_path / "0.tar").open()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    for said in (str(of_shard.value), str(UserError.of_system(of_file.value))):
        assert said.endswith(": Too many open files; raise the limit of open files (ulimit -n)")
