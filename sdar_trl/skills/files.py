"""Reading a folder of skills: texts, front matter, and what would be left out.

Nothing is left out without a word, and no path leaves the folder.
"""

import logging
import os
import re
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any, NoReturn

import yaml


logger = logging.getLogger(__name__)

_LOOKS_LIKE_A_SKILL = re.compile(r"skills?\.(md|mdx|markdown|txt|md\.txt)", re.IGNORECASE)
_NULL = "tag:yaml.org,2002:null"


class FrontMatter(yaml.BaseLoader):
    """
    YAML whose scalars are texts, as they are written: `keywords: [no, 1.50]` are the words "no" and "1.50". Lines end
    at a line feed only, as in YAML 1.2; PyYAML breaks them at three more characters, for which others stand in.
    """

    _breaks, _stand_ins = "\x85\u2028\u2029", "\U0008fffe\U0008ffff\U0009fffe"

    def __init__(self, text: str):
        super().__init__(text.translate(str.maketrans(self._breaks, self._stand_ins)))

    def construct_scalar(self, node: Any) -> Any:
        return super().construct_scalar(node).translate(str.maketrans(self._stand_ins, self._breaks))

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):  # the last one would win without a word
            raise yaml.constructor.ConstructorError(None, None, "a key stands twice in a mapping", node.start_mark)
        return mapping


FrontMatter.add_implicit_resolver(_NULL, re.compile(r"(~|null|Null|NULL|)$"), ["~", "n", "N", ""])
FrontMatter.add_constructor(_NULL, lambda loader, node: None)


def read_text(path: Path) -> str:
    """
    A file's text. Lines end at a line feed, whatever they end at in the file; a byte order mark is left out.

    Raises:
        `ValueError`: if it cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}.") from error
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}:{line}: not UTF-8: {error.reason}. Save the file as UTF-8.") from error


def split_front_matter(path: Path) -> tuple[dict[Any, Any], str, list[str]]:
    """
    Split a text with YAML front matter between two lines that are `---`.

    Args:
        path (`Path`):
            The file.

    Returns:
        `tuple`: the front matter, the text after it, and the file's lines to the end of the front matter.

    Raises:
        `ValueError`: if there is no front matter, or it is not a mapping; the message names the file and the line.
    """
    lines = read_text(path).split("\n")
    marks = [number for number, line in enumerate(lines) if line.rstrip() == "---"]
    if len(marks) < 2 or any(line.strip() for line in lines[: marks[0]]):
        raise ValueError(f"{path}:1: expected YAML front matter between two lines that are `---`, at the top.")
    first, last = marks[0] + 1, marks[1]
    front = "\n".join([*lines[first:last], ""])
    try:
        meta = FrontMatter(front).get_single_data()
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line if mark is not None else front[: getattr(error, "position", 0)].count("\n")
        raise ValueError(f"{path}:{first + line + 1}: the front matter is not YAML: {error}") from error
    if not isinstance(meta, dict):
        raise ValueError(f"{path}:{first + 1}: the front matter must be a mapping, got {meta!r}.")
    body = "\n".join(lines[last + 1 :]).strip()
    if not body:
        raise ValueError(f"{path}:{len(lines) - (not lines[-1])}: the skill has no text after its front matter.")
    return meta, body, lines[:last]


def skill_files(folder: Path) -> list[Path]:
    """
    Every `*/SKILL.md` of a folder, in order.

    Args:
        folder (`Path`):
            The folder.

    Returns:
        `list[Path]`: the files.

    Raises:
        `ValueError`: if one lies outside the folder, or another file looks like a skill and would not be read.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; expected one with skills.")
    found = _walk(folder)
    files = sorted(path for path in found if path.name == "SKILL.md" and path.parent.parent == folder)
    for file in files:
        check_inside(file, folder)
    refuse_unread(
        folder,
        set(found) - set(files),
        "Skills are read from `<folder>/<skill's name>/SKILL.md`, spelled so and no deeper: move or rename these, or "
        "take them out",
    )
    skills = {file.parent for file in files}
    warn_of_unread(folder, (path for path in found if skills.isdisjoint(path.parents)))
    return files


def others(folder: Path, read: set[Path]) -> list[Path]:
    """The files of a folder besides those that were read, which are given by their real paths."""
    return [path for path in _walk(folder) if real(path) not in read]


def refuse_unread(folder: Path, files: Iterable[Path], rule: str) -> None:
    """
    Name the files that look like skills and would not be read.

    Raises:
        `ValueError`: if there are any.
    """
    named = ", ".join(sorted(str(path.relative_to(folder)) for path in files if _looks_like_a_skill(path)))
    if named:
        raise ValueError(f"{folder}: these look like skills, but would not be read: {named}. {rule}.")


def warn_of_unread(folder: Path, files: Iterable[Path]) -> None:
    """Name the texts that are in no skill. A folder's own README is expected, and so is what is hidden."""
    names = sorted(str(path.relative_to(folder)) for path in files)
    texts = [name for name in names if name.endswith(".md") and name != "README.md" and not name.startswith(".")]
    if texts:
        logger.warning("%s: these texts are in no skill and are not read: %s.", folder, ", ".join(texts))


def check_inside(path: Path, folder: Path) -> None:
    """
    Check that a path does not leave a folder, by links or otherwise.

    Raises:
        `ValueError`: if it does.
    """
    if not real(path).is_relative_to(real(folder)):
        raise ValueError(f"{path}: lies outside the folder, at {real(path)}. Copy it into the folder.")


def real(path: Path) -> Path:
    """The path without links. Unlike `Path.resolve`, it takes links in a circle."""
    return Path(os.path.realpath(path))


def _walk(folder: Path) -> list[Path]:
    """The files under a folder, those right in a linked folder too, and links that lead nowhere."""

    def fail(error: OSError) -> NoReturn:
        raise ValueError(f"{error.filename}: cannot be read: {error.strerror}.") from error

    found = []
    for place, folders, names in os.walk(folder, onerror=fail):
        found += [Path(place, name) for name in names]
        try:
            found += [path for name in folders if (link := Path(place, name)).is_symlink() for path in link.iterdir()]
        except OSError as error:
            fail(error)
    return found


def _looks_like_a_skill(path: Path) -> bool:
    leads_nowhere = not path.exists() and not path.name.startswith(".")  # editors lock files by such links
    return leads_nowhere or _LOOKS_LIKE_A_SKILL.fullmatch(path.name) is not None
