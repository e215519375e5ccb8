"""Environments in processes and threads of their own; real ones."""

import functools
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from steps import ids_and_mask, only_row
from toys import CountingEnv, FaultyProcessEnv, HastyProcessEnv, ProcessEnv, Scripted, ThreadEnv

from sdar_trl.chat import Chat
from sdar_trl.envs import Step, check_env
from sdar_trl.envs.workers import start_worker
from sdar_trl.factories import environment_kinds, return_reward
from sdar_trl.rollout import Rollout


@pytest.fixture
def make_rollout(tokenizer):
    rollouts = []
    response = tokenizer("e<|im_end|>", add_special_tokens=False)["input_ids"]

    def make(factory, generate=lambda ids: ([response] * len(ids), None)):
        limits = {"max_turns": 9, "max_response_length": 8, "max_completion_length": 500}
        rollouts.append(Rollout(factory, Chat(tokenizer), Scripted(generate), **limits))
        return rollouts[-1]

    yield make
    for rollout in rollouts:
        rollout.close()
    assert not multiprocessing.active_children()


def rows(tasks, *changes):
    return [{**tasks[0], "length": 3, **change} for change in changes]


def test_an_environment_in_a_process_plays_as_one_inline(make_rollout, tasks):
    inline = make_rollout(CountingEnv).play(list(tasks))
    apart = make_rollout(ProcessEnv).play(list(tasks))
    assert [ids_and_mask(episode) for episode in apart] == [ids_and_mask(episode) for episode in inline]
    pids = {episode.info["pid"] for episode in apart}
    assert len(pids) == len(tasks) and os.getpid() not in pids


def test_processes_are_reused_and_closed_at_the_end(make_rollout, tasks):
    rollout = make_rollout(functools.partial(ProcessEnv, broken=False))
    assert not multiprocessing.active_children()  # none before there is a task
    first, second = (rollout.play(rows(tasks, {}, {})) for _ in range(2))
    assert {episode.info["pid"] for episode in first} == {episode.info["pid"] for episode in second}
    rollout.close()
    assert not multiprocessing.active_children()
    assert rollout.play(rows(tasks, {}))[0].success  # built again when needed


def test_a_process_that_dies_costs_its_own_episode_and_is_replaced(make_rollout, tasks):
    rollout = make_rollout(ProcessEnv)
    episodes = rollout.play(rows(tasks, {}, {"dies_at": 2}, {}))
    assert [episode.stop_reason.value for episode in episodes] == ["won", "env_error", "won"]
    assert len(episodes[1].turns) == 2 and sum(only_row(episodes[1]).mask) == 0
    again = rollout.play(rows(tasks, {}, {}, {}))
    assert all(episode.success for episode in again)
    assert {episodes[0].info["pid"], episodes[2].info["pid"]} < {episode.info["pid"] for episode in again}


def test_an_environment_that_raises_in_its_process_is_told_with_its_traceback(make_rollout, tasks, caplog):
    [episode] = make_rollout(ProcessEnv).play(rows(tasks, {"fails_at": 2}))
    assert episode.stop_reason.value == "env_error"
    assert "RuntimeError: step failed" in caplog.text and "toys.py" in caplog.text


def test_the_reason_from_another_process_is_a_line_that_names_the_error(make_rollout, tasks, caplog):
    rollout = make_rollout(FaultyProcessEnv)
    broken, wordy = rollout.play(rows(tasks, {"fault": "loses its own pipe"}, {"fault": "raises at length"}))
    assert broken.error == "`step` raised BrokenPipeError('the game is gone')"
    assert wordy.error == r"`step` raised ValueError('2 errors\n  see\n  a page')"
    rollout.play(rows(tasks, {"fault": "raises at length"}))
    assert caplog.text.count("The environment failed") == 2  # once a kind


@pytest.mark.parametrize("kind", [HastyProcessEnv, ThreadEnv])
def test_a_step_that_takes_too_long_ends_its_episode(kind, make_rollout, tasks, caplog):
    began = time.monotonic()
    episodes = make_rollout(kind).play(rows(tasks, {}, {"hangs_at": 1}, {"hangs_at": 1}))
    assert [episode.stop_reason.value for episode in episodes] == ["won", "env_error", "env_error"]
    assert time.monotonic() - began < 2 * kind.timeout + 5  # they are waited for together
    assert "Timeout" in caplog.text


def test_threads_wait_side_by_side(make_rollout, tasks):
    began = time.monotonic()
    episodes = make_rollout(ThreadEnv).play(rows(tasks, *[{}] * 10))
    assert all(episode.success for episode in episodes)
    assert time.monotonic() - began < 0.3 * 3 * 10 / 2


def test_an_environment_that_cannot_be_built_stops_the_run(make_rollout, tasks):
    with pytest.raises(RuntimeError, match="could not be made: FileNotFoundError.*no game files"):
        make_rollout(functools.partial(ProcessEnv, broken=True)).play(rows(tasks, {}, {}))
    assert not multiprocessing.active_children()


def test_processes_are_closed_when_the_policy_fails(make_rollout, tasks):
    def generate(ids):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        make_rollout(ProcessEnv, generate).play(rows(tasks, {}, {}))
    assert not multiprocessing.active_children()


def test_what_kind_of_environment_is_made_is_seen_without_making_one():
    factory = functools.partial(ProcessEnv, broken=True)
    kinds = environment_kinds(factory)
    assert kinds == {None: ProcessEnv}
    assert return_reward(kinds, 0.1).__name__ == "ProcessEnv"


def test_training_closes_the_environments(make_config, random_model_folder, tasks, skills):
    from sdar_trl import SDARTrainer

    trainer = SDARTrainer(
        model=random_model_folder,
        args=make_config(max_steps=1),
        train_dataset=tasks,
        environment_factory=ProcessEnv,
        skills=skills,
    )
    trainer.train()
    assert trainer.state.log_history[0]["env/stop/env_error"] == 0
    assert not multiprocessing.active_children()


def test_a_worker_answers_like_its_environment():
    worker = start_worker(ProcessEnv)
    worker.start("reset", length=1)
    assert worker.result() == "count to 1"
    worker.start("step", "e")
    step = worker.result()
    assert isinstance(step, Step) and step.terminated
    worker.close()


@pytest.mark.parametrize("kind", [CountingEnv, ThreadEnv, ProcessEnv])
def test_a_task_may_have_a_column_of_any_name(kind):
    worker = start_worker(kind)
    worker.start("reset", length=1, method="x", factory="y")
    assert worker.result() == "count to 1"
    worker.close()


def test_an_environment_that_cannot_be_closed_leaves_none_behind(make_rollout, tasks, caplog):
    closed = []

    class Clinging(CountingEnv):
        def close(self):
            closed.append(self)
            raise OSError("still busy")

    rollout = make_rollout(Clinging)
    rollout.play(rows(tasks, {}, {}))
    rollout.close()
    assert len(closed) == 2 and caplog.text.count("could not be closed") == 2


def test_check_env_refuses_an_unknown_place_to_run():
    class Elsewhere(CountingEnv):
        parallel = "cluster"

    with pytest.raises(AssertionError, match="inline, thread or process"):
        check_env(Elsewhere(), [{"length": 1}])


PROGRAM = """
print("the program is imported", flush=True)
from toys import ProcessEnv
from sdar_trl.envs.workers import start_worker

class Own(ProcessEnv):
    pass

if __name__ == "__main__":
    for kind in (ProcessEnv, {own}):
        worker = start_worker(kind)
        worker.start("reset", length=1)
        print(worker.result())
        worker.close()
"""


@pytest.mark.parametrize(("own", "times"), [("ProcessEnv", 1), ("Own", 2)])
def test_a_process_imports_the_program_only_for_an_environment_of_its_own(own, times, tmp_path):
    script = tmp_path / "program.py"
    script.write_text(PROGRAM.format(own=own))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment)
    assert done.stdout.count("count to 1") == 2, done.stderr
    assert done.stdout.count("the program is imported") == times
