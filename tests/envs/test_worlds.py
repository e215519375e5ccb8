"""Worlds: one name and one set of arguments for tasks, environment, skills and limits."""

import pickle
import subprocess
import sys
from dataclasses import fields
from types import SimpleNamespace

import pytest
from transformers import HfArgumentParser

from sdar_trl import envs
from sdar_trl.envs import WebShopEnv, World, check_env, load_world, world_class
from sdar_trl.envs.webshop.samples import write_files
from sdar_trl.envs.worlds import WORLDS
from sdar_trl.skills.__main__ import load_tasks


@pytest.mark.parametrize("name", WORLDS)
def test_a_world_is_whole(name):
    world = load_world(name)
    assert isinstance(world, World) and world.name == name
    assert set(world.limits) == {"max_turns", "max_response_length", "max_completion_length"}
    assert all(field.metadata["help"] for field in fields(world))
    tasks = world.dataset("test")
    assert {"prompt", "task_id", "task_type"} < set(tasks.column_names)
    check_env(world.environment_factory(), tasks.select(range(2)))
    types = {kind for skill in world.skills() for kind in skill.task_types}
    assert set(tasks["task_type"]) <= types


def test_an_unknown_world_is_told_with_those_there_are_and_the_nearest():
    with pytest.raises(
        ValueError, match=r"one of webshop, alfworld, search_qa, got 'web_shop'. Did you mean 'webshop'\?"
    ):
        load_world("web_shop")
    with pytest.raises(ValueError, match="one of webshop, alfworld, search_qa, got 'chess'.$"):
        world_class("chess")


def test_a_missing_package_is_told_with_the_extra_that_brings_it_and_other_worlds_are_there(monkeypatch, tmp_path):
    (tmp_path / "needy_world.py").write_text("import a_package_that_nobody_has")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(WORLDS, "needy", "needy_world:Needy")
    with pytest.raises(ImportError, match=r"'a_package_that_nobody_has': pip install \"sdar-trl\[needy\]\""):
        load_world("needy")
    assert load_world("webshop").name == "webshop"


def test_an_environment_whose_package_is_missing_is_told_with_the_extra_too():
    code = (
        "import sys; sys.modules['textworld'] = None\n"
        "from sdar_trl.envs import *\n"
        "try:\n    from sdar_trl.envs import AlfWorldEnv\n"
        "except ImportError as error:\n    assert 'pip install \"sdar-trl[alfworld]\"' in str(error), error\n"
        "else:\n    raise AssertionError\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_mistake_of_ones_own_is_not_taken_for_a_missing_package(monkeypatch):
    monkeypatch.setitem(WORLDS, "mistaken", "sdar_trl.envs.mistaken:World")
    with pytest.raises(ModuleNotFoundError, match="No module named 'sdar_trl.envs.mistaken'"):
        load_world("mistaken")


def test_the_shops_arguments_reach_its_environment_also_in_another_process():
    factory = load_world("webshop", reward="success").environment_factory
    env = pickle.loads(pickle.dumps(factory))()
    assert isinstance(env, WebShopEnv) and env.reward == "success"


def test_the_shops_arguments_are_command_line_arguments():
    [world] = HfArgumentParser(world_class("webshop")).parse_args_into_dataclasses(
        ["--reward", "success", "--data_dir", "shop", "--human_goals", "--price_seed", "3", "--cache_dir", "cache"]
    )
    assert world == world_class("webshop")("success", "shop", True, 3, "cache")


def test_tasks_of_another_shop_are_refused_whichever_argument_differs(tmp_path):
    write_files(tmp_path, 100)
    worlds = [
        load_world("webshop"),
        load_world("webshop", data_dir=str(tmp_path)),
        load_world("webshop", data_dir=str(tmp_path), price_seed=1),
        load_world("webshop", data_dir=str(tmp_path), human_goals=True),
    ]
    tasks = [world.dataset("test")[0] for world in worlds]
    assert len({task["shop"] for task in tasks}) == 4
    for world, own in zip(worlds, tasks, strict=True):
        env = world.environment_factory()
        for task in tasks:
            if task is own:
                assert env.reset(**task).startswith("Instruction: ")
                continue
            with pytest.raises(ValueError, match="Give dataset and environment the same") as error:
                env.reset(**task)
            assert repr(task["shop"]) in str(error.value) and repr(env.shop.name) in str(error.value)


def test_skills_are_checked_on_the_tasks_of_any_world(monkeypatch):
    class FewTasks(world_class("webshop")):
        def dataset(self, split):
            return super().dataset(split).select(range(3))

    monkeypatch.setitem(sys.modules, "few_tasks", SimpleNamespace(FewTasks=FewTasks))
    monkeypatch.setitem(WORLDS, "few", "few_tasks:FewTasks")
    tasks = load_tasks("few", 500)
    assert len(tasks) == 3 and all(task["prompt"].startswith("Instruction: ") for task in tasks)
    assert len(load_tasks("few", 2)) == 2
    with pytest.raises(
        ValueError, match=r"a world \(webshop, alfworld, search_qa, few\) or a JSON-lines file, got 'chess'"
    ):
        load_tasks("chess", 500)


def test_what_found_the_nouns_is_told_where_it_may_differ(tmp_path):
    write_files(tmp_path, 100)
    assert load_world("webshop").notes() == []
    [note] = load_world("webshop", data_dir=str(tmp_path)).notes()
    assert note.startswith("Nouns of titles, for the score, by: ")
    assert ("by: light. Some scores differ from the original's" in note) == ("by: light." in note)


def test_the_face_of_environments_loads_none_of_them():
    code = (
        "import sys; from sdar_trl.envs import *; import sdar_trl.envs; "
        "assert 'WebShopEnv' in dir(sdar_trl.envs) and WebShopEnv; "
    )
    lazy = "import sys; import sdar_trl.envs; assert not any('webshop' in name for name in sys.modules)"
    for line in (code, lazy):
        subprocess.run([sys.executable, "-c", line], check=True)
    assert all(hasattr(envs, name) for name in envs.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'ChessEnv'"):
        envs.ChessEnv  # noqa: B018
