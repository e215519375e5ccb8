"""The border to what is not ours: what an environment answers, and a task's prompt, become plain values.

What fits is taken, what can be read in one clear way is read so (numbers of NumPy and PyTorch, `None` for nothing,
text in parts), and what cannot is a [`BorderError`] that names the method, what it must return and what it got. Behind
this border a reward is a finite `float`, a flag a `bool`, and text can be encoded.
"""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from difflib import get_close_matches
from enum import Enum
from typing import Any, SupportsFloat, SupportsIndex

from .base import Step


logger = logging.getLogger(__name__)

_STEP = "`step(response)` must return a `Step`"
_GYMNASIUM = "Gymnasium's tuples are not taken: wrap such an environment, see docs/environments.md"


class BorderError(ValueError):
    """What came over the border cannot be read; the message says what was expected and what came."""


class Border:
    """The border of one run: what is read, and what there is to say about it, once a kind."""

    def __init__(self) -> None:
        self._told: set[Any] = set()

    def tell(self, kind: Any, message: str, *args: Any, **kwargs: Any) -> None:
        """Warn, unless there was a warning of this kind before."""
        if kind not in self._told:
            self._told.add(kind)
            logger.warning(message, *args, **kwargs)

    def text(self, value: str, source: str) -> str:
        """Text that can be encoded: half a character (a lone surrogate) becomes a question mark."""
        value = str.__str__(value)
        try:
            value.encode()
        except UnicodeEncodeError:
            repaired = value.encode("utf-8", "replace").decode()
            self.tell(
                ("text", source),
                "%s holds text that cannot be encoded (half of a character, as of an emoji that was cut), and is read "
                "with a question mark there: %.200r. Further ones are repaired without a word.",
                source,
                repaired,
            )
            return repaired
        return value

    def observation(self, value: Any, method: str = "reset") -> str:
        """
        The first observation.

        Args:
            value (`Any`):
                What `reset` returned: a text, text in parts, or `None` for no text, as TRL takes them.
            method (`str`, *optional*, defaults to `"reset"`):
                The method's name.

        Returns:
            `str`: the text.

        Raises:
            `BorderError`: if it is no text.
        """
        found = content_text(value)
        if found is None:
            hint = f". {_GYMNASIUM}" if isinstance(value, tuple) else ""
            raise BorderError(f"`{method}` must return the observation, a text; got {_shown(value)}{hint}.")
        return self.text(found, f"What `{method}` returned")

    def step(self, value: Any) -> Step:
        """
        The answer to a response.

        Args:
            value (`Any`):
                What `step` returned.

        Returns:
            [`Step`]: of plain values.

        Raises:
            `BorderError`: if it is no [`Step`], or holds what cannot be read.
        """
        if isinstance(value, tuple):
            raise BorderError(f"{_STEP}; got {_shown(value)}. {_GYMNASIUM}.")
        if not all(hasattr(value, name) for name in Step.__dataclass_fields__):
            raise BorderError(f"{_STEP}; got {_shown(value)}.")
        terminated = _flag(value.terminated, "terminated")
        return Step(
            self._step_text(value.observation),
            _reward(value.reward),
            terminated,
            _flag(value.truncated, "truncated"),
            _flag(value.valid, "valid"),
            self._info(value.info, terminated),
            self._metrics(value.metrics),
        )

    def _step_text(self, value: Any) -> str:
        found = content_text(value)
        if found is None:
            raise BorderError(f"{_STEP} whose `observation` is a text; got {_shown(value)}.")
        return self.text(found, "`Step.observation`")

    def _info(self, value: Any, terminated: bool) -> dict[str, Any]:
        given = {} if value is None else value
        if not isinstance(given, Mapping):
            raise BorderError(f"{_STEP} whose `info` is a dict; got {_shown(value)}.")
        try:
            info = plain(given)
        except RecursionError:
            raise BorderError(f"{_STEP} whose `info` JSON can hold; got {_shown(value)}, nested too deep.") from None
        if terminated and given.get("success") is not None:
            info["success"] = _flag(given["success"], "info['success']")
        if given.get("score") is None:
            info.pop("score", None)
        elif (score := number(given["score"])) is None:
            self.tell(
                "score",
                "`Step.info['score']` must be a finite number; got %s. It is left out, so the return counts as the "
                "score.",
                _shown(given["score"]),
            )
            del info["score"]
        else:
            info["score"] = score
        return info

    def _metrics(self, value: Any) -> dict[str, float]:
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            self.tell(
                "metrics", "`Step.metrics` must be a dict of finite numbers; got %s. It is left out.", _shown(value)
            )
            return {}
        found = {}
        for name, metric in value.items():
            name = self.text(name if isinstance(name, str) else _text(name), "`Step.metrics`")
            if (known := number(metric)) is not None:
                found[name] = known
            elif metric is not None:
                self.tell(
                    ("metrics", name),
                    "`Step.metrics[%r]` must be a finite number; got %s. Such values are left out.",
                    name,
                    _shown(metric),
                )
        return found

    def messages(self, prompt: Any, task: str) -> list[dict[str, Any]]:
        """
        The messages of a text environment's task.

        Args:
            prompt (`Any`):
                The row's `prompt`: messages whose contents are texts, text in parts, or `None`. No prompt at all
                stands for an empty user message, as in TRL's environments.
            task (`str`):
                What to call the row.

        Returns:
            `list[dict]`: new messages, whose contents are texts. The last is the user's: the first observation is put
            at its end.

        Raises:
            `BorderError`: if it is something else.
        """
        if prompt is None:
            return [{"role": "user", "content": ""}]
        prompt = prompt.tolist() if hasattr(prompt, "tolist") else prompt
        if not isinstance(prompt, Sequence) or isinstance(prompt, str) or not prompt:
            raise BorderError(
                f"`prompt` must be a list of messages for an environment's tasks, got {_shown(prompt)} in {task}. "
                'Wrap a text as [{"role": "user", "content": text}].'
            )
        found = [self.message(message, task) for message in prompt]
        if found[-1]["role"] != "user":
            raise BorderError(
                f"The last message of `prompt` must be the user's, got {_shown(prompt[-1])} in {task}: the first "
                'observation is put at its end. Add {"role": "user", "content": ""} behind it.'
            )
        return found

    def message(self, message: Any, task: str) -> dict[str, Any]:
        """A message of a prompt, as `messages` takes it."""
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise BorderError(
                f"A message of `prompt` must be a dict with `role` and `content`, got {_shown(message)} in {task}."
            )
        found = content_text(message.get("content"))
        if found is None:
            raise BorderError(
                f"The content of a message must be a text, or a list of parts that are text "
                f'([{{"type": "text", "text": ...}}]); got {_shown(message.get("content"))} in {task}.'
            )
        return {**plain(message), "content": self.text(found, "A message of `prompt`")}


def content_text(content: Any) -> str | None:
    """The text of a message's content, `""` of `None`; `None` if it is neither a text nor parts that are all text."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    parts = []
    for part in content:
        if isinstance(part, Mapping) and part.get("type", "text") == "text":
            part = part.get("text")
        if not isinstance(part, str):
            return None
        parts.append(part)
    return "".join(parts)


def number(value: Any) -> float | None:
    """A finite number, perhaps NumPy's or PyTorch's, as a `float`; `None` if it is none."""
    try:
        value = value.item() if hasattr(value, "item") else value
        found = float(value) if isinstance(value, SupportsFloat | SupportsIndex) else math.nan
    except Exception:
        return None
    return found if math.isfinite(found) else None


def plain(value: Any) -> Any:
    """
    A value that JSON and checkpoints can hold.

    Args:
        value (`Any`):
            Any value.

    Returns:
        `None`, `bool`, `int`, `float`, `str`, `list` or `dict`: itself, or its nearest kind; else its text. A number
        that is not finite, or that no `float` can hold, becomes `None`.
    """
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, float):  # NumPy's float64 is a float, and no plain one
        if isinstance(value, kind):
            return kind(value) if _is_finite(value) else None
    if isinstance(value, Mapping):
        return {_text(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    with suppress(Exception):  # numbers and arrays of NumPy and PyTorch
        items = value.tolist()
        if type(items) is not type(value):  # NumPy's longdouble stays one
            return plain(items)
    return _text(value)


def not_one_of(name: str, allowed: Iterable[str], got: Any) -> str:
    """What to say of a value that is none of those there are, with the one that was probably meant."""
    allowed = list(allowed)
    close = get_close_matches(str(got), allowed, n=1)
    meant = f" Did you mean {close[0]!r}?" if close else ""
    return f"{name} must be one of {', '.join(allowed)}, got {got!r}.{meant}"


def short(value: Any, length: int = 200) -> str:
    """A value as it is shown in messages, whatever it is."""
    try:
        text = repr(value)
    except Exception as error:  # a number of 5,000 digits too
        text = f"<what cannot be shown: {type(error).__name__}>"
    return plain(text if len(text) <= length else f"{text[:length]}...")


def portable(value: Any) -> Any:
    """A [`Step`] that can be sent to another process, whatever is in its `info`; anything else as it is."""
    if type(value) is not Step or not isinstance(value.info, Mapping):
        return value
    info = plain(value.info)
    for name in ("success", "score"):  # what is read of it: a number that is none must not look like nothing there
        if value.info.get(name) is not None and info[name] is None:
            info[name] = math.nan
    return replace(value, info=info)


def _reward(value: Any) -> float:
    found = number(value)
    if found is None:
        raise BorderError(f"{_STEP} whose `reward` is a finite number; got {_shown(value)}.")
    return found


def _flag(value: Any, name: str) -> bool:
    found = number(value)
    if found not in (0, 1):
        raise BorderError(f"{_STEP} whose `{name}` is a bool; got {_shown(value)}.")
    return bool(found)


def _shown(value: Any) -> str:
    """A value and its kind, short."""
    if value is None:
        return "None"
    kind = f"a tuple of {len(value)}" if isinstance(value, tuple) else type(value).__name__
    return f"{short(value)} ({kind})"


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _text(value: Any) -> str:
    try:
        return plain(str(value))
    except Exception:
        return short(value)
