"""Recipes resolve strictly: every name builds a checked configuration, every slip is one error with a way
out.
"""

import dataclasses

import pytest

from flava_ds import config as configuration
from flava_ds.config import UNCHANGED, Config, WeightChange
from flava_ds.config.options import option_names
from flava_ds.errors import ConfigError
from flava_ds.recipes import RECIPES, resolve, without_idle_sources


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_recipe_resolves_and_survives_json(name, tmp_path):
    config = resolve(name, [])
    assert config.name == name
    configuration.save(config, tmp_path / "config.json")
    assert resolve(str(tmp_path / "config.json"), []) == config


@pytest.mark.parametrize("name", ["demo", "flava_base", "flava_large", "flava_debug"])
def test_recipe_draws_sources_as_published(name):
    weights = {source.kind: source.weight for source in resolve(name, []).data.sources.values()}
    assert weights == {"pair": 0.70, "image": 0.15, "text": 0.15}


def test_overrides_change_what_they_name_and_nothing_else():
    plain = resolve("flava_base", [])
    changed = resolve(
        "flava_base",
        [
            "--optimizer.lr",
            "3e-4",
            "--data.sources.imagenet.shards=elsewhere",
            "--data.no-shuffle",
            "--training.total_steps",
            "20000",
        ],
    )
    sources = plain.data.sources | {
        "imagenet": dataclasses.replace(plain.data.sources["imagenet"], shards="elsewhere")
    }
    assert changed == dataclasses.replace(
        plain,
        optimizer=dataclasses.replace(plain.optimizer, lr=3e-4),
        data=dataclasses.replace(plain.data, sources=sources, shuffle=False),
        training=dataclasses.replace(plain.training, total_steps=20_000),
    )


def test_stored_codes_are_had_by_the_options_that_the_refusal_names():
    words = ["--data.sources.imagenet.image-codes-key", "codes.npy"]
    with pytest.raises(ConfigError) as caught:
        resolve("flava_base", words)
    named = str(caught.value).split("; set ")[1].split(" and ")[0].split()
    assert resolve("flava_base", words + named).data.sources["imagenet"].transform == UNCHANGED


def test_saved_configuration_takes_overrides(tmp_path):
    configuration.save(resolve("flava_large", ["--seed", "7"]), tmp_path / "config.json")
    config = resolve(str(tmp_path / "config.json"), ["--optimizer.lr=0.5"])
    assert (config.name, config.seed, config.optimizer.lr) == ("flava_large", 7, 0.5)


@pytest.mark.parametrize(
    ("recipe", "overrides", "message"),
    [
        ("flava_bose", [], "no recipe named 'flava_bose'; did you mean 'flava_base'?"),
        ("zzz", [], "no recipe named 'zzz'; choose one of demo, flava_tiny, flava_base, flava_large"),
        ("gone/config.json", [], "gone/config.json: no such file; give the config.json of a run"),
        ("RUN/configs.json", [], "RUN/configs.json: no such file; did you mean 'config.json'?"),
        (
            "RUN",
            [],
            "RUN: is a run's folder; give RUN/config.json, with which `flava-ds train` goes on",
        ),
        (".", [], ".: is a folder, not a recipe; give the path of a saved config.json"),
        (
            "flava_base",
            ["--training.total-stps", "3"],
            "unknown option '--training.total-stps'; did you mean '--training.total-steps'?",
        ),
        ("flava_base", ["--total-steps", "3"], "did you mean '--training.total-steps'?"),
        ("flava_base", ["--objectives.mlm.wieght=3"], "did you mean '--objectives.mlm.weight'?"),
        (
            "flava_base",
            ["--data.sources.0.shards", "x"],
            "no source is called '0'; there is pmd, imagenet, text; to add it, give --data.sources.0.kind",
        ),
        (
            "flava_base",
            ["--training.total-steps", "many"],
            "Error parsing --training.total-steps: invalid literal for int() with base 10: 'many'",
        ),
        (
            "flava_base",
            ["--data.sources.pmd.kind", "pare"],
            "invalid choice 'pare' for argument '--data.sources.pmd.kind'. Expected one of ('image', 'text', "
            "'pair'); did you mean 'pair'?",
        ),
        (
            "flava_base",
            ["--objectives.global_contrstive.weight", "3"],
            "did you mean '--objectives.global-contrastive.weight'?",
        ),
        ("flava_base", ["--optimizer.betas", "0.9"], "--optimizer.betas"),
        ("flava_base", ["stray"], "stray"),
        (
            "flava_base",
            ["--training.total-steps", "5"],
            "schedule.warmup_steps 10000 exceeds training.total_steps 5",
        ),
        (
            "flava_base",
            ["--model.image.patch-size", "15"],
            "image_size 224 is not divisible by patch_size 15",
        ),
    ],
)
def test_slips_are_one_error_with_a_way_out(recipe, overrides, message, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "RUN").mkdir()
    (tmp_path / "RUN" / "config.json").touch()
    with pytest.raises(ConfigError) as caught:
        resolve(recipe, overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value) and not set("╭│╰─") & set(str(caught.value))
    assert capfd.readouterr() == ("", "")


def test_every_leaf_of_the_configuration_is_an_option():
    config = resolve("demo", [])
    leaves = set(_leaves(configuration.to_dict(config)))
    options = {name.replace("-", "_") for name in option_names(config)}
    # `--optimizer lion` sets optimizer.type
    tags = {name.removesuffix(".type") for name in leaves if name.endswith(".type")}
    leaves = {name for name in leaves if not name.endswith(".type")} | tags
    assert leaves <= options
    assert {name for name in options - leaves if not name.rsplit(".", 1)[-1].startswith("no_")} == set()


def _leaves(node: dict, prefix: str = ""):
    """Yields the dotted path of every value that is no section, and of every section that has variants."""
    for key, value in node.items():
        if key == "type" and prefix:
            yield prefix.removesuffix(".")
        elif isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for position, entry in enumerate(value):
                yield from _leaves(entry, f"{prefix}{key}.{position}.")
        else:
            yield prefix + key


def test_registry_holds_functions_that_return_fresh_configurations():
    for function in RECIPES.values():
        assert isinstance(function(), Config) and function() == function()


def test_a_source_of_weight_0_is_gone_unless_its_weight_changes_later():
    config = resolve("flava_base", ["--data.sources.imagenet.weight", "0"])
    assert config.data.sources == {
        name: source for name, source in resolve("flava_base", []).data.sources.items() if name != "imagenet"
    }
    plain = RECIPES["flava_base"]()

    def kept(change, **weights):
        sources = plain.data.sources | {
            name: dataclasses.replace(plain.data.sources[name], weight=weight)
            for name, weight in weights.items()
        }
        data = dataclasses.replace(plain.data, sources=sources, weight_changes=(change,))
        return without_idle_sources(configuration.check(dataclasses.replace(plain, data=data))).data

    assert set(kept(WeightChange(step=10, weights={"text": 0.0})).sources) == set(plain.data.sources)
    assert set(kept(WeightChange(step=10, weights={"text": 1.0}), text=0.0).sources) == set(
        plain.data.sources
    )
    rest = kept(WeightChange(step=10, weights={"text": 0.0, "pmd": 2.0}), text=0.0)
    assert set(rest.sources) == {"pmd", "imagenet"} and rest.weight_changes == (
        WeightChange(step=10, weights={"pmd": 2.0}),
    )


def test_weights_by_kind_and_by_name_are_options():
    words = [
        "--data.kind-weights",
        "pair",
        "0.5",
        "image",
        "0.25",
        "text",
        "0.25",
        "--data.sources.pmd.seed",
        "5",
    ]
    config = resolve("flava_base", words)
    assert (
        config.data.kind_weights == {"pair": 0.5, "image": 0.25, "text": 0.25}
        and config.data.sources["pmd"].seed == 5
    )
    changes = (WeightChange(step=10, weights={"text": 0.5}),)
    changed = dataclasses.replace(config, data=dataclasses.replace(config.data, weight_changes=changes))
    named = {
        "data.kind-weights",
        "data.weight-changes.0.weights",
        "data.sources.imagenet.transform.crop-scale",
    }
    assert named <= set(option_names(changed))


@pytest.mark.parametrize("name", ["cc12m-1.0", "laion_2b.en", "C++", "0", "фото"])
def test_every_name_that_is_allowed_can_be_given_as_an_option(tmp_path, name):
    plain = RECIPES["flava_base"]()
    configuration.save(
        plain.with_sources({name: plain.data.sources["pmd"], "text": plain.data.sources["text"]}),
        tmp_path / "config.json",
    )
    config = resolve(
        str(tmp_path / "config.json"),
        [f"--data.sources.{name}.weight", "3", f"--data.sources.{name}.shards=there"],
    )
    assert (config.data.sources[name].weight, config.data.sources[name].shards) == (3.0, "there")
