"""The configuration of codebook training, and its schedules: learning rate, temperature and KL weight."""

from __future__ import annotations

import math
from dataclasses import dataclass

from flava_ds.config.schedules import along_cosine
from flava_ds.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class CodebookTrainingConfig:
    """How to train the codebook. Defaults are DALL-E's; horizons are shares of the length, so they scale."""

    total_steps: int = 3_000_000
    """Updates of the codebook."""
    max_seconds: float | None = None
    """Time limit of the whole command, files included: total_steps becomes what fits by the speed of a few
    steps measured before the start, and fewer where the machine slows down; None keeps total_steps.
    """
    batch_size: int = 512
    """Pictures of an update."""
    lr: float = 1e-4
    """Peak learning rate."""
    min_lr: float = 1.25e-6
    """Learning rate at the end of its cosine."""
    lr_share: float = 0.4
    """Share of the steps until the cosine reaches min_lr (1,200,000 of 3,000,000)."""
    warmup_share: float = 0.0
    """Share of the steps over which the learning rate rises from 0."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay of the gradient's mean and of its square's."""
    eps: float = 1e-8
    """AdamW's, in the denominator."""
    weight_decay: float = 1e-4
    """AdamW's, of every weight."""
    temperature: float = 1.0
    """Of the Gumbel-softmax relaxation at the start."""
    min_temperature: float = 1 / 16
    """And at the end of its cosine."""
    temperature_share: float = 0.05
    """Share of the steps until the cosine reaches min_temperature (150,000 of 3,000,000)."""
    kl_weight: float = 6.6
    """Weight of KL(q || uniform) of each cell: asks for codes that are not sure."""
    kl_share: float = 1 / 600
    """Share of the steps over which the KL weight rises from 0, as a cosine (5,000 of 3,000,000)."""
    usage_weight: float = 0.0
    """Weight of KL(batch mean of q || uniform), which encourages use of all codes without making single cells
    uncertain. Not in DALL-E.
    """
    embedding_std: float | None = None
    """Standard deviation of the initial code embeddings; None takes DALL-E's 1 / sqrt(vocab_size)."""
    ema_decay: float = 0.999
    """Decay of the weights' moving average, which is what is saved; 0 saves the last weights."""
    precision: str = "bf16"
    """'bf16' (autocast) or 'fp32'."""
    eval_samples: int = 512
    """Images held out for the reports."""
    log_every: int = 100
    """Steps between reports."""


DALLE = CodebookTrainingConfig()
SMALL = CodebookTrainingConfig(
    total_steps=5000,
    batch_size=32,
    lr=3e-3,
    min_lr=1e-5,
    lr_share=1.0,
    warmup_share=0.02,
    temperature_share=0.6,
    kl_weight=1.0,
    kl_share=0.1,
    usage_weight=20.0,
    embedding_std=1.0,
    ema_decay=0.0,
    precision="fp32",
    log_every=500,
)
"""Small codebooks on a CPU. The demo's (flava_ds/demo/codebook.json) has a held-out MSE of 0.021 at 16 pixels
and uses 496 of 512 codes, perplexity 353, after four to five minutes of one free core. Always fp32, so that
the same seed gives the same codebook on every machine, up to rounding.

Why they differ from DALL-E's, measured on 32-pixel icons with 3 groups of 1 block:
- Without KL, 5 codes were left after 79 steps of 64. DALL-E's 6.6 kept 150 codes, but only a perplexity of 38
  at MSE 0.038 (500 steps of 32).
- Embeddings of std 1 / sqrt(vocab_size) turn one-hot inputs into almost nothing at the start. Std 1 improved
  this to MSE 0.025 and perplexity 49.
- Evening out the batch mean instead of each cell (usage_weight 10, KL weight 1) raised perplexity to 90 at
  the same MSE in 400 steps.
- On the demo's images at 16 pixels, 500 steps of these settings gave MSE 0.033 and 314 codes; KL weight 0.2
  with lr 2e-3 gave 0.036 and 358. Most codes come into use late: 397 after 3,000 of the 5,000 steps, when the
  temperature has reached its minimum.
- An average of the weights was not tried: over 1,000 steps, it would still contain the start.
"""


PRESETS = {"small": SMALL, "dalle": DALLE}
"""By the names of --preset."""
MANY_CODES = 4096
"""From this vocabulary on, DALL-E's is the preset unless one is named."""


def preset_of(vocab_size: int) -> str:
    """Returns the preset for a codebook of so many codes where none is named."""
    return "dalle" if vocab_size >= MANY_CODES else "small"


def temperature_at(config: CodebookTrainingConfig, step: int, total_steps: int) -> float:
    """Returns the relaxation's temperature at a step: cosine from temperature to min_temperature."""
    return _cosine(config.temperature, config.min_temperature, step, config.temperature_share * total_steps)


def kl_weight_at(config: CodebookTrainingConfig, step: int, total_steps: int) -> float:
    """Returns the KL weight at a step: cosine from 0 to kl_weight."""
    return _cosine(0.0, config.kl_weight, step, config.kl_share * total_steps)


def learning_rate_at(config: CodebookTrainingConfig, step: int, total_steps: int) -> float:
    """Returns the learning rate at a step: cosine from lr to min_lr, times a linear warm-up."""
    warmup = config.warmup_share * total_steps
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    return _cosine(config.lr, config.min_lr, step, config.lr_share * total_steps) * rise


def _cosine(start: float, end: float, step: int, horizon: float) -> float:
    """Goes from start to end over `horizon` steps, then stays there."""
    return along_cosine(start, end, step / horizon if horizon > 0 else 1.0)


def check_training(training: CodebookTrainingConfig) -> None:
    """Raises ConfigError that names the first invalid setting."""
    for name in ("total_steps", "batch_size", "eval_samples", "log_every"):
        if getattr(training, name) < 1:
            raise ConfigError(
                f"codebook training: {name} is {getattr(training, name)}; it must be at least 1"
            )
    for name in ("lr_share", "warmup_share", "temperature_share", "kl_share"):
        if not 0 <= (value := getattr(training, name)) <= 1:
            raise ConfigError(f"codebook training: {name} is {value:g}; it must lie between 0 and 1")
    for name in ("lr", "min_lr", "eps", "weight_decay", "kl_weight", "usage_weight"):
        if not 0 <= (value := getattr(training, name)) < math.inf:
            raise ConfigError(
                f"codebook training: {name} is {value:g}; it must be a finite number of at least 0"
            )
    for name, values in (("betas", training.betas), ("ema_decay", (training.ema_decay,))):
        if not all(0 <= value < 1 for value in values):
            raise ConfigError(
                f"codebook training: {name} is {getattr(training, name)}; it must be at least 0 and below 1"
            )
    for name in ("max_seconds", "embedding_std"):
        if (value := getattr(training, name)) is not None and not 0 < value < math.inf:
            raise ConfigError(f"codebook training: {name} is {value:g}; give a positive number or None")
    for name in ("temperature", "min_temperature"):
        if not 0 < (value := getattr(training, name)) < math.inf:
            raise ConfigError(f"codebook training: {name} is {value:g}; give a positive number")
    if training.min_temperature > training.temperature:
        raise ConfigError(
            f"codebook training: min_temperature {training.min_temperature} must not exceed "
            f"temperature {training.temperature}"
        )
    if training.precision not in ("bf16", "fp32"):
        raise ConfigError(f"codebook training: precision is '{training.precision}'; choose 'bf16' or 'fp32'")
