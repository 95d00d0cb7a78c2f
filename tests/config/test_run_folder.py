"""A run's folder: no name leads out of it, wherever the name comes from."""

import json
import shutil

import pytest

from flava_ds import config as configuration
from flava_ds.checkpoints.files import place_of
from flava_ds.config.run_folder import check_home
from flava_ds.errors import ConfigError
from flava_ds.recipes import resolve

NAMES = [
    "",
    ".",
    "..",
    "../x",
    "a/../../x",
    "a/..",
    "/absolute",
    "a//b",
    "a/",
    "nul\0",
    "line\nend",
    "\x7f",
    "half \udc80",
    "\ud800",
    "long" * 100,
]
FIELDS = ["logging.run-directory", "checkpoint.directory"]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_lead_elsewhere_are_refused(name, tmp_path):
    with pytest.raises(ConfigError, match="name "):
        resolve("flava_debug", ["--name", name])
    saved = configuration.to_dict(resolve("flava_debug", []))
    (tmp_path / "config.json").write_text(json.dumps({**saved, "name": name}))
    with pytest.raises(ConfigError, match="name "):
        configuration.load(tmp_path / "config.json")


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("folder", ["", "file://", "nul\0", "\udc80"])
def test_folders_that_are_none_are_refused(field, folder):
    """An empty checkpoint.directory was the root of the file system."""
    with pytest.raises(ConfigError, match=field.replace("-", "_")):
        resolve("flava_debug", [f"--{field}", folder])


def test_logs_have_no_url():
    """It made a folder `s3:`."""
    with pytest.raises(ConfigError, match="logs need a folder of this machine"):
        resolve("flava_debug", ["--logging.run-directory", "s3://bucket/runs"])


@pytest.mark.parametrize("name", ["a", "a b", "sweep/lr 1", "..a", "größe", "it's $(NAME): 1"])
def test_other_names_are_folders_below_the_runs(name, tmp_path):
    config = resolve(
        "flava_debug",
        [
            "--name",
            name,
            "--logging.run-directory",
            str(tmp_path),
            "--checkpoint.directory",
            f"{tmp_path}/saved",
        ],
    )
    assert (
        config.run_path == tmp_path / name
        and place_of(config.run_path, config).local == tmp_path / "saved" / name
    )


def run_in(folder, name):
    """A run's folder with its config.json; returns the latter."""
    config = resolve("flava_debug", ["--name", name, "--logging.run-directory", str(folder)])
    (config.run_path / "checkpoints").mkdir(parents=True)
    file = config.run_path / "config.json"
    file.write_text(json.dumps(configuration.to_dict(config)))
    return file


def check(file, *overrides):
    check_home(str(file), resolve(str(file), list(overrides)), list(overrides))


def test_a_run_that_was_copied_or_moved_is_not_taken_for_another(tmp_path, monkeypatch):
    file = run_in(tmp_path, "group/first")
    check(file)
    copy = file.parent.with_name("copy")
    shutil.copytree(file.parent, copy)
    with pytest.raises(
        ConfigError, match="lies in .*/group/copy, but is of the run in .*/group/first; to go"
    ):
        check(copy / "config.json")
    with pytest.raises(ConfigError, match="give --name copy --logging.run-directory .*/group; for a run"):
        check(copy / "config.json", "--seed", "1")
    check(copy / "config.json", "--name", "copy", f"--logging.run_directory={copy.parent}")
    check(copy / "config.json", "--name=another")
    spaced = shutil.copytree(copy, tmp_path / "my runs" / "copy 1")
    with pytest.raises(ConfigError, match="--name 'copy 1' --logging.run-directory '.*/my runs'; for a run"):
        check(spaced / "config.json")
    monkeypatch.chdir(copy)
    with pytest.raises(ConfigError, match="config.json: lies in .*/group/copy, but .* give --name copy "):
        check("config.json")
    (copy / "checkpoints").rmdir()  # settings that were saved elsewhere are those of the run that they name
    check(copy / "config.json")


def test_a_run_below_a_relative_folder_is_its_own_wherever_that_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = run_in("runs", "first")
    check(file)
    check(tmp_path / file)
    monkeypatch.chdir(tmp_path / "runs")
    with pytest.raises(
        ConfigError, match="but is of the run in runs/first; to go on in first, give --name f"
    ):
        check("first/config.json")
