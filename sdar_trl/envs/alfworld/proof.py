"""
The proof that all embedded games can be won: each is made, and its own solution is played in the engine.

    python -m sdar_trl.envs.alfworld.proof

writes `proof.json`, with a digest of the games that were won; a test makes them again and compares. To be run when the
generator or the packages change.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .engine import Game
from .generate import SIZES, generate_game


PROOF = Path(__file__).with_name("proof.json")


def play_solution(game: dict[str, Any], name: str) -> None:
    """
    Play a game's solution.

    Args:
        game (`dict[str, Any]`):
            The game.
        name (`str`):
            What to call it in errors.

    Raises:
        `AssertionError`: if it does not win, wins before its last command, or holds a command that is not admissible.
    """
    played = Game(game, name)
    view = played.first
    for command in game["walkthrough"]:
        assert not view.won and command in view.commands, f"{name}: {command!r} in {game['walkthrough']}"
        view = played.step(command)
    played.close()
    assert view.won, f"{name} is not won by {game['walkthrough']}"


def digests(each: Callable[[dict[str, Any], str], None] = lambda game, name: None) -> dict[str, str]:
    """Of each split, the SHA-256 of its games, after something was done with each."""
    found = {}
    for split, size in SIZES.items():
        digest = hashlib.sha256()
        for number in range(size):
            game = generate_game(split, number)
            each(game, f"{split}/{number}")
            digest.update(json.dumps(game, sort_keys=True).encode())
        found[split] = digest.hexdigest()
    return found


if __name__ == "__main__":
    PROOF.write_text(json.dumps(digests(play_solution), indent=2) + "\n")
    print(f"{sum(SIZES.values())} games are won by their solutions: {PROOF}")
