"""ALFWorld: the embedded games, the environment that plays them, and the engine against the stock one."""

import json
import os
import random
import re
import statistics
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from alfworld_stock import RECORD, digest, our_transcript, small_game, stock_transcript

from sdar_trl.envs import AlfWorldEnv, check_env, load_world
from sdar_trl.envs.alfworld.env import ACTIONS, TASK, load_game
from sdar_trl.envs.alfworld.generate import SIZES, generate_game, possible_tasks, task_of
from sdar_trl.envs.alfworld.proof import PROOF, digests, play_solution
from sdar_trl.envs.alfworld.rooms import TASK_TYPES, room, scenes


GAMES = {task_type: small_game(task_type, "valid_unseen") for task_type in TASK_TYPES}


@pytest.fixture
def env():
    env = AlfWorldEnv()
    yield env
    env.close()


def act(env, command):
    return env.step(f"<think>so</think><action>{command}</action>")


# The embedded games


def test_the_games_are_those_that_were_proven_solvable():
    assert digests() == json.loads(PROOF.read_text())


@pytest.mark.parametrize("task_type", TASK_TYPES)
def test_a_game_is_won_by_its_solution_and_not_by_doing_nothing(task_type, env):
    game = load_game(GAMES[task_type])
    assert game["traj_data"]["task_type"] == task_type
    play_solution(game, "a game")
    first = env.reset(game=GAMES[task_type])
    assert first.startswith("You are in the middle of a room.") and TASK in first
    assert [act(env, "look").terminated for _ in range(50)] == [False] * 50
    *others, last = [act(env, command) for command in game["walkthrough"]]
    assert all(step.reward == 0 and step.valid and not step.terminated for step in others)
    assert (last.reward, last.terminated, last.info) == (10.0, True, {"success": True, "score": 1.0})
    with pytest.raises(RuntimeError, match="call reset"):
        act(env, "look")


def test_seen_rooms_are_those_of_training_with_other_tasks_and_unseen_ones_are_others():
    tasks = {split: {task_of(split, number) for number in range(size)} for split, size in SIZES.items()}
    rooms = {split: {task.scene for task in found} for split, found in tasks.items()}
    assert rooms["valid_seen"] <= rooms["train"] <= set(scenes(unseen=False)) and len(rooms["train"]) > 90
    assert rooms["valid_unseen"] <= set(scenes(unseen=True)) and len(rooms["valid_unseen"]) > 20
    assert not set(scenes(unseen=True)) & set(scenes(unseen=False))
    assert not tasks["train"] & tasks["valid_seen"]
    for task_type in TASK_TYPES:
        possible = [{t for in_room in possible_tasks(s, task_type) for t in in_room} for s in ("train", "valid_seen")]
        assert possible[0] and possible[1] and not possible[0] & possible[1]


def test_rooms_are_as_full_as_the_original_ones():
    kitchens = [room(scene) for scene in scenes(unseen=False) if room(scene).kind == "Kitchen"]
    assert 25 < statistics.mean(len(kitchen.receptacles) for kitchen in kitchens) < 35
    assert {room(scene).kind for scene in scenes(unseen=True)} == {"Kitchen", "LivingRoom", "Bedroom", "Bathroom"}
    lying = [generate_game("train", number)["pddl_problem"].count("(pickupable ") for number in range(60)]
    assert 20 < statistics.mean(lying) < 45


def test_a_game_is_the_same_whenever_and_wherever_it_is_made():
    code = "from sdar_trl.envs.alfworld.env import load_game; import json; print(json.dumps(load_game('train/7')))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == json.loads(json.dumps(generate_game("train", 7)))
    with pytest.raises(ValueError, match=r"has games 0 to 133, got 134"):
        load_game("valid_unseen/134")


# The engine


@pytest.mark.parametrize("grammar", ["move", "put"])
def test_every_text_command_and_outcome_is_the_stock_engines(grammar):
    game = load_game(GAMES["pick_clean_then_place_in_recep"])
    if grammar == "put":  # as older games have it
        game["grammar"] = game["grammar"].replace("move {o} to {r}", "put {o} in/on {r}")
        game["walkthrough"] = [re.sub("move (.*) to (.*)", r"put \1 in/on \2", said) for said in game["walkthrough"]]
    steps = 0
    for ours, stock in zip(our_transcript(game, 60), stock_transcript(game, 60), strict=True):
        assert ours == stock
        steps += ours[2]
    assert steps  # it was won on the way


def test_thousands_of_steps_are_what_the_stock_engine_was_recorded_to_say():
    record = json.loads(RECORD.read_text())
    assert record["steps"] * len(record["games"]) > 2000
    for name, recorded in record["games"].items():
        assert digest(our_transcript(load_game(name), record["steps"])) == recorded, name


def test_two_games_in_one_process_do_not_disturb_each_other():
    names = [GAMES["pick_and_place_simple"], GAMES["look_at_obj_in_light"]]
    alone = [list(our_transcript(load_game(name), 40)) for name in names]
    together = list(zip(*(our_transcript(load_game(name), 40) for name in names), strict=True))
    assert [list(transcript) for transcript in zip(*together, strict=True)] == alone


LEAVES = """
import sys, tempfile
from pathlib import Path
from sdar_trl.envs import AlfWorldEnv
games, envs = sys.argv[1:], [AlfWorldEnv(), AlfWorldEnv(), AlfWorldEnv()]
for game in games:
    envs[0].reset(game=game)
held = lambda: {line.split()[5] for line in open("/proc/self/maps") if "libdownward" in line}
assert len(held()) == 1 and not any(tempfile.gettempdir() in path for path in held()), held()
for _ in range(5):
    for env, game in zip(envs, games):
        env.reset(game=game)
        env.step("<action>look</action>")
    assert len(held()) == 3, held()
    for env in envs:
        env.close()
"""


def test_libraries_are_reused_leave_no_files_and_the_process_ends_well(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", LEAVES, *list(GAMES.values())[:3]], env=environment, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_hundred_resets_of_known_games_hold_no_more_memory(env):
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    def play(count):
        for number in range(count):
            env.reset(game=list(GAMES.values())[number % 3])
            act(env, random.choice(env.commands))

    play(30)
    before = resident()
    play(100)
    assert resident() - before < 10


# The environment


def test_it_keeps_to_the_protocol():
    world = load_world("alfworld")
    solution = iter(load_game(GAMES["pick_and_place_simple"])["walkthrough"])
    tasks = [{**world.dataset("test")[0], "game": GAMES["pick_and_place_simple"]}]
    check_env(world.environment_factory(), tasks, policy=lambda observation: f"<action>{next(solution)}</action>")


def test_all_admissible_actions_end_the_observation_and_can_be_left_out(env):
    shown = env.reset(game=GAMES["pick_and_place_simple"])
    plain = AlfWorldEnv(admissible_actions=False)
    assert shown == plain.reset(game=GAMES["pick_and_place_simple"]) + ACTIONS + ", ".join(
        command for command in env.commands if command != "help"
    )
    assert len(env.commands) > 5
    plain.close()


@pytest.mark.parametrize(
    ("response", "said"),
    [
        ("look", "Invalid action: answer with one action inside <action></action> tags."),
        ("<action>go to moon 1</action>", "Nothing happens."),
        ("<action>take</action>", "Nothing happens."),
    ],
)
def test_what_is_not_admissible_is_told_flagged_and_changes_nothing(response, said, env):
    env.reset(game=GAMES["pick_and_place_simple"])
    commands = env.commands
    step = env.step(response)
    assert step.observation.startswith(said) and not step.valid and step.reward == 0 and env.commands == commands


def test_case_and_space_around_an_action_do_not_matter(env):
    env.reset(game=GAMES["pick_and_place_simple"])
    place = next(command for command in env.commands if command.startswith("go to"))
    assert env.step(f"<action>  {place.title()}\n</action>").observation.startswith("You arrive at")


@pytest.mark.parametrize("admissible", [True, False])
def test_a_window_has_the_task_the_last_steps_and_what_is_seen_now(admissible):
    env = AlfWorldEnv(admissible)
    game = GAMES["pick_clean_then_place_in_recep"]
    observations = [env.reset(game=game)]
    responses = [f"<think>x</think><action>{command}</action>" for command in load_game(game)["walkthrough"][:3]]
    observations += [env.step(response).observation for response in responses]
    task = observations[0].split(ACTIONS)[0].split(TASK)[1]
    assert AlfWorldEnv.history(observations[0], [], observations[0], 1) == observations[0]
    second = AlfWorldEnv.history(observations[0], [(observations[0], responses[0])], observations[1], 2)
    past = list(zip(observations[1:3], responses[1:3], strict=True))
    fourth = AlfWorldEnv.history(observations[0], past, observations[3], 4)
    for text, count in ((second, 1), (fourth, 3)):
        assert text.count(task) == 1 and text.count("You are in the middle of a room") == (
            count == 1 or not admissible
        )
        assert text.count(ACTIONS) == (1 if admissible else 0) and "<think>" not in text
        assert f"Steps taken: {count}" in text and text.endswith(f"Step {count + 1}:\n{observations[count]}")
    parts = [task, "Steps taken: 3. The last 2:", "[2] You", "> ", "[3] You", "> ", "Step 4:"]
    places = [fourth.index(part) for part in parts[:3]] + [fourth.index("[3]"), fourth.index("Step 4:")]
    assert all(before < after for before, after in pairwise(places))
    env.close()


def test_the_process_is_as_before_after_every_call(env, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # so that it is translated anew
    monkeypatch.setattr(sys, "argv", ["a", "b"])

    def now():
        return list(sys.argv), sys.stdout, os.getcwd(), dict(os.environ)

    before = now()
    env.reset(game=GAMES["pick_and_place_simple"])
    assert now() == before
    act(env, "look")
    env.step("nonsense")
    env.close()
    assert now() == before
    assert [path.suffix for path in sorted(tmp_path.rglob("*.*"))].count(".z") == 1
    code = (
        "import os, sys; argv, before = list(sys.argv), dict(os.environ); import sdar_trl.envs.alfworld; "
        "assert os.environ == before and sys.argv == argv"
    )
    home = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HOME": str(tmp_path / "home")}
    home.pop("ALFWORLD_DATA", None)
    subprocess.run([sys.executable, "-c", code], env=home, check=True)
    assert not (tmp_path / "home").exists()


def test_a_thousand_episodes_at_random_raise_nothing(env):
    rng = random.Random(0)
    games = [GAMES["pick_and_place_simple"], GAMES["look_at_obj_in_light"], GAMES["pick_clean_then_place_in_recep"]]
    turns = 0
    for number in range(1000):
        env.reset(game=games[number % 3])
        for _ in range(rng.randint(1, 15)):
            turns += 1
            if act(env, rng.choice(env.commands)).terminated:
                break
    assert turns > 5000
