"""Environments played by hand."""

from collections.abc import Iterator


def typed_actions() -> Iterator[str]:
    """Responses with the actions that are typed, until q or the end of the input."""
    while True:
        try:
            line = input("\n> ").strip()
        except EOFError:
            return
        if line == "q":
            return
        yield f"<action>{line}</action>"
