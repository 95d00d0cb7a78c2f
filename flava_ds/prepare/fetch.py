"""Small labelled sets that packages contain: downloaded by name, checked, and written as pictures or texts.

Nothing of them is part of this package, and some of their licences would not allow it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import pickle
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flava_ds.errors import DataError, UserError
from flava_ds.storage.files import SAFE_MEMBERS, sha256_of

EVERY = 5
"""Every fifth sample of each class is a test sample."""
SOURCE = "source.txt"
"""In a set's folder: the package that it is of."""


@dataclass(frozen=True)
class LabelledPicture:
    """One picture of a package."""

    label: str
    key: str
    data: bytes
    caption: str | None = None


@dataclass(frozen=True)
class LabelledText:
    """One text of a package."""

    label: str
    text: str
    second: str | None = None
    """The other text of a pair."""
    test: bool | None = None
    """Whether it is a test sample; None: every fifth of each class."""


@dataclass(frozen=True, kw_only=True)
class PackagedSet:
    """A labelled set of pictures or texts that a package contains."""

    name: str
    title: str
    licence: str
    registry: Literal["PyPI", "Debian", "npm", "installed"]
    """Where the package comes from; one that is installed need not be downloaded."""
    package: str
    version: str
    sha256: str
    """Of the package's file, or of `member`."""
    member: str | None = None
    """The file that holds the set, of a package that is installed."""
    pictures: Callable[[Path], Iterator[LabelledPicture]] | None = None
    """Reads them from the folder that the package was unpacked to."""
    texts: Callable[[Path], Iterator[LabelledText]] | None = None
    tasks: tuple[str, ...]


def fetch_set(wanted: PackagedSet, root: Path, package: Path | None = None) -> tuple[Path, dict[str, int]]:
    """Writes ROOT/NAME: train/ and test/ with a folder for each class, and dataset_NAME.json, as Karpathy's
    splits, where pictures have captions; of texts train.tsv and test.tsv. Returns the folder with the counts,
    none when it was there.

    Raises: UserError when the package cannot be had; DataError when it is another one than expected.
    """
    folder = root / wanted.name
    if folder.is_dir():
        check_source(wanted, folder)
        return folder, {}
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{wanted.name}-", dir=root) as temporary:
        place = Path(temporary)
        file = package or download(wanted, place)
        check(wanted, file)
        unpack(file, place / "package")
        try:
            if wanted.pictures is not None:
                counts = write(wanted.name, wanted.pictures(place / "package"), place / "set")
            else:
                assert wanted.texts is not None  # a set has one or the other
                counts = write_texts(wanted.texts(place / "package"), place / "set")
        except (OSError, ValueError, KeyError, pickle.PickleError) as error:
            raise DataError(
                f"{file}: of another layout than expected ({error}); tell the maintainers"
            ) from error
        (place / "set" / SOURCE).write_text(f"{source_of(wanted)}\n", encoding="utf-8")
        try:
            (place / "set").rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process has fetched it meanwhile
                raise
    return folder, counts


def source_of(wanted: PackagedSet) -> str:
    """Returns what a set's folder says it was made of."""
    return f"{wanted.package} {wanted.version} {wanted.sha256}"


def check_source(wanted: PackagedSet, folder: Path) -> None:
    """Raises DataError for a folder that holds something else than this set of this version."""
    file, expected = folder / SOURCE, source_of(wanted)
    found = file.read_text(encoding="utf-8", errors="replace").strip() if file.is_file() else ""
    if found != expected:
        raise DataError(
            f"{folder}: is there already, and {SOURCE} {f'names {found[:200]}' if found else 'is missing'}, "
            f"where this set is made of {expected}; move the folder, or give another --data"
        )


def download(wanted: PackagedSet, place: Path) -> Path:
    """Downloads the package with its registry's client into `place`, and returns the file; of an installed
    package, the one that it keeps the set in.

    Raises: UserError with what the client said, or naming the package that is not installed.
    """
    if wanted.registry == "installed":
        return _installed(wanted)
    commands = {
        "PyPI": [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"),
            f"{wanted.package}=={wanted.version}",
        ],
        "Debian": ["apt-get", "--quiet", "download", f"{wanted.package}={wanted.version}"],
        "npm": ["npm", "pack", "--silent", f"{wanted.package}@{wanted.version}"],
    }
    command = commands[wanted.registry]
    try:
        done = subprocess.run(command, cwd=place, capture_output=True, text=True)
    except OSError as error:
        raise UserError(f"{command[0]}: {error.strerror}; {_by_hand(wanted)}") from error
    found = [path for path in place.iterdir() if path.suffix in (".whl", ".deb", ".tgz")]
    if done.returncode or not found:
        said = " ".join((done.stderr or done.stdout).split())[-300:]
        raise UserError(f"{' '.join(command[:4])} ...: {said}; {_by_hand(wanted)}")
    return found[0]


def _installed(wanted: PackagedSet) -> Path:
    assert wanted.member is not None  # what is installed is read file by file
    try:
        file = Path(str(importlib.metadata.distribution(wanted.package).locate_file(wanted.member)))
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(
            f"{wanted.package}: is not installed; install {wanted.package} {wanted.version}, or give its "
            f"{wanted.member} with --from FILE"
        ) from error
    return file


def _by_hand(wanted: PackagedSet) -> str:
    return f"get {wanted.package} {wanted.version} of {wanted.registry} elsewhere, and give --from FILE"


def check(wanted: PackagedSet, file: Path) -> None:
    """Raises DataError unless a file is the package that the set is known from."""
    try:
        found = sha256_of(file)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error
    if found != wanted.sha256:
        raise DataError(
            f"{file}: has the SHA-256 {found[:16]}..., expected {wanted.sha256[:16]}... of {wanted.package} "
            f"{wanted.version}; get that version"
        )


def unpack(file: Path, folder: Path) -> None:
    """Unpacks a wheel, a Debian package or one of npm; a compressed table is copied as it is.

    Raises: UserError; DataError.
    """
    if file.suffix == ".gz":
        folder.mkdir()
        shutil.copy(file, folder / file.name)
        return
    if file.suffix == ".deb":
        if shutil.which("dpkg-deb") is None:
            raise UserError(f"{file.name}: needs dpkg-deb to be unpacked; run this on Debian or Ubuntu")
        done = subprocess.run(["dpkg-deb", "-x", str(file), str(folder)], capture_output=True, text=True)
        if done.returncode:
            raise DataError(f"{file}: cannot be unpacked ({done.stderr.strip()[:200]})")
        return
    try:
        if file.suffix == ".tgz":
            with tarfile.open(file) as packed:
                packed.extraction_filter = SAFE_MEMBERS
                packed.extractall(folder)
            return
        with zipfile.ZipFile(file) as archive:
            archive.extractall(folder)
    except (OSError, ValueError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise DataError(f"{file}: cannot be unpacked ({error})") from error


def write(name: str, pictures: Iterable[LabelledPicture], folder: Path) -> dict[str, int]:
    """Writes pictures, of equal ones the first, and returns how many each split has."""
    seen: set[bytes] = set()
    of_class: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    listed = []
    for picture in pictures:
        digest = hashlib.sha256(picture.data).digest()
        if digest in seen:
            counts["copies left out"] += 1
            continue
        seen.add(digest)
        split = "test" if of_class[picture.label] % EVERY == EVERY - 1 else "train"
        of_class[picture.label] += 1
        counts[split] += 1
        place = Path(split, picture.label)
        (folder / place).mkdir(parents=True, exist_ok=True)
        (folder / place / picture.key).write_bytes(picture.data)
        if picture.caption is not None:
            sentences = [{"raw": picture.caption}]
            entry = {"filepath": place.as_posix(), "filename": picture.key, "split": "test"}
            listed.append(entry | {"sentences": sentences})
    if listed:
        text = json.dumps({"dataset": name, "images": listed}, indent=1)
        (folder / f"dataset_{name}.json").write_text(text, encoding="utf-8")
    return dict(counts)


def write_texts(texts: Iterable[LabelledText], folder: Path) -> dict[str, int]:
    """Writes train.tsv and test.tsv with one text, or pair of texts, per line, of equal ones the first.
    Returns the counts of the splits.

    Raises: ValueError if there are no texts.
    """
    seen: set[tuple[str, ...]] = set()
    of_class: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    lines: dict[str, list[str]] = {"train": [], "test": []}
    columns: tuple[str, ...] = ("text",)
    for sample in texts:
        columns = ("text",) if sample.second is None else ("text", "second")
        told = tuple(" ".join(text.split()) for text in (sample.text, sample.second) if text is not None)
        if not all(told) or told in seen:
            counts["copies left out"] += 1
            continue
        seen.add(told)
        in_turn = of_class[sample.label] % EVERY == EVERY - 1
        split = "test" if (in_turn if sample.test is None else sample.test) else "train"
        of_class[sample.label] += 1
        counts[split] += 1
        lines[split].append("\t".join((*told, sample.label)) + "\n")
    if not seen:
        raise ValueError("it holds no texts")
    folder.mkdir()
    for split, rows in lines.items():
        header = "\t".join((*columns, "label")) + "\n"
        (folder / f"{split}.tsv").write_text(header + "".join(rows), encoding="utf-8")
    return dict(counts)
