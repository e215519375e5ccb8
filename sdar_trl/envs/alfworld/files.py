"""The official games: the folders that `alfworld-download` makes, filtered as the official loader does."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .rooms import TASK_TYPES


logger = logging.getLogger(__name__)

GAME = "game.tw-pddl"
PUBLISHED = {"train": 3553, "valid_seen": 140, "valid_unseen": 134}


def official_games(data_dir: str | Path, split: str) -> list[tuple[Path, str]]:
    """
    The games of a split, in the order of their paths.

    Args:
        data_dir (`str` or `Path`):
            Folder of the official data, which `alfworld-download` calls `ALFWORLD_DATA`: it has a folder `json_2.1.1`,
            or is that folder.
        split (`str`):
            `"train"`, `"valid_seen"` or `"valid_unseen"`.

    Returns:
        `list[tuple[Path, str]]`: of each, the game's file and the type of its task.

    Raises:
        `FileNotFoundError`: if there are none; the message says how to download them.
        `ValueError`: if a file is no JSON, or does not say what it must.
    """
    root = Path(data_dir).expanduser().resolve()
    root = root / "json_2.1.1" if (root / "json_2.1.1").is_dir() else root
    found = list(_games(root / split))
    if not found:
        raise FileNotFoundError(
            f"There are no games in {root / split}. Download them with `alfworld-download --data-dir FOLDER`, and "
            "give that folder as `data_dir`; without `data_dir`, the embedded games are played."
        )
    if len(found) != PUBLISHED[split]:
        logger.warning(
            "%s has %d games, and the published %r split has %d: results cannot be compared with published ones.",
            root / split,
            len(found),
            split,
            PUBLISHED[split],
        )
    return found


def _games(folder: Path) -> Iterator[tuple[Path, str]]:
    for described in sorted(folder.rglob("traj_data.json")):
        path, file = str(described.relative_to(folder)), described.with_name(GAME)
        if "movable" in path or "Sliced" in path:
            continue
        task_type = read_json(described).get("task_type")
        if task_type in TASK_TYPES and file.exists() and read_json(file).get("solvable"):
            yield file, task_type


def read_json(file: Path) -> dict[str, Any]:
    """What a file holds."""
    try:
        found = json.loads(file.read_text())
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no {file}, where the task says that its game is.") from None
    except ValueError as error:
        raise ValueError(f"{file} is damaged, or was cut short: {error}. Download it again.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} must hold a JSON object, got {type(found).__name__}. Download it again.")
    return found
