"""Skill files and the library that holds them."""

import json
import logging
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .files import (
    check_inside,
    others,
    read_text,
    real,
    refuse_unread,
    skill_files,
    split_front_matter,
    warn_of_unread,
)


logger = logging.getLogger(__name__)

BUNDLED = Path(__file__).parent / "bundled"
MAPPING = "skill_mapping.json"
_FIELDS = {"name", "description", "task_types", "keywords", "always"}
_OTHER_FIELDS = {"license", "compatibility", "metadata", "allowed-tools"}  # of the Agent Skills convention
_IN_NO_PATH = re.compile("[\0\ud800-\udfff]")  # half of a character too, as JSON may spell it
_TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


@dataclass(frozen=True)
class Skill:
    """
    One skill, as read from a `SKILL.md` file.

    Args:
        name (`str`):
            Unique in its library; the name of its folder.
        description (`str`):
            One line about what it is for.
        body (`str`):
            The advice itself, Markdown.
        keywords (`tuple[str, ...]`, *optional*):
            Words whose occurrence in a task's text selects the skill.
        task_types (`tuple[str, ...]`, *optional*):
            Task types the skill is for.
        always (`bool`, *optional*, defaults to `False`):
            Whether it goes with every task.
    """

    name: str
    description: str
    body: str
    keywords: tuple[str, ...] = ()
    task_types: tuple[str, ...] = ()
    always: bool = False

    @classmethod
    def from_file(cls, path: str | Path) -> "Skill":
        """
        Read a `SKILL.md`: YAML front matter between two lines that are `---`, then the body (the Agent Skills
        convention). The values of the front matter are texts, as they are written.

        Args:
            path (`str` or `Path`):
                The file.

        Returns:
            [`Skill`]: the skill.

        Raises:
            `ValueError`: if the file is malformed; the message names the file, the line and what it should hold.
        """
        path = Path(path)
        meta, body, lines = split_front_matter(path)

        def fail(key: Any, message: str) -> ValueError:
            line = next((number for number, line in enumerate(lines, 1) if line.startswith(f"{key}:")), 1)
            return ValueError(f"{path}:{line}: {message}")

        for key in meta:
            if key not in _FIELDS | _OTHER_FIELDS:
                raise fail(key, f"unknown front matter {key!r}; known are {sorted(_FIELDS | _OTHER_FIELDS)}.")
        for key in ("name", "description"):
            if not isinstance(meta.get(key), str) or not meta[key].strip():
                raise fail(key, f"the front matter needs a `{key}`, a text; got {meta.get(key)!r}.")
        folder = path.absolute().parent.name
        if unicodedata.normalize("NFC", meta["name"]) != unicodedata.normalize("NFC", folder):
            raise fail("name", f"`name` must be its folder's, {folder!r}; got {meta['name']!r}.")
        always = str(meta.get("always") or "false").lower()
        if always not in _TRUTH:
            raise fail("always", f"`always` must be true or false, got {meta['always']!r}.")
        for key in ("keywords", "task_types"):
            words = meta.get(key) or []
            if not isinstance(words, list) or not all(isinstance(word, str) and word.strip() for word in words):
                raise fail(key, f"`{key}` must be a list of texts, got {words!r}.")
        return cls(
            name=meta["name"],
            description=meta["description"],
            body=body,
            keywords=tuple(meta.get("keywords") or ()),
            task_types=tuple(meta.get("task_types") or ()),
            always=_TRUTH[always],
        )


class SkillLibrary:
    """
    A set of skills.

    Args:
        skills (`list[Skill]`):
            The skills; names are unique.
        substrings (`bool`, *optional*, defaults to `False`):
            How skills are matched to a task: `False` compares task types as a whole and finds keywords as whole
            words, `True` finds either anywhere, as the official code does with its own folders.

    Raises:
        `ValueError`: if two skills share a name, or there is none.

    Example:

    ```python
    >>> from sdar_trl import SkillLibrary

    >>> [skill.name for skill in SkillLibrary.bundled("webshop")]
    ['beauty', 'electronics', 'fashion', 'garden', 'general', 'grocery']
    ```
    """

    def __init__(self, skills: Sequence[Skill], *, substrings: bool = False):
        names = [skill.name for skill in skills]
        duplicates = sorted({name for name in names if names.count(name) > 1})
        if duplicates:
            raise ValueError(f"Skill names must be unique, got {duplicates} more than once.")
        if not skills:
            raise ValueError("A skill library needs at least one skill, got none.")
        self.skills = tuple(skills)
        self.substrings = substrings

    def __iter__(self) -> Iterator[Skill]:
        return iter(self.skills)

    def __len__(self) -> int:
        return len(self.skills)

    @classmethod
    def from_folder(cls, folder: str | Path, task_types: Iterable[str] | None = None) -> "SkillLibrary":
        """
        Read a folder of skills: every `*/SKILL.md` in the order of their names, or, where it holds a
        `skill_mapping.json`, the layout of the official repository.

        Args:
            folder (`str` or `Path`):
                The folder.
            task_types (`list[str]`, *optional*):
                The task types there are. If given, a skill for any other is an error.

        Returns:
            [`SkillLibrary`]: the library.

        Raises:
            `ValueError`: if the folder holds no skill, one is malformed or lies outside the folder, or files look like
                skills and would not be read: a `skill.md`, a `SKILL.md` further down. The message names them all.
        """
        folder = Path(folder)
        if os.path.lexists(folder / MAPPING):
            library = _from_mapping(folder)
        else:
            files = skill_files(folder)
            if not files:
                raise ValueError(
                    f"{folder}: no skills found; expected one folder a skill, each with a SKILL.md, or a {MAPPING}."
                )
            library = cls([Skill.from_file(file) for file in files])
        if task_types is not None:
            known = sorted(task_types)
            for skill in library:
                unknown = sorted(set(skill.task_types) - set(known))
                if unknown:
                    raise ValueError(
                        f"{folder}: skill {skill.name!r} is for unknown task types {unknown}; "
                        f"expected some of {known}."
                    )
        return library

    @classmethod
    def bundled(cls, environment: str) -> "SkillLibrary":
        """
        The skills that come with the package for one of its environments.

        Args:
            environment (`str`):
                The environment's name: `"webshop"`, `"alfworld"` or `"search_qa"`.

        Returns:
            [`SkillLibrary`]: the library.

        Raises:
            `ValueError`: if the package has no skills for it.
        """
        known = sorted(path.name for path in BUNDLED.iterdir() if path.is_dir())
        if environment not in known:
            raise ValueError(f"No bundled skills for {environment!r}; there are some for {', '.join(known)}.")
        return cls.from_folder(BUNDLED / environment)


def _from_mapping(folder: Path) -> SkillLibrary:
    """
    The official repository's layout: `skill_files` from a skill's name to its Markdown file, `task_to_skill` from a
    task type to a skill, `task_keywords` (optional) from a task type to words of which any will do. The skill named
    `general_skills` goes with every task.
    """
    path = folder / MAPPING
    check_inside(path, folder)
    text = read_text(path)

    def fail(word: Any, message: str) -> ValueError:
        found = (number for number, line in enumerate(text.split("\n"), 1) if f'"{word}"' in line)
        return ValueError(f"{path}:{next(found, 1)}: {message}")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        for key in keys:
            if keys.count(key) > 1:
                raise fail(key, f"{key!r} stands twice in an object, and only the last would be read.")
        return dict(pairs)

    try:
        mapping = json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not JSON: {error.msg}.") from error
    except RecursionError as error:
        raise ValueError(f"{path}:1: not JSON that can be read: nested too deeply.") from error
    if not isinstance(mapping, dict):
        raise ValueError(f"{path}:1: expected an object, got {mapping!r}.")
    for key, optional in (("skill_files", False), ("task_to_skill", False), ("task_keywords", True)):
        if not isinstance(mapping.get(key, {} if optional else None), dict):
            raise fail(key, f"expected an object `{key}`, got {mapping.get(key)!r}.")
    files: dict[str, Any] = mapping["skill_files"]
    task_types: dict[str, list[str]] = {name: [] for name in files}
    for task_type, name in mapping["task_to_skill"].items():
        if not isinstance(name, str) or name not in files:
            raise fail(task_type, f"task type {task_type!r} wants skill {name!r}, which `skill_files` does not list.")
        task_types[name].append(task_type)
    keywords: dict[str, list[str]] = {name: [] for name in files}
    for task_type, words in mapping.get("task_keywords", {}).items():
        if task_type not in mapping["task_to_skill"]:
            raise fail(task_type, f"keywords for {task_type!r}, a task type that `task_to_skill` does not list.")
        if not isinstance(words, list) or not all(isinstance(word, str) and word.strip() for word in words):
            raise fail(task_type, f"the keywords of {task_type!r} must be a list of texts, got {words!r}.")
        keywords[mapping["task_to_skill"][task_type]] += words
    skills, read = [], {real(path)}
    for name, file in files.items():
        if not isinstance(file, str) or not file or _IN_NO_PATH.search(file):
            raise fail(name, f"the file of skill {name!r} must be a path in the folder, got {file!r}.")
        target = real(folder / file)
        if not target.is_relative_to(real(folder)):
            raise fail(name, f"the file of skill {name!r} lies outside the folder: {file!r}.")
        if not os.path.isfile(target):
            raise fail(name, f"the file of skill {name!r} is missing: {file!r}.")
        body = read_text(target).strip()
        if not body:
            raise ValueError(f"{target}:1: the skill has no text.")
        read.add(target)
        skills.append(
            Skill(name, "", body, tuple(keywords[name]), tuple(task_types[name]), always=name == "general_skills")
        )
    unread = others(folder, read)
    rule = f"Where there is a {MAPPING}, only its `skill_files` are read: list these there, or take them out"
    refuse_unread(folder, unread, rule)
    warn_of_unread(folder, unread)
    unknown = sorted(mapping.keys() - {"skill_files", "task_to_skill", "task_keywords"})
    if unknown:
        logger.warning("%s: not read: %s.", path, ", ".join(unknown))
    return SkillLibrary(skills, substrings=True)


def format_skills(skills: Sequence[Skill]) -> str:
    """
    The text of the skills, as the model reads it.

    Args:
        skills (`list[Skill]`):
            The skills, in order.

    Returns:
        `str`: a heading and each skill's body; `""` for no skills.
    """
    if not skills:
        return ""
    return "\n\n".join(["# Skills", *(f"## {skill.name}\n{skill.body}" for skill in skills)])
