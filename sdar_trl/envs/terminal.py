"""Environments played by hand."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from .base import Step


def typed(response: Callable[[str], str] = "<action>{}</action>".format) -> Iterator[str]:
    """
    What is typed, as responses, until q or the end of the input.

    Args:
        response (`Callable[[str], str]`, *optional*):
            The response that a line stands for; by default the line is an action.

    Yields:
        `str`: a response.
    """
    while True:
        try:
            line = input("\n> ").strip()
        except EOFError:
            return
        if line == "q":
            return
        yield response(line)


def play(env: Any, task: dict[str, Any], responses: Iterable[str], echo: bool) -> tuple[list[str], Step | None]:
    """
    Play an episode and print it.

    Args:
        env (`object`):
            The environment.
        task (`dict[str, Any]`):
            The task, as the environment's `reset` takes it.
        responses (`Iterable[str]`):
            What is answered to each observation.
        echo (`bool`):
            Whether the responses are printed too.

    Returns:
        `tuple`: the responses, `list[str]`, and the last step if it ended the episode, else `None`.
    """
    print(env.reset(**task))
    played = []
    for response in responses:
        played.append(response)
        if echo:
            print(f"\n> {response}")
        step = env.step(response)
        print(f"\n{step.observation}")
        if step.terminated:
            return played, step
    return played, None
