"""ALFWorld's official folders: which games are taken; and games that are broken."""

import json
import logging
import re

import pytest

from sdar_trl.envs import AlfWorldEnv, load_world
from sdar_trl.envs.alfworld import engine, files
from sdar_trl.envs.alfworld.env import load_game
from sdar_trl.envs.alfworld.generate import SIZES, task_of
from sdar_trl.envs.alfworld.rooms import room


def bathroom_game():
    """The embedded game that is translated quickest."""
    size = {n: len(room(task_of("valid_unseen", n).scene).receptacles) for n in range(SIZES["valid_unseen"])}
    return load_game(f"valid_unseen/{min(size, key=size.get)}")


GAME = bathroom_game()


def write(folder, name, trial="trial_T2019", game=GAME, task_type=None, **changes):
    """A game in the official layout; a change to None leaves a key out, a text as the game is written as it is."""
    place = folder / "json_2.1.1" / "valid_seen" / name / trial
    place.mkdir(parents=True)
    told = {**GAME["traj_data"], "task_type": task_type or GAME["traj_data"]["task_type"]}
    (place / "traj_data.json").write_text(json.dumps(told))
    if isinstance(game, dict):
        kept = {k: v for k, v in {**game, **changes}.items() if v is not None and k != "traj_data"}
        game = json.dumps(kept)
    if game is not None:
        (place / "game.tw-pddl").write_text(game)
    return place / "game.tw-pddl"


def test_the_official_filter_takes_what_it_takes_in_the_order_of_paths(tmp_path, caplog):
    write(tmp_path, "pick_b-Mug-None-Desk-1", trial="trial_T2")
    write(tmp_path, "pick_b-Mug-None-Desk-1", trial="trial_T1")
    write(tmp_path, "look_a-Pen-None-DeskLamp-2", task_type="look_at_obj_in_light")
    write(tmp_path, "pick_and_place_with_movable_recep-Pen-Bowl-Desk-3", task_type="pick_and_place_simple")
    write(tmp_path, "pick_c-AppleSliced-None-Desk-4")
    write(tmp_path, "pick_d-Mug-None-Desk-5", solvable=False)
    write(tmp_path, "pick_e-Mug-None-Desk-6", solvable=None)
    write(tmp_path, "pick_f-Mug-None-Desk-7", game=None)
    write(tmp_path, "pick_g-Mug-None-Desk-8", task_type="wash_the_car")
    world = load_world("alfworld", data_dir=str(tmp_path))
    with caplog.at_level(logging.WARNING):
        tasks = world.dataset("valid_seen")
    assert tasks["task_id"] == [
        "alfworld/valid_seen/look_a-Pen-None-DeskLamp-2/trial_T2019",
        "alfworld/valid_seen/pick_b-Mug-None-Desk-1/trial_T1",
        "alfworld/valid_seen/pick_b-Mug-None-Desk-1/trial_T2",
    ]
    own = GAME["traj_data"]["task_type"]
    assert tasks["task_type"] == ["look_at_obj_in_light", own, own]
    assert "has 3 games, and the published 'valid_seen' split has 140" in caplog.text
    assert load_world("alfworld", data_dir=str(tmp_path / "json_2.1.1")).dataset("validation")["game"] == tasks["game"]
    assert world.notes() == ["Games: official."]


def test_no_warning_where_the_count_is_the_published_one(tmp_path, caplog, monkeypatch):
    write(tmp_path, "pick-Mug-None-Desk-1")
    monkeypatch.setitem(files.PUBLISHED, "valid_seen", 1)
    assert len(AlfWorldEnv.dataset("valid_seen", tmp_path)) == 1 and caplog.text == ""


def test_an_official_game_is_played_and_won(tmp_path):
    write(tmp_path, "pick-Mug-None-Desk-1")
    [task] = AlfWorldEnv.dataset("valid_seen", tmp_path)
    env = AlfWorldEnv()
    assert env.reset(**task).startswith("You are in the middle of a room.")
    steps = [env.step(f"<action>{command}</action>") for command in GAME["walkthrough"]]
    assert steps[-1].info["success"] and steps[-1].reward == 10


def test_an_older_game_is_played_by_its_own_commands(tmp_path):
    older = GAME["grammar"].replace("move {o} to {r}", "put {o} in/on {r}")
    write(tmp_path, "pick-Mug-None-Desk-1", grammar=older)
    [task] = AlfWorldEnv.dataset("valid_seen", tmp_path)
    env = AlfWorldEnv()
    env.reset(**task)
    moves = 0
    for command in GAME["walkthrough"]:
        if command.startswith("move "):
            moves += 1
            assert not env.step(f"<action>{command}</action>").valid
            command = re.sub("move (.*) to (.*)", r"put \1 in/on \2", command)
        step = env.step(f"<action>{command}</action>")
        assert step.valid
    assert moves and step.info["success"]


def test_missing_data_is_told_with_the_command_that_downloads_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no games in .*valid_unseen.*`alfworld-download --data-dir FOLDER`"):
        load_world("alfworld", data_dir=str(tmp_path)).dataset("test")
    with pytest.raises(ValueError, match="`split` must be one of train, valid_seen, valid_unseen, validation, test"):
        load_world("alfworld").dataset("dev")


def test_a_file_that_is_cut_short_is_told_before_training_and_costs_its_own_episode_later(tmp_path):
    whole = json.dumps({key: value for key, value in GAME.items() if key != "traj_data"})
    cut = write(tmp_path, "pick-Mug-None-Desk-1", game=whole[:5000])
    with pytest.raises(ValueError, match=r"game.tw-pddl is damaged, or was cut short: .*Download it again"):
        AlfWorldEnv.dataset("valid_seen", tmp_path)
    env = AlfWorldEnv()
    with pytest.raises(ValueError, match="is damaged, or was cut short"):
        env.reset(game=str(cut))
    cut.unlink()
    with pytest.raises(FileNotFoundError, match="There is no .*game.tw-pddl, where the task says that its game is"):
        env.reset(game=str(cut))
    cut.write_text("[]")
    with pytest.raises(ValueError, match="must hold a JSON object, got list"):
        env.reset(game=str(cut))


def lines(text, word):
    return next(line for line in text.splitlines() if word in line)


BROKEN = {
    "twice": lambda p: p.replace(lines(p, " - object"), 2 * (lines(p, " - object") + "\n"), 1),  # SystemExit
    "never won": lambda p: p[: p.index("(:goal")] + "(:goal (isOn nothing_here)))",
    "unreachable": lambda p: re.sub(r"\(receptacleAtLocation [^)]*\)", "", p),  # KeyError in the stock engine
    "cut short": lambda p: p[: len(p) // 2],
    "empty": lambda p: "",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_whatever_the_engine_raises_about_a_broken_game_is_one_clear_error(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = write(tmp_path, "pick-Mug-None-Desk-1", pddl_problem=BROKEN[kind](GAME["pddl_problem"]))
    env = AlfWorldEnv()
    with pytest.raises(engine.GameError, match=rf"The game {re.escape(str(file))} cannot be played: "):
        env.reset(game=str(file))
    whole = write(tmp_path, "pick-Mug-None-Desk-2")
    assert env.reset(game=str(whole)).startswith("You are")  # the next one is played
    env.close()


@pytest.mark.parametrize("key", ["pddl_domain", "grammar", "pddl_problem"])
def test_a_game_without_one_of_its_parts_is_told(key, tmp_path):
    with pytest.raises(engine.GameError, match=f"has no {key}, as `game.tw-pddl` must"):
        AlfWorldEnv().reset(game=str(write(tmp_path, "pick-Mug-None-Desk-1", **{key: None})))
    with pytest.raises(engine.GameError, match="cannot be played"):
        AlfWorldEnv().reset(game=str(write(tmp_path, "pick-Mug-None-Desk-2", grammar="grammar :: nonsense")))
