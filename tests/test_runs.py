"""A run says what it was."""

import json
import subprocess
from importlib.metadata import version
from pathlib import Path

from sdar_trl.runs import note_run, provenance, read_run


ROOT = Path(__file__).parent.parent


def test_every_training_writes_what_it_was(make_trainer, make_config, tmp_path):
    trainer = make_trainer(make_config(seed=7, method="grpo", hub_token="secret"))
    trainer.train()
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["method"] == "grpo" and run["steps"] == 2 and run["finished"] is True and run["seconds"] > 0
    assert run["seeds"] == {"seed": 7, "data_seed": None} and run["processes"] == 1
    assert run["config"]["learning_rate"] == 1e-2 and run["config"]["sdar_coef"] == 0.0
    assert run["versions"]["trl"] == version("trl") and run["versions"]["torch"] == version("torch")
    assert "core" in run["machine"] and run["model"]
    assert "secret" not in json.dumps(run)


def test_a_run_that_was_stopped_counts_the_time_of_its_parts(make_trainer, make_config, tmp_path):
    make_trainer(make_config(max_steps=1, save_strategy="steps", save_steps=1)).train()
    path = tmp_path / "out" / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "seconds": 1000.0, "panels": {"test": 1}}))
    make_trainer(make_config(max_steps=2)).train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-1"))
    run = read_run(tmp_path / "out")
    assert run["seconds"] > 1000 and run["steps"] == 2 and run["panels"] == {"test": 1}
    make_trainer().train()  # another run here
    assert read_run(tmp_path / "out")["seconds"] < 1000 and "panels" not in read_run(tmp_path / "out")


def test_the_commit_is_that_of_this_code():
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    found = provenance()["commit"]
    assert found is None if not head else head.startswith(found.rstrip("+"))


def test_notes_are_joined_with_what_is_there(tmp_path):
    note_run(tmp_path / "new", panels={"test": 1}, steps=3, value=float("nan"))
    note_run(tmp_path / "new", panels={"curve": 2}, steps=4)
    assert read_run(tmp_path / "new") == {"panels": {"test": 1, "curve": 2}, "steps": 4, "value": None}
    assert read_run(tmp_path) == {}
