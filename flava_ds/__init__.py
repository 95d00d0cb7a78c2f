"""flava_ds: FLAVA pre-training at scale with DeepSpeed."""

__version__ = "0.1.0"
