"""WordNet's files, as glosses with a category and as examples with a gloss that fits or does not."""

import csv
import dataclasses
import hashlib
import io
import tarfile

import pytest

from flava_ds.evaluation.registry import find
from flava_ds.evaluation.runner import find_all
from flava_ds.prepare.fetch import fetch_set
from flava_ds.prepare.fetchable import SETS
from flava_ds.prepare.wordnet import is_test_word, read_synsets, word_of

LICENCE = "  1 This software and database is being provided to you, the LICENSEE, by\n"
NOUNS = """\
00000100 05 n 02 bank 0 riverbank 1 001 @ 00000200 n 0000 | sloping land beside water; "they sat on the bank"
00000200 04 n 01 bank 0 000 | a firm that keeps money; "he cashed it at a bank"; "a bank holiday"
00000300 05 n 01 bank 0 000 | an arrangement of similar objects in a row
00000400 13 n 02 pine_nut 0 pinon 0 000 | the seed of a pine tree; "she ate a pine nut"
00000500 13 n 01 nut 0 000 | a seed
"""
ADJECTIVES = '00000600 00 a 01 galore(ip) 0 000 | existing in large numbers; "daffodils galore"\n'


@pytest.fixture
def dictionary(tmp_path):
    """The four files in miniature: dict/ of a package."""
    folder = tmp_path / "package/dict"
    folder.mkdir(parents=True)
    for part, lines in {"noun": NOUNS, "verb": "", "adj": ADJECTIVES, "adv": ""}.items():
        (folder / f"data.{part}").write_text(LICENCE + lines)
    return folder


def test_synsets_are_read_with_words_category_definition_and_examples(dictionary):
    synsets = list(read_synsets(dictionary))
    assert [own.offset for own in synsets] == [f"00000{number}00" for number in range(1, 7)]
    bank = synsets[1]
    assert (bank.part, bank.words, bank.category) == ("noun", ("bank",), "noun.act")
    assert bank.definition == "a firm that keeps money"
    assert bank.uses == ("he cashed it at a bank", "a bank holiday")
    assert synsets[0].words == ("bank", "riverbank") and synsets[3].words == ("pine nut", "pinon")
    assert synsets[5].words == ("galore",) and synsets[5].category == "adj.all"
    assert [own.is_text for own in synsets] == [True, True, True, True, False, True]
    assert word_of(synsets[3].told("Pine nut")) == "pine nut"


def fetched(name, dictionary, tmp_path):
    """The set's folder and its counts."""
    file = tmp_path / "wordnet.tgz"
    with tarfile.open(file, "w:gz") as archive:
        archive.add(dictionary.parent, "package")
    known = dataclasses.replace(SETS[name], sha256=hashlib.sha256(file.read_bytes()).hexdigest())
    return fetch_set(known, tmp_path / "data", file)


def rows(folder):
    """All rows of both splits."""
    text = "".join((folder / f"{split}.tsv").read_text().split("\n", 1)[1] for split in ("train", "test"))
    return list(csv.reader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE))


def test_glosses_are_split_by_word(dictionary, tmp_path):
    folder, counts = fetched("wordnet_glosses", dictionary, tmp_path)
    texts = [text for text, _ in rows(folder)]
    assert sorted(texts)[0] == "bank: a firm that keeps money" and len(texts) == 5
    tests = [word_of(text) for text in (folder / "test.tsv").read_text().splitlines()[1:]]
    assert tests == [word for word in map(word_of, texts) if is_test_word(word)]
    assert sum(counts.values()) == 5


def test_an_example_has_the_gloss_of_its_own_or_of_another_sense_with_examples(dictionary, tmp_path):
    folder, _ = fetched("wordnet_uses", dictionary, tmp_path)
    found = {text: (second, label) for text, second, label in rows(folder)}
    # Only "bank" has two senses with examples; the third one, without any, is never shown.
    assert set(found) == {"they sat on the bank", "he cashed it at a bank", "a bank holiday"}
    glosses = {"bank: sloping land beside water", "bank: a firm that keeps money"}
    for text, (second, label) in found.items():
        assert second in glosses
        fits = ("water" in second) == (text == "they sat on the bank")
        assert label == ("this sense" if fits else "another sense")


def test_its_task_reads_pairs(dictionary, tmp_path):
    folder, _ = fetched("wordnet_uses", dictionary, tmp_path)
    held = {split: (folder / f"{split}.tsv").read_text().splitlines()[1:] for split in ("train", "test")}
    split = max(held, key=lambda name: len(held[name]))
    [task] = find(["wordnet_uses_tuned"])
    samples = find_all([task], tmp_path / "data", split)[task.name].read(split)
    read = zip(samples.texts, samples.second, samples.labels, strict=True)
    assert ["\t".join((use, gloss, samples.class_names[label])) for use, gloss, label in read] == held[split]
