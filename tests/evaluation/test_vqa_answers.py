"""The official normalisation and accuracy, on cases that the official code was run on."""

import pytest

from flava_ds.evaluation.vqa_answers import (
    CONTRACTIONS,
    accuracy,
    frequent_answers,
    label_of,
    normalised,
    targets,
)

GOLDEN = {
    "1,000": "1000",
    "10-15": "10 15",
    "red / white": "red white",
    "u.s.": "us",
    "3.5": "3.5",
    "dont know": "don't know",
    "a": "",
    "none": "0",
    "1,000-2,000": "10002000",
    "The Two-tone, cat!": "2 tone cat",
    "someonell": "someone'll",
    "shed've": "she'd've",
    "she'dve": "she'd've",
    "somebody'd": "somebodyd",
    "its": "its",
}


@pytest.mark.parametrize("answer", GOLDEN)
def test_golden_pairs(answer):
    assert normalised(answer) == GOLDEN[answer]


def test_the_contractions_are_as_many_as_the_official_ones():
    """Without those of the official table that change nothing, or that a lower-case answer cannot meet."""
    assert len(CONTRACTIONS) == 114 and all(key != word for key, word in CONTRACTIONS.items())


def test_accuracy_leaves_one_person_out_at_a_time():
    for count, expected in {0: 0.0, 1: 0.3, 2: 0.6, 3: 0.9, 4: 1.0, 10: 1.0}.items():
        given = ["red"] * count + [f"other {n}" for n in range(10 - count)]
        assert accuracy("red", given) == pytest.approx(expected)
        assert targets(given).get("red", 0.0) == pytest.approx(expected)


def test_answers_are_normalised_only_where_people_differ():
    assert accuracy("2", ["two"] * 10) == 0 and accuracy("two", ["two"] * 10) == 1
    assert accuracy("2", ["two"] * 9 + ["2"]) == 1
    assert accuracy("yes\n", ["yes "] * 10) == 1


def test_frequent_answers_are_the_commonest_of_nine_questions():
    commonest = ["yes"] * 9 + ["two"] * 5 + ["2"] * 4 + ["no"] * 8
    assert frequent_answers(commonest) == ("2", "yes")
    assert label_of(" The  Cat.\t") == "cat"
