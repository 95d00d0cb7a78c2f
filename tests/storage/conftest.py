"""The small corpus of tests/data serves the storage below it, too."""

from data.conftest import make_config, make_shard, own_cache, vocabulary

__all__ = ["make_config", "make_shard", "own_cache", "vocabulary"]
