"""Variants in the tree: tags in JSON, strictness, lazy modules, and what an exchange keeps."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from variant_toys import (
    Adam,
    Contrast,
    Loss,
    Masked,
    MaskedPatches,
    MaskedWords,
    Momentum,
    Mover,
    Tree,
    toy_tree,
)

from flava_ds.config import ObjectiveConfig, OptimizerConfig, ScheduleConfig, from_dict, to_dict
from flava_ds.config.family import FamilyConfig
from flava_ds.config.places import check_sections
from flava_ds.config.variants import Variant, check_class, choices, find, switched, tag_of
from flava_ds.errors import ConfigError


def test_json_writes_the_tag_first_and_rebuilds_the_tree():
    words = to_dict(toy_tree())
    assert list(words["mover"]) == ["type", "lr", "betas", "decay"] and words["mover"]["type"] == "adam"
    assert list(words["losses"]) == ["mlm", "pair_loss"] and words["losses"]["pair_loss"] == {
        "type": "contrast",
        "weight": 2.0,
        "temperature": 0.07,
    }
    assert words["shares"] == {"a": 1.0} and words["teacher"] is None
    rebuilt = from_dict(Tree, json.loads(json.dumps(words)))
    assert (
        rebuilt == toy_tree()
        and type(rebuilt.losses["mlm"]) is MaskedWords
        and type(rebuilt.mover.betas) is tuple
    )


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda words: words["mover"].update(type="adan"),
            "mover.type 'adan' is none of adam, late, momentum; did you mean 'adam'?",
        ),
        (lambda words: words["mover"].update(type=3), "mover.type 3 is none of adam, late, momentum"),
        (lambda words: words["mover"].update(type=["adam"]), "mover.type ['adam'] is none of adam"),
        (
            lambda words: words["mover"].pop("type"),
            "key 'mover.type' is missing; choose one of adam, late, momentum",
        ),
        (
            lambda words: words["losses"]["mlm"].pop("type"),
            "key 'losses.mlm.type' is missing; choose one of mlm, mim, contrast",
        ),
        (lambda words: words["masked"].update(type="contrast"), "masked.type 'contrast' is none of mlm, mim"),
        (lambda words: words["mover"].update(beta=1), "unknown key 'mover.beta'; did you mean 'betas'?"),
        (
            lambda words: words["losses"]["pair_loss"].update(share=1.0),
            "unknown key 'losses.pair_loss.share'",
        ),
        (
            lambda words: words["losses"].update(mlm={"type": "mim"}),
            "key 'losses.mlm.codes' is missing; it has no default",
        ),
        (
            lambda words: words["losses"].update(mlm="mlm"),
            "losses.mlm is 'mlm'; expected an object with the fields of Loss",
        ),
        (
            lambda words: words.update(losses=["mlm"]),
            "losses is ['mlm']; expected an object with a value for each name",
        ),
        (lambda words: words["shares"].update(b="x"), "shares.b is 'x'; expected float"),
        (lambda words: words["mover"].update(lr=True), "mover.lr is True; expected float"),
        (lambda words: words.update(type="toy"), "unknown key 'type'"),
    ],
)
def test_json_is_strict_about_tags_and_names_the_position(edit, message):
    words = to_dict(toy_tree())
    edit(words)
    with pytest.raises(ConfigError) as caught:
        from_dict(Tree, words)
    assert message in str(caught.value)


def test_a_variant_of_the_table_is_imported_when_its_tag_is_read():
    code = (
        "import json, sys\nfrom variant_toys import Tree\nfrom flava_ds.config import from_dict\n"
        "from flava_ds.config.variants import choices\nfrom variant_toys import Mover\n"
        "assert choices(Mover) == ['adam', 'late', 'momentum']\n"
        "from_dict(Tree, {'name': 'x', 'mover': {'type': 'momentum'}})\nassert 'variant_toys_late' not in "
        "sys.modules\n"
        "tree = from_dict(Tree, {'name': 'x', 'mover': {'type': 'late', 'delay': 5}})\nassert "
        "'variant_toys_late' in sys.modules\n"
        "print(type(tree.mover).__name__, tree.mover.delay, {'torch', 'tyro'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env={"PYTHONPATH": _path()}
    )
    assert done.returncode == 0 and done.stdout == "Late 5 set()\n", done.stderr


def _path() -> str:
    """Returns where another process finds the toys and the package under test."""
    root = Path(__file__).parents[2]
    return f"{root}:{root / 'tests'}"


@pytest.mark.parametrize("base", [FamilyConfig, ObjectiveConfig, OptimizerConfig, ScheduleConfig])
def test_every_variant_of_the_package_is_where_its_table_says(base):
    """And has a default for every field, so that the command line can exchange it."""
    assert len(choices(base)) >= len(base._built_in)
    for tag in choices(base):
        kind = find(base, tag, "x")
        assert issubclass(kind, base) and kind.type == tag and from_dict(base, {"type": tag}) == kind()


def test_choices_of_a_narrower_position_are_its_own():
    assert choices(Loss) == ["mlm", "mim", "contrast"] and choices(Masked) == ["mlm", "mim"]
    assert find(Masked, "mim", "x") is MaskedPatches


def test_an_exchange_keeps_what_was_set_and_takes_the_new_defaults():
    # betas have another type
    assert switched(Adam(lr=0.5, decay=0.2), Momentum, "x") == Momentum(lr=0.5, betas=0.9, decay=0.2)
    # what nobody set is the new one's: lr 0.01, no decay
    assert switched(Adam(), Momentum, "x") == Momentum()
    old = Adam(lr=3.0)
    assert switched(old, Adam, "x") is old
    assert switched(None, Momentum, "x") == Momentum()
    assert switched(MaskedPatches(share=0.3, codes=8), MaskedWords, "x") == MaskedWords(share=0.3)
    with pytest.raises(
        ConfigError,
        match="--losses.mlm mim: codes of MaskedPatches has no default; choose it in a recipe, with a value",
    ):
        switched(MaskedWords(), MaskedPatches, "--losses.mlm")


def test_a_class_that_annotates_a_position_is_no_value_for_json():
    with pytest.raises(
        ConfigError,
        match=r"Mover has no type, .* use one of its variants \(adam, late, momentum\)",
    ):
        to_dict(Tree(name="x", mover=Mover()))
    assert tag_of(Contrast()) == "contrast"


def test_a_class_without_a_type_is_told_how_to_get_one():
    @dataclass(frozen=True, kw_only=True)
    class Untagged(Loss):
        pass

    with pytest.raises(ConfigError, match=r'define it with one: class Untagged\(Loss, type="NAME"\)'):
        tag_of(Untagged())


def test_a_tag_belongs_to_one_class():
    with pytest.raises(
        ConfigError, match=r"cannot have the type 'adam': variant_toys:Adam has it; choose another"
    ):

        class Other(Mover, type="adam"):
            pass

    with pytest.raises(ConfigError, match=r"cannot have the type 'late': variant_toys_late:Late has it"):

        class Early(Mover, type="late"):
            pass

    with pytest.raises(ConfigError, match=r"cannot have the type 'none': that word means an empty position"):

        class Nothing(Mover, type="none"):
            pass


def test_a_variant_is_a_frozen_dataclass_without_a_field_named_type():
    class Base(Variant):
        pass

    @dataclass(frozen=True, kw_only=True)
    class Good(Base, type="good"):
        x: int = 0

    class Plain(Base, type="plain"):
        pass

    class Below(Good, type="below"):
        y: int = 0

    @dataclass(frozen=True, kw_only=True)
    class Typed(Base, type="typed"):
        type: str = "a"

    assert find(Base, "good", "x") is Good and choices(Base) == ["good", "plain", "below", "typed"]
    for tag in ("plain", "below"):
        with pytest.raises(ConfigError, match="is not a frozen dataclass; write @dataclass"):
            find(Base, tag, "x")
    with pytest.raises(ConfigError, match="the key 'type' is reserved for the tag 'typed'"):
        find(Base, "typed", "x")


def test_a_variant_gives_a_value_to_what_its_base_declares():
    @dataclass(frozen=True, kw_only=True)
    class Base(Variant):
        kinds: ClassVar[frozenset[str]]

    @dataclass(frozen=True, kw_only=True)
    class Good(Base, type="good"):
        kinds = frozenset({"pair"})

    @dataclass(frozen=True, kw_only=True)
    class Kindless(Base, type="kindless"):
        weight: float

    check_class(Good)
    with pytest.raises(
        ConfigError, match=r"Kindless, the type 'kindless', has no `kinds`, .* give it a value"
    ):
        check_class(Kindless)


def test_a_tree_that_code_has_built_is_checked_class_by_class():
    class Plain(Loss, type="plain_in_a_tree"):
        share: float = 0.5

    try:
        with pytest.raises(
            ConfigError, match="'plain_in_a_tree', is not a frozen dataclass; write @dataclass"
        ):
            check_sections(Tree(name="x", losses={"one": Plain()}))
    finally:
        del Loss._defined["plain_in_a_tree"]
    for tree, told in (
        (Tree(name="x", mover=None), r"mover is None; give it an object of Mover \(adam, late, momentum\)"),
        (Tree(name="x", mover={"type": "adam"}), "mover is of the class dict; give it an object of Mover "),
        (
            Tree(name="x", losses={"one": Mover()}),
            "losses.one is of the class Mover; give it an object of Loss ",
        ),
    ):
        with pytest.raises(ConfigError, match=told):
            check_sections(tree)
    check_sections(Tree(name="x"))


def test_a_class_that_is_defined_again_takes_its_own_place():
    def define() -> type:
        @dataclass(frozen=True, kw_only=True)
        class Again(Loss, type="again"):
            pass

        return Again

    try:
        first, second = define(), define()
        assert find(Loss, "again", "x") is second is not first
    finally:
        del Loss._defined["again"]
