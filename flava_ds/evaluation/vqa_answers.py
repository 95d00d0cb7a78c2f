"""VQA's answers: official normalisation, official accuracy, and the list of answers for a head.

Source: Antol et al. 2015, "VQA: Visual Question Answering", and the official evaluation for VQA v2.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

LEAST_QUESTIONS = 9
"""A head can give the answers that are the commonest of at least this many questions of train and val; there
are 3,129 of them.

Source: Teney et al. 2018, "Tips and Tricks for Visual Question Answering".
"""
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
NUMBERS = {"none": "0", "zero": "0"} | {
    word: str(number)
    for number, word in enumerate("one two three four five six seven eight nine ten".split(), start=1)
}
ARTICLES = ("a", "an", "the")
CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
    he'd've he's how'd how'll how's i'd've i'm i've isn't it'd it'd've it'll ma'am mightn't mightn't've
    might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't
    shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd
    something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll they're
    they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've
    who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll
    y'all'd've you'd you'd've you'll you're you've
""".split()
CONTRACTIONS = {
    word[: mark.start()] + word[mark.end() :]: word
    for word in CONTRACTED
    if not word.startswith("i'")  # the official table has these with a capital, which no answer has by then
    for mark in re.finditer("'", word)
} | {"somebody'd": "somebodyd"}
"""Word without one of its apostrophes -> contraction. The last entry is an oddity of the official table."""


def normalised(answer: str) -> str:
    """Returns an answer as the official evaluation compares it: with punctuation, numbers, articles and
    contractions unified."""
    found, has_comma_in_number = answer, re.search(r"\d,\d", answer) is not None
    for mark in PUNCTUATION:
        deleted = has_comma_in_number or f"{mark} " in answer or f" {mark}" in answer
        found = found.replace(mark, "" if deleted else " ")
    found = re.sub(r"\.(?!\d)", "", found, count=32)  # the official call passes a flag where a count belongs
    words = [NUMBERS.get(word, word) for word in found.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def trimmed(answer: str) -> str:
    """Replaces newlines and tabs by spaces and strips the ends."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


def accuracy(predicted: str, given: Sequence[str]) -> float:
    """Returns the official accuracy of an answer: the mean, over the people asked, of min(1, n / 3), where n
    of the others gave that answer.

    Both sides are normalised only if the given answers differ.
    """
    predicted, given = trimmed(predicted), [trimmed(answer) for answer in given]
    if len(set(given)) > 1:
        predicted, given = normalised(predicted), [normalised(answer) for answer in given]
    same = given.count(predicted)
    without_it, without_another = min(1.0, (same - 1) / 3), min(1.0, same / 3)
    return (same * without_it + (len(given) - same) * without_another) / len(given)


def targets(given: Sequence[str]) -> dict[str, float]:
    """Returns each given answer, normalised, with its accuracy: the targets of a head."""
    counts = Counter(label_of(answer) for answer in given)
    return {answer: min(1.0, 0.3 * count) for answer, count in counts.items()}


def label_of(answer: str) -> str:
    """Returns the answer in the form of the head's list."""
    return normalised(trimmed(answer))


def frequent_answers(commonest: Iterable[str]) -> tuple[str, ...]:
    """Returns the answers that are the commonest of at least LEAST_QUESTIONS questions, in alphabetical
    order. `commonest` has one answer per question."""
    counts = Counter(map(label_of, commonest))
    return tuple(sorted(answer for answer, count in counts.items() if count >= LEAST_QUESTIONS))
