"""The configuration of a run: a tree of frozen dataclasses, checked as a whole, with strict JSON I/O."""

from flava_ds.config.checks import check
from flava_ds.config.codebook import CodebookConfig
from flava_ds.config.data import (
    UNCHANGED,
    WHOLE,
    DataConfig,
    ImageTransformConfig,
    SourceConfig,
    WeightChange,
)
from flava_ds.config.evaluation import EvaluationConfig
from flava_ds.config.objectives import ObjectiveConfig
from flava_ds.config.optimizers import OptimizerConfig
from flava_ds.config.schedules import (
    ConstantScheduleConfig,
    CosineScheduleConfig,
    LinearScheduleConfig,
    ScheduleConfig,
    WarmupStableDecayConfig,
)
from flava_ds.config.strict_json import from_dict, to_dict
from flava_ds.config.tree import (
    CheckpointConfig,
    Config,
    EngineConfig,
    LoggingConfig,
    TrainingConfig,
    dumps,
    load,
    parse,
    rebuild,
    save,
)
from flava_ds.errors import did_you_mean

__all__ = [
    "UNCHANGED",
    "WHOLE",
    "CheckpointConfig",
    "CodebookConfig",
    "Config",
    "ConstantScheduleConfig",
    "CosineScheduleConfig",
    "DataConfig",
    "EngineConfig",
    "EvaluationConfig",
    "ImageTransformConfig",
    "LinearScheduleConfig",
    "LoggingConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "ScheduleConfig",
    "SourceConfig",
    "TrainingConfig",
    "WarmupStableDecayConfig",
    "WeightChange",
    "check",
    "did_you_mean",
    "from_dict",
    "dumps",
    "load",
    "parse",
    "rebuild",
    "save",
    "to_dict",
]
