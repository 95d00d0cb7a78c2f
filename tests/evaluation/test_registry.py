"""Every task keeps the contract, names are found or suggested, and a user's file adds its own."""

import dataclasses
import sys

import pytest

from flava_ds.config.schedules import ScheduleConfig
from flava_ds.errors import DataError, UserError
from flava_ds.evaluation import registry
from flava_ds.evaluation.protocols import CAPABILITIES, SPECIAL
from flava_ds.evaluation.registry import find, grouped, register, tasks, unregister
from flava_ds.evaluation.tasks import scenes
from flava_ds.recipes.outside import import_code

OWN = '''
from __future__ import annotations

from dataclasses import dataclass

from flava_ds.evaluation.datasets.image_folder import ImageFolder
from flava_ds.evaluation.zero_shot import ZeroShot


@dataclass(frozen=True)
class Mine(ZeroShot):
    """A method of one's own, whose annotations are resolved in this file."""

    extra: int = 0


TASKS = (Mine("mine", ImageFolder()), ZeroShot("mine_too", ImageFolder()))
'''


@pytest.mark.parametrize("name", sorted(tasks()))
def test_a_task_keeps_the_contract(name, tmp_path):
    task = tasks()[name]
    assert task.name == name and task.about and task.needs and set(task.needs) <= set(CAPABILITIES | SPECIAL)
    data = task.data
    assert (
        data.name
        and data.folder
        and data.licence
        and data.origin
        and data.layout
        and data.splits[0] != "train"
    )
    assert not data.is_here(tmp_path) and not data.is_here(tmp_path / "absent", data.splits[0])
    assert hash(task) is not None and hash(data) is not None


def test_a_name_that_two_packaged_tasks_have_is_an_error(monkeypatch):
    assert {"scene_questions", "scene_entailment", "scene_objects"} <= set(tasks())
    assert [task.data.name for task in scenes.TASKS[:2]] == ["scene_questions", "scene_entailment"]
    monkeypatch.setattr(scenes, "TASKS", (*scenes.TASKS, dataclasses.replace(scenes.TASKS[0])))
    with pytest.raises(AssertionError, match="scenes: 'scene_questions' exists twice"):
        tasks()


def test_an_unknown_name_gets_the_known_ones_and_a_suggestion():
    for wrong, meant in (
        ("cifar10_prob", "(did you mean 'cifar10_probe'?); there are vision probes: "),
        ("imagenet1k", "did you mean 'imagenet_neighbours' or 'imagenet_probe' or 'imagenet_zero_shot'?"),
        ("qqqq", "no task 'qqqq'; there are vision probes: "),
        ("my_package.tasks", "'my_package.tasks' (tasks of your own are FILE.py or FILE.py:NAME); there are"),
    ):
        with pytest.raises(UserError) as caught:
            find([wrong])
        assert meant in str(caught.value) and len(str(caught.value)) < 700
    # other tests of this process add tasks of their own
    ours = {name: task for name, task in tasks().items() if type(task).__module__.startswith("flava_ds.")}
    groups = grouped(ours)
    assert sorted(sum(groups.values(), [])) == sorted(ours) and "others" not in groups
    assert "glue_cola" in groups["language"] and "vqav2" in groups["vision-language"]
    assert "coco_retrieval" in groups["retrieval"] and "cifar10_zero_shot" in groups["zero-shot"]
    assert [task.name for task in find(["sst2_probe", "cifar10_probe", "sst2_probe"])] == [
        "sst2_probe",
        "cifar10_probe",
    ]


def test_a_task_can_be_added_and_taken_away():
    own = dataclasses.replace(tasks()["image_folder_zero_shot"], name="added_by_a_test")
    register(own)
    try:
        assert find(["added_by_a_test"]) == [own] and register(own) is own
        with pytest.raises(UserError, match="already exists"):
            register(dataclasses.replace(own, data=tasks()["own_zero_shot"].data))
    finally:
        unregister("added_by_a_test")
    assert "added_by_a_test" not in tasks()
    with pytest.raises(UserError, match="letters, digits and underscores"):
        register(dataclasses.replace(own, name="with/slash"))


def test_a_file_of_ones_own_adds_its_tasks(tmp_path):
    file = tmp_path / "proj.pytorch" / "own_tasks.py"
    file.parent.mkdir()
    file.write_text(OWN)
    try:
        assert [task.name for task in find([str(file)])] == ["mine", "mine_too"]
        assert [task.name for task in find([f"{file}:mine_too", "sst2_probe"])] == ["mine_too", "sst2_probe"]
        assert "mine" in tasks()
        with pytest.raises(UserError, match="no task 'yours'; there are mine, mine_too"):
            find([f"{file}:yours"])
    finally:
        unregister("mine")
        unregister("mine_too")
        registry._LOADED.clear()


def test_a_file_without_tasks_is_named(tmp_path):
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(DataError, match="empty.py: defines no TASKS"):
        find([str(tmp_path / "empty.py")])
    with pytest.raises(DataError, match="absent.py: no such file"):
        find([str(tmp_path / "absent.py")])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = (\n", "own_tasks.py:1: SyntaxError: '(' was never closed"),
        ("x = 1\nimport no_such_thing\n", "own_tasks.py:2: ModuleNotFoundError: No module named"),
        ("import sys\n\nsys.exit(3)\n", "own_tasks.py:3: SystemExit: 3"),
        ("TASKS = 3\n", "own_tasks.py: TASKS is int; it is a tuple of evaluators"),
        (f"{OWN}\nTASKS = (type(TASKS[0]),)\n", "own_tasks.py: TASKS[0] is the class "),
        (
            f"{OWN}\ntype(TASKS[0]).needs = ('X',)\n",
            "own_tasks.py: TASKS[0].needs is ('X',); it is a tuple of",
        ),
        (
            f"{OWN}\nclass Other:\n    name = folder = 'x'\n\nTASKS = (Mine('mine', Other()),)\n",
            "own_tasks.py: TASKS[0].data (Other) has no licence, origin, layout, splits, is_here, read",
        ),
        ("TASKS = (1,)\n", "own_tasks.py: TASKS[0] has no name, about, needs, data, run; every evaluator"),
    ],
)
def test_a_file_that_fails_is_one_line(text, message, tmp_path):
    (tmp_path / "own_tasks.py").write_text(text)
    with pytest.raises(DataError) as caught:
        find([str(tmp_path / "own_tasks.py")])
    assert message in str(caught.value)


def test_tasks_may_be_in_the_file_of_a_recipe(tmp_path, monkeypatch):
    """Which is imported before: run again, it would define its classes a second time, which is refused."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    file = tmp_path / "own_recipe_with_tasks.py"
    tagged = "\n\nclass TestConfig(ScheduleConfig, type='schedule_of_a_task_file'):\n    pass\n"
    file.write_text("from flava_ds.config.schedules import ScheduleConfig\n" + OWN.lstrip() + tagged)
    file.write_text(file.read_text().replace("from __future__ import annotations\n", ""))
    module = import_code(str(file))
    try:
        assert find([str(file)]) == list(module.TASKS)
    finally:
        for name in ("mine", "mine_too"):
            unregister(name)
        registry._LOADED.clear()
        del sys.modules["own_recipe_with_tasks"], ScheduleConfig._defined["schedule_of_a_task_file"]
