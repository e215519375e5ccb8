"""What a text environment is, and a check that one behaves."""

import math
import re
from collections.abc import Callable, Iterable, Mapping
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

    It parses the policy's raw response itself. [`check_env`] checks that a class keeps to this protocol. A class may
    have two attributes more: `parallel`, where its instances run while many are played at once (`"inline"`,
    `"thread"` or `"process"`), and `timeout`, most seconds of a call; see `sdar_trl/envs/workers.py`.
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


NONSENSE = (
    "",
    "no action at all",
    "<action>",
    "<action></action>",
    "<action>fly[away]</action>",
    "</action>\x00\n<action>\n",
    "ÿ🛒 " * 1000,
)


def check_env(
    env: TextEnv,
    tasks: Iterable[Mapping[str, Any]],
    max_turns: int = 50,
    policy: Callable[[str], str] | None = None,
) -> None:
    """
    Check that an environment keeps to the protocol, on tasks of its own. The environment is closed afterwards.

    Args:
        env ([`TextEnv`]):
            The environment.
        tasks (`Dataset` or `list[dict]`):
            A few rows of its dataset.
        max_turns (`int`, *optional*, defaults to `50`):
            Most turns to play in an episode.
        policy (`Callable[[str], str]`, *optional*):
            From an observation to a response, able to end an episode in `max_turns`. With it, the end of an episode is
            checked too; without it, only if nonsense can end one.

    Raises:
        `AssertionError`: if it does not; the message says what was expected and what was got.
    """
    _expect(isinstance(env, TextEnv), "an object with reset, step and close", env)
    parallel = getattr(env, "parallel", "inline")
    _expect(parallel in ("inline", "thread", "process"), "`parallel` to be inline, thread or process", parallel)
    rows = [dict(task) for task in tasks]
    _expect(bool(rows), "at least one task", rows)
    for task in rows:
        first = _call("reset(**task) to accept any column", env.reset, **task, column_of_no_use=None)
        _expect(isinstance(first, str), "reset(**task) to return the first observation, a str", first)

        for turn in range(max_turns):
            response = NONSENSE[turn % len(NONSENSE)]
            step = _call(f"step({response[:40]!r}) not to raise", env.step, response)
            _check_step(step)
            _expect(not step.valid, f"valid=False for the response {response[:40]!r}", step)
            _expect(not step.info.get("success"), f"no success for the response {response[:40]!r}", step)
            if step.terminated or step.truncated:
                _check_end(env, step)
                break
        again = _call("reset in the middle of an episode to begin another", env.reset, **task)
        _expect(again == first, f"reset to give the same first observation for the same task, {first!r}", again)

        if policy is None:
            continue
        observation = again
        for _ in range(max_turns):
            step = env.step(policy(observation))
            _check_step(step)
            if step.terminated or step.truncated:
                _check_end(env, step)
                break
            observation = step.observation
        else:
            _expect(False, f"the policy to end the episode in {max_turns} turns", "an episode that goes on")
        again = _call("reset after an episode to begin another", env.reset, **task)
        _expect(again == first, f"reset after an episode to give the same first observation, {first!r}", again)
    env.close()


def _check_step(step: Any) -> None:
    _expect(isinstance(step, Step), "step(response) to return a Step", step)
    _expect(isinstance(step.observation, str), "Step.observation to be a str", step.observation)
    number = isinstance(step.reward, int | float) and not isinstance(step.reward, bool)
    _expect(number and math.isfinite(step.reward), "Step.reward to be a finite number", step.reward)
    for name in ("terminated", "truncated", "valid"):
        _expect(isinstance(getattr(step, name), bool), f"Step.{name} to be a bool", getattr(step, name))
    _expect(isinstance(step.info, dict), "Step.info to be a dict", step.info)


def _check_end(env: TextEnv, last: Step) -> None:
    success = last.info.get("success")
    _expect(isinstance(success, bool), "a bool in Step.info['success'] at the end of an episode", success)
    try:
        step = env.step("")
    except RuntimeError:
        return
    _expect(False, "step after the end of an episode to raise RuntimeError", step)


def _call(expected: str, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    try:
        return function(*args, **kwargs)
    except Exception as error:
        raise AssertionError(f"Expected {expected}; got {error!r}.") from error


def _expect(condition: bool, expected: str, got: Any) -> None:
    if not condition:
        raise AssertionError(f"Expected {expected}; got {got!r}.")
