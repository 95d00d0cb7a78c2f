"""The image codebook beside the trainer: frozen, no part of what trains, and not needed where its codes lie
in the shards.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from real_runs import Job, curve, real_config

from flava_ds import config as configuration
from flava_ds.checkpoints.reader import load_weights
from flava_ds.codebook.image_codebook import load_codebook
from flava_ds.config import UNCHANGED, Config
from flava_ds.prepare.codes import write_codes


def unchanging(config: Config, **pictures) -> Config:
    """Gives all pictures the transform that stored codes need, and other changes of their sources."""
    with_pictures = {name: source for name, source in config.data.sources.items() if source.kind != "text"}
    changed = {
        name: dataclasses.replace(source, transform=UNCHANGED, **pictures)
        for name, source in with_pictures.items()
    }
    return config.with_sources(config.data.sources | changed)


def test_stored_codes_give_the_curve_of_computed_ones_without_a_codebook(tmp_path):
    computed = unchanging(real_config(tmp_path, name="computed"))
    pairs = computed.data.sources["pair"]
    write_codes(
        pairs, load_codebook(computed.codebook_weights, computed.codebook), computed, out=tmp_path / "coded"
    )
    stored = unchanging(computed, shards=str(tmp_path / "coded"), image_codes_key="codes.npy")
    stored = dataclasses.replace(stored, name="stored", codebook_weights=None)
    for config in (computed, stored):
        job = Job(config, 1)
        assert job.wait() == [0], job.said()
    expected = curve(computed.run_path)
    assert {"loss/mim", "loss/mmm_image"} <= {key for record in expected for key in record}
    assert curve(stored.run_path) == expected


def fit(path: str) -> dict[str, bool]:
    """Trains, and tells what became of the codebook; then starts the finished run with fewer steps."""
    from flava_ds.build import build
    from flava_ds.ranks import run_lock

    trainer = build(configuration.load(Path(path)))
    codebook, module = trainer.task.frozen["codebook"], trainer.task
    before = {name: tensor.clone() for name, tensor in codebook.state_dict().items()}
    found = {
        "trained": trainer.fit() == 0,
        "unchanged": all(tensor.equal(before[name]) for name, tensor in codebook.state_dict().items()),
        "frozen": not codebook.training
        and not any(parameter.requires_grad for parameter in codebook.parameters()),
        "without gradients": all(parameter.grad is None for parameter in codebook.parameters()),
        "outside": {id(p) for p in codebook.parameters()}.isdisjoint(id(p) for p in module.parameters()),
        "not saved": load_weights(trainer.config.run_path).keys() == module.state_dict().keys(),
    }
    file = trainer.config.run_path / "config.json"
    told = file.read_text()
    run_lock.release_all()
    fewer = dataclasses.replace(trainer.config.training, total_steps=trainer.config.training.total_steps - 1)
    assert build(dataclasses.replace(trainer.config, training=fewer)).fit() == 0
    return found | {"recorded as it was trained": file.read_text() == told}


def test_the_codebook_is_frozen_and_outside_the_engine(run_ranks, tmp_path):
    configuration.save(real_config(tmp_path), tmp_path / "config.json")
    (found,) = run_ranks(fit, 1, str(tmp_path / "config.json"))
    assert all(found.values()), found
