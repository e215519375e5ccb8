"""Episodes as one page to look at: in a browser, from disk, with no network.

Nothing that a model or an environment wrote can act in the page. Its data is Base64 of compressed JSON, or JSON
without `<`, so no text ends a tag; the page makes text nodes of it alone; and by its own policy it runs the one script
whose hash it names, and loads nothing.
"""

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any


FOLDER = Path(__file__).parent

EPISODE_FIELDS = ("prompt", "feedback", "info", "error", "skills", "student_context")
TURN_FIELDS = (
    *("observation", "response", "reward", "valid", "metrics", "generation_seconds", "environment_seconds"),
    *("tokens", "response_ids", "logprobs", "gaps", "gates", "entropies", "losses"),
)
"""What the page shows of an episode and a turn, besides what the list has."""


def episode_files(run: Path) -> list[Path]:
    """
    The files of episodes of a run.

    Args:
        run (`Path`):
            A run's output folder, or a file of episodes or of records as JSON lines.

    Returns:
        `list[Path]`: the files, in the order of their names.

    Raises:
        `ValueError`: if there are none.
    """
    if run.is_file():
        return [run]
    found = sorted(run.glob("episodes/*.jsonl"))
    if not found:
        panels = ", ".join(str(path) for path in sorted(run.glob("panel_*.jsonl")))
        raise ValueError(
            f"No episodes in {run}: expected its folder `episodes`, which a run writes with "
            "`save_episodes_every=N`, or a file of episodes as JSON lines."
            + (f" How a panel's episodes ended, without what was said, is in {panels}." if panels else "")
        )
    return found


def read_episodes(run: Path) -> Iterator[dict[str, Any]]:
    """
    The episodes of a run as they were written, each with its `step`: the name of its file where it has none. Of a file
    of records (`panel_after.jsonl`), what is known of each: how it ended, and not what was said.

    Args:
        run (`Path`):
            As in [`episode_files`].

    Raises:
        `ValueError`: if a line is no episode.
    """
    for path in episode_files(run):
        with path.open(encoding="utf-8") as file:
            recorded = False
            for number, line in enumerate(file, start=1):
                try:
                    episode = json.loads(line)
                    if number == 1 and "about" in episode:
                        recorded = True
                        continue
                    if recorded:
                        episode = of_record(episode)
                    episode["turns"], episode["task"]
                except (ValueError, TypeError, KeyError) as error:
                    raise ValueError(
                        f"{path}, line {number}: expected an episode as JSON, got {line[:80]!r}."
                    ) from error
                yield {"step": path.stem, **episode}


def of_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record of an evaluation in the shape of an episode, whose turns are only counted."""
    shown = ("score", "valid_actions", "attempt", "seed")
    return {
        "task": {"task_id": record["task_id"], "task_type": record["task_type"]},
        "turns": [],
        "turn_count": record["turns"],
        "stop_reason": record["stop_reason"],
        "success": record["success"],
        "return": record["return"],
        "info": {**{name: record[name] for name in shown}, **record["metrics"]},
        "feedback": "A record of an evaluation: what was said is not kept.",
    }


def run_names(runs: Sequence[Path]) -> list[str]:
    """The shortest ends of their paths that tell runs apart."""
    paths = [run.resolve() for run in runs]
    for length in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(names)) == len(set(paths)):
            return names
    return names


def packed(value: Any) -> str:
    """A value as JSON, compressed, as Base64."""
    return base64.b64encode(gzip.compress(json.dumps(value).encode(), 3, mtime=0)).decode()


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of those that are known, if there are any."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def summary(episode: Mapping[str, Any], run: int) -> list[Any]:
    """What the list shows of an episode, and filters by; page.js names the places."""
    task, turns = episode["task"], episode["turns"]
    gaps = [gap for turn in turns for gap in turn.get("gaps") or []]
    prompt = episode.get("prompt") or [{}]
    return [
        run,
        episode["step"],
        str(task.get("task_id") or ""),
        str(task.get("task_type") or ""),
        bool(episode.get("success")),
        episode.get("stop_reason") or "",
        episode.get("return"),
        episode.get("turn_count", len(turns)),
        mean(gaps),
        mean(abs(gap) for gap in gaps if gap is not None),
        str(prompt[-1].get("content", ""))[:200],
    ]


def page(runs: Sequence[Path]) -> tuple[str, int]:
    """
    The page of some runs' episodes.

    Args:
        runs (`list[Path]`):
            Their output folders, or files of episodes.

    Returns:
        `tuple[str, int]`: the page, and how many episodes it has.

    Raises:
        `ValueError`: if a run has no episodes, or a file holds what is none.
    """
    names = run_names(runs)
    summaries: list[list[Any]] = []
    contexts: dict[str, int] = {}  # what the teacher read, once each
    data: list[str] = []

    def add(name: str, value: Any) -> None:
        data.append(f'<script type="text/plain" id="{name}">{packed(value)}</script>')

    for index, run in enumerate(runs):
        for episode in read_episodes(run):
            context = episode.get("teacher_context") or ""
            if context not in contexts:
                contexts[context] = len(contexts)
                add(f"c{contexts[context]}", context)
            shown = {name: episode.get(name) for name in EPISODE_FIELDS}
            shown["task"] = {name: value for name, value in episode["task"].items() if name != "prompt"}
            shown["turns"] = [{name: turn.get(name) for name in TURN_FIELDS} for turn in episode["turns"]]
            shown["context"] = contexts[context]
            add(f"e{len(summaries)}", shown)
            summaries.append(summary(episode, index))
    listing = json.dumps({"runs": names, "episodes": summaries}).replace("<", "\\u003c")

    style, script = (FOLDER / "page.css").read_text(encoding="utf-8"), (FOLDER / "page.js").read_text(encoding="utf-8")
    parts = {
        "title": escape(", ".join(names)),
        "style-hash": source_hash(style),
        "script-hash": source_hash(script),
        "style": style,
        "listing": listing,
        "script": script,
        "data": "\n".join(data),
    }
    template = (FOLDER / "page.html").read_text(encoding="utf-8")
    # in one pass: what fills a place is not looked into for others
    return re.sub(r"{{([\w-]+)}}", lambda place: parts[place[1]], template), len(summaries)


def source_hash(text: str) -> str:
    """How a content security policy names an inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
