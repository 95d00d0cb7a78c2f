"""The codebook with its optimizer and schedules, one update at a time."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor

from flava_ds.codebook.config import (
    CodebookTrainingConfig,
    check_training,
    kl_weight_at,
    learning_rate_at,
    temperature_at,
)
from flava_ds.codebook.image_codebook import ImageCodebook
from flava_ds.codebook.losses import CodebookLoss, code_usage, codebook_loss, gumbel_softmax
from flava_ds.codebook.progress import Deadline
from flava_ds.config import Config

_CALIBRATION_STEPS = (3, 12)
"""Steps before the clock starts, and steps timed, when max_seconds decides the length."""


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
                torch.nn.init.normal_(self.codebook.need_decoder().input.weight, std=training.embedding_std)
        cast(Any, self.codebook).to(
            device, memory_format=torch.channels_last
        )  # torch 2.13 has no type for it
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
            output = self.codebook.need_decoder()(rearrange(relaxed, "b gh gw v -> b v gh gw"))
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

    def calibrate(self, batch: Callable[[int], Tensor], deadline: Deadline) -> None:
        """Sets total_steps to what fits before the deadline, from the median time of a few real steps; then
        forgets them. It takes a tenth of the time at most, if two steps do.
        """
        codebook, average, optimizer = copy.deepcopy(
            (self.codebook.state_dict(), self.average.state_dict(), self.optimizer.state_dict())
        )
        warm, timed = _CALIBRATION_STEPS
        seconds: list[float] = []
        most = 0.1 * deadline.left
        while len(seconds) < warm + timed and (len(seconds) < 2 or sum(seconds) < most):
            before = time.perf_counter()
            self.step(0, batch(len(seconds))).total.item()
            seconds.append(time.perf_counter() - before)
        # the first ones are slower, so they count only where there are no others
        steady = sorted(seconds[warm:] or seconds[-1:])
        self.total_steps = max(1, int(deadline.left / steady[len(steady) // 2]))
        self.codebook.load_state_dict(codebook)
        self.average.load_state_dict(average)
        self.optimizer.load_state_dict(optimizer)

    def shorten(self, done: int, rate: float, left: float) -> None:
        """Lowers total_steps to what still fits into `left` seconds at `rate` steps a second, when that is
        less."""
        if math.isfinite(left):
            self.total_steps = min(self.total_steps, done + max(0, int(left * rate)))

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
