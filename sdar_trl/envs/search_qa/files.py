"""Reading question files of Search-R1 and FlashRAG, with errors that name what is wrong in them."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .questions import SOURCES, Question


FORMAT = (
    "`question` (a text), `golden_answers` (a list of texts) and, if the file holds several sources, `data_source`"
)
SUFFIXES = (".parquet", ".jsonl")
_NAMES = {"validation": ("validation", "dev", "valid"), "train": ("train",), "test": ("test",)}
_SPELLINGS = {"2wiki": "2wikimultihopqa", "2wikimqa": "2wikimultihopqa"}


def read_questions(data_dir: Path, split: str) -> list[Question]:
    """
    The questions of a split.

    Args:
        data_dir (`Path`):
            Folder with `train`, `validation` (or `dev`) and `test` as `.parquet` or `.jsonl`; or with folders of
            these, each named after a source, as FlashRAG has them.
        split (`str`):
            `"train"`, `"validation"` or `"test"`.

    Returns:
        `list[Question]`: the questions in the files' order.

    Raises:
        `FileNotFoundError`: if there is no file for the split.
        `ValueError`: if a file is malformed; the message names the file, the row and the field.
    """
    found: list[Question] = []
    for path in _files(data_dir, split):
        source = None if path.parent == data_dir else path.parent.name
        found += [_question(path, number, row, source) for number, row in enumerate(_rows(path), 1)]
    return found


def question_kind(text: str, source: str) -> str:
    """
    Which kind a published question is of, as skills tell kinds apart.

    Args:
        text (`str`):
            The question.
        source (`str`):
            Where it is from.

    Returns:
        `str`: `"comparison"` for "which ... or ...", whatever its source; else the source, which skills name.
    """
    return "comparison" if re.search(r"\bwhich\b.*\bor\b", text.lower(), re.DOTALL) else source


def _files(data_dir: Path, split: str) -> Sequence[Path]:
    names = [f"{name}{suffix}" for name in _NAMES[split] for suffix in SUFFIXES]
    for folders in ([data_dir], sorted(path for path in data_dir.glob("*") if path.is_dir())):
        several = [[path for name in names if (path := folder / name).is_file()] for folder in folders]
        if found := [paths[0] for paths in several if paths]:
            return found
    raise FileNotFoundError(
        f"{data_dir} has none of {', '.join(names)}, nor has a folder in it. They are the question files of Search-R1 "
        "(PeterJinGo/nq_hotpotqa_train) or of FlashRAG (RUC-NLPIR/FlashRAG_datasets) on the Hugging Face Hub."
    )


def _rows(path: Path) -> Iterator[Any]:
    if path.suffix == ".parquet":
        from pyarrow import parquet

        try:
            file = parquet.ParquetFile(path)
        except ValueError as error:
            raise ValueError(f"{path}: not a Parquet file ({error}).") from None
        for batch in file.iter_batches():
            yield from batch.to_pylist()
        return
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}: row {number}: not JSON ({error}); got {line[:60]!r}.") from None


def _question(path: Path, number: int, row: Any, source: str | None) -> Question:
    def fail(field: str, expected: str, got: Any) -> ValueError:
        return ValueError(
            f"{path}: row {number}, field `{field}`: expected {expected}, got {repr(got)[:80]}. A row has {FORMAT}."
        )

    if not isinstance(row, dict):
        raise ValueError(f"{path}: row {number}: expected an object, got {repr(row)[:80]}. A row has {FORMAT}.")
    text, answers = row.get("question"), row.get("golden_answers")
    if not isinstance(text, str) or not text.strip():
        raise fail("question", "a text", text)
    if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
        raise fail("golden_answers", "a list of texts, not empty", answers)
    source = row.get("data_source", source)
    if not isinstance(source, str):
        raise fail("data_source", f"a text, such as {', '.join(SOURCES)}", source)
    source = _SPELLINGS.get(source.lower(), source.lower())
    return Question(text.strip(), tuple(answers), source, question_kind(text, source))
