"""What a plan reads of a recipe, with and without its configuration."""

from dataclasses import replace
from pathlib import Path

import pytest
from own_photos import write_photos

from flava_ds.errors import ConfigError
from flava_ds.recipes import resolve
from flava_ds.scaling.captions import lengths_of
from flava_ds.scaling.facts import Facts, Run, named_files, without_engine
from flava_ds.scaling.setting import Measured
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


def test_shares_by_size_are_those_of_the_shards_of_now(tmp_path):
    words = ["--data.weigh-by-size", "--data.sources.text.weight", "0"]
    for name in ("pair", "image"):
        words += [f"--data.sources.{name}.shards", str(tmp_path / name), f"--data.sources.{name}.weight", "1"]
    with pytest.raises(ConfigError, match=r"weigh_by_size: a plan needs the numbers of samples; .*pair"):
        run_of("flava_debug", words)[0].facts()
    write_photos(tmp_path / "pair" / "0.tar", 1)
    for more, share in ((1, 1 / 2), (2, 1 / 4)):  # the second time with what is kept of the first
        write_photos(tmp_path / "image" / f"{more}.tar", more)
        shares = run_of("flava_debug", words)[0].facts().shares
        assert shares == {"pair": share, "image": 1 - share}


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


CODE = """from dataclasses import replace

from flava_ds.recipes.flava_debug import flava_debug


def mine():
    return replace(flava_debug(), name="mine")
"""


def test_nothing_is_kept_of_code_of_the_user_s(tmp_path, monkeypatch):
    places = []
    for folder, recipe, plugins in (("a", "facts_a.py:mine", []), ("b", "flava_debug", ["facts_b.py"])):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        Path(f"facts_{folder}.py").write_text(CODE)
        for _ in range(2):
            run, read = run_of(recipe, plugins=plugins)
            assert run.has_own_code and (run.facts().name == "mine") == (folder == "a")
            Measured(run, lengths_of(run, None))(False)
            assert len(read) == 1
            places += [entry.name for entry in (tmp_path / "cache").rglob("*.json")]
    assert not places


def test_a_relative_vocabulary_is_that_of_the_folder(tmp_path, monkeypatch):
    keys = []
    for folder, word in (("a", "dog"), ("b", "do"), ("a", "dog")):
        (tmp_path / folder).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / folder)
        words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", word)
        Path("vocab.txt").write_text("".join(f"{each}\n" for each in words))
        run, _ = run_of("flava_debug", ["--data.vocabulary", "vocab.txt"])
        keys.append(run.work_key())
    assert keys[0][0] == keys[1][0] and keys[0] != keys[1] and keys[0] == keys[2]
    packaged, _ = run_of("flava_base")
    assert [Path(place).name for place, _ in packaged.work_key()[1]] == ["bert_base_uncased.txt"]


def test_a_recipe_that_was_edited_after_its_facts_were_kept_has_another_key(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("base: flava_debug\n")
    run_of(str(file))[0].facts()
    run, read = run_of(str(file))
    before = run.work_key()
    assert not read
    file.write_text("base: flava_debug\ntraining: {recompute_gelu: true}\n")
    run.config()
    assert run.work_key() != before, "what is measured now is not kept under the facts of before"


def test_texts_that_cannot_be_paths_name_no_files(tmp_path):
    (tmp_path / "file").write_text("")
    texts = ["x" * 300, "~no_such_user_here/x", "a\0b", str(tmp_path / "file")]
    assert list(named_files(texts)) == [tmp_path / "file"]


def test_the_engine_s_option_is_split_off_in_every_form():
    words = ["--engine.deepspeed_config=a", "--seed", "1", "--engine.deepspeed-config", "b"]
    assert without_engine(words) == (["--seed", "1"], "b")
    assert without_engine(["--engine.deepspeed-config"]) == (["--engine.deepspeed-config"], None)
