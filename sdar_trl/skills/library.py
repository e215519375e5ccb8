"""Skill files and the library that holds them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


BUNDLED = Path(__file__).parent / "bundled"
_FIELDS = {"name", "description", "task_types", "keywords", "always", "license", "compatibility", "metadata"}


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
        Read a `SKILL.md`: YAML front matter between `---` lines, then the body (the Agent Skills convention).

        Args:
            path (`str` or `Path`):
                The file.

        Returns:
            [`Skill`]: the skill.

        Raises:
            `ValueError`: if the file is malformed; the message names the file and what it should hold.
        """
        path = Path(path)
        text = path.read_text(encoding="utf-8")
        parts = text.split("---\n", 2)
        if len(parts) != 3 or parts[0].strip():
            raise ValueError(f"{path}: expected YAML front matter between two `---` lines at the top.")
        try:
            meta = yaml.safe_load(parts[1])
        except yaml.YAMLError as error:
            raise ValueError(f"{path}: the front matter is not YAML: {error}") from error
        if not isinstance(meta, dict):
            raise ValueError(f"{path}: the front matter must be a mapping, got {meta!r}.")
        unknown = sorted(set(meta) - _FIELDS)
        if unknown:
            raise ValueError(f"{path}: unknown front matter {unknown}; known are {sorted(_FIELDS)}.")
        for key in ("name", "description"):
            if not isinstance(meta.get(key), str) or not meta[key].strip():
                raise ValueError(f"{path}: the front matter needs a `{key}`, a text; got {meta.get(key)!r}.")
        if meta["name"] != path.parent.name:
            raise ValueError(f"{path}: `name` must be its folder's, {path.parent.name!r}; got {meta['name']!r}.")
        if not isinstance(meta.get("always", False), bool):
            raise ValueError(f"{path}: `always` must be true or false, got {meta['always']!r}.")
        if not parts[2].strip():
            raise ValueError(f"{path}: the skill has no text after its front matter.")
        return cls(
            name=meta["name"],
            description=meta["description"],
            body=parts[2].strip(),
            keywords=_words(meta, "keywords", path),
            task_types=_words(meta, "task_types", path),
            always=meta.get("always", False),
        )


def _words(meta: dict[str, Any], key: str, path: Path) -> tuple[str, ...]:
    words = meta.get(key) or []
    if not isinstance(words, list) or not all(isinstance(word, str) and word.strip() for word in words):
        raise ValueError(f"{path}: `{key}` must be a list of texts, got {words!r}.")
    return tuple(words)


class SkillLibrary:
    """
    A set of skills.

    Args:
        skills (`list[Skill]`):
            The skills; names are unique.

    Raises:
        `ValueError`: if two skills share a name, or there is none.

    Example:

    ```python
    >>> from sdar_trl import SkillLibrary

    >>> [skill.name for skill in SkillLibrary.bundled("webshop")]
    ['beauty', 'electronics', 'fashion', 'garden', 'general', 'grocery']
    ```
    """

    def __init__(self, skills: Sequence[Skill]):
        names = [skill.name for skill in skills]
        duplicates = sorted({name for name in names if names.count(name) > 1})
        if duplicates:
            raise ValueError(f"Skill names must be unique, got {duplicates} more than once.")
        if not skills:
            raise ValueError("A skill library needs at least one skill, got none.")
        self.skills = tuple(skills)

    def __iter__(self) -> Iterator[Skill]:
        return iter(self.skills)

    def __len__(self) -> int:
        return len(self.skills)

    @classmethod
    def from_folder(cls, folder: str | Path) -> "SkillLibrary":
        """
        Read every `*/SKILL.md` of a folder, in the order of their names.

        Args:
            folder (`str` or `Path`):
                The folder.

        Returns:
            [`SkillLibrary`]: the library.

        Raises:
            `ValueError`: if the folder holds no skill, or one is malformed.
        """
        files = sorted(Path(folder).glob("*/SKILL.md"))
        if not files:
            raise ValueError(f"{folder}: no skills found; expected one folder a skill, each with a SKILL.md.")
        return cls([Skill.from_file(file) for file in files])

    @classmethod
    def bundled(cls, environment: str) -> "SkillLibrary":
        """
        The skills that come with the package for one of its environments.

        Args:
            environment (`str`):
                The environment's name, e.g. `"webshop"`.

        Returns:
            [`SkillLibrary`]: the library.

        Raises:
            `ValueError`: if the package has no skills for it.
        """
        known = sorted(path.name for path in BUNDLED.iterdir() if path.is_dir())
        if environment not in known:
            raise ValueError(f"No bundled skills for {environment!r}; there are some for {', '.join(known)}.")
        return cls.from_folder(BUNDLED / environment)


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
