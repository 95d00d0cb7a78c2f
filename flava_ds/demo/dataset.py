"""Unpacks the committed demo data set and locates its parts."""

import hashlib
import json
import secrets
import shutil
import tarfile
from pathlib import Path

from flava_ds.errors import DataError
from flava_ds.storage.files import SAFE_MEMBERS, sha256_of, user_cache

PACKAGE = Path(__file__).parent
CHECKSUMS = PACKAGE / "checksums.json"
MOST_UNPACKED_BYTES = 2**29  # keeps a damaged archive from filling the disk


def default_target() -> Path:
    """Returns this version's folder in the user's cache; `FLAVA_DS_CACHE` moves the cache."""
    return user_cache() / f"demo-{hashlib.sha256(CHECKSUMS.read_bytes()).hexdigest()[:12]}"


def unpack(target: Path | None = None) -> Path:
    """Unpacks the data set once, and returns its folder; later calls only check.

    Of its folders of shards, `pairs-train` has six drawing styles, `pairs-unseen-style` the same concepts in
    two styles that training never sees, and `pairs-unseen-concepts` concepts that training never sees, in all
    styles.

    The folder appears atomically, so several processes may call this at the same time.

    Raises: DataError if an archive is missing or damaged, or `target` has other contents.
    """
    target = default_target() if target is None else Path(target)
    if not _is_complete(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        # not tempfile's, which is for its owner alone, whatever the umask
        staging = target.with_name(f".{target.name}-{secrets.token_hex(8)}")
        staging.mkdir()
        try:
            _extract(staging)
            _publish(staging, target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return target


def _is_complete(target: Path) -> bool:
    stamp = target / CHECKSUMS.name
    return stamp.is_file() and stamp.read_bytes() == CHECKSUMS.read_bytes()


def _extract(staging: Path) -> None:
    """Verifies and extracts the archives, verifies every file, and adds the checksums as a stamp."""
    checksums = json.loads(CHECKSUMS.read_text("utf-8"))
    for name, expected in checksums["archives"].items():
        archive = PACKAGE / "data" / name
        if not archive.is_file():
            raise DataError(
                f"{archive} is missing: install the package with its data, or check out the whole repository"
            )
        _verify(archive, expected)
        with tarfile.open(archive, "r:xz") as tar:
            tar.extraction_filter = SAFE_MEMBERS
            room = MOST_UNPACKED_BYTES
            for member in tar:
                room -= member.size
                if room < 0:
                    raise DataError(
                        f"{archive} unpacks to more than {MOST_UNPACKED_BYTES} bytes: check it out again"
                    )
                tar.extract(member, staging)
    for name, expected in checksums["files"].items():
        _verify(staging / name, expected)
    shutil.copyfile(CHECKSUMS, staging / CHECKSUMS.name)


def _verify(path: Path, expected: str) -> None:
    if (found := sha256_of(path)) != expected:
        raise DataError(
            f"{path} has SHA-256 {found}, expected {expected}: the file is damaged, check it out again"
        )


def _publish(staging: Path, target: Path) -> None:
    """Moves the finished folder into place, unless another process was faster.

    Not with storage/atomic.py: a rename cannot replace a folder with contents, and need not here.
    """
    try:
        staging.rename(target)
    except OSError as error:
        if not _is_complete(target):
            raise DataError(
                f"{target} exists and is not this version of the demo data: remove it or choose another "
                "folder"
            ) from error
