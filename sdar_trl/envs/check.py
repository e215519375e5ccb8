"""A check that an environment behaves."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .base import Step, TextEnv


Policy = Callable[[str], str]
Row = dict[str, Any]

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
    policy: Policy | None = None,
    nonsense: Sequence[str] = NONSENSE,
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
        nonsense (`Sequence[str]`, *optional*, defaults to `NONSENSE`):
            Responses that hold no legal action: they must come back with `valid=False`, and win nothing. Empty for an
            environment that takes any text as legal; odd text is sent to it all the same, and must not raise.

    Raises:
        `AssertionError`: if it does not; the message says what was expected and what was got.

    Example:

    ```python
    >>> from sdar_trl.envs import WebShopEnv, check_env

    >>> check_env(WebShopEnv(), WebShopEnv.dataset("test").select(range(5)))
    WebShopEnv keeps to the protocol: 5 tasks, 250 turns.
    ```
    """
    _check_instance(env)
    _check_parallel(env)
    rows = _check_rows(tasks)
    turns = 0
    for row in rows:
        first = _check_reset(env, row)
        turns += _check_nonsense(env, max_turns, nonsense)
        _check_same(env, row, first, "in the middle of an episode")
        if policy is not None:
            turns += _check_episode(env, first, max_turns, policy)
            _check_same(env, row, first, "after an episode")
        _check_history(env, first)
    env.close()
    tasks_and_turns = f"{len(rows)} {'task' if len(rows) == 1 else 'tasks'}, {turns} turns"
    print(f"{type(env).__name__} keeps to the protocol: {tasks_and_turns}.")


def _check_instance(env: Any) -> None:
    _expect(not isinstance(env, type), "an instance, not the class: pass an environment, e.g. `MyEnv()`", env)
    _expect(isinstance(env, TextEnv), "an object with reset, step and close", env)


def _check_parallel(env: TextEnv) -> None:
    parallel = getattr(env, "parallel", "inline")
    _expect(parallel in ("inline", "thread", "process"), "`parallel` to be inline, thread or process", parallel)


def _check_rows(tasks: Iterable[Mapping[str, Any]]) -> list[Row]:
    _expect(not isinstance(tasks, Mapping), "rows of a dataset, not one row: pass `[task]`", tasks)
    rows = [dict(task) for task in tasks]
    _expect(bool(rows), "at least one task", rows)
    for row in rows:
        if "prompt" in row:
            _check_prompt(row["prompt"])
    return rows


def _check_prompt(prompt: Any) -> None:
    messages = isinstance(prompt, list) and all(isinstance(message, Mapping) for message in prompt)
    _expect(messages and bool(prompt), "the column `prompt` to be a list of messages", prompt)
    expected = "the last message of `prompt` to be the user's: the first observation is put at its end"
    _expect(prompt[-1].get("role") == "user", expected, prompt[-1])


def _check_reset(env: TextEnv, row: Row) -> str:
    first = _call("reset(**task) to accept any column", env.reset, **row, column_of_no_use=None)
    _expect(isinstance(first, str), "reset(**task) to return the first observation, a str", first)
    return first


def _check_same(env: TextEnv, row: Row, first: str, when: str) -> None:
    again = _call(f"reset {when} to begin another", env.reset, **row)
    _expect(again == first, f"reset {when} to give the same first observation for the same task, {first!r}", again)


def _check_nonsense(env: TextEnv, max_turns: int, nonsense: Sequence[str]) -> int:
    responses = nonsense or NONSENSE
    for turn in range(max_turns):
        response = responses[turn % len(responses)]
        step = _call(f"step({response[:40]!r}) not to raise", env.step, response)
        _check_step(step)
        if nonsense:
            _expect(not step.valid, f"valid=False for the response {response[:40]!r}", step)
            _expect(not step.info.get("success"), f"no success for the response {response[:40]!r}", step)
        if step.terminated or step.truncated:
            _check_end(env, step)
            return turn + 1
    return max_turns


def _check_episode(env: TextEnv, first: str, max_turns: int, policy: Policy) -> int:
    observation = first
    for turn in range(max_turns):
        step = _call("step not to raise", env.step, policy(observation))
        _check_step(step)
        if step.terminated or step.truncated:
            _check_end(env, step)
            return turn + 1
        observation = step.observation
    raise AssertionError(f"Expected the policy to end the episode in {max_turns} turns; got one that goes on.")


def _check_step(step: Any) -> None:
    _expect(isinstance(step, Step), "step(response) to return a Step", step)
    _expect(isinstance(step.observation, str), "Step.observation to be a str", step.observation)
    _expect(_is_number(step.reward), "Step.reward to be a finite number", step.reward)
    for name in ("terminated", "truncated", "valid"):
        _expect(isinstance(getattr(step, name), bool), f"Step.{name} to be a bool", getattr(step, name))
    _expect(isinstance(step.info, dict), "Step.info to be a dict", step.info)
    _check_metrics(step.metrics)


def _check_metrics(metrics: Any) -> None:
    _expect(isinstance(metrics, dict), "Step.metrics to be a dict", metrics)
    for name, value in metrics.items():
        _expect(isinstance(name, str), "the names in Step.metrics to be str", name)
        _expect(_is_number(value), f"Step.metrics[{name!r}] to be a finite number", value)


def _check_end(env: TextEnv, last: Step) -> None:
    success = last.info.get("success")
    _expect(isinstance(success, bool), "a bool in Step.info['success'] at the end of an episode", success)
    try:
        step = env.step("")
    except RuntimeError:
        return
    _expect(False, "step after the end of an episode to raise RuntimeError", step)


def _check_history(env: TextEnv, first: str) -> None:
    history = getattr(type(env), "history", None)
    if history is None:
        return
    expected = "`history` to be a static method of (first, past, observation, step)"
    observations = [first, "an observation", "another", "a third"]
    for step, observation in enumerate(observations, 1):
        past = [(earlier, "<action>one</action>") for earlier in observations[: step - 1]][-2:]
        text = _call(expected, history, first, past, observation, step)
        _expect(isinstance(text, str), "`history` to return a str", text)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _call(expected: str, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    try:
        return function(*args, **kwargs)
    except Exception as error:
        raise AssertionError(f"Expected {expected}; got {error!r}.") from error


def _expect(condition: bool, expected: str, got: Any) -> None:
    if not condition:
        raise AssertionError(f"Expected {expected}; got {got!r}.")
