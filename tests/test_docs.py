"""What the docs say is so."""

import re
import subprocess
import sys
from pathlib import Path

from sdar_trl import Episode, Turn
from sdar_trl.methods import methods_table


DOCS = Path(__file__).parent.parent / "docs"


def test_the_check_of_the_objectives_page_holds():
    [code] = re.findall(r"```python\n(.*?)```", (DOCS / "objective.md").read_text(), re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 5


def test_the_methods_page_holds_the_table_that_is_run():
    assert methods_table() in (DOCS / "methods.md").read_text()


def test_the_context_of_the_skills_page_is_one():
    [code] = re.findall(r"```python\n(.*?)```", (DOCS / "skills.md").read_text(), re.DOTALL)
    assert len(code.splitlines()) <= 10
    names: dict = {}
    exec(code, names)
    episode = Episode({}, [1], [Turn("a door", [1], [2], "go", reward=0.5)])
    assert names["instruction_again"]([episode, Episode({}, [1])]) == [
        "# Keep in mind\n\na door\n\nThis attempt earned 0.50.",
        "",
    ]


def test_links_between_pages_lead_somewhere():
    for page in (*DOCS.glob("*.md"), DOCS.parent / "README.md"):
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
