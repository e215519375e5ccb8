"""What a run prints: one line a step, and what Transformers' switches do to it."""

import io
import re
from contextlib import redirect_stderr, redirect_stdout

import pytest
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from sdar_trl.progress import StepLines, duration


NUMBER = r"[+-]?\d+\.\d+"
LINE = re.compile(
    rf"step (\d)/(\d)  reward +({NUMBER})  success +(\d+)%  turns +({NUMBER})  gate +({NUMBER})  gap +({NUMBER})"
    r"  +\d\S* (?:s|min)(  \d\S* (?:s|min) left)?"
)


def entries(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def test_a_step_is_one_line_with_its_numbers(make_trainer, make_config, capsys):
    trainer = make_trainer(make_config(max_steps=3, sdar_coef=0.1))
    trainer.train()
    *lines, last = capsys.readouterr().out.strip().splitlines()
    found = [LINE.fullmatch(line) for line in lines]
    assert len(found) == 3 and all(found), lines
    for step, (match, entry) in enumerate(zip(found, entries(trainer), strict=True), start=1):
        assert match[1] == str(step) and match[2] == "3"
        assert float(match[3]) == pytest.approx(entry["reward"], abs=0.006)
        assert int(match[4]) == pytest.approx(100 * entry["env/success"], abs=0.6)
        assert float(match[5]) == pytest.approx(entry["env/turns"], abs=0.06)
        assert float(match[6]) == pytest.approx(entry["sdar/gate_mean"], abs=0.0006)
        assert float(match[7]) == pytest.approx(entry["sdar/gap_mean"], abs=0.0006)
        assert (match[8] is None) == (step == 3)  # nothing is left after the last
    assert re.fullmatch(r"3 steps in \d\S* (s|min)", last)


def test_after_each_ten_lines_a_table_tells_task_types_and_ends(make_trainer, make_config, capsys):
    trainer = make_trainer(make_config(max_steps=11, per_device_train_batch_size=8))
    trainer.train()
    lines = capsys.readouterr().out.splitlines()
    assert [line.startswith("step") for line in lines] == [True] * 10 + [False] * (len(lines) - 12) + [True, False]
    table = lines[10:-2]
    assert table[0].split() == ["success", "even", "odd"] and table[2].split()[:2] == ["ended", "by"]
    ten = entries(trainer)[:10]
    for name, cell in zip(("even", "odd"), table[1].split(), strict=True):
        logged = [entry[f"env/success/{name}"] for entry in ten if f"env/success/{name}" in entry]
        assert cell == f"{sum(logged) / len(logged):.0%}"
    ended = dict(zip(table[2].split()[2:], table[3].split(), strict=True))
    for name, cell in ended.items():
        assert cell == f"{sum(entry[f'env/stop/{name}'] for entry in ten) / 10:.0%}"


def test_without_a_teacher_there_is_neither_gate_nor_gap(make_trainer, make_config, capsys):
    make_trainer(make_config(max_steps=1, sdar_coef=0.0)).train()
    line = capsys.readouterr().out.splitlines()[0]
    assert "reward" in line and "gate" not in line and "gap" not in line


def test_lines_are_those_of_the_steps_that_are_logged(make_trainer, make_config, capsys):
    make_trainer(make_config(max_steps=4, logging_steps=2)).train()
    assert re.findall(r"^step (\d)/4 ", capsys.readouterr().out, re.MULTILINE) == ["2", "4"]
    make_trainer(make_config(max_steps=1, logging_strategy="no")).train()
    assert "step 1/1" not in capsys.readouterr().out


def test_evaluations_and_logs_of_the_users_own_are_lines_too(make_trainer, make_config, tasks, capsys):
    trainer = make_trainer(make_config(max_steps=1, eval_strategy="steps", eval_steps=1), eval_dataset=tasks)
    trainer.train()
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("evaluation"))
    assert re.match(rf"evaluation at step 1  reward +{NUMBER}  success +\d+%", line)
    trainer.log({"mine/number": 0.123456, "mine/count": 3})
    assert capsys.readouterr().out == "mine/number 0.1235  mine/count 3\n"


def test_other_callbacks_still_get_all_numbers(make_trainer, make_config):
    class Tracker(TrainerCallback):
        logs: list = []

        def on_log(self, args, state, control, logs=None, **kwargs):
            self.logs.append(dict(logs))

    tracker = Tracker()
    trainer = make_trainer(make_config(max_steps=1), callbacks=[tracker])
    trainer.train()
    assert [{**logs, "step": 1} for logs in tracker.logs] == trainer.state.log_history
    assert len(tracker.logs[0]) > 30 and "total_flos" in tracker.logs[-1]


@pytest.mark.parametrize("disable_tqdm", [True, False])
def test_transformers_own_callback_can_be_had_back(make_trainer, make_config, disable_tqdm, capsys):
    trainer = make_trainer(make_config(max_steps=1, disable_tqdm=disable_tqdm))
    kinds = [type(callback) for callback in trainer.callback_handler.callbacks]
    assert kinds.count(StepLines) == 1 and not {PrinterCallback, ProgressCallback} & set(kinds)
    trainer.remove_callback(StepLines)
    trainer.add_callback(PrinterCallback)
    trainer.train()
    assert "'loss': " in capsys.readouterr().out


class Terminal(io.StringIO):
    """Both streams of a terminal, and what is on its screen in the end."""

    def isatty(self):
        return True

    def screen(self):
        lines = [""]
        for part in re.split(r"(\r|\n)", re.sub(r"\x1b\[A", "", self.getvalue())):
            if part == "\n":
                lines.append("")
            elif part == "\r":
                lines[-1] = "\r" + lines[-1].lstrip("\r")
            elif lines[-1].startswith("\r"):  # written over what is there
                lines[-1] = part + lines[-1][1 + len(part) :]
            else:
                lines[-1] += part
        return [line.strip() for line in lines if line.strip()]


def screen_of(trainer):
    """What is on a terminal's screen after training in it."""
    terminal = Terminal()
    with redirect_stdout(terminal), redirect_stderr(terminal):
        trainer.train()
    return terminal.screen()


def test_in_a_terminal_bar_and_lines_do_not_tear_each_other(make_trainer, make_config):
    screen = screen_of(make_trainer(make_config(max_steps=2, sdar_coef=0.1, disable_tqdm=False)))
    steps = [line for line in screen if line.startswith("step ")]
    assert len(steps) == 2 and all(LINE.fullmatch(line) for line in steps), screen
    assert [line for line in screen if "2/2 [" in line] == [screen[-1]]  # the bar is below
    assert "step " not in screen[-1]


def test_disable_tqdm_leaves_the_lines_alone(make_trainer, make_config):
    *steps, last = screen_of(make_trainer(make_config(max_steps=2, sdar_coef=0.1, disable_tqdm=True)))
    assert len(steps) == 2 and all(LINE.fullmatch(line) for line in steps)
    assert last.startswith("2 steps in ")


def test_without_a_terminal_there_is_plain_text_and_no_bar(make_trainer, make_config, tasks, capfd):
    config = make_config(max_steps=2, disable_tqdm=False, eval_strategy="steps", eval_steps=1)
    trainer = make_trainer(config, eval_dataset=tasks)
    capfd.readouterr()
    trainer.train()
    out, err = capfd.readouterr()
    assert "\r" not in out and "\r" not in err and "it/s" not in err
    assert re.findall(r"^step (\d)/2 ", out, re.MULTILINE) == ["1", "2"]


def test_durations_read_well():
    assert [duration(s) for s in (0.04, 9.94, 9.96, 89, 95, 3600, 5400, 36000)] == [
        *("0.0 s", "9.9 s", "10 s", "89 s", "2 min", "60 min", "1.5 h", "10.0 h")
    ]
