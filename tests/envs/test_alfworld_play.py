"""ALFWorld in the loop: worker processes, skills for the teacher, the scripted player, by hand, training."""

import json
import multiprocessing
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from steps import teacher_prompts_of
from toys import Scripted

from sdar_trl import SkillLibrary
from sdar_trl.chat import Chat
from sdar_trl.envs import AlfWorldEnv, load_world
from sdar_trl.envs.alfworld.env import load_game
from sdar_trl.envs.alfworld.rooms import TASK_TYPES
from sdar_trl.policies.scripted_alfworld import ERRORS, EXPERT, MAX_TURNS, Player
from sdar_trl.rollout import Rollout


ROOT = Path(__file__).parents[2]


def run(*command, typed=""):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "PATH": path}
    return subprocess.run(command, input=typed, capture_output=True, text=True, env=environment, cwd=ROOT)


def small_tasks(split="test", count=4):
    """Tasks of a split that are translated quickly."""
    tasks = list(load_world("alfworld").dataset(split).select(range(36)))
    return sorted(tasks, key=lambda task: len(load_game(task["game"])["pddl_problem"]))[:count]


# Worker processes


def test_a_worker_that_is_killed_costs_its_own_episode_and_is_replaced(tokenizer):
    response = tokenizer("<action>look</action><|im_end|>", add_special_tokens=False)["input_ids"]
    kills = [False, True, False]

    def generate(ids):
        if kills and kills.pop(0):
            multiprocessing.active_children()[0].kill()
        return [response] * len(ids), None

    limits = {"max_turns": 3, "max_response_length": 20, "max_completion_length": 2000}
    rollout = Rollout(load_world("alfworld").environment_factory, Chat(tokenizer), Scripted(generate), **limits)
    tasks = small_tasks(count=3)
    reasons = sorted(episode.stop_reason.value for episode in rollout.play(tasks))
    assert reasons == ["env_error", "max_turns", "max_turns"]
    again = rollout.play(tasks)
    assert [episode.stop_reason.value for episode in again] == ["max_turns"] * 3
    assert all("You are in the middle of a room" in episode.turns[1].observation for episode in again)
    rollout.close()
    assert not multiprocessing.active_children()


# Skills


@pytest.mark.parametrize("history", ["growing", "window"])
def test_the_skill_of_each_type_reaches_the_teacher(history, make_trainer, make_config):
    class Inline(AlfWorldEnv):
        parallel = "inline"

    tasks = load_world("alfworld").dataset("test").select(range(len(TASK_TYPES)))
    assert sorted(tasks["task_type"]) == sorted(TASK_TYPES)
    limits = {"max_turns": 2, "max_completion_length": 400, "max_response_length": 4, "num_generations": 2}
    config = make_config(history=history, per_device_train_batch_size=2, **limits)
    skills = SkillLibrary.bundled("alfworld")
    trainer = make_trainer(config, train_dataset=tasks, environment_factory=Inline, skills=skills)
    trainer.episodes = trainer.rollout.play(list(tasks))
    assert len(trainer.episodes) == len(TASK_TYPES)
    for task, messages in zip(tasks, teacher_prompts_of(trainer), strict=True):
        read = messages[0]["content"]
        of_type = [skill for skill in skills if task["task_type"] in skill.task_types]
        general = [skill for skill in skills if skill.always]
        assert len(of_type) == 1 and len(general) == 1
        assert all(skill.body in read for skill in of_type + general)
        assert not any(skill.body in read for skill in skills if skill not in of_type + general)


# The scripted player


def play(game, errors, rng):
    env, player = AlfWorldEnv(admissible_actions=False), Player(load_game(game), errors, rng)
    observation = env.reset(game=game)
    for _ in range(50):
        response = player.respond(observation, env.commands)
        step = env.step(response)
        assert step.valid or errors != EXPERT, response
        if step.terminated:
            return step.info["success"]
        observation = step.observation
    return False


def test_the_expert_wins_and_errs_more_the_less_it_is_told():
    tasks = small_tasks("validation", 36)  # each type in turn
    games = [t["game"] for kind in TASK_TYPES for t in [t for t in tasks if t["task_type"] == kind][:3]]
    rng = random.Random(0)
    assert all(play(game, EXPERT, rng) for game in games)
    won = {kind: sum(play(game, errors, rng) for game in games) for kind, errors in ERRORS.items()}
    assert won["own skills"] > 0.8 * len(games) and won["own skills"] > won["other skills"] > 0
    assert won["none"] < 0.7 * len(games)


# In the terminal, and in training


def test_a_game_is_played_saved_and_shown_again(tmp_path):
    game = small_tasks()[0]["game"]
    solution = load_game(game)["walkthrough"]
    saved = tmp_path / "episode.json"
    module = (sys.executable, "-m", "sdar_trl.envs.alfworld")
    played = run(*module, "--game", game, "--save", str(saved), typed="\n".join(["dance", *solution]) + "\n")
    assert played.returncode == 0 and played.stdout.startswith("You are in the middle of a room.")
    assert "Nothing happens." in played.stdout and played.stdout.rstrip().endswith("Won, with reward 10.0.")
    assert len(json.loads(saved.read_text())["responses"]) == len(solution) + 1
    shown = run(*module, "--replay", str(saved))
    assert shown.stdout.count("\n> <action>") == len(solution) + 1
    assert shown.stdout.rstrip().endswith("Won, with reward 10.0.")
    assert run(*module, "--game", game, typed="q\n").returncode == 0
    assert "has games 0 to 133, got 999" in run(*module, "--game", "valid_unseen/999").stderr


def test_two_processes_train_for_two_steps_with_workers_of_their_own(tmp_path):
    done = run(
        *("accelerate", "launch", "--config_file", "examples/accelerate_configs/ddp_cpu.yaml"),
        *("examples/train_alfworld.py", "--use_cpu", "--max_steps", "2", "--per_device_train_batch_size", "2"),
        *("--num_generations", "2", "--max_turns", "3", "--panel_size", "4", "--output_dir", str(tmp_path)),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["processes"] == 2 and metrics["after"]["n"] == 4
    assert "task type" in done.stdout and "pick_and_place_simple" in done.stdout
    assert MAX_TURNS > 3
