"""What is said of a folder that is no run."""

import os

import pytest

from flava_ds.commands.runs import require_model
from flava_ds.errors import UserError


def run_in(folder):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def test_the_folder_of_a_sequence_of_stages_names_the_stages(tmp_path):
    stages = [run_in(tmp_path / "full" / name) for name in ("joint", "text")]
    run_in(tmp_path / "unrelated")
    require_model(stages[0])
    with pytest.raises(UserError) as caught:
        require_model(tmp_path / "full")
    said = f"{tmp_path / 'full'}: holds no config.json, so it is not a run; there are "
    assert str(caught.value) == said + ", ".join(map(str, stages))
    with pytest.raises(UserError, match=f"no such folder, .* there are {tmp_path}/unrelated"):
        require_model(tmp_path / "fulll")


def test_a_fifo_is_named_and_not_read(tmp_path):
    (tmp_path / "run").mkdir()
    os.mkfifo(tmp_path / "run" / "config.json")
    with pytest.raises(UserError, match="run/config.json: is not a regular file"):
        require_model(tmp_path / "run")
