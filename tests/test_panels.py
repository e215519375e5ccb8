"""Panels are the same everywhere."""

import json
import random
import subprocess
import sys

import pytest
from datasets import Dataset

from sdar_trl.envs import load_world
from sdar_trl.evaluation import Panel, world_panel


def rows(count):
    return [{"prompt": "", "task_id": f"game {number}", "level": number} for number in range(count)]


def test_a_panel_does_not_depend_on_the_order_of_the_tasks():
    tasks = rows(50)
    panel = Panel.draw("games", tasks, 20)
    for seed in range(3):
        shuffled = random.Random(seed).sample(tasks, len(tasks))
        assert Panel.draw("games", shuffled, 20) == Panel.draw("games", Dataset.from_list(shuffled), 20) == panel
        assert panel.tasks(shuffled) == panel.tasks(tasks)
        assert list(panel.tasks(Dataset.from_list(shuffled))) == panel.tasks(tasks)
    assert [row["task_id"] for row in panel.tasks(tasks)] == list(panel.task_ids)
    assert sorted(panel.task_ids) != list(panel.task_ids)


def test_a_smaller_panel_begins_a_larger_one_and_their_hashes_differ():
    small, large = (Panel.draw("games", rows(50), size) for size in (5, 30))
    assert large.task_ids[:5] == small.task_ids and small.sha256 != large.sha256
    assert Panel("other games", small.task_ids).sha256 != small.sha256
    assert Panel("games", small.task_ids[::-1]).sha256 != small.sha256


def test_a_panel_of_a_world_is_what_it_was():
    # literals: another machine, or another version, must find these too
    assert world_panel(load_world("webshop"), "test", 3).task_ids == (
        "webshop/test/427",
        "webshop/test/261",
        "webshop/test/102",
    )
    code = (
        "from sdar_trl.envs import load_world; from sdar_trl.evaluation import world_panel;"
        "print(world_panel(load_world('webshop'), 'test').sha256)"
    )
    hashes = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed, "PATH": ""}, capture_output=True, text=True
        ).stdout
        for seed in ("1", "2")
    }
    assert hashes == {f"{world_panel(load_world('webshop'), 'test').sha256}\n"}


def test_a_world_of_files_has_another_panel_whatever_folder_they_are_in(monkeypatch):
    def names(**arguments):
        world = load_world("webshop", **arguments)
        monkeypatch.setattr(type(world), "dataset", lambda self, split: rows(5))
        return world_panel(world, "test").name

    assert names() == names(reward="success") == "webshop/test"
    assert names(data_dir="here") == names(data_dir="there") == "webshop/files/test"
    assert names(data_dir="here", human_goals=True) == "webshop/files/human_goals=True/test"


def test_a_panel_comes_back_from_its_file_and_one_that_was_changed_does_not(tmp_path):
    panel = Panel.draw("games", rows(10), 4)
    path = tmp_path / "panel.json"
    panel.save(path)
    assert Panel.load(path) == panel
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "task_ids": data["task_ids"][::-1]}))
    with pytest.raises(ValueError, match="was changed"):
        Panel.load(path)


def test_a_panel_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="wants 11 tasks, and there are 10"):
        Panel.draw("games", rows(10), 11)
    with pytest.raises(ValueError, match="'game 1' twice"):
        Panel.draw("games", [*rows(3), *rows(2)][1:])
    with pytest.raises(ValueError, match="panel 'games' was empty"):
        Panel.draw("games", [])
    with pytest.raises(ValueError, match=r"lacks 2 tasks of the panel 'games'"):
        Panel.draw("games", rows(10)).tasks(rows(8))
