"""UniT with its published hyper-parameters; comments mark what is recalled, silent, or different here."""

from flava_ds.config import (
    WHOLE,
    CheckpointConfig,
    Config,
    CosineScheduleConfig,
    DataConfig,
    SourceConfig,
    TrainingConfig,
)
from flava_ds.config.encoders import BertTextConfig
from flava_ds.families.unit.config import TASKS, PositionedConfig, UnitConfig
from flava_ds.objectives.classification import ClassificationConfig
from flava_ds.objectives.detection import DetectionConfig
from flava_ds.optimizers.adamw import AdamWConfig

SHARES = {
    "detection": 0.20,
    "genome": 0.07,
    "question": 0.26,
    "entailment": 0.12,
    "qnli": 0.10,
    "mnli": 0.10,
    "qqp": 0.10,
    "sst2": 0.05,
}
"""Of the steps: COCO, Visual Genome, VQAv2, SNLI-VE, and four of GLUE."""
CLASSES = {"entailment": 3, "qnli": 2, "mnli": 3, "qqp": 2, "sst2": 2}
MOST_LABELS = {"detection": 100, "genome": 100, "question": 10}
DROPOUT = 0.1
TOKENS = {"question": 25, "entailment": 77}


def unit_base() -> Config:
    """Returns UniT with a decoder that eight data sets share, as published: 500,000 steps.

    Set its data with --data.sources.NAME.shards; docs/data.md says how labels are stored. Source: the code of
    Hu & Singh 2021 was read (all 8 datasets, shared decoder); what is marked as recalled was not.
    """
    return Config(
        name="unit_base",
        seed=0,  # not published
        # published: images of 800 pixels along the shorter side, at most 1333 along the other, and in
        # training on boxes 480 to 800, cropped and mirrored (recalled); here squares of 800
        # dropout of attention's probabilities, 0.1 as well, is left out (the decoder's is recalled)
        model=UnitConfig(
            encoder=PositionedConfig(hidden_dropout=DROPOUT),
            text=BertTextConfig(hidden_dropout=DROPOUT),
            decoder=PositionedConfig(hidden_size=768, hidden_dropout=DROPOUT),
        ),
        objectives={
            "detection": DetectionConfig(num_classes=91),
            # attributes of an object: 401 classes, at most 16 each; half of their loss, as in the code
            "genome": DetectionConfig(
                task="genome", num_classes=1601, num_attributes=401, attribute_weight=0.5
            ),
            "question": ClassificationConfig(task="question", num_classes=3129, loss="binary"),
            **{task: ClassificationConfig(task=task, num_classes=count) for task, count in CLASSES.items()},
        },
        data=DataConfig(
            sources={name: _source(name, seed) for seed, name in enumerate(SHARES)},
            vocabulary="bert_base_uncased",
        ),
        training=TrainingConfig(
            total_steps=500_000,
            global_batch_size=64,
            precision="bf16",  # in the code: fp32
            activation_checkpointing=True,  # not published
            gradient_clipping=0.1,
        ),
        optimizer=AdamWConfig(
            lr=5e-5,  # published: 1e-5 for the convolutions, which have the same rate here
            betas=(0.9, 0.999),  # the optimizer's own
            eps=1e-8,
            weight_decay=1e-4,
            decay_norm_and_bias=True,  # as in the code, which decays everything
        ),
        schedule=CosineScheduleConfig(warmup_steps=2_000, min_lr=0.0),
        # published: convolutions start from DETR-R50-DC5 and the text encoder from bert-base-uncased; here
        # from random weights unless a file is given. Frozen norms need one
        initial_weights=None,
        checkpoint=CheckpointConfig(every_steps=10_000),
    )


def _source(task: str, seed: int) -> SourceConfig:
    """Returns the source of a task."""
    return SourceConfig(
        kind=TASKS[task],
        task=task,
        seed=seed,
        shards=f"shards/{task}",
        weight=SHARES[task],
        max_tokens=TOKENS.get(task, 128),  # 25 in the code for questions, the others recalled
        targets_key="targets.safetensors",
        max_targets=MOST_LABELS.get(task, 1),
        transform=WHOLE,
    )
