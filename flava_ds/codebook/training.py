"""Trains the image codebook, a Gumbel-softmax discrete VAE, on the images of some sources on one device."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange, reduce
from torch import Tensor

from flava_ds.codebook.config import (
    DALLE,
    CodebookTrainingConfig,
    check_training,
    kl_weight_at,
    learning_rate_at,
    temperature_at,
)
from flava_ds.codebook.image_codebook import ImageCodebook, save_codebook
from flava_ds.codebook.losses import CodebookLoss, code_usage, codebook_loss, gumbel_softmax
from flava_ds.codebook.pixels import PixelStream
from flava_ds.config import Config, SourceConfig, to_dict
from flava_ds.errors import CheckpointError, DataError
from flava_ds.storage.atomic import write_whole

log = logging.getLogger(__name__)

_CALIBRATION_STEPS = (3, 12)
"""Warm-up steps and timed steps that determine the length if max_seconds is set."""


@dataclass(frozen=True, kw_only=True)
class CodebookReport:
    """The quality of the codebook on held-out images with hard codes.

    Errors are mean squares of pixel values in [0, 1]. For comparison, mean_color_mse is the error of one
    constant colour, image_mean_mse that of one colour per image.
    """

    step: int
    total_steps: int
    mse: float
    perplexity: float
    used_codes: int
    vocab_size: int
    mean_color_mse: float
    image_mean_mse: float
    samples_per_second: float
    seconds: float
    reconstruction: float
    kl: float
    temperature: float

    def __str__(self) -> str:
        return (
            f"step {self.step}/{self.total_steps}: mse {self.mse:.4f} (one colour "
            f"{self.mean_color_mse:.4f}, one per image {self.image_mean_mse:.4f}), "
            f"perplexity {self.perplexity:.0f}, {self.used_codes} of {self.vocab_size} codes used, "
            f"kl {self.kl:.2f} nats, temperature {self.temperature:.3f}, "
            f"{self.samples_per_second:.0f} images/s, {self.seconds:.0f} s"
        )


class CodebookTrainer:
    """One codebook with its optimizer and schedules. Everything random in a step comes from (seed, step)."""

    def __init__(self, config: Config, training: CodebookTrainingConfig, device: torch.device) -> None:
        check_training(training)
        self.training, self.seed, self.device = training, config.seed, device
        self.total_steps = training.total_steps
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.codebook = ImageCodebook(config.codebook)
            if training.embedding_std is not None:
                torch.nn.init.normal_(self.codebook.decoder.input.weight, std=training.embedding_std)
        self.codebook.to(device, memory_format=torch.channels_last)
        self.average = self.codebook
        if training.ema_decay:
            self.average = copy.deepcopy(self.codebook).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.codebook.parameters(),
            lr=training.lr,
            betas=training.betas,
            eps=training.eps,
            weight_decay=training.weight_decay,
            fused=True,
        )

    def step(self, step: int, pixels: Tensor) -> CodebookLoss:
        """Makes one update from a batch of images: [b c H W] uint8."""
        training, total = self.training, self.total_steps
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(training, step, total)
        generator = torch.Generator(self.device).manual_seed(self.seed * 1_000_003 + step)
        pixels = pixels.to(self.device, memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=training.precision == "bf16"):
            logits = rearrange(self.codebook.logits(pixels), "b v gh gw -> b gh gw v").float()
            relaxed = gumbel_softmax(logits, temperature_at(training, step, total), generator)
            output = self.codebook.decoder(rearrange(relaxed, "b gh gw v -> b v gh gw"))
        loss = codebook_loss(
            logits,
            self.codebook.prepare(pixels),
            output,
            kl_weight_at(training, step, total),
            training.usage_weight,
        )
        self.optimizer.zero_grad(set_to_none=True)
        loss.total.backward()
        self.optimizer.step()
        if training.ema_decay:
            decay = min(training.ema_decay, (step + 1) / (step + 10))
            torch._foreach_lerp_(list(self.average.parameters()), list(self.codebook.parameters()), 1 - decay)
        return loss

    def calibrate(self, batch: Callable[[int], Tensor], max_seconds: float) -> None:
        """Sets total_steps to what fits into max_seconds, from the median time of a few real steps.

        Restores the state from before these steps.
        """
        parts = (self.codebook, self.average, self.optimizer)
        state = copy.deepcopy([part.state_dict() for part in parts])
        warm, timed = _CALIBRATION_STEPS
        seconds, start = [], time.perf_counter()
        for number in range(warm + timed):
            before = time.perf_counter()
            self.step(0, batch(number)).total.item()
            seconds.append(time.perf_counter() - before)
        left = max_seconds - (time.perf_counter() - start)
        self.total_steps = max(1, int(left / sorted(seconds[warm:])[timed // 2]))
        for part, saved in zip(parts, state, strict=True):
            part.load_state_dict(saved)

    def shorten(self, done: int, begin: float, deadline: float) -> None:
        """Lowers total_steps to what still fits before `deadline` at the rate since `begin`.

        Times are from perf_counter.
        """
        now = time.perf_counter()
        self.total_steps = min(self.total_steps, done + max(0, int((deadline - now) * done / (now - begin))))

    @torch.no_grad()
    def evaluate(self, pixels: Tensor) -> tuple[float, float, int]:
        """Encodes and decodes images with hard codes: mean squared error, perplexity, used codes."""
        error, codes = 0.0, []
        for part in pixels.split(128):
            part = part.to(self.device, memory_format=torch.channels_last)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.training.precision == "bf16"):
                codes.append(self.average.encode(part))
                decoded = self.average.decode(codes[-1])
            error += (decoded - part.float() / 255).square().sum().item()
        perplexity, used = code_usage(torch.cat(codes), self.codebook.config.vocab_size)
        return error / pixels.numel(), perplexity, used


def train_codebook(
    config: Config,
    sources: Mapping[str, SourceConfig],
    out: Path,
    *,
    training: CodebookTrainingConfig = DALLE,
    device: torch.device | str = "cpu",
    on_report: Callable[[CodebookReport], None] = lambda report: log.info("codebook %s", report),
) -> CodebookReport:
    """Trains config.codebook on the images of some sources and returns the last report.

    Writes `out` (safetensors) and a summary next to it with suffix .json. Applies each source's transform, so
    pass those of the run that will use the codes. Logs a warning if the codebook collapsed (perplexity under
    a tenth of the vocabulary) or is no better than one colour per image.

    Raises: ConfigError for invalid settings; DataError for an unusable source or a loss that is not finite;
    CheckpointError when `out` cannot be written.
    """
    trainer = CodebookTrainer(config, training, torch.device(device))
    _check_output(out)
    stream = PixelStream(config, sources, training.eval_samples)
    held_out = stream.held_out()
    start = time.perf_counter()
    if training.max_seconds is not None:
        trainer.calibrate(lambda step: stream.batch(step, training.batch_size), training.max_seconds)
    done, begin, curve = 0, time.perf_counter(), []
    while done < trainer.total_steps:
        loss = trainer.step(done, stream.batch(done, training.batch_size))
        done += 1
        if done % training.log_every and done != trainer.total_steps:
            continue
        if training.max_seconds is not None:
            trainer.shorten(done, begin, start + training.max_seconds)
        if not math.isfinite(loss.total.item()):
            raise DataError(
                f"the codebook's loss is not finite at step {done - 1}; lower the learning rate {training.lr}"
            )
        now = time.perf_counter()
        speed = done * training.batch_size / (now - begin)
        report = _report(trainer, held_out, done, loss, speed, now - start)
        curve.append({name: getattr(report, name) for name in ("step", "mse", "perplexity", "used_codes")})
        on_report(report)
    save_codebook(trainer.average, out)
    summary = {
        "report": dataclasses.asdict(report),
        "curve": curve,
        "seed": config.seed,
        "codebook": to_dict(config.codebook),
        "training": to_dict(training),
        "sources": {name: to_dict(source) for name, source in sources.items()},
    }
    write_whole(out.with_suffix(".json"), json.dumps(summary, indent=2) + "\n")
    _warn(report)
    return report


def _report(
    trainer: CodebookTrainer, held_out: Tensor, done: int, loss: CodebookLoss, speed: float, seconds: float
) -> CodebookReport:
    """Measures the errors on the held-out images, and those of constant colours."""
    mse, perplexity, used = trainer.evaluate(held_out)
    values = held_out.float() / 255
    one_colour = reduce(values, "b c h w -> 1 c 1 1", "mean")
    per_image = reduce(values, "b c h w -> b c 1 1", "mean")
    return CodebookReport(
        step=done,
        total_steps=trainer.total_steps,
        mse=mse,
        perplexity=perplexity,
        used_codes=used,
        vocab_size=trainer.codebook.config.vocab_size,
        mean_color_mse=(values - one_colour).square().mean().item(),
        image_mean_mse=(values - per_image).square().mean().item(),
        samples_per_second=speed,
        seconds=seconds,
        reconstruction=loss.reconstruction.item(),
        kl=loss.kl.item(),
        temperature=temperature_at(trainer.training, done - 1, trainer.total_steps),
    )


def _warn(report: CodebookReport) -> None:
    """Logs a warning when the codebook is of little use."""
    if report.perplexity < report.vocab_size / 10 or report.mse > report.image_mean_mse:
        log.warning("the codebook is weak (%s); train longer, or raise usage_weight or kl_weight", report)


def _check_output(out: Path) -> None:
    """Checks before the training, not after it, that the result can be written."""
    if out.suffix != ".safetensors":
        raise CheckpointError(f"{out}: give the result a file name that ends in .safetensors")
    if out.is_dir():
        raise CheckpointError(f"{out}: is a folder; name a file in it for the result")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out.parent).close()
    except OSError as error:
        raise CheckpointError(f"{out}: cannot be written ({error.strerror}); give another place") from error
