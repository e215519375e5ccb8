"""Playing episodes: the multi-turn loop, and the training row that an episode becomes.

A conversation grows by appending token ids. What the policy sampled is never decoded and encoded again; only new
observations are rendered, and the joint falls on the special token that ends an assistant turn.
"""

import functools
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from .chat import Chat, Message
from .envs import TextEnv
from .envs.workers import EnvWorker, start_worker


logger = logging.getLogger(__name__)

Generate = Callable[[list[list[int]]], tuple[list[list[int]], list[list[float]] | None]]
"""Token ids so far of each running episode -> response ids, and their log-probs (nats) if the backend gives them."""


class StopReason(str, Enum):
    """Why an episode ended."""

    WON = "won"
    """The environment terminated the episode and reported success."""
    LOST = "lost"
    """The environment terminated the episode without success."""
    TRUNCATED = "truncated"
    """The environment cut the episode short, for a reason outside its task."""
    MAX_TURNS = "max_turns"
    """The policy used all its turns."""
    LENGTH = "length"
    """The next turn might not have fitted the token budget."""
    ENV_ERROR = "env_error"
    """The environment raised, hung, or died. The episode is counted, and trains nothing."""


@dataclass
class Turn:
    """
    One observation and the policy's response to it.

    Args:
        observation (`str`):
            What the environment said.
        observation_ids (`list[int]`):
            Ids appended before the response: the whole rendered prompt in the first turn, afterwards the rendered
            observation. Attended to, never trained on.
        response_ids (`list[int]`):
            Ids the policy sampled, as they were sampled.
        response (`str`):
            `response_ids`, decoded.
        logprobs (`list[float]`, *optional*):
            Log-probabilities (nats) of `response_ids`, if the generation backend gave them.
        reward (`float`, *optional*, defaults to `0.0`):
            Reward of this turn.
        valid (`bool`, *optional*, defaults to `True`):
            Whether the response held a legal action.
    """

    observation: str
    observation_ids: list[int]
    response_ids: list[int]
    response: str
    logprobs: list[float] | None = None
    reward: float = 0.0
    valid: bool = True


@dataclass
class Episode:
    """
    What happened in one attempt at one task.

    Args:
        task (`dict[str, Any]`):
            The dataset row. Its `prompt` holds the messages the policy read, the first observation included.
        prompt_ids (`list[int]`):
            The rendered prompt.
        turns (`list[Turn]`, *optional*):
            The turns, in order.
        stop_reason (`StopReason`, *optional*):
            Why it ended; `None` while it runs.
        info (`dict[str, Any]`, *optional*):
            The last step's info.
        feedback (`str`, *optional*, defaults to `""`):
            The last step's observation, to which the policy did not respond any more.
        skills (`tuple[str, ...]`, *optional*):
            Names of the skills that the teacher, or the policy, reads for this task.
    """

    task: dict[str, Any]
    prompt_ids: list[int]
    turns: list[Turn] = field(default_factory=list)
    stop_reason: StopReason | None = None
    info: dict[str, Any] = field(default_factory=dict)
    feedback: str = ""
    skills: tuple[str, ...] = ()

    @property
    def episode_return(self) -> float:
        """Sum of the turns' rewards."""
        return sum(turn.reward for turn in self.turns)

    @property
    def success(self) -> bool:
        """Whether the environment reported success."""
        return self.stop_reason is StopReason.WON

    @property
    def invalid_actions(self) -> int:
        """Number of turns whose response held no legal action."""
        return sum(not turn.valid for turn in self.turns)

    def row(self, pad_token_id: int) -> dict[str, Any]:
        """
        The training row of this episode.

        Args:
            pad_token_id (`int`):
                Stands in for the completion of an episode that failed before its first response.

        Returns:
            `dict`: `prompt_ids`, `completion_ids`, `env_mask` (1 = sampled by the policy; all 0 if the environment
            raised) and `logprobs` (`None`, or one per completion id, 0.0 for observations).
        """
        completion_ids: list[int] = []
        env_mask: list[int] = []
        logprobs: list[float] = []
        for index, turn in enumerate(self.turns):
            if index > 0:
                completion_ids += turn.observation_ids
                env_mask += [0] * len(turn.observation_ids)
                logprobs += [0.0] * len(turn.observation_ids)
            completion_ids += turn.response_ids
            env_mask += [1] * len(turn.response_ids)
            logprobs += turn.logprobs or [0.0] * len(turn.response_ids)
        if not completion_ids:
            completion_ids, env_mask, logprobs = [pad_token_id], [0], [0.0]
        if self.stop_reason is StopReason.ENV_ERROR:
            env_mask = [0] * len(env_mask)
        return {
            "prompt_ids": self.prompt_ids,
            "completion_ids": completion_ids,
            "env_mask": env_mask,
            "logprobs": logprobs,
        }


WithContext = Callable[[list[Episode]], list[list[Message]]]


@dataclass
class _Running:
    """An episode in play: its environment, everything the policy has read, and the observation it must answer."""

    episode: Episode
    env: EnvWorker
    ids: list[int] = field(default_factory=list)
    observation: str = ""
    observation_ids: list[int] = field(default_factory=list)


class Rollout:
    """
    Plays text environments with a policy, several episodes at a time.

    Args:
        environment_factory (`Callable` or `dict[str, Callable]`):
            Makes a [`TextEnv`]; with a dictionary, a task's `environment` field names the one it wants. Instances run
            where their class asks to (`sdar_trl/envs/workers.py`), and are reused from batch to batch.
        chat ([`Chat`]):
            Renders prompts and observations.
        generate (`Generate`):
            Samples one response for each list of ids it is given. It is also called with an empty list, where another
            process is still playing.
        max_turns (`int`):
            Most turns of an episode.
        max_response_length (`int`):
            Most tokens of one response, as configured in the backend behind `generate`.
        max_completion_length (`int`):
            Most tokens of an episode after its prompt.
        context_length (`int`, *optional*):
            Most tokens of an episode, prompt included.
        max_cache_tokens (`int`, *optional*):
            Most tokens of the episodes played at once, each counted as long as it may become. The others wait until
            all of these have ended. A single episode is always played.
        on_end (`Callable[[], None]`, *optional*):
            Called when a rollout has ended, by an exception too.
        any_running (`Callable[[int], bool]`, *optional*, defaults to `bool`):
            Given the number of episodes this process still plays, whether any process still plays one.
    """

    def __init__(
        self,
        environment_factory: Callable[[], TextEnv] | Mapping[str, Callable[[], TextEnv]],
        chat: Chat,
        generate: Generate,
        *,
        max_turns: int,
        max_response_length: int,
        max_completion_length: int,
        context_length: int | None = None,
        max_cache_tokens: int | None = None,
        on_end: Callable[[], None] = lambda: None,
        any_running: Callable[[int], bool] = bool,
    ):
        self.factories: dict[str | None, Callable[[], TextEnv]] = {}
        if isinstance(environment_factory, Mapping):
            self.factories.update(environment_factory)
        else:
            self.factories[None] = environment_factory
        self.chat = chat
        self.generate = generate
        self.max_turns = max_turns
        self.max_response_length = min(max_response_length, max_completion_length)
        self.max_completion_length = max_completion_length
        self.context_length = context_length
        self.max_cache_tokens = max_cache_tokens
        self.on_end = on_end
        self.any_running = any_running
        self._idle: dict[str | None, list[EnvWorker]] = {name: [] for name in self.factories}

    def play(self, tasks: Sequence[Mapping[str, Any]], with_context: WithContext | None = None) -> list[Episode]:
        """
        Play one episode of each task.

        Args:
            tasks (`list[dict]`):
                Dataset rows with `prompt` (messages) and whatever `reset` takes.
            with_context (`Callable`, *optional*):
                Given the reset episodes, the messages that the policy reads instead of each episode's own.

        Returns:
            `list[Episode]`: one per task, in order.

        Raises:
            `ValueError`: if a task's prompt is not a list of messages, or leaves no room for a response.
        """
        seats: list[_Running] = []
        try:
            for task in tasks:
                seats.append(self._take_seat(dict(task)))
            self._reset(seats)
            if with_context is not None:
                reset = [seat for seat in seats if seat.episode.stop_reason is None]
                prompts = with_context([seat.episode for seat in reset])
                for seat, messages in zip(reset, prompts, strict=True):
                    seat.episode.task["prompt"] = messages
            for seat in seats:
                self._render_prompt(seat)
            self._play(seats)
        except BaseException:
            for seat in seats:
                if seat.episode.stop_reason is not StopReason.ENV_ERROR:
                    _close(seat.env)
            self.close()
            raise
        finally:
            self.on_end()
        for seat in seats:
            if seat.episode.stop_reason is not StopReason.ENV_ERROR:
                self._idle[self._name(seat.episode.task)].append(seat.env)
        return [seat.episode for seat in seats]

    def _play(self, seats: list[_Running]) -> None:
        """Turn by turn, until no process has an episode to play."""
        waiting = [seat for seat in seats if seat.episode.stop_reason is None]
        running: list[_Running] = []
        while self.any_running(len(running) + len(waiting)):
            if not running:
                count = self._wave_size(waiting)
                running, waiting = waiting[:count], waiting[count:]
            responses, logprobs = self.generate([seat.ids for seat in running])
            for index, seat in enumerate(running):
                self._respond(seat, responses[index], logprobs[index] if logprobs is not None else None)
            for seat in running:
                self._observe(seat)
            running = [seat for seat in running if seat.episode.stop_reason is None]

    def _wave_size(self, seats: list[_Running]) -> int:
        """How many of the first seats may be played at once."""
        if self.max_cache_tokens is None:
            return len(seats)
        longest = 0
        for count, seat in enumerate(seats):
            longest = max(longest, self._length_limit(seat.episode))  # a cache is as wide as its longest row
            if count > 0 and (count + 1) * longest > self.max_cache_tokens:
                return count
        return len(seats)

    def close(self) -> None:
        """Close the environments."""
        for envs in self._idle.values():
            while envs:
                _close(envs.pop())

    def _name(self, task: Mapping[str, Any]) -> str | None:
        name = None if None in self.factories else task.get("environment")
        if name not in self.factories:
            raise ValueError(f"Got a task with `environment={name!r}`, expected one of {list(self.factories)}.")
        return name

    def _take_seat(self, task: dict[str, Any]) -> _Running:
        """An environment for the task, idle or new."""
        name = self._name(task)
        messages = task.setdefault("prompt", [{"role": "user", "content": ""}])
        if not isinstance(messages, list) or not messages:
            raise ValueError(
                f"`prompt` must be a list of messages for an environment's tasks, got {messages!r}. Wrap a text as "
                '[{"role": "user", "content": text}].'
            )
        env = self._idle[name].pop() if self._idle[name] else start_worker(self.factories[name])
        return _Running(Episode(task, []), env)

    def _reset(self, seats: list[_Running]) -> None:
        """Reset the environments; the first observation ends the prompt's last message, as in TRL."""
        for seat in seats:
            seat.env.start("reset", **seat.episode.task)
        for seat in seats:
            task = seat.episode.task
            try:
                seat.observation = seat.env.result()
            except Exception:
                self._fail(seat)
            *before, last = task["prompt"]
            task["prompt"] = [*before, {**last, "content": last["content"] + seat.observation}]

    def _render_prompt(self, seat: _Running) -> None:
        task = seat.episode.task
        prompt_ids = self.chat.prompt_ids(task["prompt"])
        needed = len(prompt_ids) + self.max_response_length
        if self.context_length is not None and needed > self.context_length:
            raise ValueError(
                f"The prompt of task {task.get('task_id', '')!r} has {len(prompt_ids)} tokens; with a response of "
                f"`max_response_length` ({self.max_response_length}) that is {needed}, more than the model's context "
                f"of {self.context_length}. Lower `max_response_length` or use a model with a longer context."
            )
        seat.episode.prompt_ids = seat.ids = seat.observation_ids = prompt_ids

    def _respond(self, seat: _Running, response_ids: list[int], logprobs: list[float] | None) -> None:
        """Record the response, and give it to the environment."""
        response = self.chat.decode(response_ids)
        seat.episode.turns.append(Turn(seat.observation, seat.observation_ids, response_ids, response, logprobs))
        seat.env.start("step", response)

    def _observe(self, seat: _Running) -> None:
        """Append what the environment says, or end the episode."""
        episode = seat.episode
        turn = episode.turns[-1]
        try:
            step = seat.env.result()
        except Exception:
            self._fail(seat)
            return
        turn.reward, turn.valid = step.reward, step.valid
        episode.info, episode.feedback = step.info, step.observation
        if step.terminated:
            episode.stop_reason = StopReason.WON if step.info.get("success") else StopReason.LOST
        elif step.truncated:
            episode.stop_reason = StopReason.TRUNCATED
        elif len(episode.turns) == self.max_turns:
            episode.stop_reason = StopReason.MAX_TURNS
        else:
            seat.observation = step.observation
            seat.observation_ids = self.chat.observation_ids(step.observation, turn.response_ids)
            seat.ids = seat.ids + turn.response_ids + seat.observation_ids
            if len(seat.ids) + self.max_response_length > self._length_limit(episode):
                episode.stop_reason = StopReason.LENGTH

    def _length_limit(self, episode: Episode) -> int:
        limit = len(episode.prompt_ids) + self.max_completion_length
        return limit if self.context_length is None else min(limit, self.context_length)

    def _fail(self, seat: _Running) -> None:
        """End the episode of an environment that raised, and let go of the instance."""
        logger.warning("Environment failed in task %s.", seat.episode.task.get("task_id", ""), exc_info=True)
        seat.episode.stop_reason = StopReason.ENV_ERROR
        _close(seat.env)


def _close(env: EnvWorker) -> None:
    try:
        env.close()
    except Exception:
        logger.warning("An environment could not be closed.", exc_info=True)


def _made_by(factory: Any) -> type:
    """The class of what a factory makes; one that does not show it is tried out."""
    factory = factory.func if isinstance(factory, functools.partial) else factory
    return factory if inspect.isclass(factory) else type(factory())


def is_text_environment(environment_factory: Any) -> bool:
    """
    Whether environments are played by the text-action loop: those with a `step` method are.

    Args:
        environment_factory (`Callable` or `dict[str, Callable]`, *optional*):
            Makes environments.

    Returns:
        `bool`: `False` for TRL's own kind, whose methods are tools, and for none at all.

    Raises:
        `ValueError`: if there are both kinds.
    """
    if environment_factory is None:
        return False
    factories = environment_factory if isinstance(environment_factory, dict) else {"": environment_factory}
    kinds = {name: hasattr(_made_by(f), "step") for name, f in factories.items()}
    if len(set(kinds.values())) > 1:
        raise ValueError(
            "Environments with a `step` method and tool environments cannot be mixed in one run; got "
            f"{ {name: 'text' if text else 'tools' for name, text in kinds.items()} }."
        )
    return all(kinds.values())


def environment_reward(environment_factory: Any) -> Callable[..., list[float | None]]:
    """The episodes' returns as a reward function, logged under the environment's name, as in TRL."""

    def reward(environment_reward: list[float | None], **kwargs: Any) -> list[float | None]:
        return environment_reward

    reward.__name__ = "environment_reward"
    if not isinstance(environment_factory, dict):
        reward.__name__ = _made_by(environment_factory).__name__
    return reward
