"""The engine of the packages `alfworld` and `textworld`, played faster: the same texts, commands and outcomes.

A game is a planning problem in PDDL. A planner's library, `fast_downward`, keeps its state and says what can be done;
TextWorld words that with a grammar. As it comes, the engine translates the problem four times for an episode, and
parses the grammar anew for each command of each step. Here a problem is translated once and the translation kept in a
file, templates are parsed once, and a command is worded again only when what it says may have changed. Nothing in the
packages is changed.
"""

import gc
import hashlib
import json
import os
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from filelock import FileLock

from .grammar import Logic, State, Wording, predicates
from .guard import imported


with imported():
    import fast_downward.interface
    from alfworld.agents.utils.misc import Demangler
    from fast_downward.translate.pddl.conditions import Atom
    from fast_downward.translate.pddl.f_expression import Assign
    from mementos.core import _memento_cache
    from textworld.generator.game import EntityInfo
    from textworld.logic import Placeholder, Variable

MOST_REMEMBERED = 10_000  # TextWorld keeps every fact of every game there ever was
VERSION = version("fast-downward-textworld")
KEYS = ("pddl_domain", "grammar", "pddl_problem")


class GameError(ValueError):
    """A game that cannot be played; the message says which, and why."""


@dataclass(frozen=True)
class View:
    """
    What there is after a command.

    Args:
        text (`str`): What the game says.
        commands (`list[str]`): What can be done now, sorted.
        won (`bool`, *optional*, defaults to `False`): Whether the task is done.
    """

    text: str
    commands: list[str]
    won: bool = False


_libraries: list[Any] = []  # all of this process: once two have been closed, the process crashes as it ends
_free: list[Any] = []  # those of them that no game uses


class Game:
    """
    A game in play. Games are independent, but the translator is not safe between threads.

    Args:
        data (`Mapping[str, Any]`):
            What a `game.tw-pddl` holds.
        name (`str`):
            What to call it in errors.

    Raises:
        `GameError`: if it cannot be played.
    """

    def __init__(self, data: Mapping[str, Any], name: str):
        missing = [key for key in KEYS if not isinstance(data.get(key), str)]
        if missing:
            raise GameError(f"The game {name} has no {' and no '.join(missing)}, as `game.tw-pddl` must.")
        with _told(name):
            self._logic = Logic.parse(data["grammar"])
            self._translation = translate(data["pddl_domain"], data["pddl_problem"])
        self._library = _free.pop() if _free else _load_library()
        with _told(name):
            self.first = self._start()

    def _start(self) -> View:
        if len(_memento_cache) > MOST_REMEMBERED:
            _memento_cache.clear()
        self._state = State(self._library, self._translation)
        self._entities = _entities(self._state)
        self._wording = Wording(self._logic.rules, self._state, self._entities)
        self._worded: dict[str, tuple[str, int]] = {}
        return self._view(self._wording.say("#intro#", {}))

    def step(self, command: str) -> View:
        """
        Do something.

        Args:
            command (`str`):
                One of the commands that the last [`View`] has. Any other changes nothing.

        Returns:
            [`View`]: what came of it.
        """
        command = command.strip()
        if command not in self._operators:
            return self._view("Nothing happens.")
        operator = self._operators[command]
        self._state.apply(operator)
        action, bindings = self._action(operator.name)
        return self._view(self._wording.say(action.feedback_rule, bindings))

    def close(self) -> None:
        """Give the library back. The game is over."""
        if self._library is not None:
            _free.append(self._library)
        self._library = None

    def _view(self, text: str) -> View:
        count = self._library.get_applicable_operators_count()
        operators = (fast_downward.Operator * count)()
        self._library.get_applicable_operators(operators)
        self._operators: dict[str, Any] = {}
        for operator in operators:  # of those with the same command, the first is done
            self._operators.setdefault(self._command(operator.name), operator)
        return View(text, sorted(self._operators), self._library.check_goal())

    def _command(self, name: str) -> str:
        """The command of an operator."""
        action, bindings = self._action(name)
        # it says the same until a fact that it is about changes
        changes = sum(self._state.changes[predicate] for predicate in predicates(action.template))
        if name not in self._worded or self._worded[name][1] != changes:
            said = self._wording.say(action.template, bindings)
            shown = {
                placeholder.name: self._entities[variable.name].name for placeholder, variable in bindings.items()
            }
            self._worded[name] = said.format(**shown), changes
        return self._worded[name][0]

    def _action(self, name: str) -> tuple[Any, dict[Placeholder, Variable]]:
        """The grammar's action of an operator, and what its parameters are."""
        action, *arguments = name.split()
        parameters = self._translation["actions"][action]
        bindings = {  # what an action's condition says exists is a parameter without an argument
            Placeholder(parameter, type_): Variable(argument, type_)
            for (parameter, type_), argument in zip(parameters, arguments, strict=False)
        }
        return self._logic.actions[action], bindings


def _load_library() -> Any:
    """A library that no other game of this process uses."""
    if _libraries:
        library = (
            fast_downward.load_lib()
        )  # a copy of the file, which has 34 MB, held for as long as the process lives
    else:  # the first is the file itself, which all processes share
        with patch.object(fast_downward.interface, "shutil", SimpleNamespace(copyfile=os.symlink)):
            library = fast_downward.load_lib()
    _libraries.append(library)
    return library


def _entities(state: State) -> dict[str, EntityInfo]:
    """By id, how the things of a game are called."""
    found = {
        variable.name: EntityInfo(variable.name, variable.type) for fact in state.facts for variable in fact.arguments
    }
    demangler = Demangler(game_infos=found)
    for info in found.values():
        info.definite, info.indefinite = "the", "a"
        info.name = demangler.demangle_alfred_name(info.id)
    return found


def translate(domain: str, problem: str) -> dict[str, Any]:
    """
    A problem as the planner's library takes it. Each is translated once, and kept in the cache folder.

    Args:
        domain (`str`):
            PDDL of the domain.
        problem (`str`):
            PDDL of the problem.

    Returns:
        `dict[str, Any]`: `sas`, the library's input; `facts` as pairs of a predicate and its arguments; `objects`,
        their types by name; `types` with their parents; `actions`, by name their parameters with types.
    """
    key = hashlib.sha256(json.dumps([domain, problem]).encode()).hexdigest()
    file = cache_folder() / f"{key}.z"
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        with FileLock(file.parent / f"{key[0]}.lock"):  # others wait for a translation that is being made
            if not file.exists():
                written = zlib.compress(json.dumps(_translated(domain, problem)).encode(), 1)
                new = file.with_suffix(f".{os.getpid()}")
                new.write_bytes(written)
                new.replace(file)
    return json.loads(zlib.decompress(file.read_bytes()))


def cache_folder() -> Path:
    """Where translations are kept."""
    base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return base / "sdar_trl" / f"alfworld-{VERSION}"


def _translated(domain: str, problem: str) -> dict[str, Any]:
    with _restored():
        task, sas = fast_downward.pddl2sas(domain, problem)
    if "Atom dummy(val1)" in sas:
        raise GameError("nothing that can be done wins it, or it is won from the start")
    facts = []
    for fact in task.init:
        if isinstance(fact, Atom) and fact.predicate != "=":
            facts.append([fact.predicate, list(fact.args)])
        elif isinstance(fact, Assign) and fact.fluent.symbol != "total-cost":
            if not str(fact.expression.value).isdigit():  # not a distance
                facts.append([str(fact.expression.value), list(fact.fluent.args)])
    return {
        "sas": sas,
        "facts": facts,
        "objects": {thing.name: thing.type_name for thing in task.objects},
        "types": [[type_.name, list(type_.supertype_names)] for type_ in task.types],
        "actions": {
            action.name: [[parameter.name.strip("?"), parameter.type_name] for parameter in action.parameters]
            for action in task.actions
        },
    }


@contextmanager
def _restored() -> Iterator[None]:
    """The translator overwrites the arguments of the program, and makes a million objects that all stay."""
    arguments, output, collects = sys.argv, sys.stdout, gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        sys.argv, sys.stdout = arguments, output
        if collects:
            gc.enable()


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Whatever the packages raise about a game, `SystemExit` too, becomes a [`GameError`]."""
    try:
        yield
    except (Exception, SystemExit) as error:
        reason = str(error) if isinstance(error, GameError) else f"{type(error).__name__}: {error}"
        raise GameError(f"The game {name} cannot be played: {reason}") from error
