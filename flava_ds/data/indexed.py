"""Indexed shards: any sample by its number, so that the order is arithmetic and resuming is exact."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from flava_ds.config import Config
from flava_ds.data.indexed_draws import IndexedDraws
from flava_ds.data.order import Order, source_seed
from flava_ds.data.samples import Sample, SampleDecoder, member_fields
from flava_ds.data.skip_log import MIN_SEEN, where
from flava_ds.data.sources import CONTENT, Lane, Promises
from flava_ds.errors import DataError, number_of
from flava_ds.storage import faults
from flava_ds.storage.faults import SampleFault, counted
from flava_ds.storage.retry import policy_of
from flava_ds.storage.sample_table import Damaged, SampleTable, prepare_table, short_hash
from flava_ds.storage.shard_reader import ShardReader
from flava_ds.storage.shards import list_shards
from flava_ds.storage.small_objects import read_beside
from flava_ds.storage.unfinished import record_of, successes_in, warn_of_unfinished

COUNTED = 2**26
"""Samples whose keys are looked for in a skip list at the start, which takes some ten seconds."""
NAMED = 5
"""Damaged shards that are named at the start."""
SAMPLED = 8
"""Samples that are read at the start to tell one content from another."""


def prepare_source(config: Config, name: str) -> Path | None:
    """Indexes the shards of a source that have no index, and stores the table of a large one for all
    processes of this machine. Returns its folder, or None where none is stored, as of a stream. Warns of
    folders whose preparation was interrupted.

    Raises: DataError as IndexedShards does.
    """
    source = config.data.sources[name]
    if source.shards.startswith("pipe:"):
        return None
    shards = list_shards(source.shards, name, policy_of(config))
    warn_of_unfinished(shards)
    if source.reading == "stream":
        return None
    return prepare_table(shards, *member_fields(name, source))


class IndexedShards:
    """Reads the samples of one source by number, in any order."""

    promises = Promises(elastic=True, pooled_captions=True)

    def __init__(self, config: Config, name: str, *, table: Path | None = None) -> None:
        """Indexes the shards of config.data.sources[name], or maps the `table` that prepare_source has stored
        on this machine without looking at them.

        Raises: DataError when shards are missing, hold no usable sample, or more than max_skipped_share of
        their samples lack what the kind needs.
        """
        source = config.data.sources[name]
        self.config, self.name, self.source, self.kind = config, name, source, source.kind
        self.seed = source_seed(name, source.seed)
        fields, required = member_fields(name, source)
        shards = list_shards(source.shards, name, policy_of(config), known=table is not None)
        self.table = SampleTable(shards, fields, required, table)
        self.decoder = SampleDecoder(config, name)
        self._files = ShardReader(self.table.shards, self.table.stamps, config.data)
        self._check(required)
        data = config.data
        self.order = Order(
            seed=config.seed,
            source=self.seed,
            size=len(self),
            shuffle=data.shuffle,
            block_size=data.shuffle_block_size,
            window_blocks=data.shuffle_window_blocks,
        )

    def __len__(self) -> int:
        return len(self.table)

    @property
    def length(self) -> int:
        """Number of usable samples."""
        return len(self.table)

    def open(self, lane: Lane) -> IndexedDraws:
        """Opens the source; all lanes read the same stream."""
        return IndexedDraws(self)

    def state(self) -> dict[str, Any]:
        """Returns everything that determines the order of the samples."""
        skip_list = self.decoder.skip_list
        return {
            "samples": len(self),
            "keys": self.table.fingerprint,
            "order": str(self.order),
            "skip_list": skip_list.fingerprint if skip_list is not None else None,
            CONTENT: self.content,
        }

    @functools.cached_property
    def content(self) -> dict[str, str | None]:
        """Returns what tells these samples from others of the same keys, by the words that messages use; None
        for what is not known.
        """
        return {
            "the sizes and places of its members": self.table.layout,
            "the sha256 of its shards": self.table.contents,
            f"the bytes of {SAMPLED} of its samples": self._sampled(),
        }

    def _sampled(self) -> str:
        """Hashes what is read of SAMPLED samples at even distances."""
        digest = hashlib.sha256()
        for index in np.linspace(0, len(self) - 1, min(SAMPLED, len(self)), dtype=np.int64).tolist():
            try:
                for name, data in sorted(self.read(index).items()):
                    digest.update(f"{index} {name} {len(data)} ".encode() + data)
            except SampleFault as fault:
                digest.update(f"{index} {fault.reason} ".encode())
        return digest.hexdigest()[:16]

    def seen(self) -> dict[str, Any]:
        """Returns what must be equal in every rank's copy of the shards."""
        return {
            "samples": len(self),
            "the sizes of its shards": short_hash(str([size for size, _ in self.table.stamps])),
            "the keys of its samples": self.table.fingerprint,
            **self.content,
        }

    def notes(self, lane: Lane) -> list[str]:
        """Returns log lines: what is compared, what the skip list's keys take out, what else is left out, and
        damaged shards.
        """
        lines = [self._compared(), *self._taken_out()]
        if self.table.faults:
            damaged = faults.lossy(self.table.faults).keys() & set(faults.OF_A_SHARD)
            named = "; `flava-ds prepare index` names the shards" if damaged else ""
            lines.append(
                f"source '{self.name}': {len(self)} usable samples; left out: "
                f"{counted(self.table.faults)}{named}"
            )
        return [*lines, *self._damaged()]

    def read(self, index: int, only: Sequence[str] | None = None) -> dict[str, bytes]:
        """Returns the raw bytes of a sample's fields that the source needs and the sample has.

        The fields are 'image', 'caption', 'codes', 'regions' and 'metadata'; `only`, if given, restricts
        them.

        Raises: SampleFault 'truncated' when the shard is shorter than its index says, 'too many bytes' for a
        member above data.max_member_bytes, 'skip list' when the skip list has its key; DataError when the
        shard cannot be opened.
        """
        shard = self.table.shard_of(index)
        if self.decoder.skip_list is not None:
            self.decoder.check_key(self.table.key(index), str(self.table.shards[shard]))
        found = {}
        for name, (offsets, sizes) in self.table.columns.items():
            offset, size = int(offsets[index]), int(sizes[index])
            if offset >= 0 and (only is None or name in only):
                self.decoder.check_size(name, size)
                found[name] = self._files.read(shard, offset, size)
        return found

    def decode(self, fields: dict[str, bytes], index: int, seed: int, draw: float | None = None) -> Sample:
        """Decodes the fields from `read`. Chooses one of several captions by `draw` in [0, 1), or the seed.

        Raises: SampleFault with the reason.
        """
        return self.decoder(fields, self.table.key(index), index, seed, draw)

    def describe(self, index: int) -> dict[str, Any]:
        """Identifies a sample in the quarantine list: source, shard, key, offset of its first field."""
        offsets = [int(offset[index]) for offset, _ in self.table.columns.values() if offset[index] >= 0]
        shard = str(self.table.shards[self.table.shard_of(index)])
        return {
            "source": self.name,
            "shard": shard,
            "key": self.table.key(index),
            "offset": min(offsets, default=-1),
        }

    def where(self, index: int) -> str:
        """Names a sample for messages."""
        return where(self.describe(index))

    def _taken_out(self) -> list[str]:
        """Says how many samples the skip list takes out by their keys. How many it takes out by their
        pictures, only reading those can tell.
        """
        skip_list = self.decoder.skip_list
        if skip_list is None or not (keys := skip_list.named):
            return []
        seen = min(len(self), COUNTED)
        count = sum(
            skip_list.has_key(self.table.key(sample), str(self.table.shards[self.table.shard_of(sample)]))
            for sample in self.table.having(keys, seen)
        )
        first = "" if seen == len(self) else "first "
        doubt = f"; more than half: is '{self.source.skip_list}' the list for these shards?"
        return [
            f"source '{self.name}': the keys of its skip list take out {count or 'none'} of its {first}{seen}"
            f" samples{doubt if 2 * count > seen else ''}"
        ]

    def _damaged(self) -> list[str]:
        """Names some of the damaged shards, and what they have lost where a record beside them tells."""
        if not (damaged := self.table.damaged):
            return []
        named = [self._damage(found) for found in damaged[:NAMED]]
        more = f" and {len(damaged) - NAMED} more" if damaged[NAMED:] else ""
        return [
            f"source '{self.name}': {len(damaged)} of {len(self.table.shards)} shards are damaged: "
            f"{', '.join(named)}{more}; replace them: max_skipped_share counts none of the lost samples"
        ]

    def _damage(self, found: Damaged) -> str:
        """Names a damaged shard, its faults, and the samples that are left of those that were written."""
        shard, left = self.table.shards[found.shard], ""
        with suppress(OSError, ValueError, KeyError, TypeError):
            written = successes_in(read_beside(shard, record_of(shard)) or b"{}")
            left = f", {found.samples} of {written} samples left" if type(written) is int else ""
        return f"{shard} ({counted(found.faults)}{left})"

    def _compared(self) -> str:
        """Says what ranks, and a run that goes on, compare of the data."""
        known = ["keys", *(what.removeprefix("the ") for what, value in self.content.items() if value)]
        more = "" if self.table.contents else " (`flava-ds prepare index` adds a sha256 of every shard)"
        return f"source '{self.name}': ranks and resumed runs compare {', '.join(known)}{more}"

    def _check(self, required: dict[str, str]) -> None:
        """Raises DataError when the source has too few usable samples."""
        if not len(self):
            needs = " and ".join(required)
            where = f" in {self.table.shards[0]}" if len(self.table.shards) else ""
            key, option = self.source.caption_key, f"--data.sources.{self.name}.caption-key"
            hint = ""
            if faults.NO_REGIONS in self.table.faults:
                hint = "; `flava-ds prepare regions SHARDS OUT` copies shards and adds them"
            elif key:
                hint = f"; captions come from the .json's '{key}': set {option} None (null in a file) for "
                hint += "the .txt"
            if faults.DOTTED in self.table.faults:
                hint += "; a key ends at the first dot of a name: take the dots out of keys"
            raise DataError(
                f"{self._counts()}; kind '{self.kind}' needs {needs} in each sample, and no sample has that"
                f"{where}{hint}"
            )
        self.check_losses(self.source.max_skipped_share)

    def check_losses(self, limit: float) -> None:
        """Raises DataError when more than `limit` of the samples lack what the kind needs, or are damaged."""
        lost = sum(faults.lossy(self.table.faults).values())
        if len(self) + lost >= MIN_SEEN and lost > limit * (len(self) + lost):
            raise DataError(
                f"{self._counts()}; more than max_skipped_share {limit}: repair the shards or raise "
                f"--data.sources.{self.name}.max-skipped-share"
            )

    def _counts(self) -> str:
        """Says how many samples are usable, and how many are not for which reason."""
        shards = number_of(len(self.table.shards), "shard")
        return (
            f"source '{self.name}': {len(self)} usable samples in {shards}; not usable: "
            f"{counted(self.table.faults)}"
        )
