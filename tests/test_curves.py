"""Panels while training: what is written and logged, and that the training is not touched."""

import json

import pytest
import torch

from sdar_trl.evaluation import (
    Panel,
    PanelCallback,
    Record,
    curve_results,
    curve_table,
    evaluate_trainer,
    last_and_best,
    read_curve,
    summarize,
)


@pytest.fixture
def train(make_trainer, make_config, tasks):
    """Train with a panel every so many steps, or without."""

    def run(every, **config):
        torch.manual_seed(0)
        trainer = make_trainer(make_config(**config))
        if every:
            panel = Panel.draw("counts", tasks, 3)
            trainer.add_callback(PanelCallback(trainer, panel, tasks, every=every, tries=2, temperature=1.0))
        trainer.train(resume_from_checkpoint=config.get("resume_from_checkpoint"))
        return trainer

    return run


def test_the_training_is_the_same_with_and_without_a_panel(train):
    plain, watched = (train(every, max_steps=3).model.state_dict() for every in (0, 1))
    assert all(torch.equal(plain[name], watched[name]) for name in plain)


def test_a_panel_is_played_before_the_first_step_every_so_many_and_after_the_last(train, tmp_path, tasks):
    trainer = train(2, max_steps=3)
    curve = read_curve(tmp_path / "out")
    assert list(curve) == [0, 2, 3]
    panel = Panel.draw("counts", tasks, 3)
    for step, (about, records) in curve.items():
        assert about["step"] == step and about["panel"] == panel.about()
        assert [record.task_id for record in records] == [name for name in panel.task_ids for _ in range(2)]
    options = {"tries": 2, "temperature": 1.0}
    assert curve[3][1] == evaluate_trainer(trainer, panel.tasks(tasks), **options) != curve[0][1]
    logged = {log["step"]: log["panel/success"] for log in trainer.state.log_history if "panel/success" in log}
    results = curve_results(tmp_path / "out")
    assert logged == pytest.approx({step: results[step].success for step in (2, 3)})


def test_a_run_that_goes_on_plays_its_steps_again_and_a_new_one_begins_a_new_curve(train, tmp_path):
    train(1, max_steps=4, save_strategy="steps", save_steps=2)
    expected = read_curve(tmp_path / "out")
    stale = tmp_path / "out" / "curve" / "step_000003.jsonl"
    stale.write_text('{"about": {}}\n')
    train(1, max_steps=4, save_strategy="no", resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert read_curve(tmp_path / "out") == expected
    train(2, max_steps=2)
    assert list(read_curve(tmp_path / "out")) == [0, 2]


def result(wins):
    return summarize(
        [
            Record(str(task), "all", 0, task < wins, float(task < wins), 0.0, 1, 1.0, "won" if task < wins else "lost")
            for task in range(4)
        ]
    )


def test_the_last_step_and_the_best_are_both_told_by_name():
    curve = {0: result(1), 10: result(3), 20: result(3), 30: result(2)}
    found = last_and_best(curve)
    assert (found["last_step"]["step"], found["last_step"]["success"]) == (30, 0.5)
    assert (found["best_step"]["step"], found["best_step"]["success"]) == (10, 0.75)
    assert json.loads(json.dumps(found)) == found
    lines = curve_table(curve).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["0", "10", "20", "30"]
    assert lines[2].endswith("best step") and lines[4].endswith("last step") and "step" not in lines[1] + lines[3]


def test_every_is_a_number_of_steps(make_trainer, tasks):
    with pytest.raises(ValueError, match="`every` must be at least 1"):
        PanelCallback(make_trainer(), Panel.draw("counts", tasks), tasks, every=0)
