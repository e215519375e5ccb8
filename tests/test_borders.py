"""What others hand over - environments, rows, reward functions, checkpoints, arguments - in a rollout and a run."""

import json
import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from steps import scored_batch
from toys import CalculatorEnv, CountingEnv, ProcessEnv, Scripted

from sdar_trl import StopReason
from sdar_trl.chat import Chat
from sdar_trl.envs import Step
from sdar_trl.rollout import Rollout


def rollout_of(env, tokenizer, **options):
    response = tokenizer("e<|im_end|>", add_special_tokens=False)["input_ids"]
    backend = Scripted(lambda ids: ([response] * len(ids), None))
    limits = {"max_turns": 9, "max_response_length": 8, "max_completion_length": 500, **options}
    return Rollout(env, Chat(tokenizer), backend, **limits)


def answering(method, answer):
    """An environment that gives this answer in every second task, in its second call of `step`, or in `reset`."""

    class Odd(CountingEnv):
        def reset(self, *, odd=False, **task):
            text = super().reset(**task)
            self.odd = odd
            return answer if odd and method == "reset" else text

        def step(self, response):
            step = super().step(response)
            return answer if self.odd and method == "step" and self.turn == 2 else step

    return Odd


def rows_of(tasks, count=4):
    return [{**tasks[0], "length": 3, "odd": index % 2 == 1, "task_id": f"t/{index}"} for index in range(count)]


# A. Answers of an environment


@pytest.mark.parametrize(
    ("method", "answer", "message"),
    [
        ("reset", ("text", {}), "`reset` must return the observation, a text; got ('text', {}) (a tuple of 2)"),
        ("reset", 3, "`reset` must return the observation, a text; got 3 (int)"),
        ("step", ("text", 0.0, False, False, {}), "`step(response)` must return a `Step`; got ('text', 0.0"),
        ("step", None, "`step(response)` must return a `Step`; got None"),
        ("step", Step("", None), "whose `reward` is a finite number; got None"),
        ("step", Step("", "1"), "whose `reward` is a finite number; got '1' (str)"),
        ("step", Step("", math.nan), "whose `reward` is a finite number; got nan (float)"),
        ("step", Step("", math.inf), "whose `reward` is a finite number; got inf (float)"),
    ],
)
def test_an_answer_that_cannot_be_read_costs_its_own_episode_and_is_told_once(
    method, answer, message, tokenizer, tasks, caplog
):
    rollout = rollout_of(answering(method, answer), tokenizer)
    for _ in range(2):
        episodes = rollout.play(rows_of(tasks))
        assert [e.stop_reason.value for e in episodes] == ["won", "env_error", "won", "env_error"]
        assert all(message in e.error for e in episodes[1::2])
    assert caplog.text.count(message) == 1 and "task t/1" in caplog.text and "Traceback" not in caplog.text


def test_an_environment_that_raises_is_told_once_a_kind_with_its_traceback(tokenizer, tasks, caplog):
    rollout = rollout_of(CountingEnv, tokenizer)
    task = {**tasks[0], "length": 5}
    rollout.play([{**task, "fails_at": at} for at in (0, 1, 2, 3, 0)])
    assert caplog.text.count("Traceback") == 2  # one of `reset`, one of `step`
    assert "`step` raised RuntimeError('step failed')" in caplog.text


def test_an_environment_that_exits_ends_its_own_episode_alone(tokenizer, tasks):
    class Exiting(CountingEnv):
        def step(self, response):
            raise SystemExit(1)

    assert rollout_of(Exiting, tokenizer).play([dict(tasks[0])])[0].stop_reason is StopReason.ENV_ERROR


class OddProcessEnv(ProcessEnv):
    """Its info cannot be sent to another process; or not its answer either."""

    def step(self, response):
        if self.length == 5:
            return lambda: None
        return Step("x", np.float64(1), terminated=True, info={"success": np.bool_(True), "f": lambda: None})


def test_answers_from_another_process_are_read_the_same_way(tokenizer, tasks, caplog):
    rollout = rollout_of(OddProcessEnv, tokenizer)
    good, bad = rollout.play([{**tasks[0], "length": length} for length in (1, 5)])
    rollout.close()
    assert good.success and type(good.turns[0].reward) is float and isinstance(good.info["f"], str)
    assert bad.stop_reason is StopReason.ENV_ERROR and "pickle" in bad.error


def test_a_wording_that_raises_or_is_no_text_costs_its_own_episode(tokenizer, tasks):
    class Worded(CountingEnv):
        @staticmethod
        def history(first, past, observation, step):
            if observation == "count to 5":
                raise KeyError("five")
            return observation if step < 3 else 3

    rollout = rollout_of(Worded, tokenizer, history="window")
    episodes = rollout.play([{**tasks[0], "length": length} for length in (2, 4, 5)])
    assert [e.stop_reason.value for e in episodes] == ["won", "env_error", "env_error"]
    assert "`history` must return the observation, a text; got 3" in episodes[1].error
    assert "`history` raised KeyError('five')" in episodes[2].error


def test_half_an_emoji_in_an_observation_or_a_prompt_is_repaired(make_trainer, make_config, tasks, tokenizer):
    class Mugs(CountingEnv):
        def reset(self, **task):
            super().reset(**task)
            return "two mugs \ud83d for $9"

    rollout = rollout_of(Mugs, tokenizer)
    prompt = [{"role": "user", "content": "half \ud83d: "}]
    [episode] = rollout.play([{**tasks[0], "prompt": prompt}])
    assert episode.prompt == [{"role": "user", "content": "half ?: two mugs ? for $9"}]
    make_trainer(make_config(max_steps=1), environment_factory=Mugs).train()


def test_a_run_of_numpy_numbers_is_saved_and_resumed(make_trainer, make_config, tmp_path):
    class NumPyEnv(CountingEnv):
        def step(self, response):
            step = super().step(response)
            info = {name: np.bool_(value) for name, value in step.info.items()}
            flags = (np.bool_(flag) for flag in (step.terminated, step.truncated, step.valid))
            return Step(step.observation, np.float64(step.reward), *flags, info, {"n": np.float32(1)})

    options = {"retriever": "ucb", "save_strategy": "steps", "save_steps": 1, "num_iterations": 2}
    make_trainer(make_config(max_steps=1, **options), environment_factory=NumPyEnv).train()
    state = json.loads((tmp_path / "out" / "checkpoint-1" / "trainer_state.json").read_text())
    assert state["log_history"][0]["env/n"] == 1.0
    trainer = make_trainer(make_config(max_steps=2, **options), environment_factory=NumPyEnv)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 2


@pytest.mark.parametrize("reward", [math.nan, math.inf])
def test_no_reward_that_is_no_number_reaches_a_retriever_or_a_weight(reward, make_trainer, make_config, tasks, caplog):
    class Judged(CalculatorEnv):
        def reset(self, *, length, **_):
            self.length = length
            return ""

        def get_reward(self):
            return reward if self.length == 1 else 0.5

    rows = tasks.select([0, 1]).map(lambda row, index: {"length": index + 1}, with_indices=True)
    config = make_config(retriever="ucb", max_steps=2, max_completion_length=8)
    trainer = make_trainer(config, environment_factory=Judged, train_dataset=rows)
    trainer.train()
    statistics = trainer.teacher_context.retriever.statistics
    assert set(statistics) == {"odd"} and all(total == 0.5 * n for n, total in statistics["odd"].values())
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    assert ("gave an infinite reward" in caplog.text) == (reward == math.inf)


def test_parts_of_text_and_no_content_are_read_in_prompts(make_trainer, make_config, tokenizer):
    prompt = [
        {"role": "system", "content": None},
        {"role": "user", "content": [{"type": "text", "text": "one "}, {"type": "text", "text": "two "}]},
    ]
    rows = Dataset.from_list([{"prompt": prompt, "length": 1}] * 2)
    trainer = make_trainer(train_dataset=rows)
    scored_batch(trainer)
    assert "<|im_start|>user\none two count to 1<|im_end|>" in tokenizer.decode(trainer.episodes[0].prompt_ids)
    trainer = make_trainer(
        train_dataset=rows, environment_factory=None, reward_funcs=lambda completions, **_: [0.0] * len(completions)
    )
    scored_batch(trainer)
    assert "<|im_start|>user\none two <|im_end|>" in tokenizer.decode(trainer.episodes[0].prompt_ids)
