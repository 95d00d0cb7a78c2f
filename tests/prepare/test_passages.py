"""Documents to passages: nothing is lost, nothing is longer than allowed, cuts lie between sentences."""

import gzip
import json

import pytest

from flava_ds.errors import DataError
from flava_ds.prepare.annotations import NO_CAPTION, NOT_ENGLISH, Annotated, Dropped
from flava_ds.prepare.convert import write_shards
from flava_ds.prepare.corpora import CORPORA
from flava_ds.prepare.passages import passages, read_bookcorpus, read_ccnews, read_own


def test_passages_keep_every_word_and_end_with_sentences():
    lines = [f"sentence number {n} has {'many ' * (n % 7)}words ." for n in range(200)]
    found = list(passages(lines, most=40))
    assert " ".join(found).split() == " ".join(lines).split()
    assert all(len(text.split()) <= 40 and text.endswith("words .") for text in found) and all(
        len(text.split()) > 25 for text in found[:-1]
    )


def test_long_lines_are_cut_between_sentences_and_long_sentences_between_words():
    assert list(passages(["a b c. d e f. g h i."], most=4)) == ["a b c.", "d e f.", "g h i."]
    assert list(passages(["a b c d e f g h i"], most=4)) == ["a b c d", "e f g h", "i"]
    assert list(passages(["", " \n"])) == []


def test_bookcorpus_lines_become_passages(tmp_path):
    path = tmp_path / "books_large_p1.txt"
    path.write_text(
        "usually , he would be tearing around the living room .\nbut just one look at a minion sent him "
        "practically catatonic .\n"
    )
    [found] = read_bookcorpus([path])
    assert (
        found.key == "books_large_p1-0000000"
        and found.captions[0].startswith("usually , he")
        and found.captions[0].endswith("catatonic .")
    )


def test_folder_of_books_gives_passages_of_one_book_each(tmp_path):
    (tmp_path / "epubtxt").mkdir()
    for name in ("b book.epub.txt", "a-book.epub.txt"):
        (tmp_path / "epubtxt" / name).write_text("One.\n\nTwo.\n")
    found = [(entry.key, entry.captions) for entry in read_bookcorpus([tmp_path])]
    assert found == [("epubtxt_a-book-0000000", ("One. Two.",)), ("epubtxt_b_book-0000000", ("One. Two.",))]


def test_ccnews_as_news_please_and_as_lines(tmp_path):
    article = {
        "title": "Title",
        "description": None,
        "language": "en",
        "date_publish": "2019-01-01 10:00:00",
        "source_domain": "x.com",
        "url": "https://x.com/a",
    }
    (tmp_path / "one.json").write_text(json.dumps(article | {"maintext": "First line.\nSecond line."}))
    lines = [
        {"title": "T", "text": "Third.", "domain": "y.com"},
        article | {"language": "de", "maintext": "Erste."},
        article | {"maintext": None},
    ]
    (tmp_path / "two.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    first, second, german, empty = read_ccnews([tmp_path])
    assert (first.key, first.captions) == ("one-000000-0000000", ("First line. Second line.",))
    assert (second.key, second.captions) == ("two-000000-0000000", ("Third.",))
    assert german == Dropped(NOT_ENGLISH) and empty == Dropped(
        NO_CAPTION, f"{tmp_path / 'two.jsonl.gz'}, line 3"
    )


def test_documents_of_one_name_and_of_long_names_are_all_written(tmp_path):
    """news-please names a file after its article's address; a folder a year holds files of the same names."""
    address = "https%3A%2F%2Fwww.example.com%2F" + "%E6%96%B0%E8%81%9E" * 8 + "%2F{}.html.json"
    names = [
        "2016/01.json",
        "2017/01.json",
        "www.a.com_x.json",
        "www.b.com_x.json",
        address.format(1),
        address.format(2),
        "\u65b0" * 60 + ".json",
        "a.b.json",
        "a_b.json",
    ]
    for number, name in enumerate(names):
        (tmp_path / "news" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "news" / name).write_text(json.dumps({"maintext": f"Article {number}."}))
    counts = write_shards(CORPORA["ccnews"], [tmp_path / "news"], None, tmp_path / "out")
    assert counts.samples == len(names) and not counts.dropped
    alone = [tmp_path / "news" / name for name in names[:2]]
    assert [entry.key for entry in read_ccnews(alone)] == ["0_01-000000-0000000", "1_01-000000-0000000"]


def test_folder_without_documents_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no .json or .jsonl file"):
        list(read_ccnews([tmp_path]))


def test_own_texts_are_read_plain_and_from_json_in_any_language(tmp_path):
    (tmp_path / "a.txt").write_text("One line.\nAnother one.\n")
    (tmp_path / "b.jsonl").write_text('{"text": "Eine Zeile.", "language": "de"}\n\n{"title": "no text"}\n')
    (tmp_path / "c.json").write_text('{"maintext": "An article."}')
    (tmp_path / "d.csv").write_text("not read")
    (tmp_path / "d.json").write_text(json.dumps({"text": "\0 \ud800"}))
    (tmp_path / "e.md").write_text("Only where it is named.")
    found = list(read_own([tmp_path, tmp_path / "e.md"]))
    assert [entry.captions[0] if isinstance(entry, Annotated) else entry for entry in found] == [
        "One line. Another one.",
        "Eine Zeile.",
        Dropped(NO_CAPTION, f"{tmp_path / 'b.jsonl'}, line 3"),
        "An article.",
        Dropped(NO_CAPTION, str(tmp_path / "d.json")),
        "Only where it is named.",
    ]


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("a.txt", "good\n\ngrüner Käse\n", 3),
        ("b.json", '{"text": "ü"}', 1),
        ("c.jsonl", '{"text": "a"}\n{"text": "ü"}\n', 2),
    ],
)
def test_own_texts_in_another_encoding_are_refused_and_not_mended(tmp_path, name, text, line):
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=f"{name}', line {line}: not UTF-8: byte 0xfc after"):
        list(read_own([tmp_path]))


def test_files_of_one_name_in_two_folders_are_two_documents(tmp_path):
    for folder in ("wiki", "news"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.txt").write_text(f"The first of {folder}.")
    (tmp_path / "wiki" / "2.txt").write_text("One more.")
    places = [tmp_path / "wiki", tmp_path / "news"]
    keys = [entry.key for entry in read_own(places)]
    assert len(set(keys)) == 3 and "2-0000000" in keys and keys == [entry.key for entry in read_own(places)]
    assert write_shards(CORPORA["own_text"], places, None, tmp_path / "out").samples == 3


def test_a_json_without_an_object_is_refused(tmp_path):
    (tmp_path / "list.json").write_text('[{"text": "a"}]')
    with pytest.raises(DataError, match="list.json': list instead of an object; is this the file that"):
        list(read_own([tmp_path / "list.json"]))
