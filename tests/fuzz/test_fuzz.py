"""A short, seeded part of the fuzzing, the corpus of everything that it has found, and proof that each oracle
notices what it is there for. `python -m tests.fuzz` is the long part.
"""

import os
import pickle
import subprocess
from pathlib import Path

import pytest
from fuzz import oracles
from fuzz.driver import CORPUS, fuzz, run, sandbox
from fuzz.oracles import Finding, command, complaint, watched
from fuzz.surfaces import SURFACES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flava_ds.checkpoints import contents
from flava_ds.checkpoints.place import Place
from flava_ds.config import parse
from flava_ds.errors import UserError
from flava_ds.storage import retry

CASES = {
    "shard": 50,
    "index": 100,
    "picture": 400,
    "checkpoint": 100,
    "config": 150,
    "command": 20,
    "pattern": 120,
    "skip_list": 200,
}
"""Of the part that `make test` runs: half a minute on a quiet core."""
ENTRIES = sorted(path for path in CORPUS.glob("*/*") if path.is_file())


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    """A server that is not there is asked again at once."""
    monkeypatch.setattr(retry, "_FIRST_WAIT_S", 0.001)


@pytest.mark.parametrize("surface", SURFACES)
def test_a_seeded_part_of_the_fuzzing_finds_nothing(surface):
    found, counts = fuzz([surface], seed=1, cases=CASES[surface])
    assert counts[surface] == CASES[surface] and found == []


@pytest.mark.parametrize("path", ENTRIES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_was_found_once_stays_mended(path):
    with sandbox() as folder:
        assert run(path.parent.name, path.read_bytes(), folder) is None


def test_the_corpus_has_an_entry_of_every_surface():
    assert {path.parent.name for path in ENTRIES} == set(SURFACES)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=JSON, key=st.sampled_from([None, *contents.STATE_FIELDS]))
def test_any_json_is_a_configuration_or_a_state_or_refused(value, key, tmp_path):
    from fuzz.mutations import as_json

    text = as_json(value if key is None else {key: value})
    complaint(lambda: parse(text, "config.json"))
    folder = tmp_path / "step_00000005"
    folder.mkdir(exist_ok=True)
    (folder / "state.json").write_bytes(text)
    assert complaint(lambda: contents.read_state(Place(folder)))[1] is not None


class Payload:
    """Starts something when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def outside(folder: Path) -> Path:
    return folder.parent / "outside"


HARM = {
    "a process": lambda folder: subprocess.run(["true"], check=True),
    "a shell": lambda folder: os.system("true"),
    "a pickle": lambda folder: pickle.loads(pickle.dumps(Payload())),
    "a file outside": lambda folder: outside(folder).write_text("x"),
    "a folder outside": lambda folder: outside(folder).mkdir(),
    "a file that goes": lambda folder: (folder.parent / "canary").unlink(),
    "a change by a child": lambda folder: os.fork() or (outside(folder).write_text("x"), os._exit(0)),
    "memory": lambda folder: bytearray(b"x") * ((oracles.MOST_MIB + 50) << 20),
    "addresses": lambda folder: bytearray((oracles.MOST_ADDRESS_MIB + 50) << 20),
    "an endless loop": lambda folder: [None for _ in iter(int, 1)],
    "a traceback": lambda folder: complaint(lambda: {}["x"]),
    "no words": lambda folder: complaint(lambda: (_ for _ in ()).throw(UserError(""))),
    "a traceback of a command": lambda folder: command([3]),
}


@pytest.mark.parametrize("harm", HARM)
def test_every_oracle_notices_its_harm(harm, monkeypatch):
    monkeypatch.setattr(oracles, "MOST_CPU_S", 1.0)
    with sandbox() as folder:
        inside = folder / "inside"
        inside.mkdir()
        with pytest.raises(Finding):
            with watched(inside):
                HARM[harm](inside)
                if harm == "a change by a child":
                    os.wait()


def test_a_harmless_case_passes():
    with sandbox() as folder:
        inside = folder / "inside"
        inside.mkdir()
        with watched(inside):
            (inside / "x").write_text("x")
            (inside / "x").unlink()
            assert complaint(lambda: (_ for _ in ()).throw(UserError("a\n\x1b[2J"))) == (None, "a \\x1b[2J")
