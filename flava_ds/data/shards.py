"""From SourceConfig.shards to a sorted list of local .tar files."""

from __future__ import annotations

import re
from collections import deque
from pathlib import Path

from flava_ds.errors import DataError

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_LIST = re.compile(r"\{([^{}]*,[^{}]*)\}")
_MAX_SHARDS = 10_000_000


def expand_shards(shards: str, name: str = "") -> list[Path]:
    """Returns the .tar files that a folder, a single file or a brace pattern stands for, sorted, each once.

    Raises: DataError naming the source and what is missing, empty or refused.
    """
    label = f"source '{name}': " if name else ""
    if shards.lstrip().startswith("pipe:"):
        raise DataError(f"{label}shards '{shards}' would run a shell command, which is refused; copy or mount the shards and name the folder")
    if re.match(r"\s*[a-zA-Z][a-zA-Z0-9+.-]*://", shards):
        raise DataError(f"{label}shards '{shards}' is a URL; shards are read by offset from local files, so copy or mount them and name the folder")
    path = Path(shards).expanduser()
    if path.is_dir():
        found = sorted(path.glob("*.tar"))
        if not found:
            raise DataError(f"{label}folder '{path}' holds no .tar file; point data.sources[].shards at a folder of shards")
        return found
    found = [Path(entry).expanduser() for entry in sorted(set(expand_braces(shards)))]
    for shard in found:
        if shard.is_dir() or shard.suffix != ".tar":
            raise DataError(f"{label}'{shard}' is not a .tar file; name a folder, one .tar or a pattern such as '/data/{{00000..00099}}.tar'")
        if not shard.is_file():
            raise DataError(f"{label}shard '{shard}' does not exist; check data.sources[].shards = '{shards}'")
    return found


def expand_braces(pattern: str) -> list[str]:
    """Expands '{000..123}' (keeping leading zeros) and '{a,b}' like a shell, in order.

    Raises: DataError on a range that runs backwards or on an unreasonable number of results.
    """
    done, pending = [], deque([pattern])
    while pending:
        if len(done) + len(pending) > _MAX_SHARDS:
            raise DataError(f"pattern '{pattern}' expands to more than {_MAX_SHARDS} shards")
        text = pending.popleft()
        match = _RANGE.search(text) or _LIST.search(text)
        if match is None:
            done.append(text)
        elif match.re is _RANGE:
            first, last = match.groups()
            if int(last) < int(first) or int(last) - int(first) >= _MAX_SHARDS:
                raise DataError(f"pattern '{pattern}': range {{{first}..{last}}} runs backwards or is too long")
            width = len(first) if first.startswith("0") or len(first) == len(last) else 0
            pending += [text[: match.start()] + str(number).zfill(width) + text[match.end() :] for number in range(int(first), int(last) + 1)]
        else:
            pending += [text[: match.start()] + choice + text[match.end() :] for choice in match.group(1).split(",")]
    return done
