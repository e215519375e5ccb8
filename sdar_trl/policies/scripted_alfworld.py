"""The scripted player of ALFWorld that its embedded policy learns from. It errs, less so with skills in its prompt."""

import random
import re
from typing import Any

from ..chat import Chat
from ..envs import AlfWorldEnv
from ..envs.alfworld.env import load_game
from ..envs.alfworld.rooms import HOLDS, TREATMENTS
from ..history import History, growing
from ..skills import SkillLibrary
from .names import policy_limits
from .scripted import played_rows, scripted_context


# How often it errs: (leaves out what is special of the task, takes something else, passes by what is closed, goes
# where it was before, names no thing), by what is in its prompt. The first is drawn once an episode.
ERRORS = {
    "own skills": (0.0, 0.0, 0.0, 0.0, 0.0),
    "other skills": (0.4, 0.05, 0.2, 0.1, 0.01),
    "none": (0.6, 0.1, 0.3, 0.1, 0.02),
}
EXPERT = (0.0, 0.0, 0.0, 0.0, 0.0)
TREATED = ("clean", "heat", "cool")
MAX_TURNS = policy_limits("tiny-alfworld")["max_turns"]


class Player:
    """
    Plays one game, knowing no more than what it reads. It searches one place after the other, takes the thing, treats
    it, and brings it where it belongs. The order is one that a small model can follow: first the places with number 1,
    as they are listed, which is also where most can be seen in few turns; then those with number 2, and so on.

    Args:
        game (`dict[str, Any]`):
            An embedded game, with its solution.
        errors (`tuple[float, ...]`):
            Probabilities of its kinds of errors; none for an expert.
        rng (`random.Random`):
            Draws errors and places.
    """

    def __init__(self, game: dict[str, Any], errors: tuple[float, ...], rng: random.Random):
        forgets, self.wrong_thing, self.passes, self.returns, self.illegal = errors
        self.rng = rng
        told = game["traj_data"]
        self.task_type, asked = told["task_type"], told["pddl_params"]
        self.thing, self.target = asked["object_target"].lower(), asked["parent_target"].lower()
        self.homes = {kind.lower() for kind, things in HOLDS.items() if asked["object_target"] in things}
        self.needs_light = self.task_type == "look_at_obj_in_light"
        self.forgets = rng.random() < forgets
        self.at = ""
        self.holds = ""
        self.treated = self.done = False
        self.room: list[str] = []  # all receptacles, in the order of the search
        self.visited: list[str] = []
        self.seen: dict[str, str] = {}  # things of the kind that is wanted, and where
        self.stored: list[str] = []
        self.place = ""  # where the first of two things went

    def respond(self, observation: str, commands: list[str]) -> str:
        """
        The action for an observation.

        Args:
            observation (`str`):
                What the game says.
            commands (`list[str]`):
                What can be done.

        Returns:
            `str`: the response.
        """
        if not self.room:
            listed = re.findall(r"a (\w+ \d+)", observation.split("you see", 1)[1].split("Your task")[0])
            self.room = sorted(listed, key=lambda name: int(name.split()[1]))
        for name in re.findall(r" a (\w+ \d+)", observation):
            if name.split()[0] in (self.thing, "desklamp") and self.at:
                self.seen[name] = self.at
        if self.rng.random() < self.illegal:
            return self._response(f"take {self.thing}")
        command = "look" if self.done else self._hold(commands) if self.holds else self._find(commands)
        response = self._response(command)
        verb, _, rest = command.partition(" ")
        if verb == "go":
            self.at = rest.removeprefix("to ")
            if self.at not in self.visited:
                self.visited.append(self.at)
        elif verb == "take":
            self.holds = rest.split(" from ")[0]
            self.seen.pop(self.holds, None)
        elif verb in ("move", "put"):
            self.stored.append(self.holds)
            self.place, self.holds, self.treated = self.at, "", False
            wanted = 2 if self.task_type == "pick_two_obj_and_place" and not self.forgets else 1
            self.done = len(self.stored) >= wanted
        return response

    def _response(self, command: str) -> str:
        """A command, after a thought of what it is for: that is what a small model has to find in the task. What is
        within reach is thought of with its number, which it has to find in what it sees."""
        verb, name, *rest = command.split() if " " in command else (command, "")
        if self.done:
            goal = "done"
        elif not self.holds:
            goal = self.thing
        elif self.needs_light:
            goal = "desklamp"
        elif self.task_type in TREATMENTS and not self.forgets and (not self.treated or verb in TREATED):
            goal = self.task_type.split("_")[1]
        else:
            goal = self.target
        if verb in ("take", "use") and name == goal and rest:
            goal = f"{name} {rest[0]}"
        return f"<think> {goal}</think><action>{command}</action>"

    def _find(self, commands: list[str]) -> str:
        """What brings it nearer to a thing that it can take."""
        takes = [command for command in commands if command.startswith("take ")]
        wanted = [
            command
            for command in takes
            if command.split()[1] == self.thing and command[5:].split(" from ")[0] not in self.stored
        ]
        if takes and self.rng.random() < self.wrong_thing:
            return self.rng.choice(takes)
        if wanted:
            return wanted[0]
        if f"open {self.at}" in commands and self.rng.random() >= self.passes:
            return f"open {self.at}"
        remembered = [
            place
            for name, place in self.seen.items()
            if name.startswith(self.thing) and name not in self.stored and place != self.at
        ]
        return f"go to {remembered[0]}" if remembered else self._search()

    def _search(self) -> str:
        """Where to look next: after the present place, or where it was before, which is an error."""
        others = [name for name in self.visited if name != self.at]
        if others and self.rng.random() < self.returns:
            return f"go to {self.rng.choice(others)}"
        start = self.room.index(self.at) if self.at else 0
        left = [name for name in self.room[start:] + self.room[:start] if name not in self.visited]
        return f"go to {left[0]}" if left else self._give_up()

    def _hold(self, commands: list[str]) -> str:
        """What brings the thing in its hand nearer to where it belongs."""
        if self.needs_light:
            return self._light(commands)
        if self.task_type in TREATMENTS and not self.treated and not self.forgets:
            kind = TREATMENTS[self.task_type][0].lower()
            if self.at.split()[:1] != [kind]:
                return f"go to {self._first(kind)}"
            self.treated = True
            return f"{self.task_type.split('_')[1]} {self.holds} with {self.at}"
        target = self.place or self._first(self.target)
        if self.task_type == "pick_and_place_simple" and self.forgets:
            self.forgets = False
            self.target = self.rng.choice([name for name in self.room if name.split()[0] in self.homes]).split()[0]
            target = self._first(self.target)
        if self.at != target:
            return f"go to {target}"
        if f"open {target}" in commands:
            return f"open {target}"
        puts = [command for command in commands if re.match(rf"(move|put) {self.holds} ", command)]
        return puts[0] if puts else self._give_up()

    def _light(self, commands: list[str]) -> str:
        lamps = [place for name, place in self.seen.items() if name.startswith("desklamp")]
        if self.forgets and lamps and self.at == lamps[0]:
            self.done = True
            return f"examine {self.holds}"
        uses = [command for command in commands if command.startswith("use ")]
        if uses:
            return uses[0]
        if f"open {self.at}" in commands:
            return f"open {self.at}"
        return f"go to {lamps[0]}" if lamps else self._search()

    def _first(self, kind: str) -> str:
        return min((name for name in self.room if name.split()[0] == kind), key=lambda name: int(name.split()[1]))

    def _give_up(self) -> str:
        self.done = True
        return "look"


def scripted_episode(
    env: AlfWorldEnv,
    task: dict[str, Any],
    skills: SkillLibrary,
    chat: Chat,
    rng: random.Random,
    history: History = growing,
    expert: bool = False,
) -> list[tuple[list[int], list[int]]]:
    """
    Play one scripted episode.

    Args:
        env ([`AlfWorldEnv`]):
            The environment.
        task (`dict`):
            A row of its dataset, of an embedded game.
        skills ([`SkillLibrary`]):
            Skills that may be in the prompt.
        chat ([`Chat`]):
            Renders the conversation.
        rng (`random.Random`):
            Draws prompt, errors and places.
        history (`History`, *optional*, defaults to [`growing`]):
            What the player reads in each turn.
        expert (`bool`, *optional*, defaults to `False`):
            Whether the player never errs, and no skills are in the prompt.

    Returns:
        `list[tuple[list[int], list[int]]]`: as [`played_rows`].
    """
    context, kind = ("", "") if expert else scripted_context(skills, task["task_type"], rng)
    player = Player(load_game(task["game"]), EXPERT if expert else ERRORS[kind], rng)
    idle = 0

    def respond(observation: str) -> str | None:
        nonlocal idle
        idle += player.done
        return player.respond(observation, env.commands) if idle <= 3 else None

    return played_rows(env, task, respond, chat, context, history, MAX_TURNS)
