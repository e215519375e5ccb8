"""Made-up episodes, and the browser that the page is looked at with."""

import json
import sys
from pathlib import Path

import pytest


sys.path.insert(0, str(Path(__file__).parent))

from browser import CHROMIUM, Browser


if CHROMIUM is None:
    collect_ignore = ["test_page.py"]


def pytest_report_header():
    return f"browser of the viewer's tests: {CHROMIUM or 'none, so tests/view/test_page.py is left out'}"


def made_episode(number, step=1, turns=2, words=("<action>", "go", " north", "</action>")):
    """An episode as it is on disk; its numbers follow from its own."""
    sign = 1 if number % 2 else -1
    turn = {
        "observation": f"room {number}",
        "new_ids": [1],
        "response_ids": list(range(len(words))),
        "response": "".join(words),
        "messages": None,
        "reward": 0.0,
        "valid": True,
        "metrics": {},
        "generation_seconds": 0.5,
        "environment_seconds": 0.0,
        "logprobs": [-0.5 - i / 10 for i in range(len(words))],
        "gaps": [0.0, 0.25 * sign, -0.75 * sign, 0.01][: len(words)],
        "gates": [0.5, 0.77734 if sign > 0 else 0.22266, 0.02298 if sign > 0 else 0.97702, 0.5125][: len(words)],
        "entropies": [0.125, 1.5, 2.25, 0.01][: len(words)],
        "losses": [0.0, 0.19434 * sign, -0.0172, 0.0051][: len(words)],
        "tokens": list(words),
    }
    won = number % 3 == 0
    return {
        "step": step,
        "task": {
            "prompt": [],
            "task_id": f"walk/{number % 10}",
            "task_type": ["hills", "caves"][number % 2],
            "size": 3,
        },
        "prompt": [{"role": "system", "content": "You walk."}, {"role": "user", "content": f"Find room {number}."}],
        "turns": [{**turn, "observation": f"room {number}.{i}"} for i in range(turns)],
        "stop_reason": "won" if won else ["lost", "max_turns"][number % 2],
        "info": {"score": 0.5},
        "feedback": "the end",
        "skills": ["walking"],
        "student_context": "",
        "teacher_context": "# Skills\n\nWalk on.",
        "error": "",
        "return": float(won),
        "success": won,
    }


@pytest.fixture
def write_run(tmp_path):
    """Writes the episodes of a run, by step, and says where."""

    def write(name="run", steps=None):
        steps = {1: [made_episode(number) for number in range(12)]} if steps is None else steps
        folder = tmp_path / name / "episodes"
        folder.mkdir(parents=True)
        for step, episodes in steps.items():
            lines = (json.dumps({**episode, "step": step}) + "\n" for episode in episodes)
            (folder / f"step_{step:06}.jsonl").write_text("".join(lines))
        return tmp_path / name

    return write


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def look(browser, tmp_path):
    """Opens the page of some runs in the browser, as wide as a desk's, with nothing asked for or gone wrong before."""
    from sdar_trl.view import page

    def look(*runs, wait=True):
        file = tmp_path / "page.html"
        file.write_bytes(page(runs)[0].encode())
        browser.open("about:blank")
        browser.size(1300, 900)
        browser.prefer("light")
        browser.requests.clear()
        browser.errors.clear()
        seconds = browser.open(file.as_uri())
        if wait:
            browser.wait("document.querySelectorAll('.row').length > 0")
        return seconds

    return look
