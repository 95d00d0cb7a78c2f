"""The command as a user runs it: quick help, one line for every slip, the exact command of a launch."""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from checkpoint_helpers import small_weights, write_checkpoint
from own_photos import write_photos
from safetensors.torch import load_file

from flava_ds import cli
from flava_ds.config.options import check_option_names, option_names
from flava_ds.ranks.launch import world_info
from flava_ds.recipes import load_recipe

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
OF_OTHER_PROGRAMS = {"--nodes", "--module"}
COMMANDS = ["demo", "train", "config", "evaluate", "report", "convert", "codebook", "prepare"]


def run(*words: str, **settings) -> subprocess.CompletedProcess:
    """Runs flava-ds as its own process."""
    return subprocess.run(
        [sys.executable, "-m", "flava_ds.cli", *words], capture_output=True, text=True, timeout=60, **settings
    )


def status_of(words: list[str]) -> int:
    """Runs flava-ds in this process and returns its exit status."""
    try:
        return cli.main(words)
    except SystemExit as stop:
        return stop.code


@pytest.fixture(scope="module")
def shard(tmp_path_factory) -> Path:
    """A shard of one step."""
    return write_photos(tmp_path_factory.mktemp("photos") / "00000.tar", 16)


@pytest.fixture
def sources(tmp_path, shard) -> list[str]:
    """Overrides that give flava_debug a shard of one step for every source."""
    words = []
    for name in ("pair", "image", "text"):
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(shard, folder)
        words += [f"--data.sources.{name}.shards", str(folder)]
    return [*words, "--data.sources.pair.caption-key", "caption"]


@pytest.mark.parametrize("words", [["--help"], *([command, "--help"] for command in COMMANDS)])
def test_help_loads_nothing_heavy(words):
    code = (
        "import sys\n"
        "from flava_ds import cli\n"
        "try:\n    status = cli.main(sys.argv[1:])\n"
        "except SystemExit as stop:\n    status = stop.code\n"
        "heavy = {'torch', 'deepspeed', 'transformers', 'triton', 'numpy', 'webdataset', 'tyro'} & "
        "set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else status)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "usage: " in done.stdout and "--debug" in done.stdout or words == ["--help"]


def test_help_names_every_command():
    done = run("--help")
    assert done.returncode == 0 and all(f"\n    {command} " in done.stdout for command in COMMANDS)


def test_the_bare_command_shows_its_help(capsys):
    assert cli.main([]) == 2
    said = capsys.readouterr()
    assert said.out == "" and all(f"\n    {name} " in said.err for name in COMMANDS)


def test_help_of_train_names_every_recipe():
    from flava_ds.recipes import RECIPES, SEQUENCES

    named = set(run("train", "--help").stdout.replace(",", " ").split())
    assert {name for name in (*RECIPES, *SEQUENCES) if not name.startswith("ablation/")} <= named


def test_recipe_help_lists_fields_without_torch():
    done = run("train", "flava_base", "--help")
    assert (
        done.returncode == 0
        and "--data.sources.pmd.shards" in done.stdout
        and "flava-ds train RECIPE" in done.stdout
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train"], "RECIPE is missing; choose one of demo, flava_tiny, flava_base, flava_large"),
        (["trian", "demo"], "; did you mean 'train'?; see `flava-ds --help`"),
        (["train", "deno"], "no recipe named 'deno'; did you mean 'demo'?"),
        (["train", "flava_debug", "--training.total-stps", "3"], "did you mean '--training.total-steps'?"),
        (["train", "flava_debug", "--rank", "3"], "unknown option '--rank'; did you mean '--ranks'?"),
        (
            ["train", "flava_debug", "--engine.deepspeed-config", "zero9"],
            "engine.deepspeed_config 'zero9' is neither a file nor one of zero0",
        ),
        (
            ["train", "flava_debug", "--data.vocabulary", "nope"],
            "data.vocabulary 'nope' is neither a vocab.txt nor one of bert_base_uncased",
        ),
        (["train", "flava_debug", "--ranks", "0"], "--ranks 0: use at least 1"),
        (["config", "flava_debug", "--ranks", "0"], "--ranks 0: use at least 1"),
        (
            ["config", "flava_debug", "--ranks", "8", "--ranks", "12"],
            "source 'pair': global_batch_size 16 is not divisible by 12 ranks",
        ),
        (["config", "demo_full", "--ranks", "1"], "'demo_full' is several runs in a row"),
        (
            ["train", "flava_debug", "--ranks", "3"],
            (
                "global_batch_size 16 is not divisible by 3 ranks x 1 accumulation step; set "
                "--data.sources.pair.global-batch-size to a multiple of 3"
            ),
        ),
        (["train", "flava_base"], "codebook_weights is not set"),
        (
            ["train", "flava_debug", "--codebook-weights", "gone.safetensors"],
            "codebook_weights 'gone.safetensors': no such file",
        ),
        (
            ["train", "flava_debug", "--data.sources.image.shards", "gone"],
            "source 'image': no folder or .tar at 'gone'; give the location",
        ),
        (["config", "flava_base", "--optimizer.lr", "fast"], "Error parsing --optimizer.lr"),
        (["evaluate", "gone"], "gone: no such folder, so it is not a run"),
        (
            ["convert", "HF", "--to", "hf", "out"],
            "HF: is a Hugging Face model, not a run; `flava-ds convert HF --to flava_ds OUT`",
        ),
        (["report", "."], ".: holds no config.json, so it is not a run"),
        (["convert", "gone", "out"], "--to"),
        (
            ["convert", "gone", "--to", "safetensors", "out"],
            "gone holds neither a checkpoint nor model.safetensors",
        ),
        (
            ["convert", "gone", "--to", "safetensors", "http://host/out"],
            "argument OUT: 'http://host/out' is a URL; name a place on this machine",
        ),
        *(
            (words, f"argument {words[-2]}: 'b.tar' would be overwritten, and is named as a shard is")
            for words in (
                ["prepare", "skiplist", "a.tar", "--out", "b.tar"],
                ["prepare", "check", "a.tar", "--json", "b.tar"],
                ["prepare", "check", "a.tar", "--html", "b.tar"],
                ["plan", "--json", "b.tar"],
            )
        ),
        (["prepare", "index", "zip:///"], "'zip:///': protocol 'zip' cannot be used"),
        (["codebook", "encode", "gone", "--out", "x"], "required: --codebook"),
        (["evaluate", "gone", "--fast"], "unknown argument --fast"),
        (
            ["--debug", "evaluate", "x"],
            "--debug; options stand behind the command: flava-ds COMMAND --debug",
        ),
        (["--verison"], "error: unknown argument --verison; did you mean '--version'?"),
        (["--ranks", "2", "train", "flava_debug"], "--ranks; options stand behind the command"),
        (["demo", "--minutes", "3", "--work", "hour"], "not allowed with argument --minutes"),
        (
            ["demo", "--work", "our"],
            ("--work our: no such work; did you mean 'hour'?; choose one of ten-minutes, hour, two-minutes"),
        ),
        (["demo", "--codebook", "trian"], "did you mean 'train'?"),
        (
            ["demo", "--minute", "3"],
            "unknown argument --minute; did you mean '--minutes'?; see `flava-ds demo --help`",
        ),
        (["prepare", "index", "gone"], "no folder or .tar at 'gone'; give the location of the shards"),
        (["demo", "--minutes", "0"], "--minutes 0: the demo needs at least 1 minute"),
        (["demo", "--minutes", "inf"], "--minutes inf: the demo needs at least 1 minute, and a limit"),
        (["demo", "--ranks", "0"], "--ranks 0: use at least 1"),
        (["demo", "--ranks", "7"], "is not divisible by 7 ranks"),
        (["demo", "--ranks", "30000"], "--ranks 30000, but this machine has"),
    ],
)
def test_slip_is_one_line_and_status_2(words, message, sources, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    if "HF" in words:
        Path("HF").mkdir()
        Path("HF/config.json").write_text('{"model_type": "flava"}')
    if words[:2] == ["train", "flava_debug"]:
        words = [*words, *(sources[:2] + sources[4:] if "--data.sources.image.shards" in words else sources)]
    if words[:2] == ["train", "flava_base"]:
        words = [
            *words,
            *(f"--data.sources.{name}.shards={sources[1]}" for name in ("pmd", "imagenet", "text")),
        ]
    assert status_of(words) == 2
    printed = capfd.readouterr()
    assert message in printed.err and printed.err.startswith("error: ") and printed.err.count("\n") == 1
    assert printed.out == ""


def test_empty_folder_of_shards_is_named(sources, tmp_path, capfd):
    (tmp_path / "pair" / "00000.tar").unlink()
    assert status_of(["train", "flava_debug", "--dry-run", *sources]) == 2
    error = capfd.readouterr().err
    assert (
        str(tmp_path / "pair") in error
        and "--data.sources.pair.shards" in error
        and "holds no .tar file" in error
    )


def test_traceback_only_with_debug(tmp_path):
    assert "Traceback" not in run("config", "nothing").stderr
    done = run("config", "nothing", "--debug")
    assert (
        done.returncode == 2
        and "Traceback" in done.stderr
        and done.stderr.splitlines()[-1].startswith("error: no recipe named 'nothing'")
    )


def test_failure_at_run_time_is_status_1(monkeypatch, capsys):
    monkeypatch.setattr(cli, "show_config", lambda options, rest: 1 / 0)
    assert cli.main(["config", "flava_base"]) == 1
    assert (
        capsys.readouterr().err
        == "error: ZeroDivisionError: division by zero; run again with --debug for the traceback\n"
    )


def test_a_place_that_cannot_be_written_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setattr(
        cli, "show_config", lambda options, rest: (tmp_path / "file" / "folder").mkdir(parents=True)
    )
    assert cli.main(["config", "flava_base"]) == 2
    assert (
        capsys.readouterr().err
        == f"error: {tmp_path}/file/folder: Not a directory; name another place, or fix this one\n"
    )


def test_config_prints_what_rebuilds_the_run(tmp_path, capsys):
    done = run("config", "flava_base", "--optimizer.lr", "3e-4")
    assert json.loads(done.stdout)["optimizer"]["lr"] == 3e-4
    (tmp_path / "config.json").write_text(done.stdout)
    assert cli.main(["config", str(tmp_path / "config.json")]) == 0
    assert capsys.readouterr().out == done.stdout


def test_config_looks_for_inputs_when_told_to(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["config", "flava_base", "--check-inputs"]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and "error: source 'pmd': no folder or .tar at 'shards/pmd'" in printed.err
    assert cli.main(["config", "demo_full", "--check-inputs"]) == 2
    assert "'demo_full' is several runs in a row" in capsys.readouterr().err


def test_dry_run_of_one_rank(sources, capsys):
    assert cli.main(["train", "flava_debug", "--dry-run", "--ranks", "1", *sources]) == 0
    printed = capsys.readouterr().out
    assert printed.rstrip("\n").endswith(
        f"{shlex.quote(sys.executable)} -m flava_ds.train flava_debug {' '.join(sources)}"
    )


def test_dry_run_of_two_ranks(sources):
    import torch

    if torch.cuda.device_count():
        pytest.skip("prints the command of a machine without GPU")
    environment = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    done = run(
        "train",
        "flava_debug",
        "--dry-run",
        "--ranks",
        "2",
        "--master-port",
        "29511",
        "--name",
        "a b",
        *sources,
        env=environment,
    )
    launcher = (
        f"{shlex.quote(sys.executable)} -u -m flava_ds.ranks.deepspeed_launcher "
        f"--world_info={world_info(2, 0)} --master_port 29511 --log_level critical"
    )
    command = f"{launcher} --module flava_ds.train flava_debug --name 'a b' {' '.join(sources)}\n"
    printed = done.stdout.splitlines(keepends=True)[-1]
    assert printed == f"PYTHONSAFEPATH=1 OMP_NUM_THREADS=1 DS_ACCELERATOR=cpu {command}"


def test_debug_reaches_the_ranks_and_lets_the_launcher_speak(sources, capsys):
    assert cli.main(["train", "flava_debug", "--dry-run", "--ranks", "2", "--debug", *sources]) == 0
    printed = capsys.readouterr().out
    assert "--log_level info" in printed and printed.endswith(" --debug\n")


@pytest.mark.slow
def test_help_answers_within_a_second():
    """The best of five: other work on the machine may delay one answer, not all."""
    best = min(_seconds() for _ in range(5))
    print(f"flava-ds --help: {best:.3f} s")
    assert best < 1.0


def _seconds() -> float:
    """Times one `flava-ds --help`."""
    start = time.perf_counter()
    run("--help")
    return time.perf_counter() - start


def test_a_run_becomes_one_file_of_weights(tmp_path):
    write_checkpoint(tmp_path / "run" / "checkpoints", 3, small_weights(2.0))
    done = run(
        "convert",
        str(tmp_path / "run"),
        "--to",
        "safetensors",
        str(tmp_path / "weights.safetensors"),
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0 and done.stdout == f"{tmp_path}/weights.safetensors\n", done.stderr
    found = load_file(tmp_path / "weights.safetensors")
    assert found.keys() == small_weights().keys() and all(
        torch.equal(found[name], tensor) for name, tensor in small_weights(2.0).items()
    )


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    """Collects the options of a parser and of all commands under it."""
    found = {name for action in parser._actions for name in action.option_strings}
    below = [
        action.choices.values()
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
    ]
    return found.union(*(options_of(command) for commands in below for command in commands))


def test_readme_names_options_that_exist():
    known = options_of(cli.build_parser()[0]) | {
        f"--{name}" for recipe in ("flava_base", "demo") for name in option_names(load_recipe(recipe))
    }
    named = set(re.findall(r"(?<![\w-])--[a-z][\w.-]*", README))
    assert len(named) > 15 and named <= known | OF_OTHER_PROGRAMS, named - known


def test_readme_shows_commands_that_are_understood():
    """In code and in sentences; `...` stands for more options, and capitals for names of the reader's own."""
    blocks = re.findall(r"^    (flava-ds .*)$", README.replace("\\\n", " "), flags=re.MULTILINE)
    shown = [
        shlex.split(line, comments=True)[1:]
        for line in blocks + re.findall(r"`(flava-ds [^`]+)`", README)
        if " | " not in line
    ]
    assert len(shown) > 12
    for words in shown:
        options, rest = cli.build_parser()[0].parse_known_args([word for word in words if word != "..."])
        if words[0] in ("train", "config"):
            recipe = (
                "flava_base" if "NAME" in options.recipe or "path/to/" in options.recipe else options.recipe
            )
            check_option_names(load_recipe(recipe), rest)
        else:
            assert rest == [], words


def test_a_rank_of_a_launcher_skips_the_interpreters_own_exit():
    """There, a gloo thread sometimes aborts a process whose work is done."""
    program = (
        "import atexit, runpy, sys; atexit.register(print, 'late'); sys.argv[1:] = ['evaluate']; "
        "runpy.run_module('flava_ds.cli', run_name='__main__')"
    )
    rank = os.environ | {"WORLD_SIZE": "2"}
    ended = subprocess.run(
        [sys.executable, "-c", program], env=rank, capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stdout) == (2, "") and "RUN is missing" in ended.stderr
