"""What ranks tell each other at every step, as one integer."""

from __future__ import annotations

import itertools
from functools import reduce
from operator import or_

import pytest

from flava_ds.checkpoints.saver import Status
from flava_ds.training.watcher import Note, Watcher

NOTES = [
    Note(saving, stop, save)
    for saving, stop, save in itertools.product(range(16), (False, True), (False, True))
]


def test_every_note_comes_back_as_it_was_and_no_two_share_a_number():
    packed = [note.packed() for note in NOTES]
    assert len(set(packed)) == len(NOTES) == 64
    assert [Note.unpacked(number) for number in packed] == NOTES
    assert all(type(number) is int and number >= 0 for number in packed)
    assert Note().packed() == 0, "nothing to tell"


def test_the_notes_of_watchers_add_up():
    saver, clock = Note(saving=int(Status.WRITTEN)), Note(save=True)
    assert reduce(or_, [saver, clock, Note()], Note(stop=True)) == Note(saving=2, stop=True, save=True)
    assert all(note | Note() == note == Note() | note for note in NOTES)


def test_a_savers_states_fit():
    assert max(Status) < 16


@pytest.mark.parametrize(
    "hook", ["on_start", "heard", "before_update", "after_update", "on_record", "after_step", "on_end"]
)
def test_a_watcher_overrides_what_it_needs(hook):
    watcher = Watcher()
    arguments = {"heard": (0, []), "on_record": (0, {}), "after_step": (0,), "on_end": (1,)}.get(hook, (0,))
    options = {"after_step": {"stopping": False}, "on_end": {"stopped": False}}.get(hook, {})
    assert getattr(watcher, hook)(*arguments, **options) is None
    assert watcher.note() == Note()
    with watcher.around(0, None):
        pass
