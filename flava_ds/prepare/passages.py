"""CCNews, BookCorpus and your own texts: splits documents into passages, one per text sample."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from flava_ds.data.two_segments import sentences
from flava_ds.errors import DataError
from flava_ds.prepare.annotations import (
    NO_CAPTION,
    NOT_ENGLISH,
    Annotated,
    Dropped,
    clean,
    load_json,
    numbered_json_lines,
    open_text,
)

MOST_WORDS = 350
"""About 460 WordPiece tokens, so that few passages are truncated at 512."""
_TEXT_FIELDS = ("maintext", "text")
_SUFFIXES = re.compile(r"(\.(jsonl?|txt|epub|html?|gz|bz2))+$")
_MOST_BYTES, _KEPT_LETTERS = 64, 10
"""Longer document names are truncated, as a tar header has room for 100 bytes, and made unique by a hash."""


def read_bookcorpus(paths: Sequence[Path]) -> Iterator[Annotated | Dropped]:
    """Yields passages of books_large_p1.txt and books_large_p2.txt, or of a folder with one .txt per book.

    The former have one sentence per line.

    Source: Zhu et al. 2015; the folder form is BookCorpusOpen's.
    """
    for path, name in _files(paths, (".txt",)):
        yield from _lines(path, name)


def read_ccnews(paths: Sequence[Path]) -> Iterator[Annotated | Dropped]:
    """Yields passages of articles: .json files with one article each, or .jsonl with one per line.

    The text is in `maintext` (news-please) or `text`. Drops articles whose `language` is not English.

    Source: news-please, the extractor for Common Crawl's news archive; `cc_news` of Hugging Face.
    """
    for path, name in _files(paths, (".json", ".jsonl")):
        yield from _articles(path, name, (None, "en"))


def read_own(paths: Sequence[Path]) -> Iterator[Annotated | Dropped]:
    """Yields passages of texts in any language: plain files, or .json and .jsonl of the fields that
    read_ccnews takes. A folder stands for its .txt, .json and .jsonl files; all may be .gz or .bz2.

    Raises: DataError for other bytes than UTF-8, too.
    """
    for path, name in _files(paths, (".txt", ".json", ".jsonl")):
        structured = {".json", ".jsonl"} & set(path.suffixes)
        yield from _articles(path, name, strict=True) if structured else _lines(path, name, strict=True)


def _lines(path: Path, name: str, *, strict: bool = False) -> Iterator[Annotated]:
    """Yields the passages of a plain file; `strict` is that of `open_text`."""
    with open_text(path, strict=strict) as stream:
        yield from _numbered(name, passages(stream))


def _articles(
    path: Path, name: str, languages: Sequence[str | None] | None = None, *, strict: bool = False
) -> Iterator[Annotated | Dropped]:
    """Yields the passages of a file's articles, of those whose `language` is one of `languages`, if given."""
    lines = ".jsonl" in path.suffixes
    articles = numbered_json_lines(path, strict=strict) if lines else [(1, load_json(path, strict=strict))]
    for number, (line, article) in enumerate(articles):
        text = next((article[field] for field in _TEXT_FIELDS if isinstance(article.get(field), str)), "")
        if languages is not None and article.get("language") not in languages:
            yield Dropped(NOT_ENGLISH)
        elif not clean(text):
            yield Dropped(NO_CAPTION, f"{path}, line {line}" if lines else str(path))
        else:
            yield from _numbered(f"{name}-{number:06d}", passages(text.splitlines()))


def passages(lines: Iterable[str], most: int = MOST_WORDS) -> Iterator[str]:
    """Joins lines into passages of at most `most` words.

    Splits longer lines between sentences, and longer sentences between words.
    """
    held: list[str] = []
    for line in lines:
        for sentence in sentences(clean(line)):
            words = sentence.split()
            while words:
                if held and len(held) + len(words) > most:
                    yield " ".join(held)
                    held = []
                held, words = held + words[:most], words[most:]
    if held:
        yield " ".join(held)


def _numbered(name: str, texts: Iterable[str]) -> Iterator[Annotated]:
    """Names passages after their document."""
    for number, text in enumerate(texts):
        yield Annotated(key=f"{name}-{number:07d}", captions=(text,))


def _files(paths: Sequence[Path], suffixes: tuple[str, ...]) -> Iterator[tuple[Path, str]]:
    """Yields files, and the files in folders sorted by name, each with a prefix of its own for its keys.

    Raises: DataError for a folder without any.
    """
    given = Counter(path.name for path in paths)
    found: list[tuple[Path, int, str]] = []
    for number, path in enumerate(paths):
        unlike = f"{number}/" if given[path.name] > 1 else ""
        if not path.is_dir():
            found.append((path, number, unlike + path.name))
            continue
        files = [file for file in path.rglob("*") if file.is_file()]
        own = sorted(file for file in files if set(suffixes) & set(file.suffixes))
        if not own:
            raise DataError(f"folder '{path}' holds no {' or '.join(suffixes)} file")
        found += [(file, number, unlike + file.relative_to(path).as_posix()) for file in own]
    alike = Counter(_name(place) for _, _, place in found)
    same = Counter(place for _, _, place in found)  # of several folders
    for file, number, place in found:
        unlike = f"{number}/{place}" if same[place] > 1 else place
        digest = hashlib.sha256(unlike.encode("utf-8", "surrogateescape")).hexdigest()
        yield file, _name(place) + (f"-{digest[:8]}" if alike[_name(place)] > 1 else "")


def _name(place: str) -> str:
    """Makes the prefix of keys from a file's path: files of one name in two folders are two documents."""
    name = re.sub(r"[^\w-]", "_", _SUFFIXES.sub("", place))
    if len(name.encode()) <= _MOST_BYTES:
        return name
    digest = hashlib.sha256(place.encode("utf-8", "surrogateescape")).hexdigest()
    return f"{name[:_KEPT_LETTERS]}-{digest[:24]}"
