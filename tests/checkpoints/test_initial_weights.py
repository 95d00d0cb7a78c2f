"""Initial weights replace what they name; those of another family or vocabulary are refused."""

import json
import logging

import pytest
import torch
from safetensors.torch import save_file
from toy import Toy

from flava_ds.checkpoints import files, initial_weights
from flava_ds.config import to_dict
from flava_ds.errors import CheckpointError
from flava_ds.recipes.flava_debug import flava_debug


def test_initial_weights_replace_what_they_name(tmp_path, caplog):
    module, other = Toy(0), Toy(1)
    save_file(
        {"mim.dense.weight": other.mim.dense.weight.detach().clone(), "unknown": torch.ones(2)},
        tmp_path / "some.safetensors",
    )
    with caplog.at_level(logging.INFO):
        initial_weights.load_initial_weights(module, str(tmp_path / "some.safetensors"), "flava")
    fresh = [name for name in module.state_dict() if name != "mim.dense.weight"]
    named = f"{', '.join(fresh[:3])} and {len(fresh) - 3} more"
    assert f"; begin anew: {named}; unused of that file: unknown\n" in caplog.text
    assert torch.equal(module.mim.dense.weight, other.mim.dense.weight) and not torch.equal(
        module.mlm.dense.weight, other.mlm.dense.weight
    )
    save_file({"mim.dense.weight": torch.ones(3, 3)}, tmp_path / "wrong.safetensors")
    wrong = str(tmp_path / "wrong.safetensors")
    with pytest.raises(CheckpointError, match=r"'mim.dense.weight' is \[3, 3\].* has \[12, 12\]$"):
        initial_weights.load_initial_weights(module, wrong, "flava")
    (tmp_path / files.CONFIG).write_text('{"model": {"type": "flava"}}')
    with pytest.raises(CheckpointError, match=f"with `base: {tmp_path}/config.json` and what differs"):
        initial_weights.load_initial_weights(module, wrong, "flava")
    (tmp_path / files.CONFIG).unlink()
    save_file({"vision.weight": torch.ones(3, 3)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="none of its 1 tensors"):
        initial_weights.load_initial_weights(module, str(tmp_path / "foreign.safetensors"), "flava")


def test_a_scalar_comes_from_a_run_that_keeps_it_as_a_vector_of_one(tmp_path):
    module = torch.nn.Module()
    module.scale = torch.nn.Parameter(torch.tensor(2.0))
    save_file({"scale": torch.tensor([3.0])}, tmp_path / "run.safetensors")
    initial_weights.load_initial_weights(module, str(tmp_path / "run.safetensors"), "towers")
    assert module.scale.shape == () and float(module.scale.detach()) == 3.0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(value, tmp_path):
    """A run with them would skip every update, and end as if it had trained if it is short."""
    broken = Toy(1).mim.dense.weight.detach().clone()
    broken[0, 0] = value
    save_file({"mim.dense.weight": broken}, tmp_path / "some.safetensors")
    with pytest.raises(CheckpointError, match="some.safetensors': 'mim.dense.weight' holds infinities or no"):
        initial_weights.load_initial_weights(Toy(0), str(tmp_path / "some.safetensors"), "flava")


def test_weights_of_another_vocabulary_are_refused_unless_they_come_alone(tmp_path):
    """The message about a changed vocabulary says how, too."""
    (tmp_path / files.MANIFEST).write_text("{}")
    (tmp_path / files.STATE).write_text(json.dumps({"frozen": {"vocabulary": "one"}}))
    initial_weights.check_vocabulary(str(tmp_path), {"vocabulary": "one"})
    initial_weights.check_vocabulary(str(tmp_path), {})
    with pytest.raises(CheckpointError, match="come from a run with another vocabulary.* --to saf") as caught:
        initial_weights.check_vocabulary(str(tmp_path), {"vocabulary": "other"})
    assert "\n" not in str(caught.value)
    save_file({"mim.dense.weight": torch.ones(2)}, tmp_path / "alone.safetensors")
    initial_weights.check_vocabulary(str(tmp_path / "alone.safetensors"), {"vocabulary": "other"})


def test_weights_of_another_family_are_refused_by_name(tmp_path):
    save_file({"mim.dense.weight": Toy(1).mim.dense.weight.detach().clone()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model": {"type": "clip"}}')
    with pytest.raises(CheckpointError, match="was written by family 'clip', this configuration is 'flava'"):
        initial_weights.load_initial_weights(Toy(0), str(tmp_path), "flava")
    initial_weights.load_initial_weights(Toy(0), str(tmp_path), "clip")


def test_settings_that_no_tensor_shows_are_compared(tmp_path, caplog):
    config = flava_debug()
    told = to_dict(config)
    told["model"]["image"]["num_attention_heads"] = 7
    told["model"]["text"]["layer_norm_eps"] = 1e-6
    told["model"]["image"]["drop_path"] = 0.5
    save_file({"some": torch.ones(1)}, tmp_path / "model.safetensors")
    (tmp_path / files.CONFIG).write_text(json.dumps(told))
    initial_weights.warn_of_other_settings(str(tmp_path), config)
    (line,) = (record.getMessage() for record in caplog.records)
    assert "(model.image.num_attention_heads 7 -> 2, model.text.layer_norm_eps 1e-06 -> 1e-12)" in line
    caplog.clear()
    (tmp_path / files.CONFIG).write_text(json.dumps(to_dict(config)))
    initial_weights.warn_of_other_settings(str(tmp_path), config)
    (tmp_path / files.CONFIG).unlink()
    initial_weights.warn_of_other_settings(str(tmp_path), config)
    assert not caplog.records
