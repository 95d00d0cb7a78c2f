"""What a fine-tuning reports can be kept, and used: the same outputs, also of weights that are not the last,
after a kill, and in bf16; other files are refused in one line."""

import dataclasses
import json
import os
import signal

import numpy as np
import pytest
import torch
from evaluation.color_world import write_own
from evaluation.language_world import WRITERS
from PIL import Image
from sample_runs import world_config

from flava_ds.data.decode import decode_image
from flava_ds.errors import DataError, UserError
from flava_ds.evaluation.frozen_model import Described, Workplace
from flava_ds.evaluation.opening import freeze
from flava_ds.evaluation.registry import tasks
from flava_ds.evaluation.runner import find_data
from flava_ds.evaluation.tuning import fitting, saved
from flava_ds.evaluation.tuning.fine_tuning import TextFineTuning
from flava_ds.evaluation.tuning.goals import Classes, Meaning
from flava_ds.evaluation.tuning.heads import SentenceHead
from flava_ds.evaluation.tuning.kept import Facts, open_kept, words_of
from flava_ds.evaluation.tuning.recipe import Recipe
from flava_ds.families.flava.task import build_task
from flava_ds.fine_tuned import FineTuned
from flava_ds.storage.atomic import hold, replacing
from flava_ds.storage.files import sha256_of
from flava_ds.storage.tensor_files import save_tensors

QUICK = Recipe(samples=16, batch_size=8, lr=3e-3, updates=60, warmup_updates=6, judged_every=10)


def frozen(folder, workplace=None, dtype=torch.float32, more_layers=0):
    """A tiny model of random weights."""
    config = world_config(folder)
    text = config.model.text
    text = dataclasses.replace(text, num_hidden_layers=text.num_hidden_layers + more_layers)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, text=text))
    module = build_task(config).eval().requires_grad_(False).to(dtype)
    return freeze(config, module, Described("tiny", "flava"), None).at(workplace or Workplace())


class Seen(fitting.Fitting):
    """Notes what it predicts, after how many updates; kills its process at one of them."""

    predicted: dict = {}
    made, dies_at = 0, None

    def step(self, update, batches):
        Seen.made = update + 1
        if Seen.made == Seen.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(update, batches)

    def predict(self, inputs):
        found = super().predict(inputs)
        Seen.predicted[Seen.made, len(inputs.ids)] = found
        return found


def tuned(
    folder, name, monkeypatch, keep=True, told=None, dies_at=None, limit=None, dtype=torch.float32, **recipe
):
    """Fine-tunes a miniature task in `folder`; returns its data and the file of its weights."""
    monkeypatch.setattr("flava_ds.evaluation.tuning.fine_tuning.Fitting", Seen)
    monkeypatch.setattr(fitting, "SAVED_EVERY_S", 0)
    monkeypatch.setattr(Seen, "predicted", {})
    monkeypatch.setattr(Seen, "dies_at", dies_at)
    task = dataclasses.replace(tasks()[name], recipe=dataclasses.replace(QUICK, **recipe))
    data = find_data(task.data, folder, limit=limit)
    place = Workplace(folder / "states", (told if told is not None else []).append, keep)
    task.run(frozen(folder, place, dtype), data)
    return data, folder / "states" / f"{name}.best.safetensors"


def pictures(samples):
    """Decoded images of a split."""
    return [decode_image(samples.load(row)) for row in range(len(samples))]


def test_classes_of_texts(tmp_path, monkeypatch):
    WRITERS["glue_sst2"](tmp_path)
    told = []
    data, file = tuned(tmp_path, "glue_sst2", monkeypatch, told=told)
    dev = data.read("dev")
    whole, generator = frozen(tmp_path), torch.get_rng_state()
    model = FineTuned(file, whole)
    assert torch.equal(torch.get_rng_state(), generator)
    assert f"glue_sst2: the weights after update {model._facts.update} are {file}" == told[-1]
    assert model.classes == ("negative", "positive") and "glue_sst2 after update" in repr(model)
    found = model.predict(dev.texts, batch_size=3)
    assert found.argmax(1).tolist() == dev.labels.tolist()
    expected = torch.from_numpy(Seen.predicted[model._facts.update, len(dev)]).softmax(1)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(model.predict(list(dev.texts)), found)


def test_weights_that_are_not_the_last(tmp_path, monkeypatch):
    """The later half of the updates is made with so high a rate that it unlearns."""
    WRITERS["glue_sst2"](tmp_path)
    rate = Recipe.learning_rate
    monkeypatch.setattr(
        Recipe, "learning_rate", lambda self, update: 3.0 if update >= 30 else rate(self, update)
    )
    data, file = tuned(tmp_path, "glue_sst2", monkeypatch)
    dev = data.read("dev")
    model = FineTuned(file, frozen(tmp_path))
    assert model._facts.update == 30 and max(Seen.predicted)[0] == 60
    expected = torch.from_numpy(Seen.predicted[30, len(dev)]).softmax(1)
    torch.testing.assert_close(model.predict(dev.texts), expected, atol=1e-6, rtol=1e-5)


def test_pairs_of_texts_and_a_number(tmp_path, monkeypatch):
    WRITERS["glue_stsb"](tmp_path)
    data, file = tuned(tmp_path, "glue_stsb", monkeypatch, samples=18)
    dev = data.read("dev")
    model = FineTuned(file, frozen(tmp_path))
    with pytest.raises(UserError, match="task glue_stsb reads pairs of texts; give texts and second"):
        model.predict(dev.texts)
    found = model.predict(np.array(dev.texts), second=np.array(dev.second))
    assert model.classes == () and found.shape == (len(dev), 1)
    assert np.corrcoef(found[:, 0], dev.labels)[0, 1] > 0.9
    expected = torch.from_numpy(Seen.predicted[model._facts.update, len(dev)]) * 5
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["snli_ve", "vqav2"])
def test_images_with_a_text(tmp_path, monkeypatch, name):
    """VQA's pictures are larger than the model's; pictures come in any form, and models in bf16."""
    WRITERS[name](tmp_path)
    data, file = tuned(tmp_path, name, monkeypatch, samples=18, updates=20)
    held_out = data.test()
    whole = frozen(tmp_path)
    model = FineTuned(file, whole)
    assert model.classes == held_out.class_names
    assert (model._facts.image_size > whole.image_size) == (name == "vqav2")
    read = pictures(held_out)
    found = model.predict(held_out.texts, images=read)
    logits = torch.from_numpy(Seen.predicted[model._facts.update, len(held_out)])
    torch.testing.assert_close(found, logits.softmax(1) if name == "snli_ve" else logits.sigmoid())
    images = [Image.fromarray(own.permute(1, 2, 0).numpy()) for own in read]
    torch.testing.assert_close(model.predict(held_out.texts, images=images), found)
    half = FineTuned(file, frozen(tmp_path, dtype=torch.bfloat16)).predict(held_out.texts, images=read)
    torch.testing.assert_close(half, found, atol=0.03, rtol=0)


def test_images_alone(tmp_path, monkeypatch):
    """They are cropped, not squeezed as with a text."""
    write_own(tmp_path / "own", {"train": 6, "test": 3})
    data, file = tuned(tmp_path, "own_image_tuned", monkeypatch, samples=18)
    held_out = data.test()
    model = FineTuned(file, frozen(tmp_path))
    read = pictures(held_out)
    assert model.classes == held_out.class_names and read[0].shape[1] < read[0].shape[2]
    found = model.predict(images=read, batch_size=4)
    expected = torch.from_numpy(Seen.predicted[model._facts.update, len(held_out)]).softmax(1)
    torch.testing.assert_close(found, expected)
    for given in ({"texts": ["a red thing"]}, {"texts": ["red"], "images": read[:1]}, {}):
        with pytest.raises(UserError, match="reads images; give images, nothing else"):
            model.predict(**given)
    for nothing in ([], {"red": read[0]}, iter(read)):
        with pytest.raises(UserError, match="images: give a list of at least one"):
            model.predict(images=nothing)


def test_weights_that_were_trained_in_half_precision_are_kept_in_full(tmp_path, monkeypatch):
    """At this learning rate a gain of 1 moves by a hundredth of what bf16 can add to it."""
    WRITERS["glue_sst2"](tmp_path)
    _, file = tuned(tmp_path, "glue_sst2", monkeypatch, dtype=torch.bfloat16, lr=4e-5, updates=20)
    facts, tensors = open_kept(file)
    gain = tensors.read("encoder.text_encoder.final_norm.weight")
    tensors.close()
    assert gain.dtype == torch.float32 and 1e-4 < (gain - 1).abs().max() < 1e-3 and facts.update > 0


@pytest.mark.parametrize("dies_at", ["in save", "in keep"])
def test_a_kill_while_the_best_weights_are_written(tmp_path, monkeypatch, dies_at):
    """What is kept afterwards is what the state says, whatever the training finds from there on. No part of a
    file stays.
    """
    WRITERS["glue_sst2"](tmp_path)
    child = os.fork()
    if not child:
        name, made = ("save" if dies_at == "in save" else "keep"), []
        write = saved._write

        def die(path, tensors, metadata):
            made.append(path.name)
            if path.name.endswith(".best.safetensors") == (name == "keep") and len(made) > 12:
                with replacing(path, alone=True) as temporary:
                    temporary.write_bytes(b"begun")
                    os.kill(os.getpid(), signal.SIGKILL)
            write(path, tensors, metadata)

        monkeypatch.setattr(saved, "_write", die)
        tuned(tmp_path, "glue_sst2", monkeypatch)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    monkeypatch.setattr(Classes, "merit", lambda *_: 0.0)  # nothing better comes
    told = []
    data, file = tuned(tmp_path, "glue_sst2", monkeypatch, told=told)
    facts, tensors = open_kept(file)
    tensors.close()
    assert "resumes" in told[0] and f"after update {facts.update} are" in told[-1] and facts.update < 60
    assert sorted(path.name for path in file.parent.iterdir()) == [file.name, "glue_sst2.json"]


def test_after_a_kill_the_same_weights_are_kept(tmp_path, monkeypatch):
    """The kill comes after the best weights so far were kept and before the best of all."""
    WRITERS["glue_sst2"](tmp_path)
    _, file = tuned(tmp_path, "glue_sst2", monkeypatch)
    expected = sha256_of(file)
    for path in file.parent.iterdir():
        path.unlink()
    child = os.fork()
    if not child:
        tuned(tmp_path, "glue_sst2", monkeypatch, dies_at=26)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    there = sorted(path.name for path in file.parent.iterdir())
    assert there == [".glue_sst2.lock", file.name, "glue_sst2.safetensors"]
    told = []
    tuned(tmp_path, "glue_sst2", monkeypatch, told=told)
    assert told[0] == "glue_sst2: resumes after update 25" and sha256_of(file) == expected
    tuned(tmp_path, "glue_sst2", monkeypatch, told=told, dies_at=1)
    assert f"finished before with the same weights, samples and recipe; its weights are {file}" in told[-1]
    assert sha256_of(file) == expected


def test_what_was_fine_tuned_without_keeping_weights(tmp_path, monkeypatch):
    WRITERS["glue_sst2"](tmp_path)
    _, file = tuned(tmp_path, "glue_sst2", monkeypatch, keep=False)
    assert not file.exists()
    done = file.with_name("glue_sst2.json")
    told = []
    tuned(tmp_path, "glue_sst2", monkeypatch, told=told)
    assert file.is_file() and "finished before" not in told[0]
    file.unlink()
    done.unlink()
    child = os.fork()
    if not child:
        tuned(tmp_path, "glue_sst2", monkeypatch, keep=False, dies_at=26)
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(DataError, match="best weights so far were not kept; delete the file to start again"):
        tuned(tmp_path, "glue_sst2", monkeypatch)


def test_a_first_look_at_a_part_of_the_samples_costs_no_finished_work(tmp_path, monkeypatch):
    WRITERS["glue_sst2"](tmp_path)
    _, file = tuned(tmp_path, "glue_sst2", monkeypatch, updates=10)
    kept, told = file.read_bytes(), []
    tuned(tmp_path, "glue_sst2", monkeypatch, updates=10, limit=6, keep=False)
    for limit in (None, 6, None):
        tuned(tmp_path, "glue_sst2", monkeypatch, updates=10, limit=limit, keep=limit is None, told=told)
    assert len(told) == 3 and all("finished before" in line for line in told)
    assert file.read_bytes() == kept


def test_a_second_process_is_refused_before_it_trains(tmp_path, monkeypatch):
    WRITERS["glue_sst2"](tmp_path)
    (tmp_path / "states").mkdir()
    with (
        hold(tmp_path / "states" / ".glue_sst2.lock"),
        pytest.raises(UserError, match="glue_sst2.safetensors: another process is fine-tuning there; wait"),
    ):
        tuned(tmp_path, "glue_sst2", monkeypatch)


def test_after_an_error_the_same_process_may_try_again(tmp_path, monkeypatch):
    WRITERS["glue_sst2"](tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Classes, "merit", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError) as error:
            tuned(tmp_path, "glue_sst2", patch)
    _, file = tuned(tmp_path, "glue_sst2", monkeypatch)
    assert error.traceback and file.is_file()  # the first one's frames are there still


def test_weights_of_something_else_are_not_overwritten(tmp_path, monkeypatch):
    """Of other samples, of classes that are called otherwise now, or of another program."""
    WRITERS["glue_sst2"](tmp_path)
    _, file = tuned(tmp_path, "glue_sst2", monkeypatch, updates=10)
    kept, away = file.read_bytes(), "; move it away, or name another folder with --keep"
    recipe = "is of a fine-tuning with recipe: updates 10, and this one has 12"
    with pytest.raises(UserError, match=recipe + away):
        tuned(tmp_path, "glue_sst2", monkeypatch, updates=12)
    with pytest.raises(
        UserError, match="is of a fine-tuning with training samples .*, and this one has .*" + away
    ):
        tuned(tmp_path, "glue_sst2", monkeypatch, updates=10, limit=6)
    task = tasks()["glue_sst2"]
    renamed = dataclasses.replace(task, data=dataclasses.replace(task.data, class_names=("bad", "good")))
    monkeypatch.setattr("test_fine_tuned.tasks", lambda: {"glue_sst2": renamed})
    with pytest.raises(UserError, match="is of a fine-tuning with goal|is of other classes or another model"):
        tuned(tmp_path, "glue_sst2", monkeypatch, updates=10)
    monkeypatch.undo()
    assert file.read_bytes() == kept
    (tmp_path / "codebook.safetensors").replace(file)
    with pytest.raises(UserError, match="is damaged, or of something else" + away):
        tuned(tmp_path, "glue_sst2", monkeypatch, updates=10)


class Own(SentenceHead):
    """A head of one's own."""


def test_a_head_of_a_class_of_ones_own_is_given(tmp_path, monkeypatch):
    WRITERS["glue_sst2"](tmp_path)
    monkeypatch.setattr(TextFineTuning, "make_head", Own)
    data, file = tuned(tmp_path, "glue_sst2", monkeypatch, updates=10)
    with pytest.raises(UserError, match="its head has a class of its own; give it as make_head"):
        FineTuned(file, frozen(tmp_path))
    found = FineTuned(file, frozen(tmp_path), Own).predict(data.read("dev").texts)
    assert found.shape == (len(data.read("dev")), 2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_size": "x"}, "is not readable .image_size and update are whole numbers"),
        ({"image_size": 10**6}, "is for images of 1000000 pixels, not of 12"),
        ({"states": "all"}, "is not readable .states of all"),
        ({"head": []}, "is not readable .a name is no text"),
        ({"task": None}, "is not readable .a name is no text"),
        ({"meaning": {"names": ["a"], "activation": "relu"}}, "is not readable .activation 'relu'"),
        ({"meaning": 3}, "is not readable"),
        ({"more": 3}, "is not readable .*unexpected keyword"),
        ({"words": "other"}, "from another model than tiny, with other words; open the model"),
    ],
    ids=str,
)
def test_a_file_that_says_something_else_of_itself_is_one_line(tmp_path, change, words):
    facts = Facts("t", "images with a text", "PairHead", Meaning(("a", "b"), "softmax"), 12, "w")
    model = frozen(tmp_path)
    facts = dataclasses.asdict(dataclasses.replace(facts, words=words_of(model))) | change
    save_tensors({}, tmp_path / "t.best.safetensors", {"fine_tuned": json.dumps(facts)})
    with pytest.raises(UserError, match=words) as error:
        FineTuned(tmp_path / "t.best.safetensors", model)
    assert "\n" not in str(error.value)


def test_what_cannot_be_used_is_one_line(tmp_path, monkeypatch):
    WRITERS["glue_sst2"](tmp_path)
    WRITERS["snli_ve"](tmp_path)
    _, texts = tuned(tmp_path, "glue_sst2", monkeypatch, updates=10)
    data, pairs = tuned(tmp_path, "snli_ve", monkeypatch, samples=18, updates=10)
    model, read = frozen(tmp_path), pictures(data.test())
    with pytest.raises(UserError, match="task glue_sst2 reads texts; give texts, nothing else"):
        FineTuned(texts, model).predict(["a"], images=read[:1])
    with pytest.raises(UserError, match="task glue_sst2 reads texts; give texts, nothing else"):
        FineTuned(texts, model).predict(["a"], second=["b"])
    with pytest.raises(UserError, match="task snli_ve reads images with a text; give texts and images"):
        FineTuned(pairs, model).predict(["a"])
    with pytest.raises(UserError, match="2 texts and 1 images; give one for each text"):
        FineTuned(pairs, model).predict(["a", "b"], images=read[:1])
    with pytest.raises(UserError, match="texts: give a list of at least one, not 'a'"):
        FineTuned(texts, model).predict("a")
    with pytest.raises(UserError, match="texts: give a list of at least one"):
        FineTuned(texts, model).predict([])
    with pytest.raises(UserError, match="task glue_sst2 reads texts; give texts, nothing else"):
        FineTuned(texts, model).predict(None)
    with pytest.raises(UserError, match="batch_size 1.5: use a whole number of at least 1"):
        FineTuned(texts, model).predict(["a"], batch_size=1.5)
    with pytest.raises(UserError, match="absent.safetensors: no such file; give a file .*best.safetensors"):
        FineTuned(tmp_path / "absent.safetensors", model)
    with pytest.raises(UserError, match="states: is a folder; give a file .*best.safetensors"):
        FineTuned(texts.parent, model)
    with pytest.raises(UserError, match="codebook.safetensors: holds no weights of a fine-tuning; give"):
        FineTuned(tmp_path / "codebook.safetensors", model)
    deeper = frozen(tmp_path, more_layers=1)
    with pytest.raises(
        UserError, match="from another model than tiny: 'encoder.* is .* there and .* here; open"
    ):
        FineTuned(texts, deeper)
    texts.write_bytes(texts.read_bytes()[:-8])
    with pytest.raises(UserError, match="best.safetensors is not a readable safetensors file"):
        FineTuned(texts, model)
