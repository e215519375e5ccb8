"""What the docs say is so."""

import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

from sdar_trl import Episode, Record, StopReason, Turn
from sdar_trl.methods import methods_table
from sdar_trl.metrics import PARTS


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


def documented(heading):
    """First cells of the table under a heading of the page on episodes."""
    section = (DOCS / "episodes.md").read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)


def test_the_episodes_page_names_every_field():
    def names(kind):
        return [field.name for field in fields(kind)]

    assert documented("An episode") == [*names(Episode), "return", "success"] == list(Episode({}, []).to_dict())
    assert documented("A turn") == names(Turn)
    written = ["return" if name == "episode_return" else name for name in names(Record)]
    assert documented("Records") == written
    assert set(Record.of(Episode({}, []), 0).to_dict()) == set(written)
    page = (DOCS / "episodes.md").read_text()
    assert all(f"`{reason.value}`" in page for reason in StopReason)


def test_the_code_of_the_episodes_page_writes_and_reads_its_example(tmp_path, monkeypatch, capsys):
    page = (DOCS / "episodes.md").read_text()
    [example] = map(json.loads, re.findall(r"```json\n(.*?)```", page, re.DOTALL))
    episode = Episode.from_dict(example)
    assert episode.to_dict() == example
    assert all(set(turn) == {field.name for field in fields(Turn)} for turn in example["turns"])
    monkeypatch.chdir(tmp_path)
    codes = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names = {"trainer": SimpleNamespace(episodes=[episode, Episode({}, [])])}
    exec("\n".join(codes), names)
    assert names["episodes"] == names["trainer"].episodes
    assert capsys.readouterr().out == "turns 0 to 2: 3 tokens of prompt, 9 sampled\n"


def test_links_between_pages_lead_somewhere():
    for page in (*DOCS.glob("*.md"), DOCS.parent / "README.md"):
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def documented_metrics():
    """Names of the page on metrics, as patterns: what is in angle brackets may be anything."""
    cells = re.findall(r"^\| (`.*?`) \|", (DOCS / "metrics.md").read_text(), re.MULTILINE)
    names = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    assert len(names) == len(set(names))
    return {name: re.compile(re.sub(r"<.*?>", ".+", name)) for name in names}


def test_the_metrics_page_names_all_that_is_logged_and_nothing_else(make_trainer, make_config):
    config = make_config(
        max_steps=1, beta=0.01, sdar_coef=0.1, retriever="ucb", log_grad_share=True, step_coef=1.0, contrast_coef=0.5
    )
    trainer = make_trainer(config)
    trainer.train()
    patterns, logged = documented_metrics(), set(trainer.state.log_history[0]) - {"step", "epoch"}
    del patterns["env/<name>"]  # of which this environment reports none
    assert {name for name in logged if not any(p.fullmatch(name) for p in patterns.values())} == set()
    elsewhere = ("sampling/", "tools/", "panel/")  # vLLM, tools, PanelCallback
    assert {name for name, p in patterns.items() if not any(map(p.fullmatch, logged))} - set(PARTS) == {
        name for name in patterns if name.startswith(elsewhere)
    }
    page = (DOCS / "metrics.md").read_text()
    assert all(f"`{name}`" in page for name in set(trainer.state.log_history[-1]) - {"step"})
