"""flava_base carries the published numbers (paper, Tables A.1 and A.2)."""

from flava_ds.config import to_dict
from flava_ds.recipes.flava_base import flava_base

PUBLISHED = {
    "model.image.image_size": 224,
    "model.image.patch_size": 16,
    "model.image.hidden_size": 768,
    "model.image.num_hidden_layers": 12,
    "model.image.num_attention_heads": 12,
    "model.image.intermediate_size": 3072,
    "model.text.vocab_size": 30522,
    "model.text.hidden_size": 768,
    "model.text.num_hidden_layers": 12,
    "model.text.num_attention_heads": 12,
    "model.text.intermediate_size": 3072,
    "model.multimodal.hidden_size": 768,
    "model.multimodal.num_hidden_layers": 6,
    "model.multimodal.num_attention_heads": 12,
    "model.multimodal.intermediate_size": 3072,
    "codebook.vocab_size": 8192,
    "training.global_batch_size": 8192,
    "optimizer.lr": 1e-3,
    "optimizer.weight_decay": 0.1,
    "optimizer.betas": [0.9, 0.999],
    "schedule.warmup_steps": 10_000,
    "objectives.mlm.mask_probability": 0.15,
    "objectives.mmm_text.mask_probability": 0.15,
}


def test_published_hyper_parameters():
    config = to_dict(flava_base())
    found = {}
    for path in PUBLISHED:
        node = config
        for key in path.split("."):
            node = node[key]
        found[path] = node
    assert found == PUBLISHED


def test_length_gives_150k_pair_batches():
    config = flava_base()
    pairs = next(source for source in config.data.sources.values() if source.kind == "pair")
    assert (
        round(
            pairs.weight
            / sum(source.weight for source in config.data.sources.values())
            * config.training.total_steps
        )
        == 150_000
    )
    assert all(config.global_batch_size(name) == 8192 for name in config.data.sources)
