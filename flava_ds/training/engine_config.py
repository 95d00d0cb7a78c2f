"""Merges a DeepSpeed JSON with the recipe, after checking its keys: DeepSpeed ignores unknown ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flava_ds.config import Config, did_you_mean
from flava_ds.config.plain_files import loads
from flava_ds.errors import ConfigError

ALLOWED = {
    "zero_optimization",
    "communication_data_type",
    "prescale_gradients",
    "gradient_predivide_factor",
    "memory_breakdown",
    "aio",
}
"""Top-level keys that a file under ds_configs may set."""

SILENT = {"wall_clock_breakdown", "flops_profiler", "comms_logger", "steps_per_print", "dump_state"}
"""DeepSpeed's diagnostics that cannot work here: the first two need hooks on a forward pass that returns a
plain loss, and the others speak through its logger, which only reports errors.
"""

OWNED = {
    "train_batch_size": "training.global_batch_size",
    "train_micro_batch_size_per_gpu": "training.global_batch_size",
    "gradient_accumulation_steps": "training.gradient_accumulation_steps",
    "gradient_clipping": "training.gradient_clipping",
    "bf16": "training.precision",
    "bfloat16": "training.precision",
    "fp16": "training.precision",
    "amp": "training.precision",
    "torch_autocast": "training.precision",
    "data_types": "training.accumulate_in_fp32",
    "optimizer": "optimizer.lr, ... (--optimizer NAME takes another one)",
    "scheduler": "schedule.warmup_steps, ...",
    "activation_checkpointing": "training.activation_checkpointing",
    "tensorboard": "logging.tensorboard",
    "wandb": "logging.wandb",
    "checkpoint": "checkpoint.every_steps, ...",
}
"""Top-level keys that belong to the recipe, and the field that sets each."""

UNNAMED = {
    "compute_grad_norm": "is set by flava_ds, which measures the norm itself; remove it",
    "cpu_offload": 'is an old name; write "offload_optimizer": {"device": "cpu"}',
    "cpu_offload_param": 'is an old name; write "offload_param": {"device": "cpu"}',
    "cpu_offload_use_pin_memory": "is an old name; set pin_memory in offload_optimizer or offload_param",
    "stage3_gather_fp16_weights_on_model_save": "is an old name; write "
    "stage3_gather_16bit_weights_on_model_save",
}
"""Entries of zero_optimization that may not be there, whatever their value, and what to do."""
REFUSED = {
    "legacy_stage1": "is gone from DeepSpeed; remove it",
    "stage3_module_granularity_threshold": "makes leaves of modules whose inputs are no tensors; name "
    "classes in leaf_module",
    "module_granularity_threshold": "is stage3_module_granularity_threshold; name classes in leaf_module",
    "zenflow": "delays the updates of most weights, without the engine's norm and clipping; remove it",
    "offload_optimizer.ratio": "splits updates between host and device, in an optimizer of DeepSpeed's, not "
    "the recipe's; remove it",
    "offload_optimizer.super_offload": "has an optimizer of its own, not the recipe's; remove it",
}
"""Entries of zero_optimization that cannot work here when they are set, and what to do. Those that can are
trained with in tests/training/test_engine_zero_keys.py.
"""
QUANTIZED = ("zero_quantized_weights", "zero_quantized_nontrainable_weights", "zero_quantized_gradients")
"""Entries of zero_optimization that need kernels which DeepSpeed has for GPUs only."""


def shipped_settings() -> dict[str, Path]:
    """Returns the files under ds_configs by name, from the installed package or a checkout."""
    package = Path(__file__).parents[1]
    folder = next((f for f in (package / "ds_configs", package.parent / "ds_configs") if f.is_dir()), package)
    return {path.stem: path for path in sorted(folder.glob("*.json"))}


def read_settings(name: str) -> tuple[dict[str, Any], str]:
    """Reads a DeepSpeed JSON by name or path. Returns it with the file's path.

    Raises: ConfigError if there is no such file, it is not a JSON object, or it has a key twice.
    """
    shipped = shipped_settings()
    source = shipped.get(name, Path(name))
    if name not in shipped and not source.is_file():
        raise ConfigError(
            f"engine.deepspeed_config '{name}' is neither a file nor one of "
            f"{', '.join(sorted(shipped))}{did_you_mean(name, shipped)}"
        )
    try:
        settings = loads(source.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{source}: expected a JSON object of DeepSpeed settings")
    return settings, str(source)


def merged_settings(config: Config, world_size: int, device_type: str) -> dict[str, Any]:
    """Returns the settings for `deepspeed.initialize`: engine.deepspeed_config plus what the recipe owns.

    Raises: ConfigError naming the file and key, or the recipe field that conflicts with it.
    """
    settings, path = read_settings(config.engine.deepspeed_config)
    _check_keys(settings, path)
    zero = settings.get("zero_optimization")
    if not isinstance(zero, dict) or type(zero.get("stage")) is not int:
        raise ConfigError(f'{path}: zero_optimization needs an explicit "stage" (0, 1, 2 or 3)')
    _check_zero(zero, path, device_type)
    _check_divisors(settings, zero, path)
    _check_precision(config.training.precision, zero, path, device_type)
    if zero["stage"] in (1, 2) and not offloads(zero, "offload_optimizer"):
        zero = {**zero, "compute_grad_norm": False}  # Engine.update measures and clips on the device
    micro_batch_size = max(
        1, config.training.global_batch_size // (world_size * config.training.gradient_accumulation_steps)
    )
    return {
        "steps_per_print": 1_000_000_000,
        **settings,
        # DeepSpeed's own would wait for the device twice a step.
        "timers": {"throughput": {"enabled": False}},
        "zero_optimization": zero,
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": config.training.gradient_accumulation_steps,
        "gradient_clipping": 0.0,  # Engine.update clips; DeepSpeed defaults to 1.0 since 0.19.8
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        **_precision_settings(config),
    }


def zero_stage(settings: dict[str, Any]) -> int:
    """Returns the ZeRO stage of merged settings."""
    return settings["zero_optimization"]["stage"]


def _check_keys(settings: dict[str, Any], path: str) -> None:
    """Rejects unknown keys, keys that belong to the recipe, and diagnostics that do not work here."""
    for key in settings:
        if key in OWNED:
            raise ConfigError(f"{path}: '{key}' belongs to the recipe; remove it here and set {OWNED[key]}")
        if key in SILENT:
            raise ConfigError(
                f"{path}: '{key}', a diagnostic of DeepSpeed, does not work here; remove it and use "
                "--logging.profile-steps"
            )
        if key not in ALLOWED:
            raise ConfigError(f"{path}: unknown key '{key}'{did_you_mean(key, ALLOWED | OWNED.keys())}")


def _check_zero(zero: dict[str, Any], path: str, device_type: str) -> None:
    """Rejects unknown or impossible entries of zero_optimization, using DeepSpeed's own schema."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    fields = DeepSpeedZeroConfig.model_fields
    known = set(fields) | {field.alias for field in fields.values() if field.alias}
    for key in zero:
        if key not in known:
            raise ConfigError(f"{path}: unknown key 'zero_optimization.{key}'{did_you_mean(key, known)}")
    if zero.get("round_robin_gradients") and zero["stage"] in (1, 2):
        raise ConfigError(
            f"{path}: 'zero_optimization.round_robin_gradients' is refused in stages 1 and 2, because "
            "DeepSpeed then mistakes which elements are whose, and checkpoints have wrong ones; remove it"
        )
    check_offloading(zero, path)
    _check_refused(zero, path, device_type)
    try:
        DeepSpeedZeroConfig(**zero)
    except ValueError as error:
        problem = error.errors()[0] if hasattr(error, "errors") else {"loc": (), "msg": str(error)}
        where = ".".join(("zero_optimization", *map(str, problem["loc"])))
        raise ConfigError(f"{path}: {where}: {problem['msg']}") from error


def _check_refused(zero: Mapping[str, Any], path: str, device_type: str) -> None:
    """Rejects entries that DeepSpeed knows and that would end in an error of its own."""
    optimizer = zero.get("offload_optimizer")
    nested = optimizer if isinstance(optimizer, dict) else {}
    given = {**zero, **{f"offload_optimizer.{key}": value for key, value in nested.items()}}
    for key, value in given.items():
        off = (1,) if key == "offload_optimizer.ratio" else (None, False, 0)
        if why := UNNAMED.get(key) or (REFUSED.get(key) if value not in off else None):
            raise ConfigError(f"{path}: 'zero_optimization.{key}' {why}")
        if device_type == "cpu" and key in QUANTIZED and value:
            raise ConfigError(f"{path}: 'zero_optimization.{key}' does not run on a CPU; remove it")


def _check_divisors(settings: Mapping[str, Any], zero: Mapping[str, Any], path: str) -> None:
    """Rejects dividing gradients beside a reduction where DeepSpeed cannot, or does it wrongly."""
    factor = settings.get("gradient_predivide_factor", 1)
    key = "gradient_predivide_factor" if factor != 1 else "prescale_gradients"
    if factor == 1 and not settings.get("prescale_gradients"):
        return
    if zero["stage"] == 3 and factor != 1:
        raise ConfigError(
            f"{path}: '{key}' is refused in stage 3, where DeepSpeed leaves gradients too small if it is the "
            "number of ranks; remove it"
        )
    if zero["stage"] >= 2 and zero.get("reduce_scatter", True):
        raise ConfigError(
            f"{path}: '{key}' needs zero_optimization.reduce_scatter false in stage {zero['stage']}; set it, "
            f"or remove '{key}': gradients are divided before they are reduced there anyway"
        )


def check_offloading(zero: Mapping[str, Any], path: str) -> None:
    """Rejects offloading that cannot be trained with. Raises: ConfigError."""
    if zero["stage"] == 0 and ("offload_optimizer" in zero or "offload_param" in zero):
        raise ConfigError(
            f"{path}: offloading needs ZeRO stage 1, 2 or 3; stage 0 keeps everything on the device"
        )
    for key in ("offload_optimizer", "offload_param"):
        if isinstance(zero.get(key), dict) and zero[key].get("device") == "nvme":
            raise ConfigError(
                f'{path}: zero_optimization.{key}.device "nvme" is refused, because gradients and '
                'checkpoints are read from memory; use "cpu"'
            )


def offloads(zero: Mapping[str, Any], key: str) -> bool:
    """Whether a section of zero_optimization, which may be null, names a device to offload to."""
    return isinstance(zero.get(key), dict) and zero[key].get("device") not in (None, "none")


def _check_precision(precision: str, zero: dict[str, Any], path: str, device_type: str) -> None:
    """Rejects combinations that DeepSpeed runs incorrectly or not at all."""
    if precision == "fp16" and device_type == "cpu":
        raise ConfigError("training.precision 'fp16' does not run on a CPU; use 'bf16' or 'fp32'")
    if precision != "fp32" and zero["stage"] == 0:
        raise ConfigError(
            f"{path}: ZeRO stage 0 with training.precision '{precision}' is refused, because DeepSpeed then "
            "makes an update with zero gradients at start-up (bias correction off by one, one extra weight "
            "decay); use stage 1, which costs no more communication"
        )


def _precision_settings(config: Config) -> dict[str, Any]:
    """Translates training.precision into DeepSpeed's keys.

    DeepSpeed's gradient check for bf16 is off because it waits for the device; Engine.update checks instead.
    """
    name = config.training.precision
    if name == "fp32":
        return {}
    section = {"enabled": True, "check_grad_overflow": False} if name == "bf16" else {"enabled": True}
    sums = "fp32" if config.training.accumulate_in_fp32 else name
    return {name: section, "data_types": {"grad_accum_dtype": sums}}
