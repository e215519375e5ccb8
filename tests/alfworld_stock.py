"""What the engine says as it comes in its packages, on games that are played at random.

    python tests/alfworld_stock.py

writes `envs/alfworld_stock.json`: digests of what it said in thousands of steps, which take it minutes.
"""

import hashlib
import json
import random
from pathlib import Path

from sdar_trl.envs.alfworld.guard import imported


with imported():
    import textworld
    from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
    from textworld.envs import PddlEnv

from sdar_trl.envs.alfworld.engine import Game
from sdar_trl.envs.alfworld.env import load_game
from sdar_trl.envs.alfworld.generate import SIZES, task_of
from sdar_trl.envs.alfworld.rooms import TASK_TYPES, room


RECORD = Path(__file__).parent / "envs" / "alfworld_stock.json"
STEPS = 120


def small_game(task_type, split):
    """Name of a game of a type in a room that is small for it, and so quick to translate and to play."""
    tasks = {number: task_of(split, number) for number in range(SIZES[split])}
    fitting = [number for number, task in tasks.items() if task.task_type == task_type]
    return f"{split}/{min(fitting, key=lambda number: len(room(tasks[number].scene).receptacles))}"


GAMES = [small_game(task_type, split) for task_type in TASK_TYPES for split in SIZES]


def choose(commands, solution, rng):
    """A command: often what leads on in the solution, so that things are taken, treated and put down; else any."""
    if solution and rng.random() < 0.6:
        if solution[0] in commands:
            return solution.pop(0)
        back = f"go to {' '.join(solution[0].split()[-2:])}"
        if back in commands:
            return back
    return rng.choice(commands)


def stock_environment(data):
    """The stock engine with a game."""
    env = AlfredDemangler(PddlEnv(textworld.EnvInfos(won=True, admissible_commands=True)))
    env.load({key: value for key, value in data.items() if key != "traj_data"})
    return env


def stock_transcript(data, steps, seed=0):
    """Text, commands and outcome after each of some random commands, by the stock engine."""
    env = stock_environment(data)
    state, rng, solution = env.reset(), random.Random(seed), list(data["walkthrough"])
    yield state.feedback, state.admissible_commands, state.won
    for _ in range(steps):
        state, _, _ = env.step(choose(state.admissible_commands, solution, rng))
        yield state.feedback, state.admissible_commands, state.won


def our_transcript(data, steps, seed=0):
    """The same by ours."""
    game, rng, solution = Game(data, "compared"), random.Random(seed), list(data["walkthrough"])
    view = game.first
    yield view.text, view.commands, view.won
    for _ in range(steps):
        view = game.step(choose(view.commands, solution, rng))
        yield view.text, view.commands, view.won
    game.close()


def digest(transcript):
    return hashlib.sha256(json.dumps(list(transcript)).encode()).hexdigest()


if __name__ == "__main__":
    found = {}
    for name in GAMES:
        found[name] = digest(stock_transcript(load_game(name), STEPS))
        print(name, found[name] == digest(our_transcript(load_game(name), STEPS)), flush=True)
    RECORD.write_text(json.dumps({"steps": STEPS, "games": found}, indent=2) + "\n")
