"""A dry run finds what would end the run, before anything is started, and says what the run will be."""

import json
import shutil

import pytest
from checkpoint_helpers import small_weights, write_checkpoint
from own_photos import write_photos, write_texts
from safetensors.torch import save_file

from flava_ds import cli
from flava_ds import config as configuration
from flava_ds.checkpoints.checkpoint import usable
from flava_ds.codebook.image_codebook import ImageCodebook, save_codebook
from flava_ds.data.loader import StepLoader
from flava_ds.errors import CheckpointError
from flava_ds.preview import meta_task
from flava_ds.recipes import resolve

TINY = ["train", "flava_tiny", "--dry-run", "--ranks", "1", "--training.global-batch-size", "16"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Two shards of 20 and 13 pairs, and a codebook."""
    folder = tmp_path_factory.mktemp("shards")
    write_photos(folder / "pairs" / "00000.tar", 20)
    write_photos(folder / "pairs" / "00001.tar", 13, seed=1)
    write_texts(folder / "text" / "00000.tar", [8] * 40)
    save_codebook(ImageCodebook(resolve("flava_tiny", []).codebook), folder / "codebook.safetensors")
    return folder


@pytest.fixture
def words(shards, tmp_path, monkeypatch):
    """A dry run of flava_tiny on them that finds nothing wrong."""
    monkeypatch.chdir(tmp_path)
    return [
        *TINY,
        *("--data.sources.pairs.shards", str(shards / "pairs")),
        *("--codebook-weights", str(shards / "codebook.safetensors")),
    ]


def test_a_dry_run_says_what_the_run_will_be(words, shards, capfd):
    words += ["--data.sources.more.kind", "text", "--data.sources.more.shards", str(shards / "text")]
    assert cli.main([*words, "--data.sources.more.weight", "0.25"]) == 0
    parameters, data, memory, log, command = capfd.readouterr().out.splitlines()
    assert parameters.startswith(
        "parameters: 22.4 M (text_encoder 7.3 M, head of mlm 5.9 M, head of mmm_text"
    )
    assert "image_encoder 1.9 M" in parameters and "logit_scale 1)" in parameters
    # of 2,000 steps, a fifth reads text: 400 steps of 16 from 40 samples
    assert data == (
        "data: pairs 33 samples, 2.1 steps an epoch at 16, 1,600 steps = 775.8 epochs; "
        "more 40 samples, 2.5 steps an epoch at 16, 400 steps = 160.0 epochs"
    )
    assert memory.startswith("memory of a rank, an estimate: ") and "(ZeRO 1, 1 rank)" in memory
    assert "step 10/2000 | global_contrastive ... mlm ... mmm_image ... mmm_text ... itm ... |" in log
    assert log.endswith("mim: idle, as no source has image")
    assert " -m flava_ds.train flava_tiny " in command


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--codebook-weights", "MODEL"], "does not belong to an image codebook, but to a whole model"),
        (["--codebook.vocab-size", "256"], "was made with codebook.vocab_size 512"),
        (["--model.text.vocab-size", "2000"], "model.text.vocab_size 2000 is smaller than the 30522 entries"),
        (
            ["--training.global-batch-size", "64"],
            "33 usable samples in 'PAIRS' are fewer than the 64 of one step over all ranks",
        ),
        (
            ["--data.sources.pairs.caption-key", "captions"],
            "caption_key 'captions' holds no caption in any of the first 32 samples, whose .json has "
            "caption, label, status; set --data.sources.pairs.caption-key to one of these, or",
        ),
        (
            ["--objectives.mmm-image.num-masked-patches", "50"],
            "objectives.mmm_image: num_masked_patches 50 is more than the 49 patches of a picture; set",
        ),
        (["--name", "other_model"], "which this configuration's model has; it was written with another"),
        (["--name", "other_codebook"], "was trained with another codebook than codebook_weights"),
        (["--name", "other_vocabulary"], "was trained with another vocabulary than data.vocabulary names"),
        (
            ["--initial-weights", "OTHER"],
            "come from a run with another vocabulary than data.vocabulary names",
        ),
        (["--name", "other_family"], "was written by family 'clip', this configuration is 'flava'"),
    ],
)
def test_a_dry_run_finds_what_would_end_the_run(words, change, message, shards, tmp_path, capfd):
    weights = {f"flava.image_model.{name}": tensor for name, tensor in small_weights(1.0).items()}
    save_file(weights, tmp_path / "model.safetensors")
    tiny = meta_task(resolve("flava_tiny", []))
    shapes = {name: list(parameter.shape) for name, parameter in tiny.named_parameters()}
    fitting = {"parameters": shapes, "frozen": {"codebook": "beef"}}
    for name, recipe, state in (
        ("other_model", "flava_debug", {}),
        ("other_family", "clip_base", {}),
        ("other_codebook", "flava_tiny", fitting),
        ("other_vocabulary", "flava_tiny", fitting | {"frozen": {"vocabulary": "beef"}}),
    ):
        write_checkpoint(tmp_path / "runs" / name / "checkpoints", 3, small_weights(1.0), **state)
        beside = tmp_path / "runs" / name / "checkpoints" / "step_00000003" / "config.json"
        beside.write_text(json.dumps(configuration.to_dict(resolve(recipe, []))))
    paths = {"MODEL": "model.safetensors", "OTHER": "runs/other_vocabulary/checkpoints/step_00000003"}
    change = [str(tmp_path / paths[word]) if word in paths else word for word in change]
    assert cli.main([*words, *change]) == 2
    printed = capfd.readouterr()
    assert message.replace("PAIRS", str(shards / "pairs")) in printed.err.splitlines()[-1]
    assert printed.out == ""


EVALUATED = ["--evaluation.every-steps", "5", "--evaluation.data-root", "DATA", "--evaluation.tasks"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["zeroshot"], "no task 'zeroshot' (did you mean 'zero_shot'?)"),
        (["zero_shot,retrieval"], "no task 'zero_shot,retrieval' (names of tasks are separated by spaces"),
        (["retrieval", "--evaluation.data-root", "nowhere"], "--task retrieval: no data of yours in nowhere"),
        (["winoground_matching"], "no winoground in DATA/winoground or DATA: expected "),
        (
            ["zero_shot", "--checkpoint.best-metric", "evaluation/zero_shot/top1_accuracy"],
            "but the tasks that run are own_zero_shot",
        ),
    ],
)
def test_a_dry_run_looks_for_evaluations(words, change, message, shards, capfd):
    """Which would otherwise end the run at its start, or a later stage of a sequence after days."""
    data = str(shards / "pairs")
    words = [*words, *EVALUATED, *change]
    assert cli.main([data if word == "DATA" else word for word in words]) == 2
    printed = capfd.readouterr()
    assert message.replace("DATA", data) in printed.err.splitlines()[-1] and printed.out == ""
    words = [*words[: -len(change)], "zero_shot", "retrieval"]
    assert cli.main([data if word == "DATA" else word for word in words]) == 0


def test_a_dry_run_asks_whether_the_runs_folder_takes_files(words, tmp_path, capfd):
    (tmp_path / "file").touch()
    for option in ("--logging.run-directory", "--checkpoint.directory"):
        assert cli.main([*words, option, str(tmp_path / "file" / "runs")]) == 2
        said = capfd.readouterr().err.splitlines()[-1]
        assert f"([Errno 20] Not a directory: '{tmp_path}/file')" in said
        assert said.endswith("make room or make it writable, or set logging.run_directory")


def test_a_dry_run_of_a_run_that_goes_on_says_where(words, capfd):
    config = resolve("flava_tiny", words[words.index("--ranks") + 2 :])
    shapes = {name: list(own.shape) for name, own in meta_task(config).named_parameters()}
    data = StepLoader(config).state(13)
    place = config.run_path / "checkpoints"
    write_checkpoint(place, 13, small_weights(1.0), config, parameters=shapes, data=data)
    assert cli.main(words) == 0
    log = capfd.readouterr().out.splitlines()[3]
    assert log.startswith("goes on after step 13 of 2000; the log begins with: step 20/2000 | ")
    other = {"pairs": {**data["pairs"], "keys": "others"}}
    write_checkpoint(place, 14, small_weights(1.0), config, parameters=shapes, data=other)
    assert cli.main(words) == 2
    assert "error: the data order would change on resume: source 'pairs': keys was" in capfd.readouterr().err
    write_checkpoint(place, 2000, small_weights(1.0), config, parameters=shapes, data=data)
    assert cli.main(words) == 0
    said = capfd.readouterr().out
    assert (
        "nothing is left to train: this run has done 2000 steps, training.total_steps is 2000; raise" in said
    )


def test_captions_that_some_samples_lack_are_no_error(words, shards, tmp_path, capfd):
    """A key that is there now and then is what max_skipped_share is for."""
    shutil.copytree(shards / "pairs", tmp_path / "pairs")
    words += ["--data.sources.pairs.shards", str(tmp_path / "pairs")]
    assert cli.main([*words, "--data.sources.pairs.caption-key", "caption"]) == 0
    assert "pairs 33 samples" in capfd.readouterr().out


def test_a_folder_of_runs_that_links_to_a_disk_that_is_not_there_is_told_so(words, tmp_path, capfd):
    (tmp_path / "runs").symlink_to("/unmounted/runs")
    assert cli.main(words) == 2
    assert "runs' is a link to '/unmounted/runs', which is not there" in capfd.readouterr().err
    with pytest.raises(CheckpointError, match="'runs' is a link to '/unmounted/runs', which is not there"):
        with usable(resolve("flava_tiny", [])):
            (tmp_path / "runs" / "mine").relative_to(tmp_path).mkdir(parents=True, exist_ok=True)


@pytest.mark.parametrize("port", ["0", "65536"])
def test_a_port_that_none_has_is_refused(words, capfd, port):
    """At port 0, which is any free one, each rank would wait elsewhere."""
    assert cli.main([*words, "--master-port", port]) == 2
    assert capfd.readouterr().err == f"error: --master-port {port}: use a port from 1 to 65535\n"
