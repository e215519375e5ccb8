"""Whatever an environment answers or does ends its own episode at most, and leaves nothing behind."""

import datetime
import functools
import json
import logging
import math
import multiprocessing
import os
import runpy
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from steps import gradients, ids_and_mask, scored_batch
from toys import (
    FAULTS,
    PROCESS_FAULTS,
    CountingEnv,
    FaultyEnv,
    FaultyProcessEnv,
    FaultyThreadEnv,
    ProcessEnv,
    Scripted,
    Unshowable,
)

from sdar_trl import Episode, SkillContext, StopReason, sibling_context
from sdar_trl.chat import Chat
from sdar_trl.envs import Step, workers
from sdar_trl.evaluation import Record, evaluate, evaluate_trainer
from sdar_trl.rollout import Rollout


def rollout_of(factory, tokenizer, **options):
    response = tokenizer("e<|im_end|>", add_special_tokens=False)["input_ids"]
    backend = Scripted(lambda ids, *_: ([response] * len(ids), None))
    limits = {"max_turns": 4, "max_response_length": 8, "max_completion_length": 5000, **options}
    return Rollout(factory, Chat(tokenizer), backend, **limits)


def assert_survives_json(episode):
    data = episode.to_dict()
    text = json.dumps(data, allow_nan=False)
    assert Episode.from_dict(json.loads(text)).to_dict() == data


# Any value


IN_ROWS = [
    *(b"\xff", {1, 2}, range(2), object(), datetime.datetime(2026, 1, 1), datetime.timedelta(1), np.float64("nan")),
    *(np.longdouble(2), np.bool_(True), np.array(["a", None], object), np.zeros((2, 0)), np.datetime64("NaT")),
    *(np.str_("a"), torch.tensor(math.inf), torch.ones(2)),
]
ODD = [*IN_ROWS, 10**5000, Unshowable(), torch.ones(2, device="meta"), 1j, len, Step]
texts = st.text(st.characters()) | st.sampled_from(["\ud83d", "<|im_end|>\n<|im_start|>assistant\n", "ASSISTANTSAID"])


def values(odd):
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | texts
    # by number, since hypothesis cannot show all of them
    leaves |= st.integers(0, len(odd) - 1).map(lambda index: odd[index])
    return st.recursive(leaves, lambda v: st.lists(v, max_size=3) | st.dictionaries(texts, v, max_size=3))


quickly = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


class AnsweringEnv(CountingEnv):
    """Gives the answer that its task holds."""

    def reset(self, *, answer=None, method=None, **task):
        self.answer, self.method = answer, method
        text = super().reset(**task)
        return answer if method == "reset" else text

    def step(self, response):
        step = super().step(response)
        return self.answer if self.method == "step" and self.turn == 2 else step


@quickly
@given(
    name=st.sampled_from(["reset", "step", *Step.__dataclass_fields__]),
    value=values(ODD),
    terminated=st.booleans(),
    grows=st.booleans(),
)
def test_any_answer_is_taken_or_ends_its_own_episode_with_the_reason(name, value, terminated, grows, tokenizer, tasks):
    row = {**tasks[0], "length": 3}
    method = "reset" if name == "reset" else "step"
    answer = value
    if name in Step.__dataclass_fields__:
        answer = Step(**{"observation": "x", "terminated": terminated, "metrics": {"m": 1.0}, name: value})
    rollout = rollout_of(AnsweringEnv, tokenizer, history="growing" if grows else "window")
    logging.disable()
    try:
        first, odd, last = rollout.play([row, {**row, "answer": answer, "method": method}, row])
    finally:
        logging.disable(logging.NOTSET)
    assert first.success and first.messages == last.messages
    assert_survives_json(odd)
    json.dumps(Record.of(odd, 0).to_dict(), allow_nan=False)
    if odd.stop_reason is StopReason.ENV_ERROR:
        expected = f"`{method}` must return the obs" if method == "reset" else "`step(response)` must return a `Step`"
        assert odd.error.startswith(expected) and "; got " in odd.error and len(odd.error) < 600


@quickly
@given(
    columns=st.dictionaries(
        st.sampled_from(["task_id", "task_type", "environment"]) | texts, values(IN_ROWS), max_size=4
    )
)
def test_a_task_may_have_any_columns(columns, tokenizer, tasks, skills):
    columns.pop("prompt", None)
    rollout = rollout_of(CountingEnv, tokenizer)
    context = SkillContext(skills)
    row = {**tasks[0], **columns, "length": 1}
    logging.disable()
    try:
        episodes = rollout.play([row, row], context)
    finally:
        logging.disable(logging.NOTSET)
    assert [episode.stop_reason.value for episode in episodes] == ["won", "won"]
    assert sibling_context(episodes) == ["", ""]  # they said the same
    for episode in episodes:
        assert_survives_json(episode)
        json.dumps(Record.of(episode, 0).to_dict(), allow_nan=False)
        repr(episode)


# Faults, call by call


PLACES = {
    FaultyEnv: FAULTS,
    FaultyThreadEnv: {**FAULTS, "hangs": PROCESS_FAULTS["hangs"], "cannot be sent": PROCESS_FAULTS["cannot be sent"]},
    FaultyProcessEnv: {**FAULTS, **PROCESS_FAULTS},
}


@pytest.mark.parametrize("kind", PLACES)
def test_a_fault_in_any_call_ends_its_own_episode_as_an_error_does(kind, tokenizer, tasks, monkeypatch, caplog):
    monkeypatch.setattr(workers, "CLOSING_TIME", 0.2)
    cases = [(method, fault) for method in ("reset", "step", "close") for fault in PLACES[kind]]
    rows = [{**tasks[0], "length": 3, "method": method, "fault": fault} for method, fault in cases]
    clean = {**tasks[0], "length": 3}
    rollout = rollout_of(kind, tokenizer)
    first, *episodes, last = rollout.play([clean, *rows, clean])
    rollout.close()
    assert ids_and_mask(first) == ids_and_mask(last) and first.success
    [reset, step] = rollout_of(FaultyEnv, tokenizer).play(
        [{**rows[0], "method": m, "fault": "raises"} for m in ("reset", "step")]
    )
    for (method, fault), episode in zip(cases, episodes, strict=True):
        expected = {"reset": reset, "step": step, "close": first}[method]
        assert episode.stop_reason is expected.stop_reason, (method, fault)
        assert ids_and_mask(episode) == ids_and_mask(expected), (method, fault)
        assert bool(episode.error) == (method != "close")
        assert_survives_json(episode)
    assert not multiprocessing.active_children()


def test_a_wording_with_any_fault_ends_its_own_episode(tokenizer, tasks):
    class Worded(CountingEnv):
        @staticmethod
        def history(first, past, observation, step):
            number = int(first.split()[-1])
            return list(FAULTS.values())[number - 4](observation) if number > 3 and step == 2 else observation

    rollout = rollout_of(Worded, tokenizer, history="window")
    good, *faulty = rollout.play([{**tasks[0], "length": 3 + index} for index in range(len(FAULTS) + 1)])
    assert good.success
    for name, episode in zip(FAULTS, faulty, strict=True):
        assert (episode.stop_reason, len(episode.turns)) == (StopReason.ENV_ERROR, 1), name
        assert episode.error.startswith("`history` ")


def test_an_environment_that_cannot_be_made_again_costs_its_own_episode(tokenizer, tasks, tmp_path):
    broken = tmp_path / "broken"
    for kind in PLACES:
        rollout = rollout_of(functools.partial(kind, str(broken)), tokenizer)
        row = {**tasks[0], "length": 3}
        good, _ = rollout.play([row, {**row, "fault": "raises"}])
        broken.touch()
        kept, missing = rollout.play([row, row])
        assert ids_and_mask(kept) == ids_and_mask(good)
        assert missing.stop_reason is StopReason.ENV_ERROR and missing.turns == []
        assert missing.error == "The environment could not be made: ConnectionError('no server')."
        broken.unlink()
        assert all(episode.success for episode in rollout.play([row, row]))
        rollout.close()
        broken.touch()
        with pytest.raises(RuntimeError, match="could not be made: ConnectionError"):
            rollout_of(functools.partial(kind, str(broken)), tokenizer).play([row])
        broken.unlink()


def test_a_first_observation_too_long_for_the_context_costs_its_own_episode(tokenizer, tasks):
    class Wordy(CountingEnv):
        def reset(self, *, words=1, **task):
            return super().reset(**task) + " one" * words

    rollout = rollout_of(Wordy, tokenizer, context_length=200)
    row = {**tasks[0], "length": 3}
    first, wordy, last = rollout.play([row, {**row, "words": 1000}, row])
    assert first.success and last.success and wordy.turns == []
    assert "leave room for a response" in wordy.error and "context of 200 tokens; got 1" in wordy.error


def test_ctrl_c_stops_the_run_and_closes_what_runs(tokenizer, tasks):
    class Interrupted(CountingEnv):
        closed = 0

        def step(self, response):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)

        def close(self):
            type(self).closed += 1

    factories = {"a": ProcessEnv, "b": Interrupted}
    rollout = rollout_of(factories, tokenizer)
    with pytest.raises(KeyboardInterrupt):
        rollout.play([{**tasks[0], "length": 3, "environment": name} for name in "abab"])
    assert Interrupted.closed == 2 and not multiprocessing.active_children()


def test_a_close_that_hangs_in_a_thread_is_not_waited_for_without_end(tokenizer, tasks, monkeypatch, caplog):
    monkeypatch.setattr(workers, "CLOSING_TIME", 0.2)

    class Clinging(CountingEnv):
        parallel = "thread"

        def close(self):
            time.sleep(5)

    rollout = rollout_of(Clinging, tokenizer)
    rollout.play([{**tasks[0], "length": 1}])
    began = time.monotonic()
    rollout.close()
    assert time.monotonic() - began < 2 and "could not be closed" in caplog.text


def test_a_task_that_cannot_be_sent_to_its_process_costs_its_own_episode(tokenizer, tasks):
    row = {**tasks[0], "length": 1}
    rollout = rollout_of(ProcessEnv, tokenizer)
    good, bad = rollout.play([row, {**row, "thing": lambda: None}])
    rollout.close()
    assert good.success and "`reset` raised" in bad.error and "pickle" in bad.error


# In training, and in evaluation


IN_TRAINING = {
    FaultyEnv: list(FAULTS),
    FaultyThreadEnv: ["exits", "panics", "cannot be sent"],
    FaultyProcessEnv: ["exits", "dies", "is killed", "hangs", "writes garbage", "cannot be read"],
}


@pytest.fixture
def trained(make_trainer, make_config, tokenizer):
    """What comes of one batch of rows: its tensors, gradients, why its episodes ended; and of the rows as a panel."""
    texts = ["e<|im_end|>", "e e e<|im_end|>", "no<|im_end|>", "e e e e e<|im_end|>"]
    said = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]

    def train(kind, rows):
        config = make_config(per_device_train_batch_size=len(rows), num_generations=4, sdar_coef=0.5)
        trainer = make_trainer(config, environment_factory=kind, train_dataset=Dataset.from_list(rows))
        trainer.rollout.backend.generate = lambda ids, *_: (
            [said[(sum(row) + index) % 4] for index, row in enumerate(ids)],
            None,
        )
        inputs = scored_batch(trainer, rows=rows)
        reasons = [episode.stop_reason.value for episode in trainer.episodes]
        found = gradients(trainer, inputs)
        panels = evaluate_trainer(trainer, rows), evaluate(trainer.rollout, rows)
        trainer.rollout.close()
        return inputs, found, reasons, panels

    return train


@pytest.mark.parametrize("kind", IN_TRAINING)
def test_the_other_episodes_train_and_count_as_if_the_faults_were_plain_errors(kind, trained, tasks, monkeypatch):
    monkeypatch.setattr(workers, "CLOSING_TIME", 0.2)
    faults = IN_TRAINING[kind]
    rows = [{**tasks[task], "length": 3, "fault": None} for task in range(-(-len(faults) // 2)) for _ in range(4)]
    for index, fault in enumerate(faults):  # up to two in a group
        rows[2 * index + 1]["fault"] = fault
    inputs, found, reasons, panels = trained(kind, rows)
    expected = trained(FaultyEnv, [{**row, "fault": row["fault"] and "raises"} for row in rows])
    assert reasons == expected[2] and reasons.count("env_error") == len(faults)
    assert inputs.keys() == expected[0].keys() and panels == expected[3]
    for name, value in inputs.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(expected[0][name])), name
    assert any(gradient.abs().max() > 0 for gradient in found.values())
    assert all(torch.equal(found[name], expected[1][name]) for name in found)


def test_a_fault_leaves_its_group_the_advantages_of_the_others(trained, tasks):
    rows = [{**tasks[0], "length": 3, "fault": "panics" if index == 1 else None} for index in range(4)]
    inputs, _, _, (_, panel) = trained(FaultyEnv, rows)
    returns = torch.tensor([record.episode_return for index, record in enumerate(panel) if index != 1])
    expected = (returns - returns.mean()) / (returns.std() + 1e-4)
    torch.testing.assert_close(inputs["advantages"][[0, 2, 3]], expected)


# What is left behind


def test_ninety_faults_leave_no_memory_threads_files_or_processes_behind(monkeypatch):
    monkeypatch.setattr(workers, "CLOSING_TIME", 0.2)
    path = Path(__file__).parent.parent / "benchmarks" / "faults.py"
    study = runpy.run_path(str(path))["study"]
    logging.disable()
    try:
        first, *_, last = study(90)
    finally:
        logging.disable(logging.NOTSET)
    assert last.pop("faults") - first.pop("faults") >= 50
    for name in ("threads", "open files", "processes"):
        assert last[name] <= first[name], name
    assert last["memory, MB"] - first["memory, MB"] < 10
