"""Options of a tree with mappings and variants: spellings, exchanges, help, and one line for every slip."""

import dataclasses

import pytest
from variant_toys import Adam, Contrast, MaskedWords, Momentum, Mover, Tree, toy_tree
from variant_toys_late import Late

from flava_ds.config.options import option_names, override, places
from flava_ds.errors import ConfigError


def test_options_are_fields_keys_of_mappings_and_positions_of_variants():
    assert list(option_names(toy_tree())) == [
        *("name", "mover", "mover.lr", "mover.betas", "mover.decay", "teacher"),
        *(
            "losses.mlm",
            "losses.mlm.weight",
            "losses.mlm.share",
            "losses.mlm.whole-word",
            "losses.mlm.no-whole-word",
        ),
        *("losses.pair-loss", "losses.pair-loss.weight", "losses.pair-loss.temperature"),
        *("masked", "masked.weight", "masked.share", "masked.whole-word", "masked.no-whole-word", "shares.a"),
    ]
    empty = dataclasses.replace(toy_tree(), losses={}, shares={})
    names = list(option_names(empty))
    assert "shares" in names and not [name for name in names if name.startswith("losses")]
    base = next(place for place in places(toy_tree()) if place.option == "teacher")
    assert (base.path, base.base, base.choices()) == (
        ("teacher",),
        Mover,
        ["adam", "late", "momentum", "none"],
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--mover.lr", "3e-4"], {"mover": Adam(lr=3e-4)}),
        (["--mover.betas", "0.5", "0.6"], {"mover": Adam(lr=0.5, betas=(0.5, 0.6))}),
        (
            ["--losses.mlm.weight", "0.5"],
            {"losses": {"mlm": MaskedWords(weight=0.5), "pair_loss": Contrast(weight=2.0)}},
        ),
        (
            ["--losses.pair-loss.weight=.5"],
            {"losses": {"mlm": MaskedWords(), "pair_loss": Contrast(weight=0.5)}},
        ),
        (
            ["--losses.pair_loss.temperature=1"],
            {"losses": {"mlm": MaskedWords(), "pair_loss": Contrast(weight=2.0, temperature=1.0)}},
        ),
        (
            ["--losses.mlm.whole-word"],
            {"losses": {"mlm": MaskedWords(whole_word=True), "pair_loss": Contrast(weight=2.0)}},
        ),
        (["--shares.a", "4"], {"shares": {"a": 4.0}}),
        (["--mover", "momentum"], {"mover": Momentum(lr=0.5)}),
        (["--mover=momentum"], {"mover": Momentum(lr=0.5)}),
        (["--mover", "late"], {"mover": Late(lr=0.5)}),
        (
            ["--mover.lr", "2", "--mover", "momentum", "--mover.decay", "1"],
            {"mover": Momentum(lr=2.0, decay=1.0)},
        ),
        (["--mover", "late", "--mover", "momentum"], {"mover": Momentum(lr=0.5)}),
        (["--mover", "adam"], {}),
        (
            ["--losses.pair_loss", "mlm"],
            {"losses": {"mlm": MaskedWords(), "pair_loss": MaskedWords(weight=2.0)}},
        ),
        (
            ["--losses.mlm", "contrast", "--losses.mlm.temperature", "2"],
            {"losses": {"mlm": Contrast(temperature=2.0), "pair_loss": Contrast(weight=2.0)}},
        ),
        (["--teacher", "momentum", "--teacher.lr", "7"], {"teacher": Momentum(lr=7.0)}),
        (["--teacher", "none"], {}),
    ],
)
def test_options_set_fields_and_exchange_variants(words, expected):
    assert override(toy_tree(), words) == dataclasses.replace(toy_tree(), **expected)


def test_an_optional_variant_can_be_taken_away_and_its_fields_set():
    tree = dataclasses.replace(toy_tree(), teacher=Adam())
    assert override(tree, ["--teacher.lr", "9"]).teacher == Adam(lr=9.0)
    assert override(tree, ["--teacher", "none"]).teacher is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mover", "adan"], "--mover 'adan' is none of adam, late, momentum; did you mean 'adam'?"),
        (
            ["--teacher", "nope"],
            "--teacher 'nope' is none of adam, late, momentum, none; did you mean 'none'?",
        ),
        (["--mover", "none"], "--mover 'none' is none of adam, late, momentum"),
        (["--mover"], "--mover needs one of adam, late, momentum after it"),
        (["--mover", "--name", "x"], "--mover needs one of adam, late, momentum after it"),
        (["--mover="], "--mover needs one of adam, late, momentum after it"),
        (
            ["--mover", "momentum", "--mover.whole-word"],
            "unknown option '--mover.whole-word'; did you mean '--masked.whole-word'?",
        ),
        (["--losses.pair.weight", "1"], "unknown option '--losses.pair.weight'; did you mean"),
        (["--losses.mlm", "mim"], "--losses.mlm mim: codes of MaskedPatches has no default"),
        (["--masked", "contrast"], "--masked 'contrast' is none of mlm, mim"),
        (["--losses", "mlm"], "unknown option '--losses'"),
        (["--teacher.lr", "1"], "unknown option '--teacher.lr'"),
        (["--mover.lr", "fast"], "Error parsing --mover.lr"),
    ],
)
def test_slips_are_one_line(words, message):
    with pytest.raises(ConfigError) as caught:
        override(toy_tree(), words)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_help_lists_the_exchanges_and_the_fields_of_what_they_bring(capsys):
    with pytest.raises(SystemExit):
        override(toy_tree(), ["--mover", "late", "--help"])
    printed = capsys.readouterr().out
    assert "A toy run." in printed and "keeps every field of the same name and type" in printed
    for line in (
        "--mover {adam,late,momentum}",
        "--teacher {adam,late,momentum,none}",
        "--losses.pair-loss {mlm,mim,contrast}",
        "--mover.delay INT",
    ):
        assert line in printed, line
    assert "Factor in the sum." in printed and "--mover.betas" not in printed


def test_a_field_without_variants_is_told_apart_from_one_with():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Plain:
        """No sections."""

        width: int = 3

    assert override(Plain(), ["--width", "4"]).width == 4 and [place.base for place in places(Plain())] == [
        None
    ]
    with pytest.raises(ConfigError, match="unknown option '--depth'"):
        override(Plain(), ["--depth", "4"])
    assert isinstance(toy_tree(), Tree)
