"""Configurations that earlier versions saved load, and give the order that their runs had."""

import dataclasses
import json

import pytest

from flava_ds.config import Config, DataConfig, SourceConfig, WeightChange, load, to_dict
from flava_ds.config.earlier import modernised
from flava_ds.errors import ConfigError
from flava_ds.families.flava.config import flava_objectives

OBJECTIVES = flava_objectives()
SOURCES = {
    "pmd": SourceConfig(kind="pair", shards="x", seed=0),
    "text": SourceConfig(kind="text", shards="y", seed=1),
}


def numbered(config: Config) -> dict:
    """Writes a configuration as versions did whose sources were a list, and whose sections had
    one form each."""
    saved = to_dict(config)
    for section in (saved["model"], saved["optimizer"], saved["schedule"], *saved["objectives"].values()):
        del section["type"]
    data = saved["data"]
    data["sources"] = [
        {"name": name, **{key: value for key, value in source.items() if key != "seed"}}
        for name, source in data["sources"].items()
    ]
    data["kind_weights"] = [0.7, 0.0, 0.3]
    data["weight_changes"] = [
        {"step": 5, "weights": [1.0, 0.0], "kind_weights": None},
        {"step": 9, "weights": None, "kind_weights": [1.0, 0.0, 0.5]},
    ]
    return saved


def test_a_list_of_sources_becomes_a_mapping_with_their_places_as_seeds(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(
        json.dumps(numbered(Config(name="run", objectives=OBJECTIVES, data=DataConfig(sources=SOURCES))))
    )
    loaded = load(path)
    data = loaded.data
    assert loaded.objectives == OBJECTIVES and loaded.model == Config(name="run").model
    assert data.sources == SOURCES and data.kind_weights == {"pair": 0.7, "image": 0.0, "text": 0.3}
    assert data.weight_changes == (
        WeightChange(step=5, weights={"pmd": 1.0, "text": 0.0}),
        WeightChange(step=9, kind_weights={"pair": 1.0, "image": 0.0, "text": 0.5}),
    )


def test_todays_form_is_left_alone():
    saved = to_dict(
        Config(
            name="run",
            objectives=OBJECTIVES,
            data=DataConfig(
                sources={name: dataclasses.replace(each, seed=None) for name, each in SOURCES.items()}
            ),
        )
    )
    assert modernised(saved) is saved


@pytest.mark.parametrize(
    "saved",
    [
        3,
        [],
        {},
        {"data": 3},
        {"data": {"sources": 3}},
        {"data": {"sources": ["pmd"]}},
        {"data": {"sources": [{"kind": "pair"}]}},
    ],
)
def test_what_is_no_configuration_is_left_for_the_reader(saved):
    assert modernised(saved) is saved


def test_wrong_numbers_of_weights_and_equal_names_are_refused(tmp_path):
    saved, path = (
        numbered(Config(name="run", objectives=OBJECTIVES, data=DataConfig(sources=SOURCES))),
        tmp_path / "config.json",
    )
    saved["data"]["kind_weights"] = [0.5, 0.5]
    path.write_text(json.dumps(saved))
    with pytest.raises(
        ConfigError, match=r"data.kind_weights is \[0.5, 0.5\]; expected an object with a value for each name"
    ):
        load(path)
    saved["data"]["sources"][1]["name"] = "pmd"
    path.write_text(json.dumps(saved))
    with pytest.raises(
        ConfigError, match="data.sources is .*; expected an object with a value for each name"
    ):
        load(path)
