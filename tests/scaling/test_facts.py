"""What a plan reads of a recipe, with and without its configuration."""

from dataclasses import replace

import pytest

from flava_ds.code_hash import folder_of
from flava_ds.recipes import resolve
from flava_ds.scaling.facts import Facts, Run, without_engine
from flava_ds.storage.files import CACHE_VARIABLE


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """A cache that nothing else has written to."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))


def run_of(recipe, words=(), plugins=()):
    """A run that notes how often its configuration was read."""
    read = []

    def resolved(given):
        read.append(given)
        return resolve(recipe, given)

    return Run(recipe, words, plugins, resolved), read


def test_kept_facts_are_those_of_the_configuration(tmp_path):
    first, read = run_of("flava_debug", ["--seed", "3"])
    assert first.facts() == Facts.of(resolve("flava_debug", ["--seed", "3"])) and len(read) == 1
    again, read = run_of("flava_debug", ["--engine.deepspeed-config", "zero3", "--seed", "3"])
    facts = again.facts()
    assert not read and facts.deepspeed_config == "zero3"
    assert facts == Facts.of(again.config()), "read after all, with the option"
    other, read = run_of("flava_debug", ["--seed", "4"])
    assert other.facts().work != facts.work and read


def changed(config, section, **fields):
    """A configuration with fields of one section changed."""
    return replace(config, **{section: replace(getattr(config, section), **fields)})


def test_what_decides_about_a_step_decides_about_its_work():
    config = resolve("flava_debug", [])
    pair = replace(config.data.sources["pair"], shards="elsewhere")
    same = [
        replace(config, name="x"),
        changed(config, "data", num_workers=3),
        changed(config, "training", gradient_accumulation_steps=2),
        changed(config, "data", sources=config.data.sources | {"pair": pair}),
        changed(config, "engine", deepspeed_config="zero2"),
        changed(config, "schedule", warmup_steps=1),
    ]
    others = [
        changed(config, "training", recompute_gelu=True),
        changed(config, "data", sources=config.data.sources | {"pair": replace(pair, max_tokens=9)}),
        replace(config, model=changed(config.model, "image", num_hidden_layers=3)),
        changed(config, "optimizer", weight_decay=0.5),
    ]
    work = Facts.of(config).work
    assert {Facts.of(own).work for own in same} == {work}
    assert len({work, *(Facts.of(own).work for own in others)}) == 1 + len(others)


def test_facts_follow_the_files_that_a_recipe_stands_on(tmp_path):
    below, file = tmp_path / "below.yaml", tmp_path / "mine.yaml"
    below.write_text("base: flava_debug\ntraining: {total_steps: 50}\n")
    file.write_text("base: below.yaml\n")
    assert run_of(str(file))[0].facts().total_steps == 50
    again, read = run_of(str(file))
    assert again.facts().total_steps == 50 and not read
    below.write_text("base: flava_debug\ntraining: {total_steps: 60}\n")
    again, read = run_of(str(file))
    assert again.facts().total_steps == 60 and read


def test_code_of_the_user_s_is_always_asked_and_is_among_the_files(tmp_path):
    code = tmp_path / "facts_recipe.py"
    code.write_text(
        "from flava_ds.recipes.flava_debug import flava_debug\n\n\ndef mine():\n    return flava_debug()\n"
    )
    recipe, vocabulary = f"{code}:mine", tmp_path / "vocab.txt"
    vocabulary.write_text(
        "".join(f"{word}\n" for word in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"))
    )
    for _ in range(2):
        run, read = run_of(recipe, ["--data.vocabulary", str(vocabulary)])
        run.facts()
        assert len(read) == 1
    assert {code, vocabulary} <= set(run.own_files())
    packaged, _ = run_of("flava_debug")
    sources = [file for file in packaged.own_files() if file.suffix == ".py"]
    assert not [file for file in sources if file.is_relative_to(folder_of("flava_ds"))]
    assert all(file.is_file() for file in packaged.own_files())


def test_the_engine_s_option_is_split_off_in_every_form():
    words = ["--engine.deepspeed_config=a", "--seed", "1", "--engine.deepspeed-config", "b"]
    assert without_engine(words) == (["--seed", "1"], "b")
    assert without_engine(["--engine.deepspeed-config"]) == (["--engine.deepspeed-config"], None)
