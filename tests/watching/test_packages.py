"""Optional packages: what is said where one is absent."""

import dataclasses
import importlib.util
from importlib import metadata

import pytest

from flava_ds import cli
from flava_ds.errors import ConfigError, UserError
from flava_ds.ranks.launch import check_inputs
from flava_ds.recipes.flava_debug import flava_debug
from flava_ds.watching.packages import check_extra, check_packages, missing_package, version


def test_a_missing_wandb_is_one_clear_error_before_anything_starts(monkeypatch):
    config = flava_debug()
    with_wandb = dataclasses.replace(config, logging=dataclasses.replace(config.logging, wandb=True))
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else find(name, *rest)
    )
    message = r"logging.wandb is on, but wandb is not installed; `pip install 'flava_ds\[wandb\]'`"
    for check in (check_packages, check_inputs):
        with pytest.raises(ConfigError, match=message):
            check(with_wandb)
    check_packages(config)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("scipy.nowhere", None),
        ("matplotlib", "matplotlib is not installed; `pip install 'flava_ds[demo]'`"),
        (
            "sklearn",
            "scikit-learn is not installed; `pip install 'flava_ds[eval]'` or `pip install 'flava_ds[demo]'`",
        ),
        ("py3langid", "py3langid is not installed; `pip install 'flava_ds[prepare]'`"),
        ("torch", None),
        ("somebody_elses", None),
    ],
)
def test_a_module_that_an_extra_brings_names_the_extra(module, message):
    assert missing_package(ModuleNotFoundError(name=module)) == message


def test_a_command_without_its_package_says_what_to_install(monkeypatch, capsys):
    def run(options):
        raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")

    monkeypatch.setattr("flava_ds.commands.laws.run", run)
    assert cli.main(["laws", "anything"]) == 2
    assert capsys.readouterr().err == "error: matplotlib is not installed; `pip install 'flava_ds[demo]'`\n"


def test_the_demo_asks_for_its_packages_before_it_trains(monkeypatch, tmp_path, capsys):
    version = metadata.version

    def without(name):
        if name == "scikit-learn":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    check_extra("demo")
    monkeypatch.setattr(metadata, "version", without)
    with pytest.raises(UserError, match=r"scikit-learn is not installed; `pip install 'flava_ds\[demo\]'`"):
        check_extra("demo")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo", "--minutes", "1"]) == 2
    assert "scikit-learn is not installed" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_without_being_installed_nothing_is_known_of_extras(monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    for function in ("version", "requires"):
        monkeypatch.setattr(metadata, function, absent)
    assert version() == "(not installed)"
    assert missing_package(ModuleNotFoundError(name="matplotlib")) is None
    check_extra("demo")
