"""Comparisons on made-up runs whose effect is known."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

from sdar_trl.compare import comparison_table, main
from sdar_trl.evaluation import Panel, Record
from sdar_trl.evaluation.comparison import Arm, Run, permutation_p, subtract
from sdar_trl.evaluation.files import RecordFile
from sdar_trl.runs import note_run


TASKS = [{"task_id": f"task/{number}"} for number in range(60)]
PANEL = Panel.draw("made up", TASKS)


def record(task_id, success, attempt=0):
    return Record(task_id, "all", 0, bool(success), float(success), 0.0, 1, 1.0, "won", {}, attempt)


def write_run(folder, chances, seed=0, method="sdar", panel=PANEL, tries=1, steps=(), about=None):
    """A run whose tasks are won with these chances, and what it leaves on disk."""
    rng = np.random.default_rng([seed, len(method)])

    def write(path, chances, **more):
        file = RecordFile(path, {"seed": 0, "tries": tries, "panel": panel.about(), **(about or {}), **more})
        file.add(
            record(name, rng.random() < chance, attempt)
            for name, chance in zip(panel.task_ids, chances, strict=True)
            for attempt in range(tries)
        )

    write(folder / "panel_after.jsonl", chances, step=100)
    for step in steps:
        write(folder / "curve" / f"step_{step:06}.jsonl", np.full(len(panel.task_ids), step / 100), step=step)
    note_run(folder, method=method, seeds={"seed": seed}, commit="abc")
    return folder


def arm(name, table):
    """An arm of runs by tasks."""
    return Arm(
        name,
        [
            Run(Path(f"{name}/{seed}"), seed, {}, [record(f"{task}", value) for task, value in enumerate(row)])
            for seed, row in enumerate(table)
        ],
    )


@pytest.mark.parametrize("runs", [1, 4])
def test_the_interval_of_a_difference_covers_a_known_effect(runs, monkeypatch):
    monkeypatch.setattr("sdar_trl.evaluation.comparison.PERMUTATIONS", 99)
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(200):
        chance = rng.uniform(0.1, 0.7, 50)  # of each task, shared by both arms
        of_runs = rng.normal(0, 0.03, (2, runs, 1)) if runs > 1 else np.zeros((2, 1, 1))
        wins = rng.random((2, runs, 50)) < np.clip(chance + [[[0.2]], [[0.0]]] + of_runs, 0, 1)
        found = subtract(arm("a", wins[0]), arm("b", wins[1]))
        covered.append(found.ci_low <= 0.2 <= found.ci_high)
        assert found.difference == pytest.approx(wins[0].mean() - wins[1].mean())
        assert found.seeds == runs and (found.p_runs is None) == (runs == 1)
    assert 0.9 <= np.mean(covered) <= 0.995


@pytest.mark.parametrize("kind", ["samples", "independent"])
def test_the_permutation_test_has_its_level_and_finds_an_effect(kind, monkeypatch):
    monkeypatch.setattr("sdar_trl.evaluation.comparison.PERMUTATIONS", 999)
    rng = np.random.default_rng(1)
    count = 30 if kind == "samples" else 5
    rounds = 400
    for effect, low, high in ((0, 0, binom.ppf(0.999, rounds, 0.05) / rounds), (1.5, 0.4, 1)):
        found = []
        for _ in range(rounds):
            shared = rng.normal(0, 1, count) if kind == "samples" else 0
            a, b = (shared + rng.normal(0, 1, count) for _ in range(2))
            found.append(permutation_p(a + effect, b, kind) <= 0.05)
        assert low <= np.mean(found) <= high, effect


def test_five_runs_that_are_all_better_have_the_least_p_that_five_can_have():
    a, b = np.full((5, 10), 0.0), np.full((5, 10), 0.0)
    a[:, :5] = 1
    b[:, 0] = 1
    assert subtract(arm("a", a), arm("b", b)).p_runs == pytest.approx(2 / 252)
    assert subtract(arm("a", a[:3]), arm("b", b[:3])).p_runs == pytest.approx(2 / 20)


def test_runs_are_paired_by_seed_and_tasks_by_id():
    a, b = arm("a", np.eye(4)), arm("b", np.zeros((4, 4)))
    expected = subtract(a, b)
    mixed = Arm("a", [type(run)(run.path, run.seed, {}, run.records[::-1]) for run in a.runs[::-1]])
    assert subtract(mixed, b) == expected
    assert subtract(a, Arm("b", b.runs[:3])).seeds == 3
    with pytest.raises(ValueError, match="no seed in common"):
        subtract(Arm("a", a.runs[:2]), Arm("b", b.runs[2:]))
    assert subtract(Arm("a", a.runs[:1]), Arm("b", b.runs[2:3])).seeds == 1


@pytest.fixture
def folders(tmp_path):
    """Three methods of four seeds, one better by a half."""
    for method, chance in (("sdar", 0.8), ("grpo", 0.3), ("opsd", 0.3)):
        for seed in range(4):
            write_run(tmp_path / method / f"seed{seed}", np.full(60, chance), seed, method, steps=(0, 50, 100))
    return tmp_path


def test_the_command_compares_the_first_with_each_other_and_draws_curves(folders, capsys):
    paths = [str(folders / name) for name in ("sdar", "grpo", "opsd")]
    main([*paths, "--json", str(folders / "out.json"), "--plot", str(folders / "curves.png")])
    output = capsys.readouterr().out
    assert PANEL.sha256[:12] in output and "sdar - grpo" in output and "sdar - opsd" in output
    result = json.loads((folders / "out.json").read_text())
    assert set(result["comparisons"]) == {"sdar_minus_grpo", "sdar_minus_opsd"}
    found = result["comparisons"]["sdar_minus_grpo"]
    assert found["ci_low"] < 0.5 < found["ci_high"] and found["ci_low"] > 0.3 and found["seeds"] == 4
    assert found["p_runs"] == pytest.approx(2 / 70) and found["p_tasks"] < 0.001
    means = sorted(
        sum(json.loads(line)["success"] for line in path.read_text().splitlines()[1:]) / 60
        for path in (folders / "sdar").glob("*/panel_after.jsonl")
    )
    told = result["arms"]["sdar"]
    assert told["interquartile_mean"] == pytest.approx(sum(means[1:3]) / 2)
    assert told["mean"] == pytest.approx(sum(means) / 4) and told["seeds"] == [0, 1, 2, 3]
    assert told["last_step"] == {**told["best_step"], "step": 100} and told["last_step"]["mean"] == 1.0
    assert told["commits"] == ["abc"] and len(told["runs"]) == 4
    assert (folders / "curves.png").stat().st_size > 10_000
    assert comparison_table(result) in output


def test_different_panels_are_not_compared(folders, tmp_path, capsys):
    other = Panel("other", PANEL.task_ids)
    cases = {
        "panel is": {"panel": other},
        "tries is": {"tries": 2},
        "seed is": {"about": {"seed": 3}},
    }
    for message, options in cases.items():
        run = write_run(tmp_path / message, np.full(60, 0.5), method="new", **options)
        with pytest.raises(SystemExit, match=message):
            main([str(folders / "sdar"), str(run)])
    capsys.readouterr()
    run = write_run(tmp_path / "warm", np.full(60, 0.5), method="new", about={"temperature": 2.0})
    main([str(run), str(folders / "sdar" / "seed0")])
    assert "also differ in: temperature" in capsys.readouterr().out


def test_curves_of_different_panels_are_not_drawn_together(folders, tmp_path):
    run = write_run(tmp_path / "other", np.full(60, 0.5), method="new", steps=(0, 1))
    path = run / "curve" / "step_000000.jsonl"
    path.write_text(path.read_text().replace("made up", "another"))
    with pytest.raises(SystemExit, match="of different panels"):
        main([str(folders / "sdar"), str(run), "--plot", str(tmp_path / "curves.png")])


def test_a_panel_that_was_not_played_to_its_end_is_not_compared(folders):
    path = folders / "grpo" / "seed1" / "panel_after.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(SystemExit, match="has 59 of 60 episodes"):
        main([str(folders / "sdar"), str(folders / "grpo")])


def test_files_of_records_are_compared_by_the_names_they_are_given(folders, capsys):
    paths = [f"{name}={folders / name / 'seed0' / 'panel_after.jsonl'}" for name in ("sdar", "grpo")]
    main([*paths, "--measure", "score"])
    output = capsys.readouterr().out
    assert "score on made up, 60 tasks" in output and "sdar - grpo" in output


def test_what_cannot_be_compared_is_told(folders, tmp_path):
    with pytest.raises(SystemExit, match="does not exist"):
        main([str(folders / "sdar"), str(tmp_path / "nothing")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="neither a run nor a folder of runs"):
        main([str(folders / "sdar"), str(tmp_path / "empty")])
    with pytest.raises(SystemExit, match="needs names of its own"):
        main([str(folders / "sdar"), str(folders / "sdar")])
    note_run(tmp_path / "unplayed", method="x")
    with pytest.raises(SystemExit, match="was its panel played"):
        main([str(folders / "sdar"), str(tmp_path / "unplayed")])
    note_run(folders / "sdar" / "seed1", seeds={"seed": 0})
    with pytest.raises(SystemExit, match="need seeds of their own"):
        main([str(folders / "sdar"), str(folders / "grpo")])
