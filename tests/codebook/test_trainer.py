"""One codebook's updates: how many fit into a time."""

import dataclasses

import pytest
import torch

from flava_ds.codebook.config import SMALL
from flava_ds.codebook.progress import Deadline
from flava_ds.codebook.trainer import CodebookTrainer
from flava_ds.config import CodebookConfig, Config

CODEBOOK = CodebookConfig(
    hidden_size=16, num_groups=3, num_blocks_per_group=1, vocab_size=32, image_size=16, decoder_init_size=16
)
SHORT = dataclasses.replace(SMALL, total_steps=160, batch_size=16)


@pytest.fixture
def config() -> Config:
    return Config(name="test", codebook=CODEBOOK)


def test_calibration_sets_the_length_and_forgets_its_steps(config):
    trainer = CodebookTrainer(config, dataclasses.replace(SHORT, ema_decay=0.9), torch.device("cpu"))
    untouched = CodebookTrainer(config, dataclasses.replace(SHORT, ema_decay=0.9), torch.device("cpu"))
    pixels = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
    trainer.calibrate(lambda step: pixels, Deadline(1e6))
    assert trainer.total_steps > 1000
    for ours, theirs in ((trainer.codebook, untouched.codebook), (trainer.average, untouched.average)):
        for left, right in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(left, right)
    trainer.total_steps = untouched.total_steps
    assert trainer.step(0, pixels).total == untouched.step(0, pixels).total
    for left, right in zip(trainer.codebook.parameters(), untouched.codebook.parameters(), strict=True):
        assert torch.equal(left, right)


def test_a_slower_machine_shortens_the_training_and_a_faster_one_does_not_lengthen_it(config):
    trainer = CodebookTrainer(config, SHORT, torch.device("cpu"))
    for left in (float("inf"), 1000.0):
        trainer.shorten(40, 4.0, left)
        assert trainer.total_steps == 160
    trainer.shorten(40, 4.0, 5.0)
    assert trainer.total_steps == 60
    trainer.shorten(40, 4.0, -1.0)
    assert trainer.total_steps == 40
