"""The reference names every field that a recipe has, and says what the dataclasses say."""

import pytest
from variant_toys import Tree

from flava_ds import cli
from flava_ds.config.options import option_names
from flava_ds.config.places import places
from flava_ds.config.reference import markdown, reference, type_name, unit_of
from flava_ds.recipes import RECIPES


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_field_of_a_recipe_has_a_row(name):
    text = reference()
    for place in places(RECIPES[name]()):
        words = place.name.split(".")
        if words[0] == "objectives":
            words[1] = "NAME"
        if words[:2] == ["data", "weight_changes"] and len(words) > 2:
            words[2] = "NUMBER"
        if words[:2] == ["data", "sources"]:
            words[2] = "NAME" if "data.sources.NAME" in text else "NUMBER"
        row = f"### `{'.'.join(words)}`" if place.base is not None else f"| `{'.'.join(words)}` | "
        assert row in text, row
    assert len(list(option_names(RECIPES[name]()))) > 100


def test_a_toy_is_told_in_full():
    lines = markdown(Tree).splitlines()
    assert lines[:4] == ["### The run", "", "A toy run.", ""]
    for line in (
        "| `name` | str |  | required |  |  |",
        "| `shares` | float by name |  | `none` |  |  |",
        "### `mover`, `adam`",
        "### `mover`, `late`",
        "| `mover.betas` | 2 x float |  | `0.9 0.999` |  |  |",
        "| `mover.betas` | float |  | `0.9` |  | Of another type than Adam's. |",
        "| `mover.lr` | float |  | `0.01` |  | Size of a step. |",
        "### `teacher`, `momentum`",
        "### `losses.NAME`, `mim`",
        "| `losses.NAME.codes` | int |  | required |  | Has no default. |",
        "| `losses.NAME.weight` | float |  | `1` |  | Factor in the sum. |",
    ):
        assert line in lines, line
    assert "adam" not in markdown(Tree, own_variants=False)


def test_types_units_and_bounds_are_spelled():
    text = reference(own_variants=False)
    for row in (
        (
            "| `optimizer.lr` | float |  | `0.0001` | at least 0 and at most 10 | Peak learning rate "
            "of the schedule. |"
        ),
        "| `training.precision` | `fp32`, `bf16`, `fp16` |  | `bf16` |  | ",
        (
            "| `engine.communication_timeout_s` | int | s | `600` | at least 1 and at most 604800 | Seconds "
            "before a collective"
        ),
        (
            "| `logging.memory_snapshot_step` | int or none | step | `none` | at least 0 and at most "
            "10\\*\\*9 | "
        ),
    ):
        assert row in text, row
    assert (
        type_name(tuple[int, ...]) == "list of int"
        and type_name(dict[str, float] | None) == "float by name or none"
    )
    assert [unit_of(name) for name in ("cache_gib", "read_timeout_s", "steps", "classes")] == [
        "GiB",
        "s",
        "steps",
        "",
    ]


def test_the_command_prints_it(capsys):
    assert cli.main(["config", "--reference"]) == 0
    assert capsys.readouterr().out == reference()
    assert cli.main(["config", "demo", "--reference"]) == 2
    assert capsys.readouterr().err == "error: --reference does not depend on a recipe; leave 'demo' out\n"
