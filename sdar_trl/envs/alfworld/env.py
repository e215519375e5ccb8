"""ALFWorld as a text environment."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base import Step, parse_tag, steps_taken
from .engine import Game
from .files import official_games, read_json
from .generate import SIZES, generate_game, task_of


if TYPE_CHECKING:
    from datasets import Dataset

SYSTEM = (
    "You are an agent in a household, and are given a task. Each turn shows what you see. First reason about what to "
    "do next inside <think></think> tags, then answer with one admissible action inside <action></action> tags."
)
WELCOME = "-= Welcome to TextWorld, ALFRED! =-\n\n"
TASK = "Your task is to: "  # begins the last paragraph of the first observation
ACTIONS = "\nAdmissible actions: "  # begins the last line of what the agent sees
REWARD = 10.0
SPLITS = {**{name: name for name in SIZES}, "validation": "valid_seen", "test": "valid_unseen"}


class AlfWorldEnv:
    """
    ALFWorld: a household task, such as to put a clean mug on the coffee machine, in a room of text.

    An action is one of the game's commands, inside `<action>` tags; upper and lower case are the same. Any other does
    nothing. A win pays 10 and ends the episode; nothing else does.

    Its instances run in processes of their own where many are played at once: the engine is not safe between threads.

    Args:
        admissible_actions (`bool`, *optional*, defaults to `True`):
            Whether observations end in a list of the actions that are possible.

    Example:

    ```python
    >>> from sdar_trl.envs import AlfWorldEnv

    >>> env = AlfWorldEnv()
    >>> print(env.reset(game="train/0"))
    >>> env.step("<action>look</action>")
    ```
    """

    parallel = "process"

    def __init__(self, admissible_actions: bool = True):
        self.admissible_actions = admissible_actions
        self._game: Game | None = None

    @staticmethod
    def dataset(split: str, data_dir: str | Path | None = None) -> "Dataset":
        """
        The tasks of a split.

        Args:
            split (`str`):
                `"train"`, `"valid_seen"` or `"valid_unseen"`; `"validation"` and `"test"` are the last two.
            data_dir (`str` or `Path`, *optional*):
                Folder of the official games, see [`official_games`]. If `None`, the embedded ones.

        Returns:
            [`~datasets.Dataset`]: columns `prompt`, `task_id`, `task_type`, and `game`: the game's file, or which of
            the embedded ones it is.

        Raises:
            `ValueError`: if there is no such split, or a file is malformed.
            `FileNotFoundError`: if there are no games.
        """
        from datasets import Dataset

        if split not in SPLITS:
            raise ValueError(f"`split` must be one of {', '.join(SPLITS)}, got {split!r}.")
        split = SPLITS[split]
        if data_dir is None:
            games = [f"{split}/{number}" for number in range(SIZES[split])]
            names, types = games, [task_of(split, number).task_type for number in range(SIZES[split])]
        else:
            found = official_games(data_dir, split)
            games, types = [str(file) for file, _ in found], [task_type for _, task_type in found]
            names = [f"{split}/{'/'.join(file.parts[-3:-1])}" for file, _ in found]
        prompt = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": ""}]
        return Dataset.from_dict(
            {
                "prompt": [prompt] * len(games),
                "task_id": [f"alfworld/{name}" for name in names],
                "task_type": types,
                "game": games,
            }
        )

    @property
    def commands(self) -> list[str]:
        """What can be done now, sorted."""
        return self._view.commands

    def reset(self, *, game: str, **_: Any) -> str:
        """
        Enter a room.

        Args:
            game (`str`):
                The game's file, or an embedded one as `"train/17"`.

        Returns:
            `str`: what is in the room, and the task.

        Raises:
            `ValueError`: if there is no such game, or it cannot be played.
            `FileNotFoundError`: if there is no such file.
        """
        self.close()
        self._game = Game(load_game(game), game)
        self._view = self._game.first
        return self._shown(self._view.text.removeprefix(WELCOME))

    def step(self, response: str) -> Step:
        """
        Do what the response's action says.

        Args:
            response (`str`):
                The policy's response.

        Returns:
            [`Step`]: what came of it; at the end, `info` has `success` and `score` (1).

        Raises:
            `RuntimeError`: if the episode is over.
        """
        if self._game is None:
            raise RuntimeError("The episode is over; call reset.")
        action = parse_tag(response, "action")
        if action is None:
            said = "Invalid action: answer with one action inside <action></action> tags."
            return Step(self._shown(said), valid=False)
        command = action.lower()
        valid = command in self._view.commands
        self._view = self._game.step(command)
        if self._view.won:
            self.close()
            return Step(self._view.text, REWARD, terminated=True, info={"success": True, "score": 1.0})
        return Step(self._shown(self._view.text), valid=valid)

    def close(self) -> None:
        """Let go of the game. What plays it is kept for the next one of this process."""
        if self._game is not None:
            self._game.close()
        self._game = None

    @staticmethod
    def history(first: str, past: Sequence[tuple[str, str]], observation: str, step: int) -> str:
        """
        What the agent reads in place of the whole conversation, with what the published agents read, in their order:
        the task, how many steps were taken, the last observations and actions, the present observation and the
        admissible actions. Where those are left out, what is in the room is told with the task.

        Args:
            first (`str`):
                The first observation.
            past (`Sequence[tuple[str, str]]`):
                The last observations and responses, oldest first.
            observation (`str`):
                The present observation.
            step (`int`):
                Number of the turn, from 1.

        Returns:
            `str`: the text; in turn 1, the first observation as it is.
        """
        if step == 1:
            return first
        room, task = first.rsplit(ACTIONS, 1)[0].rsplit(TASK, 1)
        with_actions = ACTIONS in observation
        shown = [seen.rsplit(ACTIONS, 1)[0] for seen, _ in past]
        if len(past) == step - 1:  # the first turn's task is told above, and perhaps its room
            shown[0] = room.strip() if with_actions else "You enter the room."
        head = f"{TASK}{task}" if with_actions else f"{room}{TASK}{task}"
        return "\n".join([head, *steps_taken(past, step, shown), f"Step {step}:", observation])

    def _shown(self, text: str) -> str:
        if not self.admissible_actions:
            return text
        return f"{text}{ACTIONS}{', '.join(command for command in self._view.commands if command != 'help')}"


def load_game(game: str) -> dict[str, Any]:
    """What a game's file holds, or one of the embedded games as `"train/17"`."""
    split, _, number = game.rpartition("/")
    if split in SIZES and number.isdecimal():
        if int(number) >= SIZES[split]:
            raise ValueError(f"The embedded {split!r} split has games 0 to {SIZES[split] - 1}, got {number}.")
        return generate_game(split, int(number))
    return read_json(Path(game))
