"""What a text environment is. docs/environments.md shows a complete one."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True)
class Step:
    """
    What an environment answers to a response.

    Args:
        observation (`str`):
            What the policy reads next.
        reward (`float`, *optional*, defaults to `0.0`):
            Reward of this turn.
        terminated (`bool`, *optional*, defaults to `False`):
            Whether the task has come to its own end.
        truncated (`bool`, *optional*, defaults to `False`):
            Whether the episode was cut short for a reason outside its task.
        valid (`bool`, *optional*, defaults to `True`):
            Whether the response held a legal action.
        info (`dict[str, Any]`, *optional*):
            At the end of an episode: `success` (`bool`), and `score` (`float`) where the environment has one. Whatever
            else is useful.
        metrics (`dict[str, float]`, *optional*):
            Numbers of the environment's own, logged as `env/<name>`: the mean over episodes of each episode's last
            reported value.
    """

    observation: str
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    valid: bool = True
    info: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


@runtime_checkable
class TextEnv(Protocol):
    """
    An environment of text. One instance plays one episode at a time, and is reused.

    It parses the policy's raw response itself. [`check_env`] checks that a class keeps to this protocol.

    A class may say three things more:

    - `parallel` (`str`): where its instances run while many are played at once: `"inline"` (the default), `"thread"`
      or `"process"`; see docs/rollouts.md.
    - `timeout` (`float`): most seconds of a call.
    - `history(first, past, observation, step) -> str`, a static method: how its history reads under
      `history="window"`, where the policy reads a window on the episode in place of all of it. It returns what ends
      the last user message in turn `step` (from 1): `first` is the first observation, `past` the last (observation,
      response) pairs, oldest first, `observation` the present one. In turn 1, `past` is empty and `observation` is
      `first`. A class without it gets a plain default.
    """

    def reset(self, **task: Any) -> str:
        """Begin an episode of the task, a dataset row with all its columns, and return the first observation."""
        ...

    def step(self, response: str) -> Step:
        """Act on the policy's raw response. An illegal action is answered, never raised about."""
        ...

    def close(self) -> None:
        """Let go of resources."""
        ...


def parse_tag(response: str, tag: str) -> str | None:
    """
    The text inside the last complete `<tag>..</tag>` of a response, stripped.

    Args:
        response (`str`):
            The policy's response.
        tag (`str`):
            The tag's name, e.g. `"action"`.

    Returns:
        `str` or `None`: the text, `None` if there is no such tag.
    """
    found = re.findall(rf"<{tag}>((?:(?!<{tag}>).)*?)</{tag}>", response, re.DOTALL)
    return found[-1].strip() if found else None


def steps_taken(past: Sequence[tuple[str, str]], step: int, shown: Sequence[str]) -> list[str]:
    """
    How the last turns read in a window on the history: how many steps were taken, then what was seen and done in each.

    Args:
        past (`Sequence[tuple[str, str]]`):
            The last (observation, response) pairs, oldest first.
        step (`int`):
            Number of the present turn, from 1.
        shown (`Sequence[str]`):
            What is told of each observation.

    Returns:
        `list[str]`: lines; none without past.
    """
    lines = [f"Steps taken: {step - 1}. The last {len(past)}:"] if past else []
    for number, ((_, response), seen) in enumerate(zip(past, shown, strict=True), step - len(past)):
        action = parse_tag(response, "action")
        lines += [f"[{number}] {seen}", f"> {response.strip() if action is None else action}"]
    return lines
