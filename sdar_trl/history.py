"""What the policy reads in its next turn: the conversation so far, or a window on it.

A history is a function of an episode in play and its present observation. It returns the messages of the next prompt,
to be rendered anew, or `None` where the conversation goes on as it is, by appending ids.
"""

from collections.abc import Callable, Sequence

from .episodes import Episode, Message


History = Callable[[Episode, str], list[Message] | None]

Wording = Callable[[str, Sequence[tuple[str, str]], str, int], str]
"""How an environment's history reads: from the first observation, the past (observation, response) pairs in the
window, the present observation and the turn's number (from 1) to what ends the last user message."""


def with_observation(messages: list[Message], observation: str) -> list[Message]:
    """The messages with an observation at the end of the last one, as in TRL."""
    *before, last = messages
    return [*before, {**last, "content": last["content"] + observation}]


def growing(episode: Episode, observation: str) -> list[Message] | None:
    """The whole conversation: each turn appends to it."""
    return None if episode.turns else episode.prompt


def windowed(size: int, wording: Wording | None = None) -> History:
    """
    The task, the last turns, and the present observation.

    Without a wording this is the conversation itself, with the turns between the first observation and the window left
    out: a window longer than the episode reads like [`growing`].

    Args:
        size (`int`):
            Turns in the window, besides the present observation.
        wording (`Callable`, *optional*):
            The environment's own.

    Returns:
        `History`: the history.
    """

    def history(episode: Episode, observation: str) -> list[Message]:
        turns, shown = episode.turns, episode.turns[-size:]
        if wording is not None:
            first = turns[0].observation if turns else observation
            past = [(turn.observation, turn.response) for turn in shown]
            return with_observation(episode.task["prompt"], wording(first, past, observation, len(turns) + 1))
        if not turns:
            return episode.prompt
        messages = episode.prompt
        left_out = len(turns) - len(shown)
        if left_out:
            gap = f"\n\n[{left_out} {'turn' if left_out == 1 else 'turns'} left out]\n\n"
            messages = with_observation(messages, gap + shown[0].observation)
        answers = [*(turn.observation for turn in shown[1:]), observation]
        for turn, answer in zip(shown, answers, strict=True):
            response, said = {"role": "assistant", "content": turn.response}, {"role": "user", "content": answer}
            messages = [*messages, response, said]
        return messages

    return history
