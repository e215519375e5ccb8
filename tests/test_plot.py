"""Training dynamics: read from a run's folder, drawn, and written as a table."""

import csv
import json

import numpy as np
import pytest
from matplotlib.figure import Figure

from sdar_trl.dynamics import Dynamics
from sdar_trl.plot import PANELS, main, moving_average, plot_runs, plot_training, window_of


def entry(step, **values):
    return {"loss": 0.1, "reward": step / 10, "env/success": step / 20, "step_time": 10.0, "step": step, **values}


def write_run(folder, entries, results=None):
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in entries))
    if results:
        (folder / "metrics.json").write_text(json.dumps(results))
    return folder


def write_episodes(folder, step, episodes):
    """Episodes given as (won, gaps)."""
    (folder / "episodes").mkdir(exist_ok=True)
    lines = [json.dumps({"success": won, "turns": [{"gaps": gaps}, {"gaps": None}]}) for won, gaps in episodes]
    (folder / "episodes" / f"step_{step:06}.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved."""
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **kwargs: (figures.append(self), save(self, *args, **kwargs))
    )
    return figures


def panel(figure, title):
    [axes] = [axes for axes in figure.axes if axes.get_title() == title]
    return axes


def test_a_run_is_read_from_what_it_logged(tmp_path):
    steps = [entry(s, **{"time/rollout": 6.0, "time/teacher": 1.5}) for s in (1, 2)]
    run = write_run(
        tmp_path / "run", [*steps, {"eval_env/success": 0.5, "step": 2}, {"train_runtime": 3.0, "step": 2}]
    )
    found = Dynamics.of_run(run)
    assert found.series["reward"] == {1: 0.1, 2: 0.2}
    assert found.series["time/update"] == {1: 2.5, 2: 2.5}
    assert "train_runtime" not in found.series
    assert [(e.step, e.success, e.low) for e in found.evaluations] == [(2, 0.5, None)]


def test_evaluations_before_and_after_have_their_intervals(tmp_path):
    panels = {n: {"success": s, "ci_low": s - 0.1, "ci_high": s + 0.1} for n, s in (("before", 0.2), ("after", 0.6))}
    steps = [entry(1), entry(2, **{"panel/success": 0.3}), entry(3, **{"panel/success": 0.4})]
    run = write_run(tmp_path / "run", steps, {**panels, "seconds": 3, "curve": {}})
    found = {(e.step, e.success, e.low, e.around) for e in Dynamics.of_run(run).evaluations}
    assert found == {(0, 0.2, 0.1, True), (2, 0.3, None, False), (3, 0.4, None, False), (3, 0.6, 0.5, True)}


def test_gaps_are_those_of_the_saved_episodes(tmp_path):
    run = write_run(tmp_path / "run", [entry(1)])
    gaps = np.random.default_rng(0).normal(size=101).tolist()
    write_episodes(run, 1, [(True, [*gaps[:40], None]), (False, gaps[40:])])
    series = Dynamics.of_run(run).series
    assert series["gap/won"][1] == pytest.approx(np.mean(gaps[:40]))
    assert series["gap/not_won"][1] == pytest.approx(np.mean(gaps[40:]))
    ordered = sorted(gaps)
    assert [series[f"gap/p{q}"][1] for q in ("05", "50", "95")] == pytest.approx([ordered[i] for i in (5, 50, 95)])


def test_gaps_of_won_and_lost_episodes_are_those_that_were_logged_where_they_were(tmp_path):
    run = write_run(tmp_path / "run", [entry(1, **{"sdar/gap_won": 0.5}), entry(2)])
    for step in (1, 2):
        write_episodes(run, step, [(True, [0.25])])
    assert Dynamics.of_run(run).series["gap/won"] == {1: 0.5, 2: 0.25}


def test_without_metrics_the_last_checkpoint_is_read(tmp_path):
    for step in (9, 10):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": [entry(s + 1) for s in range(step)]}))
    assert list(Dynamics.of_run(tmp_path).series["reward"]) == list(range(1, 11))


def test_a_line_that_was_cut_short_is_passed_over(tmp_path):
    run = write_run(tmp_path / "run", [entry(1)])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"loss": 0.')
    assert list(Dynamics.of_run(run).series["reward"]) == [1]


def test_a_moving_average_is_the_mean_of_neighbours():
    values = np.random.default_rng(1).normal(size=30)
    found = moving_average(values.tolist(), 5)
    assert found[2:-2] == pytest.approx(np.convolve(values, np.ones(5) / 5, "valid"))
    assert found[0] == pytest.approx(values[:3].mean()) and found[-1] == pytest.approx(values[-3:].mean())
    assert [window_of(count) for count in (1, 19, 20, 28, 150)] == [1, 1, 3, 3, 15]


def test_the_picture_has_each_step_its_moving_average_and_the_evaluations(tmp_path, drawn):
    panels = {n: {"success": s, "ci_low": s - 0.1, "ci_high": s + 0.1} for n, s in (("before", 0.2), ("after", 0.6))}
    values = np.random.default_rng(2).uniform(size=40)
    steps = [entry(i + 1, **{"env/success": value}) for i, value in enumerate(values)]
    plot_training(write_run(tmp_path / "run", steps, panels), tmp_path / "training.png")
    [figure] = drawn
    raw, average, before, after = panel(figure, "Success").lines
    assert raw.get_ydata() == pytest.approx(values)
    assert average.get_ydata()[10] == pytest.approx(values[8:13].mean())
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in (before, after)] == [(0, 0.2), (40, 0.6)]
    bars = [bar.get_segments()[0].tolist() for bar in panel(figure, "Success").collections]
    assert bars == [[[0, pytest.approx(0.1)], [0, pytest.approx(0.3)]], [[40, 0.5], [40, 0.7]]]
    assert [axes.get_title() for axes in figure.axes] == PANELS
    assert "not logged" in [text.get_text() for text in panel(figure, "KL to the reference model (nats)").texts]
    assert panel(figure, "Success").get_ylim()[0] <= 0 and panel(figure, "Success").get_ylim()[1] >= 1
    assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")


def test_seeds_are_a_mean_and_a_band(tmp_path, drawn):
    seeds = [[1.0, 2.0, 3.0], [3.0, 2.0, 7.0]]
    runs = [Dynamics.of_history(entry(i + 1, reward=v) for i, v in enumerate(values)) for values in seeds]
    plot_runs({"sdar": runs, "grpo": [Dynamics.of_history([entry(1), entry(2)])]}, tmp_path / "two.png")
    axes = panel(drawn[0], "Reward")
    assert [line.get_ydata().tolist() for line in axes.lines] == [[2.0, 2.0, 5.0], [0.1, 0.2]]
    [band] = axes.collections
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices}
    assert {(1, 1.0), (1, 3.0), (3, 3.0), (3, 7.0)} <= corners
    assert [text.get_text() for text in drawn[0].legends[0].texts] == ["sdar", "grpo"]


def test_phases_fill_the_time_of_a_step(tmp_path, drawn):
    times = {"time/rollout": 6.0, "time/teacher": 1.5}
    plot_training([entry(s, **times) for s in (1, 2)], tmp_path / "times.png")
    axes = panel(drawn[0], "Seconds of a step")
    tops = [band.get_paths()[0].vertices[:, 1].max() for band in axes.collections]
    assert tops == pytest.approx([6.0, 7.5, 10.0])


def test_the_command_writes_a_picture_and_a_table(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed in (1, 2):
        write_run(tmp_path / "sdar" / f"seed{seed}", [entry(s, kl=seed / 100) for s in (1, 2)])
    write_run(tmp_path / "grpo", [entry(1), {"eval_env/success": 0.5, "step": 1}])
    main(["ours=sdar", "grpo"])
    assert capsys.readouterr().out == "training.png and training.csv\n"
    with (tmp_path / "training.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["run"], r["number"], r["step"]) for r in rows] == [
        *(("ours", "1", "1"), ("ours", "1", "2"), ("ours", "2", "1"), ("ours", "2", "2"), ("grpo", "1", "1"))
    ]
    assert [r["kl"] for r in rows] == ["0.01", "0.01", "0.02", "0.02", ""]
    assert [r["evaluation/success"] for r in rows] == ["", "", "", "", "0.5"]
    main(["grpo"])
    assert (tmp_path / "grpo" / "training.png").exists() and (tmp_path / "grpo" / "training.csv").exists()


def test_what_cannot_be_plotted_is_told(tmp_path):
    with pytest.raises(SystemExit, match="Nothing was logged in .*nowhere"):
        main([str(tmp_path / "nowhere")])
    run = write_run(tmp_path / "run", [entry(1)])
    with pytest.raises(SystemExit, match="Two runs have the name 'run'. Write NAME=PATH."):
        main([str(run), str(run)])


def test_a_real_run_is_plotted(make_trainer, make_config, tmp_path, drawn):
    trainer = make_trainer(make_config(max_steps=2, save_episodes_every=1, sdar_coef=0.1, beta=0.01))
    trainer.train()
    plot_training(tmp_path / "out", tmp_path / "out.png")
    texts = {axes.get_title(): [text.get_text() for text in axes.texts] for axes in drawn[0].axes}
    assert [title for title, found in texts.items() if "not logged" in found] == []
    plot_training(trainer.state.log_history, tmp_path / "history.png")
