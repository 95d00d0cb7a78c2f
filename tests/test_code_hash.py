"""A hash of sources follows every file of the packages."""

import pytest

from flava_ds.code_hash import hash_of_sources


def test_a_hash_follows_names_and_contents_of_all_files(tmp_path, monkeypatch):
    package = tmp_path / "hashed_package"
    (package / "below").mkdir(parents=True)
    (package / "__init__.py").write_text("one = 1\n")
    (package / "below" / "part.py").write_text("two = 2\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    seen = [hash_of_sources("hashed_package")]
    (package / "notes.txt").write_text("no code")
    assert hash_of_sources("hashed_package") == seen[0]
    (package / "below" / "part.py").write_text("two = 3\n")
    seen.append(hash_of_sources("hashed_package"))
    (package / "below" / "part.py").rename(package / "below" / "other.py")
    seen.append(hash_of_sources("hashed_package"))
    assert len(set(seen)) == 3
    with pytest.raises(ModuleNotFoundError, match="package 'no_such_package' is not installed"):
        hash_of_sources("no_such_package")
