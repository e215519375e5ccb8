"""What others hand over - environments, rows, reward functions, checkpoints, arguments - in a rollout and a run."""

import datetime
import functools
import json
import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from steps import scored_batch
from toys import CalculatorEnv, CountingEnv, ProcessEnv, Scripted

from sdar_trl import Episode, StopReason
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


# The first batch, and what the constructor sees of environments


class NarrowEnv(CountingEnv):
    """Takes no column but its own."""

    def reset(self, *, length):
        return super().reset(length=length)


class Instanced(CountingEnv):
    closed = 0

    def close(self):
        type(self).closed += 1


def gym_env():
    base = type("Env", (), {"__module__": "gymnasium.core", "reset": None, "step": None, "close": None})
    return type("CartPole", (base,), {})


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (
            NarrowEnv,
            r"(?s)NarrowEnv cannot begin a task.*unexpected keyword argument.*`reset\(self, \*, code, \*\*_\)`",
        ),
        (CountingEnv(), r"must be a class.*pass its class, `CountingEnv`"),
        ({"a": CountingEnv()}, "pass its class"),
        ("CountingEnv", "must be a class"),
        (gym_env(), "CartPole is a Gymnasium environment.*Wrap it"),
        (type("NoReset", (), {"step": None, "close": print}), "has no `reset` and no `step`"),
        (type("NoClose", (), {"step": CountingEnv.step, "reset": CountingEnv.reset}), "it has no `close`.*TRL's own"),
        (answering("reset", None), None),
        (lambda: CountingEnv(), None),
    ],
)
def test_the_constructor_says_what_is_wrong_with_an_environment(factory, message, make_trainer, make_config):
    if message is None:
        make_trainer(environment_factory=factory)
    else:
        with pytest.raises(ValueError, match=message):
            make_trainer(environment_factory=factory)


class Broken(CountingEnv):
    def __init__(self):
        raise SystemExit("no game files")


@pytest.mark.parametrize("factory", [Broken, functools.partial(ProcessEnv, broken=True)])
def test_an_environment_that_cannot_be_made_is_told_before_training(factory, make_trainer):
    with pytest.raises(RuntimeError, match="The environment could not be made: .*no game files"):
        make_trainer(environment_factory=factory)


def test_a_broken_task_costs_its_own_episodes_though_it_is_the_first(make_trainer, make_config, tasks):
    rows = [{**task, "fails_at": 0 if index == 0 else None} for index, task in enumerate(tasks)]
    make_trainer(train_dataset=Dataset.from_list(rows))
    with pytest.raises(ValueError, match="tried in 3. In the first: `reset` raised RuntimeError"):
        make_trainer(train_dataset=Dataset.from_list([{**row, "fails_at": 0} for row in rows]))


def test_an_environment_in_place_of_its_class_is_told_where_episodes_are_only_played(tokenizer):
    with pytest.raises(ValueError, match="pass its class, `CountingEnv`"):
        rollout_of(CountingEnv(), tokenizer)


def test_an_environment_that_was_tried_is_closed(make_trainer):
    import multiprocessing

    make_trainer(environment_factory=Instanced)
    assert Instanced.closed == 1
    make_trainer(environment_factory=ProcessEnv)
    assert not multiprocessing.active_children()


def test_each_of_several_environments_is_tried_with_a_task_of_its_own(make_trainer, tasks):
    class Other(CountingEnv):
        def reset(self, *, environment, **task):
            assert environment == "b"
            return super().reset(**task)

    rows = Dataset.from_list([{**task, "environment": "ab"[i % 2]} for i, task in enumerate(tasks)])
    make_trainer(environment_factory={"a": CountingEnv, "b": Other}, train_dataset=rows)
    with pytest.raises(ValueError, match=r"must name one of \['a'\] in each row, got {'b'}"):
        make_trainer(environment_factory={"a": CountingEnv}, train_dataset=rows)
    with pytest.raises(ValueError, match=r"must name one of \['a'\] in each row, got {None}"):
        make_trainer(environment_factory={"a": CountingEnv})
    with pytest.raises(ValueError, match="Other cannot begin a task"):
        make_trainer(environment_factory={"b": CountingEnv, "a": Other}, train_dataset=rows)


@pytest.mark.parametrize("options", [{"parallel": "cluster"}, {"timeout": "soon"}, {"timeout": 0}])
def test_where_or_how_long_an_environment_runs_must_be_something_that_exists(options, make_trainer):
    with pytest.raises(ValueError, match=f"`{next(iter(options))}` of .*Elsewhere"):
        make_trainer(environment_factory=type("Elsewhere", (CountingEnv,), options))


def test_a_first_rollout_in_which_all_fail_stops_the_run_with_the_reason(make_trainer, make_config, tasks):
    class Tuples(CountingEnv):
        def step(self, response):
            return "obs", 0.0, False, False, {}

    trainer = make_trainer(environment_factory=Tuples)
    with pytest.raises(RuntimeError, match=r"(?s)all 4 episodes of the first rollout.*task 'count/\d'.*a tuple of 5"):
        trainer.train()
    rows = Dataset.from_list([{**task, "fails_at": 1 if index < 7 else None} for index, task in enumerate(tasks)])
    trainer = make_trainer(make_config(per_device_train_batch_size=32, max_steps=1), train_dataset=rows)
    trainer.train()  # one of them plays
    assert trainer.state.log_history[0]["env/stop/env_error"] == 7 / 8


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("count", "`prompt` must be a list of messages .* in row 1"),
        ([{"role": "system", "content": "count."}], "last message of `prompt` must be the user's, .* in row 1"),
    ],
)
def test_the_constructor_says_which_row_has_a_prompt_that_no_environment_can_use(prompt, message, make_trainer, tasks):
    good = prompt if isinstance(prompt, str) else [{"role": "user", "content": "x"}]
    rows = Dataset.from_list([{"prompt": good, "length": 1}, {"prompt": prompt, "length": 1}])
    with pytest.raises(ValueError, match=message.replace("row 1", "row 0") if isinstance(prompt, str) else message):
        make_trainer(train_dataset=rows)


def test_every_row_is_looked_at_before_training(make_trainer, tasks):
    prompts = [[{"role": "user", "content": "x"}]] * 1500 + [[{"role": "system", "content": "x"}]]
    with pytest.raises(ValueError, match="last message of `prompt` must be the user's, .* in row 1500"):
        make_trainer(train_dataset=Dataset.from_dict({"prompt": prompts, "length": [1] * len(prompts)}))


@pytest.mark.parametrize("name", ["image", "images", "prompts", "completions"])
def test_a_column_that_trl_takes_for_something_else_is_refused_by_name(name, make_trainer, tasks):
    with pytest.raises(ValueError, match=rf"has columns \['{name}'\], names that TRL uses for something else.*Rename"):
        make_trainer(train_dataset=tasks.add_column(name, ["x"] * len(tasks)))


@pytest.mark.parametrize("form", [None, "numpy"])
def test_columns_of_any_kind_train_and_their_episodes_are_json(form, make_trainer, make_config, tasks):
    moment = datetime.datetime(2026, 1, 1)
    odd = {"at": moment, "day": moment.date(), "data": b"\xff", "deep": [{"a": [None]}], "nan": math.nan, "none": None}
    rows = tasks.map(lambda row: odd).with_format(form)
    trainer = make_trainer(make_config(max_steps=1), train_dataset=rows)
    trainer.train()
    for episode in trainer.episodes:
        data = episode.to_dict()
        assert Episode.from_dict(json.loads(json.dumps(data, allow_nan=False))).to_dict() == data
        assert data["task"]["nan"] is None and data["task"]["length"] == len(episode.turns)


def test_an_environments_numbers_by_the_trainers_own_names_are_logged_beside_them(make_trainer, make_config):
    class Boasting(CountingEnv):
        def step(self, response):
            step = super().step(response)
            metrics = dict.fromkeys(("success", "turns", "success/even", "stop/won", "stops"), 100.0)
            return Step(step.observation, step.reward, step.terminated, info=step.info, metrics=metrics)

    trainer = make_trainer(make_config(max_steps=1), environment_factory=Boasting)
    trainer.train()
    log = trainer.state.log_history[0]
    for name in ("success", "turns", "stop/won"):
        assert log[f"env/{name}"] < 10 and log[f"env/metrics/{name}"] == 100
    assert log["env/metrics/success/even"] == log["env/stops"] == 100


# E. What TRL takes


def reward_model(random_model_folder):
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(random_model_folder, num_labels=1)


@pytest.mark.parametrize("several", [False, True])
def test_a_reward_model_with_its_processing_class_trains_next_to_a_text_environment(
    several, make_trainer, make_config, random_model_folder, tokenizer
):
    model = reward_model(random_model_folder)
    options = {"reward_funcs": model, "reward_processing_classes": tokenizer}
    config = make_config(max_steps=1)
    if several:
        config = make_config(max_steps=1, reward_weights=[0.5, 2.0])
        options = {
            "reward_funcs": [model, lambda completions, **_: [1.0] * len(completions)],
            "reward_processing_classes": [tokenizer, None],
        }
    trainer = make_trainer(config, **options)
    trainer.train()
    assert len(trainer.reward_funcs) == len(trainer.reward_processing_classes) == 2 + several
    assert "rewards/CountingEnv/mean" in trainer.state.log_history[0]


def fixed_rollout(tokenizer):
    def roll(prompts, trainer):
        ids = tokenizer.apply_chat_template(prompts, add_generation_prompt=True, return_dict=True)["input_ids"]
        texts = ["e no<|im_end|>", "e e<|im_end|>", "no<|im_end|>", "e<|im_end|>"]
        completions = [tokenizer(texts[i % 4], add_special_tokens=False)["input_ids"] for i in range(len(prompts))]
        masks = [[0] + [1] * (len(c) - 1) for c in completions]
        return {
            **{"prompt_ids": ids, "completion_ids": completions, "logprobs": None, "env_mask": masks},
            "gain": [float(i % 4) for i in range(len(prompts))],
        }

    return roll


def gain_reward(gain, **_):
    return gain


def test_a_rollout_function_trains_as_with_trl_and_has_a_teacher_too(
    make_trainer, make_config, tokenizer, random_model_folder, tasks
):
    from trl import GRPOConfig, GRPOTrainer

    options = {"environment_factory": None, "reward_funcs": gain_reward, "rollout_func": fixed_rollout(tokenizer)}
    ours = make_trainer(make_config(sdar_coef=0.0, lean_forward=False), skills=None, **options)
    ours.train()
    options.pop("environment_factory")
    theirs = GRPOTrainer(model=random_model_folder, args=make_config(GRPOConfig), train_dataset=tasks, **options)
    theirs.train()
    for left, right in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        assert torch.equal(left, right)
    taught = make_trainer(make_config(sdar_coef=0.5), environment_factory=None, **options)
    inputs = scored_batch(taught)
    assert inputs["teacher_mask"].sum() == 4 and (inputs["tool_mask"][:, 0] == 0).all()
    taught.train()
    assert all("sdar/gap_mean" in entry for entry in taught.state.log_history if "loss" in entry)
    with pytest.raises(ValueError, match="`rollout_func` is for TRL's own loops"):
        make_trainer(rollout_func=fixed_rollout(tokenizer))


# Fewer tasks than a batch


def test_fewer_tasks_than_a_batch_needs_is_an_error_with_both_numbers(make_trainer, make_config, tasks):
    config = make_config(per_device_train_batch_size=8)
    with pytest.raises(ValueError, match="has 1 task, and a generation batch needs 2: it has 8 episodes"):
        make_trainer(config, train_dataset=tasks.select([0]))
    make_trainer(config, train_dataset=tasks.select([0, 1]))
    make_trainer(make_config(per_device_train_batch_size=8, max_steps=1), train_dataset=tasks.to_iterable_dataset())


# J. The forms that TRL takes


def plain_reward(completions, **_):
    return [float(len(completion)) for completion in completions]


@pytest.mark.parametrize("student_skills", ["never", "train"])
def test_a_prompt_that_is_a_text_has_the_context_in_front_of_it(student_skills, make_trainer, make_config, tokenizer):
    rows = Dataset.from_list([{"prompt": "count to three: ", "task_type": "even"}] * 2)
    coef = 0.5 if student_skills == "never" else 0.0
    config = make_config(sdar_coef=coef, student_skills=student_skills, max_completion_length=8)
    read = []
    trainer = make_trainer(config, train_dataset=rows, environment_factory=None, reward_funcs=plain_reward)
    score = trainer._score

    def watching(model, input_ids, *args):
        read.extend(tokenizer.batch_decode(input_ids))
        return score(model, input_ids, *args)

    trainer._score = watching
    trainer.train()
    [text] = {tokenizer.decode(episode.prompt_ids) for episode in trainer.episodes}
    text = text if student_skills == "train" else read[0]
    assert text.startswith("# skills") and "even tasks want calm.\n\ncount to three: " in text
    assert trainer.episodes[0].messages[-1]["role"] == "assistant"
    assert (trainer.episodes[0].messages[0]["content"] == "count to three: ") == (student_skills == "never")


def test_a_tokenizer_without_a_template_is_enough_for_texts(make_trainer, make_config, tokenizer):
    plain = type(tokenizer).from_pretrained(tokenizer.name_or_path)
    plain.chat_template = None
    rows = Dataset.from_list([{"prompt": "count to three: "}] * 2)
    make_trainer(
        make_config(max_steps=1, max_completion_length=8),
        train_dataset=rows,
        environment_factory=None,
        reward_funcs=plain_reward,
        processing_class=plain,
    ).train()


class StatingEnv(CountingEnv):
    """States its tasks itself."""

    def reset(self, **_):
        return super().reset(length=2)


@pytest.mark.parametrize("history", ["growing", "window"])
def test_an_environment_that_states_its_tasks_needs_no_dataset_nor_prompts(history, make_trainer, make_config):
    config = make_config(max_steps=1, history=history, history_window=1)
    for dataset in (None, Dataset.from_list([{"length": 2}] * 2)):
        trainer = make_trainer(config, environment_factory=StatingEnv, train_dataset=dataset)
        trainer.train()
        assert trainer.episodes[0].prompt == [{"role": "user", "content": "count to 2"}]
    make_trainer(config, environment_factory=NarrowEnv, train_dataset=Dataset.from_list([{"length": 2}] * 2)).train()
    with pytest.raises(ValueError, match="set `max_steps`"):
        make_trainer(make_config(max_steps=-1), environment_factory=StatingEnv, train_dataset=None)
    with pytest.raises(ValueError, match="column `environment`"):
        make_trainer(environment_factory={"a": StatingEnv}, train_dataset=None)


def test_without_an_environment_rows_need_a_prompt(make_trainer):
    rows = Dataset.from_list([{"length": 2}] * 2)
    with pytest.raises(ValueError, match=r"needs a column `prompt`.*\['length'\]"):
        make_trainer(environment_factory=None, reward_funcs=plain_reward, train_dataset=rows)


@pytest.mark.parametrize("student_skills", ["never", "train"])
def test_tool_environments_may_state_the_prompt_too(student_skills, make_trainer, make_config):
    coef = 0.5 if student_skills == "never" else 0.0
    config = make_config(max_steps=1, max_completion_length=8, sdar_coef=coef, student_skills=student_skills)
    trainer = make_trainer(
        config, environment_factory=CalculatorEnv, train_dataset=Dataset.from_list([{"task_type": "odd"}] * 2)
    )
    trainer.train()
    assert trainer.episodes[0].prompt[-1]["content"].endswith(" use the tool.")


def test_skills_may_be_a_folder(make_trainer, tmp_path):
    folder = tmp_path / "skills" / "tea"
    folder.mkdir(parents=True)
    (folder / "SKILL.md").write_text("---\nname: tea\ndescription: for tea\n---\nBoil water.\n")
    for path in (tmp_path / "skills", str(tmp_path / "skills")):
        trainer = make_trainer(skills=path)
        assert [skill.name for skill in trainer.teacher_context.retriever.library] == ["tea"]
    with pytest.raises(ValueError, match="path of a folder with skills, and there is none at 'webshop'"):
        make_trainer(skills="webshop")
    with pytest.raises(ValueError, match="`skills` must be a `SkillLibrary`, a folder"):
        make_trainer(skills=["Boil water."])


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a"], r"`.*context` must return a list of one text for each of the 4 episodes; got 1\."),
        ([1] * 4, "a str each .* got 1"),
        (None, "got NoneType"),
        ("text", "got str"),
    ],
)
def test_a_context_that_gives_anything_but_a_text_an_episode_is_named(texts, message, make_trainer):
    def context(episodes):
        return texts

    with pytest.raises(ValueError, match=message):
        scored_batch(make_trainer(skills=context))


def test_a_context_that_gives_no_text_for_any_episode_says_so_once(make_trainer, make_config, caplog):
    from sdar_trl import hindsight_context

    config = make_config(max_completion_length=8)
    trainer = make_trainer(config, environment_factory=CalculatorEnv, skills=hindsight_context)
    trainer.train()
    assert caplog.text.count("gave no text for any of 4 episodes") == 1 and "how an episode ended" in caplog.text
    caplog.clear()
    scored_batch(make_trainer(skills=lambda episodes: [None] * len(episodes)))
    assert caplog.text.count("gave no text for any of 4 episodes") == 1


def test_the_embedded_policy_is_a_model_by_name(make_config, tasks, skills):
    from sdar_trl import SDARTrainer
    from sdar_trl.policies import TINY_POLICY

    options = {"train_dataset": tasks, "environment_factory": CountingEnv, "skills": skills}
    trainer = SDARTrainer(model="tiny", args=make_config(), **options)
    assert trainer.model.config._name_or_path == TINY_POLICY


# K. Missing and None


def test_tasks_without_an_id_have_no_siblings():
    from sdar_trl import Episode, Turn, sibling_context

    def episode(task, response):
        turn = Turn("a door", [1], [ord(response)], response, reward=1.0)
        return Episode(task, [{"role": "user", "content": "go"}], [turn], StopReason.WON)

    for task in ({}, {"task_id": None}, {"task_id": math.nan}):
        assert sibling_context([episode(task, "a"), episode(task, "b")]) == ["", ""]
    for task_id in (0, "a", ["a"], {"a": 1}, np.arange(2)):  # whatever can be a column
        assert all(sibling_context([episode({"task_id": task_id}, "a"), episode({"task_id": task_id}, "b")]))


def test_none_in_a_task_counts_as_missing_for_skills_and_their_account(make_trainer, make_config, tasks):
    results = []
    for rows in (tasks.remove_columns(["task_type"]), tasks.map(lambda row: {"task_type": None})):
        trainer = make_trainer(make_config(retriever="ucb"), train_dataset=rows)
        trainer.train()
        results.append(trainer.teacher_context.retriever.statistics)
    assert results[0] == results[1] and set(results[0]) == {"all"}


# A CPU


def test_bf16_on_a_cpu_is_told(make_trainer, make_config, caplog):
    make_trainer(make_config(bf16=True))
    assert "Pass `bf16=False`" in caplog.text
    caplog.clear()
    make_trainer()
    assert "bf16" not in caplog.text


# F. Temperature 0


def test_at_temperature_0_a_trainers_panel_is_greedy_as_a_plain_models(make_trainer, tasks, tokenizer):
    from sdar_trl.evaluation import evaluate, evaluate_trainer, policy_rollout

    trainer = make_trainer()
    before = trainer.generation_config.to_dict()
    first, again = (evaluate_trainer(trainer, tasks, temperature=0, seed=seed) for seed in (0, 1))
    limits = {"max_turns": 4, "max_response_length": 8, "max_completion_length": 96}
    plain = policy_rollout(trainer.model, tokenizer, CountingEnv, temperature=0, **limits)
    expected = evaluate(plain, tasks)
    assert [r.episode_return for r in first] == [r.episode_return for r in again]
    assert first == expected
    assert trainer.generation_config.to_dict() == before
    sampled = [evaluate_trainer(trainer, tasks, temperature=1.0, seed=seed) for seed in (0, 1)]
    assert [r.episode_return for r in sampled[0]] != [r.episode_return for r in sampled[1]]


# G. What counts as cut


class CuttingEnv(CountingEnv):
    """Cuts the episode itself after three turns of five."""

    def step(self, response):
        step = super().step(response)
        return Step("x", step.reward, truncated=True) if self.length == 5 and self.turn == 3 else step


@pytest.mark.parametrize("history", ["growing", "window"])
@pytest.mark.parametrize("mask", [True, False])
def test_an_episode_is_cut_by_why_it_ended_and_not_by_its_last_token(
    history, mask, make_trainer, make_config, tasks, tokenizer
):
    config = make_config(
        mask_truncated_completions=mask, history=history, history_window=1, max_completion_length=60, max_turns=99
    )
    trainer = make_trainer(config, environment_factory=CuttingEnv)
    cut, whole = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("e e", "e<|im_end|>"))
    said = {1: cut, 2: whole, 5: whole, 98: whole}  # by the length of the episode
    trainer.rollout.backend.generate = lambda ids: (
        [said[int(tokenizer.decode(row).split("count to ")[1].split("<")[0].split()[0])] for row in ids],
        None,
    )
    rows = [{**tasks[0], "length": length} for length in said]
    if history == "window":
        rows[-1]["length"] = 2  # a window has no budget that an episode could use up
    inputs = scored_batch(trainer, rows=rows)
    reasons = [e.stop_reason.value for e in trainer.episodes]
    assert reasons == ["won", "won", "truncated", "length" if history == "growing" else "won"]
    cuts = [0, 0, 1, int(history == "growing")]
    trained = (inputs["completion_mask"] * inputs["tool_mask"]).sum(1)
    for (episode, *_), tokens in zip(inputs["row_turns"].tolist(), trained.tolist(), strict=True):
        assert (tokens == 0) == (episode < 0 or bool(mask and cuts[episode]))
    assert inputs["num_items_in_batch"] == trained.sum()
    metrics = trainer._metrics["train"]
    of_rows = [cuts[episode] for episode, *_ in inputs["row_turns"].tolist() if episode >= 0]
    assert metrics["completions/clipped_ratio"] == [pytest.approx(sum(of_rows) / len(of_rows))]
    if history == "growing":
        assert metrics["completions/max_terminated_length"] == [2 * len(whole)]


# L. Checkpoints and the settings they depend on


BATCH = {"num_iterations": 2, "steps_per_generation": 4, "gradient_accumulation_steps": 2, "sdar_coef": 0.5}
SAVING = {**BATCH, "per_device_train_batch_size": 2, "num_generations": 4, "save_strategy": "steps", "save_steps": 1}


@pytest.fixture
def written(make_trainer, make_config, tmp_path):
    """Checkpoints of a run whose generation batches last for four steps."""
    make_trainer(make_config(**{**SAVING, "max_steps": 4}, output_dir=str(tmp_path / "written"))).train()
    return tmp_path / "written"


CHANGES = {
    "per_device_train_batch_size": {"per_device_train_batch_size": 4},
    "steps_per_generation": {"steps_per_generation": 2},
    "num_iterations": {"num_iterations": 1},
    "gradient_accumulation_steps": {"gradient_accumulation_steps": 4},
    "num_generations": {"num_generations": 2},
    "history": {"history": "window"},
    "divergence": {"divergence": "reverse_kl"},
    "beta": {"beta": 0.04},
}


@pytest.mark.parametrize("name", CHANGES)
def test_in_the_middle_of_a_generation_batch_other_settings_are_refused_by_name(
    name, written, make_trainer, make_config
):
    config = make_config(**{**SAVING, "max_steps": 6, **CHANGES[name]})
    with pytest.raises(ValueError, match=rf"in the middle of a generation batch.*`{name}` was [^ ]+ and is "):
        make_trainer(config).train(resume_from_checkpoint=str(written / "checkpoint-1"))


@pytest.mark.parametrize("change", [*CHANGES.values(), {"steps_per_generation": 8}], ids=str)
def test_at_the_end_of_a_generation_batch_other_settings_begin_a_new_one(change, written, make_trainer, make_config):
    config = make_config(**{**SAVING, "max_steps": 8, **change})
    trainer = make_trainer(config)
    played = []
    play = trainer.rollout.play
    trainer.rollout.play = lambda *args: played.append(trainer._step) or play(*args)
    trainer.train(resume_from_checkpoint=str(written / "checkpoint-4"))
    assert trainer.state.global_step == 8 and played[0] % (config.steps_per_generation * config.num_iterations) == 0


def test_settings_that_the_batch_does_not_depend_on_may_change_and_old_checkpoints_resume(
    written, make_trainer, make_config
):
    config = make_config(**{**SAVING, "max_steps": 6, "history_window": 5, "learning_rate": 1e-3})
    make_trainer(config).train(resume_from_checkpoint=str(written / "checkpoint-1"))
    mark = written / "checkpoint-2" / "complete.json"
    content = json.loads(mark.read_text())
    assert content.pop("settings")["num_iterations"] == 2
    mark.write_text(json.dumps(content))
    make_trainer(config).train(resume_from_checkpoint=str(written / "checkpoint-2"))


def test_a_run_that_had_no_teacher_goes_on_with_one(make_trainer, make_config, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 1}
    make_trainer(make_config(sdar_coef=0.0, max_steps=1, **options)).train()
    trainer = make_trainer(make_config(sdar_coef=0.5, max_steps=2, retriever="ucb"))
    trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-1"))
    assert trainer.teacher_context.retriever.statistics


# M. A compiled model


def test_a_compiled_model_has_a_divergence_over_the_vocabulary_after_another_compiled_one(make_trainer, make_config):
    compiled = {"torch_compile": True, "torch_compile_backend": "eager", "sdar_coef": 0.5}
    make_trainer(make_config(**compiled)).train()
    losses = []
    for options in (compiled, {"sdar_coef": 0.5}):
        trainer = make_trainer(make_config(**options, divergence="reverse_kl"))
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
