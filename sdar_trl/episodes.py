"""What happened in an episode, as plain data: to look at, to train on, to write down and read again.

The format on disk is described in docs/episodes.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any

from .envs.border import plain


Message = dict[str, Any]
"""A message of a conversation, with `role` and `content`."""


def as_messages(prompt: list[Message] | str) -> list[Message]:
    """A prompt as messages: a text is the user's."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


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
        new_ids (`list[int]`):
            Ids the policy read before it responded: those that follow the turn before, or, where `messages` are given,
            all of them. Never trained on.
        response_ids (`list[int]`):
            Ids the policy sampled, as they were sampled.
        response (`str`):
            `response_ids`, decoded.
        messages (`list[dict]` or `str`, *optional*):
            What the policy read, where it was rendered anew, without the skills that the policy itself may have read
            ([`Episode`]'s `student_context`); a text where that was its prompt in TRL's own loop. `None` where the
            turn before goes on.
        reward (`float`, *optional*, defaults to `0.0`):
            Reward of this turn.
        valid (`bool`, *optional*, defaults to `True`):
            Whether the response held a legal action.
        metrics (`dict[str, float]`, *optional*):
            Numbers that the environment reported.
        generation_seconds (`float`, *optional*, defaults to `0.0`):
            Time of the generation, shared with the episodes that were played beside this one.
        environment_seconds (`float`, *optional*, defaults to `0.0`):
            Time that the environment's answer was waited for.
        logprobs (`list[float]`, *optional*):
            Log-probabilities (nats) of `response_ids` under the policy: the generation backend's, else those of the
            first forward that trained on them.
        gaps (`list[float]`, *optional*):
            Teacher-student gap (nats) at each of `response_ids` when it was first trained on.
        gates (`list[float]`, *optional*):
            What weighed them.
        entropies (`list[float]`, *optional*):
            The policy's entropy (nats) there.
        losses (`list[float]`, *optional*):
            What each adds to the self-distillation loss: the gate times the divergence, before the mean and
            `sdar_coef`.
    """

    observation: str
    new_ids: list[int]
    response_ids: list[int]
    response: str
    messages: list[Message] | str | None = None
    reward: float = 0.0
    valid: bool = True
    metrics: dict[str, float] = field(default_factory=dict)
    generation_seconds: float = 0.0
    environment_seconds: float = 0.0
    logprobs: list[float] | None = None
    gaps: list[float] | None = None
    gates: list[float] | None = None
    entropies: list[float] | None = None
    losses: list[float] | None = None


@dataclass(repr=False)
class Episode:
    """
    What happened in one attempt at one task.

    Args:
        task (`dict[str, Any]`):
            The dataset row, with its `prompt` as messages of plain text.
        prompt (`list[dict]`):
            The messages before the first response: the task's, with the first observation at their end.
        turns (`list[Turn]`, *optional*):
            The turns, in order.
        stop_reason (`StopReason`, *optional*):
            Why it ended; `None` while it runs, and in TRL's own loops, which do not say.
        info (`dict[str, Any]`, *optional*):
            The last step's info.
        feedback (`str`, *optional*, defaults to `""`):
            The last step's observation, to which the policy did not respond any more.
        skills (`tuple[str, ...]`, *optional*):
            Names of the skills that the teacher, or the policy, reads for this task.
        student_context (`str`, *optional*, defaults to `""`):
            The text of skills that the policy itself read. In SDAR it reads none.
        teacher_context (`str`, *optional*, defaults to `""`):
            The text that the teacher read besides, once it has.
        error (`str`, *optional*, defaults to `""`):
            Why there is no return: what the environment raised or answered, or that no reward function scored it.
    """

    task: dict[str, Any]
    prompt: list[Message]
    turns: list[Turn] = field(default_factory=list)
    stop_reason: StopReason | None = None
    info: dict[str, Any] = field(default_factory=dict)
    feedback: str = ""
    skills: tuple[str, ...] = ()
    student_context: str = ""
    teacher_context: str = ""
    error: str = ""

    @property
    def messages(self) -> list[Message]:
        """The episode as one conversation, whatever part of it the policy read in each turn."""
        messages = list(self.prompt)
        for index, turn in enumerate(self.turns):
            if index > 0:
                messages.append({"role": "user", "content": turn.observation})
            messages.append({"role": "assistant", "content": turn.response})
        return messages

    @property
    def prompt_ids(self) -> list[int]:
        """Ids that the first response was sampled after; none if the environment failed before."""
        return self.turns[0].new_ids if self.turns else []

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

    @property
    def metrics(self) -> dict[str, float]:
        """Numbers that the environment reported, each as it was last reported."""
        return {name: value for turn in self.turns for name, value in turn.metrics.items()}

    def __repr__(self) -> str:
        reason = self.stop_reason.value if self.stop_reason else None
        return f"Episode(task_id={self.task.get('task_id')!r}, turns={len(self.turns)}, stop_reason={reason!r})"

    def to_dict(self) -> dict[str, Any]:
        """
        As plain data that JSON can hold.

        Returns:
            `dict`: every field by name. Values in `task` and `info` that JSON does not know become its nearest kind,
            or text, and numbers that are not finite `None`.
        """
        values = {**vars(self), "turns": [vars(turn) for turn in self.turns]}
        return plain({**values, "return": self.episode_return, "success": self.success})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Episode":
        """
        The episode that `to_dict` made.

        Args:
            data (`dict`):
                What `to_dict` returned, perhaps by way of JSON. Names that this version does not know are passed over,
                and fields with defaults may be missing.

        Returns:
            [`Episode`]: the episode.
        """
        values = {name.name: data[name.name] for name in fields(cls) if name.name in data}
        known = {name.name for name in fields(Turn)}
        turns = values.get("turns", [])
        values["turns"] = [Turn(**{key: turn[key] for key in turn if key in known}) for turn in turns]
        values["skills"] = tuple(values.get("skills", ()))
        reason = values.get("stop_reason")
        values["stop_reason"] = None if reason is None else StopReason(reason)
        return cls(**values)
