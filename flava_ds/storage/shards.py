"""Expands SourceConfig.shards into a sorted list of .tar files, local or remote (through fsspec)."""

from __future__ import annotations

import functools
import logging
import math
import re
import stat
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from flava_ds.config.plain_files import read_small
from flava_ds.errors import DataError, first_of
from flava_ds.storage.files import PipedShard, RemoteShard, Shard, StreamedShard
from flava_ds.storage.parallel import AT_ONCE, ahead
from flava_ds.storage.retry import DEFAULT, ReadPolicy, call, file_system
from flava_ds.storage.small_objects import fetch
from flava_ds.storage.unfinished import warn_of_unfinished

log = logging.getLogger(__name__)

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_LIST = re.compile(r"\{([^{}]*,[^{}]*)\}")
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")
_NEARLY = re.compile(r".+\.(tar(\.(gz|bz2|xz|zst|lz4))?|tgz|tbz2?|txz|tzst)", re.IGNORECASE)
_MAX_SHARDS, _MAX_DIGITS, _MAX_CHARACTERS = 10_000_000, 20, 2**31


def list_shards(
    shards: str, name: str = "", policy: ReadPolicy = DEFAULT, *, known: bool = False
) -> list[Shard]:
    """Returns the .tar files that `shards` names, sorted and without duplicates.

    `shards` is a folder, one file or a brace pattern, each local or a URL such as 's3://bucket/folder' or
    'https://host/{00000..00099}.tar', or a .txt file that lists such entries, one per line; relative entries
    start from its folder. Those of a local pattern are looked for, unless they are `known`.

    Raises: DataError that names the source and what is missing, empty or refused.
    """
    label = _label(name)
    found: set[Shard] = set()
    for entry in _entries(shards.strip(), label, policy):
        found.update(_expand(entry, shards, name, policy, known))
        if len(found) > _MAX_SHARDS:
            raise DataError(f"{label}'{shards}' names more than {_MAX_SHARDS} shards")
    remote = sum(isinstance(shard, RemoteShard) for shard in found)
    if 0 < remote < len(found):
        raise DataError(f"{label}'{shards}' mixes local and remote shards; make two sources of them")
    return sorted(found)


def list_streamed(
    shards: str, name: str, policy: ReadPolicy = DEFAULT, *, pipes: bool
) -> Sequence[StreamedShard]:
    """Returns the result of list_shards for streams. With `pipes`, `shards` may also be 'pipe:COMMAND', with
    braces: the command's output is a shard. Entries of a list may not.

    Raises: DataError as list_shards does.
    """
    if pipes and shards.startswith("pipe:"):
        return [PipedShard(command) for command in expand_braces(shards.removeprefix("pipe:"))]
    return list_shards(shards, name, policy)


def expand_shards(shards: str) -> list[Path]:
    """Returns the result of list_shards for callers that read whole local files.

    Warns of folders whose preparation was interrupted.

    Raises: DataError as list_shards does, and for URLs.
    """
    found = list_shards(shards)
    local = [shard for shard in found if isinstance(shard, Path)]
    if len(local) < len(found):
        raise DataError(
            f"shards '{found[0]}' is a URL; only training and `prepare index` read URLs: copy or "
            "mount the shards"
        )
    warn_of_unfinished(local)
    return local


def _entries(shards: str, label: str, policy: ReadPolicy) -> Iterator[str]:
    """Yields the lines of a list file, or `shards` itself."""
    if not shards.split("?", 1)[0].endswith(".txt"):
        yield shards
        return
    try:
        if _URL.match(shards):
            text, folder = (
                fetch(RemoteShard(shards, policy)).decode("utf-8-sig"),
                RemoteShard(shards).parent + "/",
            )
        else:
            path = Path(shards).expanduser()
            text, folder = read_small(path).decode("utf-8-sig"), f"{path.parent}/"
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{label}list of shards '{shards}' cannot be read: {error}") from error
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if not lines:
        raise DataError(f"{label}list of shards '{shards}' is empty")
    for line in lines:
        yield line if _URL.match(line) or line.startswith(("/", "~", "pipe:")) else folder + line


def _expand(entry: str, shards: str, name: str, policy: ReadPolicy, known: bool) -> Sequence[Shard]:
    """Returns the shards of one folder, file or pattern."""
    label = _label(name)
    if entry.startswith("pipe:"):
        way = "name a folder or a URL"
        if name and entry == shards:  # lists cannot introduce commands
            option = f"--data.sources.{name}"
            way += f", or allow it with {option}.reading stream {option}.allow-code"
        raise DataError(
            f"{label}shards '{entry}' would run a shell command, which is not allowed here; {way}"
        )
    if "::" in entry:
        raise DataError(
            f"{label}'{entry}' chains protocols with '::'; use one protocol, data.cache_directory keeps "
            "local copies"
        )
    if entry.startswith("file://"):
        entry = entry.removeprefix("file://")
    if _URL.match(entry):
        return _expand_url(entry, label, policy)
    try:
        return _expand_path(entry, shards, name, known)
    except (OSError, RuntimeError, ValueError) as error:  # a name that no file system takes, ~ of nobody
        raise DataError(f"{label}'{entry:.200}' cannot be looked for: {error!s:.200}") from error


def _expand_path(entry: str, shards: str, name: str, known: bool) -> list[Path]:
    """Returns the shards of one local folder, file or pattern."""
    label = _label(name)
    path = Path(entry).expanduser()
    if path.is_dir():
        found = sorted(path.glob("*.tar"))
        left_out = nearly_shards(file.name for file in path.iterdir())
        if not found:
            if left_out:
                raise DataError(f"{label}folder '{path}' holds no .tar file, but {_named(left_out)}")
            inside = sorted({str(shard.parent) for shard in path.glob("*/*.tar")})
            there = f"; {', '.join(inside[:4])} do" if inside else ""
            way_out = f"point {_option(name)} at" if name else "give"
            raise DataError(f"{label}folder '{path}' holds no .tar file{there}; {way_out} a folder of shards")
        _say_left_out(str(path), left_out)
        return found
    found = [Path(expanded).expanduser() for expanded in expand_braces(entry)]
    if known:
        return found
    modes = ahead(_mode, found, threads=AT_ONCE, most=AT_ONCE)  # ends with the first that is missing
    for shard, mode in zip(found, modes, strict=True):
        if stat.S_ISDIR(mode) or shard.suffix != ".tar":
            fault = "is not a .tar file" if mode else "does not exist"
            raise DataError(
                f"{label}'{shard}' {fault}; name a folder, one .tar, a .txt list or a pattern "
                f"such as '/data/{{00000..00099}}.tar'{unexpanded(shards)}"
            )
        if not stat.S_ISREG(mode):
            raise DataError(
                f"{label}shard '{shard}' does not exist; check {_option(name)} '{shards}'{unexpanded(shards)}"
            )
    return found


def unexpanded(shards: str) -> str:
    """Returns what to add to an error about a place that has a $, as of a shell's variable; else nothing."""
    return "; variables are not expanded, so write the path in full" if "$" in shards else ""


def _mode(path: Path) -> int:
    """Returns the type and permissions of a file; 0 where there is none."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0


def _expand_url(entry: str, label: str, policy: ReadPolicy) -> list[RemoteShard]:
    """Returns the shards of a URL. Their existence is checked when they are indexed."""
    found = [RemoteShard(expanded, policy) for expanded in expand_braces(entry)]
    if all(shard.name.endswith(".tar") for shard in found):
        return found
    tars = []
    for folder in found:
        fs, _ = file_system(folder.url)
        files = call(folder.url, "ls", policy, detail=False)
        _say_left_out(folder.url, nearly_shards(file.split("?", 1)[0].rsplit("/", 1)[-1] for file in files))
        listed = [fs.unstrip_protocol(file) for file in files if file.split("?", 1)[0].endswith(".tar")]
        if not listed:
            raise DataError(
                f"{label}no .tar file in '{folder}'; name the folder of the shards, one .tar, a "
                "pattern or a .txt list"
            )
        tars += [RemoteShard(url, policy) for url in listed]
    return tars


def nearly_shards(names: Iterable[str]) -> tuple[str, ...]:
    """Returns the names of files that are probably meant as shards and are not read, sorted."""
    return tuple(sorted(name for name in names if _NEARLY.fullmatch(name) and not name.endswith(".tar")))


@functools.cache
def _say_left_out(folder: str, names: tuple[str, ...]) -> None:
    """Says once which files of a folder are not read."""
    if names:
        log.warning("%s: not read, as only .tar files are: %s", folder, _named(names))


def _named(names: tuple[str, ...]) -> str:
    """Names the first files and what to do."""
    return f"{first_of(names, 3)}; unpack compressed ones, and name them .tar"


def _label(name: str) -> str:
    """Returns what a message about a source begins with."""
    return f"source '{name}': " if name else ""


def _option(name: str) -> str:
    """Returns the command line option that sets a source's shards."""
    return f"--data.sources.{name or 'NAME'}.shards"


def expand_braces(pattern: str) -> list[str]:
    """Expands '{000..123}' (keeping leading zeros) and '{a,b}' like a shell, in order.

    Raises: DataError for a range that runs backwards, or for too many results.
    """
    done, pending = [], deque([pattern])
    ranges, lists = _RANGE.finditer(pattern), _LIST.finditer(pattern)
    counts = [_length(match, pattern) for match in ranges]
    counts += [match.group(1).count(",") + 1 for match in lists]
    if math.prod(counts) > _MAX_SHARDS:
        raise DataError(f"pattern '{pattern:.200}' expands to more than {_MAX_SHARDS} shards")
    while pending:
        text = pending.popleft()
        choices = _choices(text, pattern)
        if choices is None:
            done.append(text)
            continue
        before, after, words = choices
        if (
            len(words) * (len(done) + len(pending) + 1) > _MAX_SHARDS
            or len(words) * len(text) > _MAX_CHARACTERS
        ):
            raise DataError(f"pattern '{pattern:.200}' expands to more than {_MAX_SHARDS} shards")
        pending += [before + word + after for word in words]
    return done


def _choices(text: str, pattern: str) -> tuple[str, str, list[str]] | None:
    """Returns what stands before and after the first braces, and what they stand for; None when there are
    none.
    """
    match = _RANGE.search(text) or _LIST.search(text)
    if match is None:
        return None
    if match.re is _LIST:
        return text[: match.start()], text[match.end() :], match.group(1).split(",")
    first, last = match.groups()
    numbers = range(int(first), int(first) + _length(match, pattern))
    width = len(first) if first.startswith("0") or len(first) == len(last) else 0
    words = [str(number).zfill(width) for number in numbers]
    return text[: match.start()], text[match.end() :], words


def _length(match: re.Match[str], pattern: str) -> int:
    """Returns how many numbers a range has. Raises: DataError when it runs backwards or is too long."""
    first, last = match.groups()
    if max(len(first), len(last)) > _MAX_DIGITS or not 0 <= int(last) - int(first) < _MAX_SHARDS:
        raise DataError(
            f"pattern '{pattern:.200}': range {{{first:.40}..{last:.40}}} runs backwards or is too long"
        )
    return int(last) - int(first) + 1
