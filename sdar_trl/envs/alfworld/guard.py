"""Importing the packages, without what they leave behind in the process."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import gettempdir


@contextmanager
def imported() -> Iterator[None]:
    """Inside, `alfworld` is imported without making a folder for its data, and without setting `ALFWORLD_DATA`."""
    before = os.environ.get("ALFWORLD_DATA")
    os.environ["ALFWORLD_DATA"] = before or gettempdir()
    try:
        yield
    finally:
        if before is None:
            del os.environ["ALFWORLD_DATA"]
