"""A run's folder: no name leads out of it, wherever the name comes from."""

import json

import pytest

from flava_ds import config as configuration
from flava_ds.checkpoints.files import place_of
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
