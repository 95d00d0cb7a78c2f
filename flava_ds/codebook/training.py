"""Trains the image codebook, a Gumbel-softmax discrete VAE, on the images of some sources on one device."""

from __future__ import annotations

import dataclasses
import logging
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import reduce
from torch import Tensor

from flava_ds.codebook.config import DALLE, CodebookTrainingConfig, temperature_at
from flava_ds.codebook.image_codebook import save_codebook
from flava_ds.codebook.interim import Begun, Interim, finished
from flava_ds.codebook.losses import CodebookLoss
from flava_ds.codebook.pixels import PixelStream
from flava_ds.codebook.progress import Deadline, Progress
from flava_ds.codebook.trainer import CodebookTrainer
from flava_ds.config import Config, SourceConfig, to_dict
from flava_ds.errors import CheckpointError, DataError
from flava_ds.plain_text import public
from flava_ds.storage.atomic import write_json

log = logging.getLogger(__name__)

SAVE_EVERY_S = 120.0
"""Seconds between states of an unfinished training."""
SAFETY, END_S = 2.0, 2.0
"""How many times what a step or report took is kept free before the limit, and the seconds for the files."""


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


def train_codebook(
    config: Config,
    sources: Mapping[str, SourceConfig],
    out: Path,
    *,
    training: CodebookTrainingConfig = DALLE,
    device: torch.device | str = "cpu",
    on_report: Callable[[CodebookReport], None] = lambda report: log.info("codebook %s", report),
    tell: Callable[[str], None] = log.info,
    save_every_s: float = SAVE_EVERY_S,
    started: float | None = None,
    is_asked_to_stop: Callable[[], bool] = lambda: False,
) -> CodebookReport:
    """Trains config.codebook on the images of some sources and returns the last report.

    A source's transform is applied, so give those of the run that will use the codes. `tell` hears the plan
    before the first step and, by the clock, how far it is. Every `save_every_s` seconds, and where
    `is_asked_to_stop`, the state is written beside `out`; the same call goes on from there, exactly. With
    training.max_seconds, counted from `started` (time.perf_counter) or else the call on, all is done and
    written within them. Where `out` is the result of the same call, it is left as it is. Ends with a warning
    in the log when the codebook collapsed (perplexity under a tenth of the vocabulary) or is no better than
    one colour per image.

    Raises: ConfigError on settings that cannot work; DataError on an unusable source or a loss that is not
    finite; CheckpointError when `out` cannot be written, or what is there was made with other settings;
    KeyboardInterrupt after a stop that was asked for.
    """
    deadline = Deadline(training.max_seconds, started)
    trainer = CodebookTrainer(config, training, torch.device(device))
    _check_output(out)
    stream = PixelStream(config, sources, training.eval_samples)
    settings = _settings(config, sources, training, stream)
    interim = Interim(out, trainer, settings)
    if (known := finished(out, {**settings, "max_seconds": training.max_seconds})) is not None:
        interim.remove()
        tell(f"{out} is finished: trained before on the same pictures with the same settings")
        return CodebookReport(**known)
    begun = interim.load()
    tell(describe_plan(trainer, stream, begun.done if begun else 0))
    told = on_report, tell, save_every_s, is_asked_to_stop
    loop = _Loop(trainer, stream, interim, deadline, stream.held_out(), *told)
    loop.fit(begun is None)
    report, curve = loop.run(begun or Begun(0, 0.0, []))
    _write(trainer, out, report, curve, settings, sources)
    interim.remove()
    _warn(report)
    return report


@dataclass
class _Loop:
    """The steps of a training, with what happens between them."""

    trainer: CodebookTrainer
    stream: PixelStream
    interim: Interim
    deadline: Deadline
    held_out: Tensor
    on_report: Callable[[CodebookReport], None]
    tell: Callable[[str], None]
    save_every_s: float
    is_asked_to_stop: Callable[[], bool]

    def batch(self, step: int) -> Tensor:
        """Returns the pictures of a step."""
        return self.stream.batch(step, self.trainer.training.batch_size)

    def fit(self, new: bool) -> None:
        """Where there is a limit, measures the end, and of a new training how many steps fit."""
        limit = self.trainer.training.max_seconds
        if limit is None:
            return
        start = time.perf_counter()
        self.trainer.evaluate(self.held_out)  # the last report is the larger part of what follows the steps
        self.deadline.reserve = SAFETY * (time.perf_counter() - start) + END_S
        if new:
            self.trainer.calibrate(self.batch, self.deadline)
            steps = self.trainer.total_steps
            self.tell(f"{steps:,} step{'s' * (steps > 1)} fit into {limit:g} s")
        if self.deadline.left < 0:
            over = self.deadline.spent + self.deadline.reserve
            self.tell(f"{limit:g} s are too few for this machine: all but the steps takes {over:.0f} s")

    def run(self, begun: Begun) -> tuple[CodebookReport, list[dict[str, Any]]]:
        """Makes the steps that are left; returns the last report and all of them in short."""
        trainer, training, (done, before, curve) = self.trainer, self.trainer.training, begun
        progress, saved_at, slowest = Progress(self.tell, training.batch_size, done), time.perf_counter(), 0.0
        while True:
            started = time.perf_counter()
            loss = trainer.step(done, self.batch(done))
            done, now = done + 1, time.perf_counter()
            slowest = max(slowest, now - started)
            late = self.deadline.left < SAFETY * slowest
            trainer.shorten(done, progress.rate(done, now), 0.0 if late else self.deadline.left)
            progress.step(done, trainer.total_steps, loss.total.item)
            if done % training.log_every == 0 or done >= trainer.total_steps:
                report = self._report(done, loss, progress, before)
                curve.append({name: getattr(report, name) for name in _CURVE})
                self.on_report(report)
                if done >= trainer.total_steps:
                    return report, curve
            stop = self.is_asked_to_stop()
            if stop or time.perf_counter() - saved_at > self.save_every_s:
                self.interim.save(Begun(done, before + self.deadline.spent, curve))
                saved_at = time.perf_counter()
            if stop:
                where = f"stopped at step {done}/{trainer.total_steps}"
                self.tell(f"{where}; the same command goes on from {self.interim.path}")
                raise KeyboardInterrupt

    def _report(self, done: int, loss: CodebookLoss, progress: Progress, before: float) -> CodebookReport:
        """Measures the errors on the held-out pictures, and those of constant colours.

        Raises: DataError when the loss is not finite.
        """
        trainer, training = self.trainer, self.trainer.training
        if not math.isfinite(loss.total.item()):
            raise DataError(
                f"the codebook's loss is not finite at step {done - 1}; lower the learning rate {training.lr}"
            )
        speed = progress.rate(done, time.perf_counter()) * training.batch_size
        seconds = before + self.deadline.spent
        mse, perplexity, used = trainer.evaluate(self.held_out)
        values = self.held_out.float() / 255
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
            temperature=temperature_at(training, done - 1, trainer.total_steps),
        )


_CURVE = ("step", "mse", "perplexity", "used_codes")
"""What the summary keeps of every report."""


def describe_plan(trainer: CodebookTrainer, stream: PixelStream, done: int) -> str:
    """Says what will be trained on what, for how long, before it begins."""
    training, codebook = trainer.training, trainer.codebook.config
    numel = sum(parameter.numel() for parameter in trainer.codebook.parameters())
    epochs = trainer.total_steps * training.batch_size / stream.pictures
    length = (
        f"as many steps as fit into {training.max_seconds:g} s"
        if training.max_seconds is not None and not done
        else f"{trainer.total_steps:,} steps of {training.batch_size}, {epochs:,.1f} epochs"
    )
    start = f"going on after step {done:,}: " if done else ""
    return (
        f"{start}{stream.pictures:,} pictures of {codebook.image_size} px to learn from, "
        f"{stream.held_out_pictures:,} held out; {codebook.vocab_size:,} codes, a grid of "
        f"{codebook.grid_size} x {codebook.grid_size} a picture; {numel / 1e6:.2f} M parameters on "
        f"{trainer.device}, {training.precision}; {length}; the time left follows within seconds"
    )


def _settings(
    config: Config,
    sources: Mapping[str, SourceConfig],
    training: CodebookTrainingConfig,
    stream: PixelStream,
) -> dict[str, Any]:
    """Returns what must be the same for a training to go on exactly."""
    free = dataclasses.replace(training, max_seconds=None, log_every=1)
    return {
        "seed": config.seed,
        "codebook": to_dict(config.codebook),
        "training": to_dict(free),
        "transforms": {name: to_dict(source.transform) for name, source in sources.items()},
        "pictures": stream.pictures + stream.held_out_pictures,
        "hash of their keys and sizes": stream.fingerprint,
    }


def _write(
    trainer: CodebookTrainer,
    out: Path,
    report: CodebookReport,
    curve: list[dict[str, Any]],
    settings: dict[str, Any],
    sources: Mapping[str, SourceConfig],
) -> None:
    """Writes the codebook, and what it was made of."""
    save_codebook(trainer.average, out)
    summary = {
        "report": dataclasses.asdict(report),
        "curve": curve,
        **settings,
        "max_seconds": trainer.training.max_seconds,
        "sources": {name: public(to_dict(source)) for name, source in sources.items()},
    }
    write_json(out.with_suffix(".json"), summary)


def _warn(report: CodebookReport) -> None:
    """Logs a warning when the codebook is of little use."""
    why = []
    if report.perplexity < report.vocab_size / 10:
        why.append(f"perplexity {report.perplexity:.0f} is under a tenth of its {report.vocab_size} codes")
    if report.mse > report.image_mean_mse:
        why.append(f"mse {report.mse:.4f} is over the {report.image_mean_mse:.4f} of one colour per image")
    if why:
        log.warning(
            "the codebook is weak: %s; train longer, or raise usage_weight or kl_weight", ", ".join(why)
        )


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
