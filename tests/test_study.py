"""The study: which runs it plans, that finished ones are not run again, and what it reports of made-up runs."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from test_compare import write_run


BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def study(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(BENCHMARKS)])  # last: one is called as a package is
    return import_module("study")


def finish(study, output, arm, seed, chances, **result):
    folder = study.Job("questions", arm, seed, {}).folder(output)
    write_run(folder, chances, seed, arm, steps=(0, 24))
    (folder / "panel_with_skills.jsonl").write_text((folder / "panel_after.jsonl").read_text())
    written = {"after": float(np.mean(chances)), "with_skills": 0.9, "logged": {}, **result}
    (folder / "result.json").write_text(json.dumps(written))


def test_a_seed_is_whole_before_the_next_and_the_coefficient_is_that_of_validation(study, tmp_path):
    arms = ["grpo", "sdar_tuned", "sdar"]
    first = list(study.first_jobs("questions", arms))
    assert [job.name for job in first] == ["untrained", "choice_0.1", "choice_0.5", "choice_2.0"]
    assert {job.split for job in first[1:]} == {"validation"} and first[0].options["max_steps"] == 0
    for coefficient, success in ((0.1, 0.2), (0.5, 0.4), (2.0, 0.3)):
        finish(study, tmp_path, f"choice_{coefficient}", study.CHOICE_SEED, [0.0] * 60, after=success)
    jobs = list(study.arm_jobs("questions", arms, [3, 4], tmp_path))
    assert [(job.name, job.seed) for job in jobs] == [(arm, seed) for seed in (3, 4) for arm in arms]
    assert [job.options.get("sdar_coef") for job in jobs[:3]] == [None, 0.5, 0.01]
    assert [job.options.get("log_grad_share", False) for job in jobs] == [False, True, True, False, False, False]
    assert {job.split for job in jobs} == {"test"} and study.CHOICE_SEED not in (3, 4)
    assert [job.name for job in study.first_jobs("questions", ["grpo"])] == ["untrained"]


def test_every_arm_is_a_method_and_its_options(study):
    config = import_module("sdar_trl").SDARConfig
    for options in [*study.ARMS.values(), *study.ABLATIONS.values()]:
        given = {name: 0.3 if value == "tuned" else value for name, value in options.items()}
        config("out", use_cpu=True, bf16=False, **given)
        # a training script may have a coefficient of its own for SDAR, which is none of the arm's
        assert options["method"] != "sdar" or "sdar_coef" in options
    assert study.ARMS["sdar"]["sdar_coef"] == 0.01


def test_the_report_has_the_differences_of_what_is_finished(study, tmp_path, monkeypatch):
    monkeypatch.setattr("sdar_trl.evaluation.comparison.PERMUTATIONS", 99)
    finish(study, tmp_path, "untrained", 0, [0.0] * 60)
    for seed in (0, 1, 2):
        finish(study, tmp_path, "sdar", seed, [1.0] * 45 + [0.0] * 15)
        finish(study, tmp_path, "grpo", seed, [1.0] * 30 + [0.0] * 30)
    finish(study, tmp_path, "gigpo", 1, [1.0] * 60)
    unfinished = study.Job("questions", "sdar", 3, {}).folder(tmp_path)
    write_run(unfinished, [0.0] * 60, 3)
    found = study.report(tmp_path)
    difference = found["summary"]["sdar_minus_grpo"]["questions"]
    assert difference["difference"] == 0.25 and difference["seeds"] == 3
    assert 0.1 < difference["ci_low"] < 0.25 < difference["ci_high"] < 0.4
    assert found["summary"]["gigpo_minus_grpo"]["questions"]["seeds"] == 1
    assert set(found["summary"]) == {"sdar_minus_grpo", "sdar_minus_gigpo", "gigpo_minus_grpo"}
    runs = {(run["arm"], run["seed"]): run for run in found["runs"]}
    assert len(runs) == 8 and runs["sdar", 2]["won"].count("1") == 45
    assert runs["sdar", 0]["validation"] == {0: 0.0, 24: pytest.approx(0.24, abs=0.2)}
    assert found["worlds"]["questions"]["arms"]["grpo"]["mean"] == 0.5
    told = study.tables(found)
    assert (
        "| sdar - grpo | +0.250 | " in told
        and "| grpo | 0.500 | " in told
        and "| 3 | 0.750 |" in told
        and "| gigpo | -0.100 |" in told
    )


def test_the_overview_has_a_world_once_and_its_common_seeds(study, tmp_path, monkeypatch):
    monkeypatch.setattr("sdar_trl.evaluation.comparison.PERMUTATIONS", 99)
    finish(study, tmp_path, "untrained", 0, [0.0] * 60, after=0.125, with_skills=0.5)
    for seed in (0, 1):
        finish(study, tmp_path, "sdar_tuned", seed, [1.0] * 45 + [0.0] * 15, sdar_coef=0.5)
    for seed in (0, 1, 2):
        finish(study, tmp_path, "grpo", seed, [1.0] * 30 + [0.0] * 30 if seed < 2 else [0.0] * 60)
    _, row = study._overview(study.report(tmp_path))
    assert row[:6] == ["questions", "+0.375", "0.5", "0.500", "0.750", "+0.250"] and row[-1] == "2"


def test_gaps_of_won_and_lost_episodes_are_compared_within_a_task(study, monkeypatch):
    monkeypatch.delitem(sys.modules, "common", raising=False)  # the benchmarks have one as well

    def episode(won, *turns):
        return SimpleNamespace(success=won, turns=[SimpleNamespace(gaps=gaps) for gaps in turns])

    found = [episode(True, [1.0, 1.0], [0.0]), episode(False, [1.0, 0.0], [3.0])]
    found += [episode(True, [5.0]), episode(False, None)]  # no teacher
    found += [episode(True, [2.0]), episode(True, [9.0])]  # nobody lost
    trainer = SimpleNamespace(num_generations=2, episodes=found)
    order = import_module("study_run").GapOrder(trainer)
    order.on_step_end()
    assert order.shares() == {"episode": {"share": 0.0, "pairs": 1}, "first_turn": {"share": 1.0, "pairs": 1}}


def test_what_a_step_could_not_tell_is_left_out_of_a_mean(study, monkeypatch):
    monkeypatch.delitem(sys.modules, "common", raising=False)
    mean = import_module("study_run")._mean
    nobody_won, won, not_logged = {"sdar/gap_won": float("nan")}, {"sdar/gap_won": 0.5}, {}
    assert mean([nobody_won, won, not_logged], "sdar/gap_won") == 0.5
    assert mean([nobody_won, not_logged], "sdar/gap_won") is None


def test_the_study_page_holds_the_tables_of_its_results(study):
    result = json.loads((BENCHMARKS / "results" / "study.json").read_text())
    page = (BENCHMARKS.parent / "docs" / "study.md").read_text().splitlines()
    rows = [line for line in study.tables(result).splitlines() if line.startswith("|")]
    assert len(rows) > 20 and all(row in page for row in rows)


def test_runs_of_other_settings_are_not_mixed(study, tmp_path):
    study.same_settings(tmp_path, {"max_steps": 24})
    study.same_settings(tmp_path, {"max_steps": 24})
    with pytest.raises(SystemExit, match="had other settings"):
        study.same_settings(tmp_path, {"max_steps": 30})


def test_a_study_trains_plays_the_test_panel_and_goes_on_where_it_was(tmp_path):
    options = ["--worlds", "questions", "--arms", "grpo", "--seeds", "0", "--output", str(tmp_path / "runs")]
    sizes = ["--steps", "1", "--episodes", "8", "--panel_size", "2", "--curve_every", "0"]
    command = [sys.executable, str(BENCHMARKS / "study.py"), *options, *sizes, "--json", str(tmp_path / "study.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "questions, untrained" in done.stdout and "questions, grpo, seed 0" in done.stdout
    folder = tmp_path / "runs" / "questions" / "grpo" / "seed_0"
    config = json.loads((folder / "run.json").read_text())["config"]
    assert (config["method"], config["sdar_coef"], config["max_steps"]) == ("grpo", 0.0, 1)
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0 and "seed 0:" not in again.stdout
    result = json.loads((tmp_path / "study.json").read_text())
    assert {run["arm"] for run in result["runs"]} == {"untrained", "grpo"}
    assert all(0 <= run["with_skills"] <= 1 and len(run["won"]) == 2 for run in result["runs"])
    assert result["options"]["steps"] == 1


@pytest.mark.parametrize("world", ["sparse_shop", "household"])
def test_each_world_is_played(world, tmp_path):
    """As the study starts a run, next to a benchmark that is called as ALFWorld's package is."""
    told = {"split": "test", "with_skills": False}
    told["options"] = {"method": "grpo", "max_steps": 0, "panel_size": 1, "disable_tqdm": True}
    command = [sys.executable, str(BENCHMARKS / "study.py"), "--run", world, str(tmp_path), json.dumps(told)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "result.json").read_text())["after"] in (0, 1)
