"""Compiles the blocks of a task's transformers, each by itself: PyTorch calls it regional compilation.

All blocks of one shape share their compiled code. Lengths are dynamic, so that only a few variants of a block
are compiled: the first one has no branch yet, the last one may finish some rows only, lengths may be equal.
"""

from __future__ import annotations

import os
import shutil

import torch
import torch._functorch.config
from torch import nn

from flava_ds.config import TrainingConfig
from flava_ds.errors import ConfigError
from flava_ds.layers.transformer import Block

MOST_VARIANTS = 64
"""Of compiled blocks; beyond that PyTorch would silently go back to eager calls."""


def check_compiler(training: TrainingConfig) -> None:
    """Raises ConfigError if something is to be compiled and there is no C++ compiler, which torch needs."""
    wanted = [name for name in ("compile_blocks", "compile_codebook") if getattr(training, name)]
    compiler = os.environ.get("CXX", "g++")
    if wanted and shutil.which(compiler) is None:
        raise ConfigError(
            f"training.{wanted[0]} needs a C++ compiler, and there is no '{compiler}'; install one, name it "
            f"in CXX, or use --training.no-{wanted[0].replace('_', '-')}"
        )


def compile_blocks(module: nn.Module, zero_stage: int, backend: str = "inductor") -> int:
    """Compiles every Block of `module` at its first call. Returns how many there are.

    Raises: ConfigError with ZeRO-3, whose hooks inside of a block gather its weights.
    """
    if zero_stage == 3:
        raise ConfigError(
            "training.compile_blocks does not go with ZeRO-3, which gathers weights inside of a block; use "
            "--engine.deepspeed-config zero2, or --training.no-compile-blocks"
        )
    # Several backward passes through one graph, as GradNorm takes, may not reuse its buffers.
    torch._functorch.config.donated_buffer = False
    torch._dynamo.config.recompile_limit = max(MOST_VARIANTS, torch._dynamo.config.recompile_limit)
    blocks = [part for part in module.modules() if isinstance(part, Block)]
    for block in blocks:
        block.compile(dynamic=True, backend=backend)
    return len(blocks)
