"""Batches of LXMERT and ViLBERT, and both through the real trainer: one rank and two."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from families.two_streams.two_stream_peers import lxmert, vilbert
from real_runs import losses_of, train_all
from region_files import with_regions, write_regions
from stranger_runs import curve, split, stranger_config

from flava_ds import config as configuration
from flava_ds.data.indexed import IndexedShards
from flava_ds.data.reader import BatchReader
from flava_ds.preview import memory
from flava_ds.scaling.captions import Lengths
from flava_ds.scaling.synthetic import batch_of

RUNS = {"lxmert": lxmert, "vilbert": vilbert}


@pytest.mark.distributed
def test_ranks_stages_and_accumulation_give_the_same_losses(run_ranks, tmp_path, told):
    """One rank with four micro-batches; two with one, under ZeRO 3, and with two, under ZeRO 1. All drop
    hidden states.
    """
    shards, base = write_regions(tmp_path / "regions"), stranger_config(tmp_path)
    sources = {key: with_regions(source, shards) for key, source in base.data.sources.items()}
    base = dataclasses.replace(base, data=dataclasses.replace(base.data, sources=sources))
    configs = {}
    for name, family in RUNS.items():
        tiny = family()
        text = dataclasses.replace(tiny.model.text, hidden_dropout=0.1)
        model = dataclasses.replace(tiny.model, text=text)
        configs[name] = dataclasses.replace(base, model=model, objectives=tiny.objectives)
    two = [
        split(configs["lxmert"], "lxmert_two", "zero3", 1),
        split(configs["vilbert"], "vilbert_two", "zero1", 2),
    ]
    one = [split(config, f"{name}_one", "zero1", 4) for name, config in configs.items()]
    assert run_ranks(train_all, 2, tuple((run, None) for run in two)) == [[0, 0]] * 2
    assert run_ranks(train_all, 1, tuple((run, None) for run in one)) == [[0, 0]]
    for alone, other in zip(one, two, strict=True):
        expected = curve(alone)
        assert expected[0]["loss/mmm_text"] == pytest.approx(math.log(200), abs=0.3)
        assert expected[0]["loss/itm"] == pytest.approx(math.log(2), abs=0.1)
        named = "2 ranks, zero3" if other is two[0] else "2 ranks of 2 micro-batches, zero1"
        told.split(str(alone.model.type), named, losses_of(other), losses_of(alone), 1e-6)
        for ours, theirs in zip(curve(other), expected, strict=True):
            # the norm of a gradient whose terms nearly cancel has more rounding than the losses
            assert ours.pop("grad_norm") == pytest.approx(theirs["grad_norm"], rel=1e-5), other.name
            assert ours == pytest.approx({key: theirs[key] for key in ours}, rel=1e-6, abs=1e-6), other.name


@pytest.mark.parametrize("family", RUNS)
def test_collated_batches_are_those_that_the_planner_draws(family, tmp_path):
    """Texts that do not match are masked and predicted, too; the work of the planner's batch is a batch's."""
    tiny = RUNS[family]()
    base = stranger_config(tmp_path)
    source = with_regions(base.data.sources["drawings"], write_regions(tmp_path / "regions"))
    config = dataclasses.replace(base, model=tiny.model, objectives=tiny.objectives)
    config = configuration.check(config.with_sources({"drawings": source}))
    reader = BatchReader(config, IndexedShards(config, "drawings"))
    whole = reader.batch(np.arange(8, 16))
    assert 0 < int(whole["itm_labels"].sum()) < 8
    sample = torch.repeat_interleave(torch.arange(8), whole["cu_seqlens"].diff().long())
    assert set(whole["itm_labels"][sample[whole["mlm_rows"]]].tolist()) == {0, 1}
    planned = batch_of(reader.plan, "drawings", Lengths({9: 1.0, 12: 1.0}, "test"), 6)
    assert planned.tensors.keys() == whole.tensors.keys() and planned.numbers.keys() == whole.numbers.keys()
    task = config.model.build(config)
    assert "activations of the largest micro-batch" in memory(config, task, 1, "cpu")
    for batch in (whole, planned):
        assert task.flops(batch) > 0
        assert all(loss.sum.isfinite() and loss.count for loss in task.losses(batch).values())
