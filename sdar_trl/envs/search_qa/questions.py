"""What is asked, and what is searched."""

from dataclasses import dataclass


KINDS = ("direct", "attribute", "multi_hop", "comparison")
SOURCES = {
    "nq": "direct",
    "triviaqa": "direct",
    "popqa": "attribute",
    "hotpotqa": "multi_hop",
    "2wikimultihopqa": "multi_hop",
    "musique": "multi_hop",
    "bamboogle": "multi_hop",
}
"""The published sources, and which kind their questions are of."""


@dataclass(frozen=True)
class Document:
    """
    What a search finds.

    Args:
        title (`str`):
            What it is about.
        text (`str`):
            What it says.
    """

    title: str
    text: str

    @property
    def contents(self) -> str:
        """Title and text, as the corpus files have them."""
        return f"{self.title}\n{self.text}"

    @classmethod
    def of(cls, contents: str) -> "Document":
        """The document of `contents`: title, newline, text."""
        title, _, text = contents.partition("\n")
        return cls(title.strip().strip('"'), text.strip())


@dataclass(frozen=True)
class Question:
    """
    A question and its answers.

    Args:
        text (`str`):
            The question.
        answers (`tuple[str, ...]`):
            What is right: one answer in several forms.
        source (`str`):
            Where it is from.
        kind (`str`):
            Its type: of the embedded questions one of `KINDS`, of the others their source or `"comparison"`.
        proof (`tuple[str, ...]`, *optional*):
            Titles of the documents that prove the answer, where they are known.
    """

    text: str
    answers: tuple[str, ...]
    source: str
    kind: str
    proof: tuple[str, ...] = ()
