"""What a text environment is, and a check that one behaves."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True)
class Step:
    """
    What an environment answers to a response.

    Args:
        observation (`str`):
            What the policy reads next.
        reward (`float`):
            Reward of this turn.
        terminated (`bool`):
            Whether the task has come to its own end.
        truncated (`bool`):
            Whether the episode was cut short for a reason outside its task.
        valid (`bool`):
            Whether the response held a legal action.
        info (`dict[str, Any]`, *optional*):
            At the end of an episode: `success` (`bool`), and `score` (`float`) where the environment has one. Whatever
            else is useful.
    """

    observation: str
    reward: float
    terminated: bool
    truncated: bool
    valid: bool
    info: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class TextEnv(Protocol):
    """
    An environment of text. One instance plays one episode at a time, and is reused.

    It parses the policy's raw response itself. [`check_env`] checks that a class keeps to this protocol.
    """

    def reset(self, **task: Any) -> str:
        """Begin an episode of the task, a dataset row, and return the first observation."""
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


def check_env(env: TextEnv, tasks: Sequence[Mapping[str, Any]], max_turns: int = 50) -> None:
    """
    Check that an environment keeps to the protocol, on tasks of its own.

    Args:
        env ([`TextEnv`]):
            The environment.
        tasks (`Dataset` or `list[dict]`):
            A few rows of its dataset.
        max_turns (`int`, *optional*, defaults to `50`):
            Turns of nonsense to play in each task.

    Raises:
        `AssertionError`: if it does not; the message says what was expected and what was got.
    """
    for task in tasks:
        first = env.reset(**task)
        _expect(isinstance(first, str), "reset(**task) to return the first observation, a str", first)
        again = env.reset(**task)  # in the middle of an episode
        _expect(first == again, "reset to give the same first observation for the same task", again)
        for turn in range(max_turns):
            step = env.step("" if turn % 2 else "no action at all")
            _check_step(step)
            _expect(not step.valid, "a response without an action to be valid=False", step)
            _expect(not step.info.get("success"), "nonsense not to succeed", step)
            if step.terminated or step.truncated:
                break
        _expect(env.reset(**task) == first, "reset to begin anew after an episode", None)
    env.close()


def _check_step(step: Any) -> None:
    _expect(isinstance(step, Step), "step(response) to return a Step", step)
    _expect(isinstance(step.observation, str), "Step.observation to be a str", step.observation)
    _expect(isinstance(step.reward, int | float), "Step.reward to be a number", step.reward)
    for name in ("terminated", "truncated", "valid"):
        _expect(isinstance(getattr(step, name), bool), f"Step.{name} to be a bool", getattr(step, name))
    _expect(isinstance(step.info, dict), "Step.info to be a dict", step.info)


def _expect(condition: bool, expected: str, got: Any) -> None:
    if not condition:
        raise AssertionError(f"Expected {expected}; got {got!r}.")
