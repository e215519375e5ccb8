"""Playing episodes: the multi-turn loop.

A conversation grows by appending token ids. What the policy sampled is never decoded and encoded again while its
history goes on; only what is new is rendered, and the joint falls on the special token that ends an assistant turn.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from .backends import Backend, StreamingBackend
from .chat import Chat
from .contexts import context_texts
from .environment_checks import check_factories
from .envs import TextEnv
from .envs.border import Border, BorderError, plain, short
from .envs.workers import BuildError, EnvWorker, close_worker, failure, shown_kind, start_worker
from .episodes import Episode, Message, StopReason, Turn
from .history import History, Wording, growing, windowed, with_observation
from .progress import EpisodeBar


StudentContext = Callable[[list[Episode]], list[str]]
"""The text that the policy itself reads in each of the reset episodes."""


@dataclass(eq=False)
class _Seat:
    """An episode in play: its environment, what the policy has read, and the observation it must answer."""

    episode: Episode
    history: History
    env: Any = None  # an `EnvWorker`, from reset to failure
    observation: str = ""
    ids: list[int] = field(default_factory=list)  # all that the next response is sampled after
    new_ids: list[int] = field(default_factory=list)  # those of them that follow the turn before
    messages: list[dict[str, Any]] | None = None  # if all of them were rendered anew
    row_start: int = 0  # where the first response of the present training row begins
    seed: int = 0  # of its responses, where they have one of their own
    since: float = 0.0  # when the policy, or the environment, was last asked for something


class Rollout:
    """
    Plays text environments with a policy, several episodes at a time.

    Args:
        environment_factory (`Callable` or `dict[str, Callable]`):
            Makes a [`TextEnv`]; with a dictionary, a task's `environment` field names the one it wants. Instances run
            where their class asks to (`sdar_trl/envs/workers.py`), and are reused from batch to batch.
        chat ([`Chat`]):
            Renders prompts and observations.
        backend ([`Backend`] or [`StreamingBackend`]):
            Samples the responses: of all episodes that are played together, or of each as soon as it is asked for.
        max_turns (`int`):
            Most turns of an episode.
        max_response_length (`int`):
            Most tokens of one response, as configured in the backend.
        max_completion_length (`int`):
            Most tokens of a training row after its prompt. With a growing history, that is the episode's.
        context_length (`int`, *optional*):
            Most tokens of a training row, prompt included.
        max_cache_tokens (`int`, *optional*):
            Most tokens of the episodes played at once, each counted as long as it may become. The others wait until
            all of these have ended. A single episode is always played.
        history (`str`, *optional*, defaults to `"growing"`):
            What the policy reads in each turn: `"growing"`, the whole conversation, or `"window"`, a prompt rendered
            anew from the task, the last turns and the present observation.
        history_window (`int`, *optional*, defaults to `2`):
            Turns in the window.
        show_progress (`bool`, *optional*, defaults to `False`):
            Show a bar in a terminal.
    """

    def __init__(
        self,
        environment_factory: Callable[[], TextEnv] | Mapping[str, Callable[[], TextEnv]],
        chat: Chat,
        backend: Backend | StreamingBackend,
        *,
        max_turns: int,
        max_response_length: int,
        max_completion_length: int,
        context_length: int | None = None,
        max_cache_tokens: int | None = None,
        history: str = "growing",
        history_window: int = 2,
        show_progress: bool = False,
    ):
        check_factories(environment_factory)
        self.factories: dict[str | None, Callable[[], TextEnv]] = {}
        if isinstance(environment_factory, Mapping):
            self.factories.update(environment_factory)
        else:
            self.factories[None] = environment_factory
        self.chat = chat
        chat.end_of_turn_id  # noqa: B018  a template that cannot be played is refused here
        self.backend = backend
        self.max_turns = max_turns
        self.max_response_length = min(max_response_length, max_completion_length)
        self.max_completion_length = max_completion_length
        self.context_length = context_length
        self.max_cache_tokens = max_cache_tokens
        self.show_progress = show_progress
        self.seconds: dict[str, float] = {}  # of the last `play`: what it waited for
        self.border = Border()
        self._histories = {
            name: growing if history == "growing" else windowed(history_window, self._wording(factory))
            for name, factory in self.factories.items()
        }
        self._built: set[str | None] = set()  # what never worked stops the run, see `play`; what did costs episodes
        self._begun = False
        self._idle: dict[str | None, list[EnvWorker]] = {name: [] for name in self.factories}

    def play(
        self,
        tasks: Sequence[Mapping[str, Any]],
        student_context: StudentContext | None = None,
        seeds: Sequence[int] | None = None,
    ) -> list[Episode]:
        """
        Play one episode of each task.

        Args:
            tasks (`list[dict]`):
                Dataset rows with `prompt` (messages) and whatever `reset` takes.
            student_context (`Callable`, *optional*):
                From the reset episodes to what the policy reads besides each episode's own messages.
            seeds (`list[int]`, *optional*):
                A seed of each episode, by which its responses are sampled whatever is played beside it, where the
                backend can do that. If `None`, they are sampled by torch's random state.

        Returns:
            `list[Episode]`: one per task, in order.

        Raises:
            `ValueError`: if a task's prompt is not a list of messages that ends in the user's, or, as long as none
                did, leaves no room for a response.
            `RuntimeError`: if an environment cannot be made, as long as none could.
        """
        seats: list[_Seat] = []
        self.seconds = {"generation": 0.0, "environment": 0.0}
        try:
            seats += [self._seat(dict(task)) for task in tasks]
            for seat, seed in zip(seats, seeds or (), strict=False):
                seat.seed = seed
            with self._waiting_for("environment"):
                self._reset(seats)
            playing = _playing(seats)
            if student_context is not None:
                texts = context_texts(student_context, [seat.episode for seat in playing], self.border)
                for seat, text in zip(playing, texts, strict=True):
                    seat.episode.student_context = text
            for seat in playing:
                self._begin(seat)
            with EpisodeBar(len(seats), self.show_progress) as self._bar:
                self._bar.add(0, len(seats) - len(_playing(seats)))
                if isinstance(self.backend, StreamingBackend):
                    self._play_each(_playing(playing), self.backend, seeds is not None)
                else:
                    self._play_turns(_playing(playing), self.backend, seeds is not None)
        except BaseException:
            self._give_back(seats)
            self.close()
            raise
        finally:
            self.backend.end()
        self._give_back(seats)
        return [seat.episode for seat in seats]

    def _play_turns(self, waiting: list[_Seat], backend: Backend, seeded: bool) -> None:
        """Turn by turn, until no process has an episode to play."""
        running: list[_Seat] = []
        while backend.any_running(len(running) + len(waiting)):
            if not running:
                count = self._wave_size(waiting)
                running, waiting = waiting[:count], waiting[count:]
            seeds = [[[seat.seed, len(seat.episode.turns)] for seat in running]] if seeded else []
            for seat in running:
                seat.since = time.perf_counter()
            with self._waiting_for("generation"):
                responses, logprobs = backend.generate([seat.ids for seat in running], *seeds)
            for index, seat in enumerate(running):
                self._respond(seat, responses[index], logprobs[index] if logprobs is not None else None)
            with self._waiting_for("environment"):
                for seat in _playing(running):
                    self._observe(seat)
            self._bar.add(len(running), len(running) - len(_playing(running)))
            running = _playing(running)

    def _play_each(self, seats: list[_Seat], backend: StreamingBackend, seeded: bool) -> None:
        """Each episode at its own pace: its next response is asked for as soon as its environment has answered."""
        if not seeded:  # so that a response does not depend on which others are generated beside it
            for seat in seats:
                seat.seed = int(torch.randint(2**62, ()))
        backend.begin()
        asking, generating = seats, 0
        acting: list[_Seat] = []
        while asking or acting or generating:
            for seat in asking:
                seat.since = time.perf_counter()
                backend.submit(seat, seat.ids, [seat.seed, len(seat.episode.turns)])
            generating += len(asking)
            answered = [seat for seat in acting if seat.env is None or seat.env.ready()]
            if answered:  # first, so that the engine has all there is to do at once
                with self._waiting_for("environment"):
                    for seat in _playing(answered):
                        self._observe(seat)
            elif generating:
                with self._waiting_for("generation"):
                    responses = backend.collect()
                for seat, ids, logprobs in responses:
                    self._respond(seat, ids, logprobs)
                    acting.append(seat)
                generating -= len(responses)
            else:
                with self._waiting_for("environment"):
                    time.sleep(0.001)
            acting = [seat for seat in acting if seat not in answered]
            asking = _playing(answered)
            self._bar.add(len(answered), len(answered) - len(asking))

    def _wave_size(self, seats: list[_Seat]) -> int:
        """How many of the first seats may be played at once."""
        if self.max_cache_tokens is None:
            return len(seats)
        longest = 0
        for count, seat in enumerate(seats):
            longest = max(longest, self._length_limit(seat))  # a cache is as wide as its longest row
            if count > 0 and (count + 1) * longest > self.max_cache_tokens:
                return count
        return len(seats)

    def close(self) -> None:
        """Close the environments."""
        for envs in self._idle.values():
            while envs:
                close_worker(envs.pop())

    def _wording(self, factory: Any) -> Wording | None:
        """An environment's own wording of its history, whose text is checked as its other answers are."""
        wording = getattr(shown_kind(factory), "history", None)
        return None if wording is None else lambda *args: self.border.observation(wording(*args), "history")

    def _name(self, task: Mapping[str, Any]) -> str | None:
        name = None if None in self.factories else task.get("environment")
        if name not in list(self.factories):  # it may be anything
            raise ValueError(f"Got a task with `environment={name!r}`, expected one of {list(self.factories)}.")
        return name

    def _seat(self, task: dict[str, Any]) -> _Seat:
        messages = self.border.messages(task.get("prompt"), f"task {short(task.get('task_id', ''))}")
        return _Seat(Episode(task, messages), self._histories[self._name(task)])

    def _reset(self, seats: list[_Seat]) -> None:
        """Reset the environments, idle or new; the first observation ends the prompt's last message, as in TRL."""
        for seat in seats:  # new ones are built side by side
            with self._ends_its_own_episode(seat, "reset"):
                name = self._name(seat.episode.task)
                seat.env = self._idle[name].pop() if self._idle[name] else start_worker(self.factories[name])
        for seat in _playing(seats):
            with self._ends_its_own_episode(seat, "reset"):
                seat.env.start("reset", **seat.episode.task)
                self._built.add(self._name(seat.episode.task))
        for seat in _playing(seats):
            with self._ends_its_own_episode(seat, "reset"):
                seat.observation = self.border.observation(seat.env.result())
        for seat in seats:
            seat.episode.task["prompt"] = seat.episode.prompt
            seat.episode.prompt = with_observation(seat.episode.prompt, seat.observation)

    def _give_back(self, seats: list[_Seat]) -> None:
        """Keep the environments for other episodes."""
        for seat in seats:
            if seat.env is not None:
                self._idle[self._name(seat.episode.task)].append(seat.env)

    def _begin(self, seat: _Seat) -> None:
        """What the policy reads first."""
        with self._ends_its_own_episode(seat, "history"):
            seat.messages = seat.history(seat.episode, seat.observation)
        if seat.messages is None:
            return
        ids = self.chat.prompt_ids(self.chat.with_context(seat.messages, seat.episode.student_context))
        needed = len(ids) + self.max_response_length
        if self.context_length is not None and needed > self.context_length:
            error = BorderError(
                "A prompt must leave room for a response (`max_response_length`) in the model's context of "
                f"{self.context_length} tokens; got {len(ids)} tokens, {needed} with a response, in task "
                f"{short(seat.episode.task.get('task_id', ''))}. Shorten it or lower `max_response_length`."
            )
            if not self._begun:
                raise error
            return self._fail(seat, "reset", error)
        self._begun = True
        seat.ids = seat.new_ids = ids
        seat.row_start = len(ids)

    def _respond(self, seat: _Seat, ids: list[int], logprobs: list[float] | None) -> None:
        """Record the response, and give it to the environment."""
        asked, seat.since = seat.since, time.perf_counter()
        response = self.chat.decode(ids)
        turn = Turn(seat.observation, seat.new_ids, ids, response, seat.messages, logprobs=logprobs)
        turn.generation_seconds = seat.since - asked
        seat.episode.turns.append(turn)
        with self._ends_its_own_episode(seat, "step"):
            seat.env.start("step", response)

    def _observe(self, seat: _Seat) -> None:
        """Take in what the environment says: go on with it, or end the episode."""
        episode = seat.episode
        turn = episode.turns[-1]
        with self._ends_its_own_episode(seat, "step"):
            step = self.border.step(seat.env.result())
        if episode.stop_reason is not None:
            return
        turn.environment_seconds = time.perf_counter() - seat.since
        turn.reward, turn.valid, turn.metrics = step.reward, step.valid, step.metrics
        episode.info, episode.feedback = step.info, step.observation
        if step.terminated:
            episode.stop_reason = StopReason.WON if step.info.get("success") else StopReason.LOST
        elif step.truncated:
            episode.stop_reason = StopReason.TRUNCATED
        elif len(episode.turns) == self.max_turns:
            episode.stop_reason = StopReason.MAX_TURNS
        else:
            with self._ends_its_own_episode(seat, "history"):
                messages = seat.history(episode, step.observation)
            if episode.stop_reason is not None:
                return
            self._read(seat, step.observation, messages)
            if len(seat.ids) + self.max_response_length > self._length_limit(seat):
                episode.stop_reason = StopReason.LENGTH

    def _read(self, seat: _Seat, observation: str, messages: list[Message] | None) -> None:
        """What the policy reads next: more of the same conversation, or a prompt of its own."""
        seat.observation = observation
        response_ids = seat.episode.turns[-1].response_ids
        read = seat.ids + response_ids
        new_ids: list[int] | None
        if messages is None:
            new_ids = self.chat.observation_ids(observation, response_ids)
        else:
            text = self.chat.prompt_text(self.chat.with_context(messages, seat.episode.student_context))
            new_ids = self.chat.continuation_ids(read, text)
            room = seat.row_start + self.max_completion_length - self.max_response_length
            if new_ids is not None and len(read) + len(new_ids) > room:
                new_ids = None  # the row is full, and a prompt that is rendered anyway may begin another
        if new_ids is not None:
            seat.messages, seat.new_ids, seat.ids = None, new_ids, read + new_ids
        else:
            seat.messages = messages
            seat.ids = seat.new_ids = self.chat.text_ids(text)
            seat.row_start = len(seat.ids)

    def _length_limit(self, seat: _Seat) -> int:
        limit = seat.row_start + self.max_completion_length
        return limit if self.context_length is None else min(limit, self.context_length)

    @contextmanager
    def _waiting_for(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[what] += time.perf_counter() - began

    @contextmanager
    def _ends_its_own_episode(self, seat: _Seat, method: str) -> Iterator[None]:
        """What an environment raises inside; Ctrl-C is the user's."""
        try:
            yield
        except BaseException as error:
            never_built = isinstance(error, BuildError) and self._name(seat.episode.task) not in self._built
            if never_built or isinstance(error, KeyboardInterrupt):
                raise
            self._fail(seat, method, error)

    def _fail(self, seat: _Seat, method: str, error: BaseException) -> None:
        """End the episode of an environment that raised or whose answer cannot be read, and let go of the instance."""
        episode = seat.episode
        reason, kind = failure(method, error)
        self.border.tell(
            (method, kind),
            "The environment failed in task %s, and this episode trains nothing: %s Further failures of this kind are "
            "counted in `env/stop/env_error`, without a word.",
            plain(episode.task.get("task_id", "")),
            reason,
            exc_info=None if isinstance(error, BorderError) else error,
        )
        episode.stop_reason, episode.error = StopReason.ENV_ERROR, reason
        if seat.env is not None:
            close_worker(seat.env)
            seat.env = None


def _playing(seats: list[_Seat]) -> list[_Seat]:
    return [seat for seat in seats if seat.episode.stop_reason is None]
