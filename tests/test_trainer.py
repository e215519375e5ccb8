"""SDARTrainer from outside, against TRL's own trainer and against independent computations."""

import dataclasses
import inspect
import re

import pandas as pd
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from steps import gradients, only_row, scored_batch
from toys import CalculatorEnv, CountingEnv, Scripted
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
from trl_hooks import ATTRIBUTES, DIVERGENCE_KERNEL, TRL_HOOKS

from sdar_trl import SDARConfig, SDARTrainer
from sdar_trl.chat import Chat
from sdar_trl.evaluation import evaluate_trainer
from sdar_trl.rollout import Rollout


LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.1}


def weights(trainer):
    return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}


# TRL


def test_the_private_names_of_trl_exist_with_the_expected_parameters():
    for name, expected in TRL_HOOKS.items():
        parameters = list(inspect.signature(getattr(GRPOTrainer, name)).parameters)[1:]
        assert parameters[: len(expected)] == expected, f"GRPOTrainer.{name} has changed: {parameters}"
    assert list(inspect.signature(ChunkedDivergenceFunction.forward).parameters)[1:] == DIVERGENCE_KERNEL


def test_the_private_attributes_of_trl_exist(random_model_folder, tasks, make_config):
    trainer = GRPOTrainer(
        model=random_model_folder, reward_funcs=len, args=make_config(GRPOConfig), train_dataset=tasks
    )
    for name in ATTRIBUTES:
        assert hasattr(trainer, name), name


VARIANTS = {
    "plain": {},
    "gradient accumulation": {"gradient_accumulation_steps": 2},
    "several iterations": {"num_iterations": 2, "max_steps": 3},
    "reference model": {"beta": 0.04},
    "LoRA": {"peft": True, "beta": 0.04},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_with_coefficient_zero_it_is_grpo_to_the_bit(
    variant, make_trainer, make_config, random_model_folder, tasks, tokenizer
):
    options = dict(VARIANTS[variant])
    peft_config = LoraConfig(**LORA) if options.pop("peft", False) else None
    by_prompt = {}
    numbered = []
    for index, task in enumerate(tasks):
        prompt = [{"role": "user", "content": f"task {index}: "}]
        numbered.append({**task, "prompt": prompt})
        by_prompt[prompt[0]["content"]] = numbered[-1]
    dataset = Dataset.from_list(numbered)

    config = make_config(sdar_coef=0.0, reuse_cache=False, lean_forward=False, **options)  # these change the rounding
    ours = make_trainer(config, train_dataset=dataset, skills=None, peft_config=peft_config)
    ours.train()

    def play(prompts, trainer):
        trainer.generation_config.max_new_tokens = 8
        rollout = Rollout(
            CountingEnv,
            Chat(tokenizer),
            Scripted(lambda ids: trainer._generate_single_turn(ids, None, {}, 1)),
            max_turns=4,
            max_response_length=8,
            max_completion_length=96,
            context_length=1024,
        )
        episodes = rollout.play([by_prompt[prompt[0]["content"]] for prompt in prompts])
        rows = [only_row(episode) for episode in episodes]
        output = {key: [getattr(row, key) for row in rows] for key in ("prompt_ids", "completion_ids")}
        return {
            **output,
            "env_mask": [row.mask for row in rows],
            "logprobs": None,
            "gain": [e.episode_return - 0.1 * e.invalid_actions for e in episodes],
        }

    def reward(gain, **_):
        return gain

    theirs = GRPOTrainer(
        model=random_model_folder,
        reward_funcs=reward,
        args=make_config(GRPOConfig, **options),
        train_dataset=dataset,
        rollout_func=play,
        peft_config=peft_config,
    )
    theirs.train()

    losses = [[entry["loss"] for entry in t.state.log_history if "loss" in entry] for t in (ours, theirs)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == ours.args.max_steps
    for (name, left), (_, right) in zip(weights(ours).items(), weights(theirs).items(), strict=True):
        assert torch.equal(left, right), name


def test_with_coefficient_zero_no_teacher_pass_is_run(make_trainer, make_config):
    def context(episodes):
        raise AssertionError("the teacher was asked")

    make_trainer(make_config(sdar_coef=0.0, max_steps=1), skills=context).train()


# The loss


def independent_logps(model, rows):
    """Log-prob of each completion token from plain logits, one row at a time, without padding."""
    result = []
    for prompt, completion in rows:
        logits = model(torch.tensor([prompt + completion], device=model.device)).logits[0].double().cpu()
        logps = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1]
        result.append(logps.gather(1, torch.tensor(completion).unsqueeze(1)).squeeze(1))
    return result


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"])
def test_the_gradient_is_grpos_plus_the_formulas(loss_type, make_trainer, make_config, skills, tokenizer):
    trainer = make_trainer(make_config(sdar_coef=0.7, loss_type=loss_type, temperature=1.0))
    inputs = scored_batch(trainer)
    with_distillation = gradients(trainer, inputs)
    trainer.args.sdar_coef = 0.0
    grpo = gradients(trainer, inputs)

    # the formula, from the episodes
    rows, teacher_rows, masks = [], [], []
    for episode in trainer.episodes:
        row = only_row(episode)
        names = [skill.name for skill in skills if skill.always or episode.task["task_type"] in skill.task_types]
        text = "\n\n".join(["# Skills", *(f"## {s.name}\n{s.body}" for s in skills if s.name in names)])
        system, *rest = episode.prompt
        prompt = tokenizer.apply_chat_template(
            [{"role": "system", "content": f"{system['content']}\n\n{text}"}, *rest],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
        )
        rows.append((row.prompt_ids, row.completion_ids))
        teacher_rows.append((prompt, row.completion_ids))
        masks.append(torch.tensor(row.mask))
    trainer.model.zero_grad()
    student = independent_logps(trainer.model, rows)
    with torch.no_grad():
        teacher = independent_logps(trainer.model, teacher_rows)
    losses = [
        torch.sigmoid(5.0 * (t - s.detach())) * (t - s) * m for s, t, m in zip(student, teacher, masks, strict=True)
    ]
    tokens = sum(int(mask.sum()) for mask in masks)
    total = {
        "grpo": lambda: sum(x.sum() / m.sum() for x, m in zip(losses, masks, strict=True)) / len(rows),
        "bnpo": lambda: sum(x.sum() for x in losses) / tokens,
        "dr_grpo": lambda: sum(x.sum() for x in losses) / (len(rows) * 96),
        "luspo": lambda: sum(x.sum() for x in losses) / len(rows),
    }
    aliases = {"sapo": "grpo", "dapo": "bnpo", "cispo": "bnpo", "vespo": "bnpo"}
    total[aliases.get(loss_type, loss_type)]().backward()
    expected = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}

    assert any(gradient.abs().max() > 1e-4 for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(with_distillation[name] - grpo[name], 0.7 * gradient, rtol=1e-3, atol=2e-6)


def test_accumulated_gradients_equal_one_large_batch(make_trainer, make_config):
    """Two micro-batches of a generation batch add up to what the whole batch gives."""
    trainer = make_trainer(make_config(sdar_coef=0.7, per_device_train_batch_size=2, gradient_accumulation_steps=2))
    inputs = scored_batch(trainer)
    halves = [
        {key: value[part] if value.dim() else value for key, value in inputs.items()}
        for part in (slice(0, 2), slice(2, 4))
    ]
    first, second = (gradients(trainer, half) for half in halves)
    trainer.args.steps_per_generation = 1
    trainer.current_gradient_accumulation_steps = 1
    whole = gradients(trainer, inputs)
    for name in whole:
        torch.testing.assert_close(first[name] + second[name], whole[name], rtol=1e-4, atol=1e-6)


def test_teacher_equal_to_student_gives_gate_one_half_and_no_gap(make_trainer, make_config, tokenizer):
    trainer = make_trainer(skills=lambda episodes: [""] * len(episodes))
    inputs = scored_batch(trainer)
    with torch.no_grad():
        trainer._compute_loss(trainer.model, inputs)
        student, _, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1),
            inputs["completion_ids"].size(1),
        )
    assert torch.equal(inputs["teacher_per_token_logps"], student)
    assert inputs["teacher_mask"].sum() == 0  # a teacher that reads nothing more than the student teaches nothing


def test_dropout_does_not_reach_the_teacher(make_trainer, make_config):
    trainer = make_trainer(peft_config=LoraConfig(**{**LORA, "lora_dropout": 0.9, "init_lora_weights": False}))
    trainer.model.train()
    output = scored_batch(trainer)
    rows = [only_row(episode) for episode in trainer.episodes]
    again = trainer._teacher_pass(output, rows, output["advantages"].new_ones(len(rows) + 1))
    assert torch.equal(output["teacher_per_token_logps"], again["teacher_per_token_logps"])
    assert trainer.model.training


# What the teacher reads


class Recording(SDARTrainer):
    """Keeps what every forward pass of the model read."""

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, *args, **kwargs):
        self.read = [*getattr(self, "read", []), (input_ids, attention_mask)]
        return super()._get_per_token_logps_and_entropies(model, input_ids, attention_mask, *args, **kwargs)


def test_the_teachers_row_is_the_students_with_the_skills_inside_the_system_message(make_trainer, tokenizer):
    trainer = make_trainer(cls=Recording)
    inputs = scored_batch(trainer, count=8)
    [(teacher_ids, teacher_mask)] = trainer.read
    length = inputs["completion_ids"].size(1)
    assert torch.equal(teacher_ids[:, -length:], inputs["completion_ids"])
    assert torch.equal(teacher_mask[:, -length:], inputs["completion_mask"])
    seen = set()
    for row, mask, episode in zip(teacher_ids, teacher_mask, trainer.episodes, strict=True):
        teacher = tokenizer.decode(row[:-length][mask[:-length].bool()])
        student = tokenizer.decode(episode.prompt_ids)
        advice = {"even": "even tasks want calm.", "odd": "odd tasks want courage."}
        own, other = advice.pop(episode.task["task_type"]), *advice.values()
        seen.add(episode.task["task_type"])
        system = re.match(r"<\|im_start\|>system\n(.*?)<\|im_end\|>", teacher, re.DOTALL)[1]
        assert own in system and "say every number." in system and other not in teacher
        assert teacher.replace(system, "you count.") == student
        assert "# skills" not in student
    assert seen == {"even", "odd"}


def test_skill_text_never_reaches_the_student(make_trainer, tokenizer):
    trainer = make_trainer()
    trainer.train()
    for episode in trainer.episodes:
        text = tokenizer.decode(episode.prompt_ids + only_row(episode).completion_ids)
        assert not any(word in text for word in ("skills", "calm", "courage", "say every number"))


def test_the_context_can_go_into_the_user_message(make_trainer, make_config, tokenizer):
    trainer = make_trainer(make_config(context_role="user"), cls=Recording)
    scored_batch(trainer)
    teacher = tokenizer.decode(trainer.read[0][0][0])
    assert "<|im_start|>system\nyou count.<|im_end|>\n<|im_start|>user\n# skills" in teacher


def test_a_teacher_row_that_does_not_fit_is_an_error_with_the_lengths(make_trainer, make_config):
    trainer = make_trainer(make_config(max_teacher_length=40))
    with pytest.raises(ValueError, match=r"teacher row has \d+ tokens \(\d+ of context.*more than the 40"):
        scored_batch(trainer)


def test_a_teacher_row_that_does_not_fit_can_be_left_out_and_is_counted(make_trainer, make_config):
    trainer = make_trainer(make_config(max_teacher_length=10, teacher_overflow="skip", sdar_coef=0.7))
    inputs = scored_batch(trainer)
    assert inputs["teacher_mask"].sum() == 0
    assert trainer._metrics["train"]["sdar/teacher_overflow"] == [1.0] * 4
    skipped = gradients(trainer, inputs)
    trainer.args.sdar_coef = 0.0
    for name, gradient in gradients(trainer, inputs).items():
        assert torch.equal(gradient, skipped[name])


def test_a_task_type_without_a_skill_is_counted_and_named(make_trainer, tasks, caplog):
    trainer = make_trainer(train_dataset=tasks.map(lambda row: {**row, "task_type": "prime"}))
    scored_batch(trainer)
    assert trainer._metrics["train"]["sdar/no_own_skill"] == [1.0] * 4
    assert "'prime'" in caplog.text


# Environments


def test_an_environment_that_raises_leaves_the_other_episodes_gradients_as_they_are(make_trainer, make_config, tasks):
    """Three episodes train as they would without a fourth of their group, whose environment raises in step 3."""

    def batch(num_generations, fails_at):
        config = make_config(
            sdar_coef=0.5, num_generations=num_generations, per_device_train_batch_size=num_generations
        )
        trainer = make_trainer(config)
        trainer.current_gradient_accumulation_steps = 1
        trainer.model.train()
        texts = ["e<|im_end|>", "ee e<|im_end|>", "no<|im_end|>", "e no<|im_end|>"]
        ids = [trainer.processing_class(text, add_special_tokens=False)["input_ids"] for text in texts]
        trainer.rollout.backend.generate = lambda running: ([ids[i] for i in range(len(running))], None)
        rows = [{**tasks[0], "length": 4, "fails_at": fails_at if i == 3 else None} for i in range(num_generations)]
        return trainer, trainer._generate_and_score_completions(rows)

    trainer, inputs = batch(4, fails_at=3)
    assert trainer._metrics["train"]["env/stop/env_error"] == [0.0, 0.0, 0.0, 1.0]
    assert inputs["advantages"][3] == 0 and inputs["advantages"][:3].abs().min() > 0
    without_trainer, without = batch(3, fails_at=None)
    torch.testing.assert_close(inputs["advantages"][:3], without["advantages"])
    for (name, left), right in zip(
        gradients(trainer, inputs).items(), gradients(without_trainer, without).values(), strict=True
    ):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-7, msg=name)


def test_the_reward_is_the_return_minus_the_penalty_and_other_rewards_add_to_it(make_trainer, make_config, tasks):
    def twice(completions, **_):
        return [2.0] * len(completions)

    config = make_config(reward_weights=[10.0], invalid_action_penalty=0.25)
    trainer = make_trainer(config, reward_funcs=twice, train_dataset=tasks.select([1]))
    trainer.rollout.backend.generate = lambda running: (
        [[trainer.eos_token_ids[0]]] * len(running),
        None,
    )  # empty: invalid
    scored_batch(trainer)
    metrics = trainer._metrics["train"]
    assert metrics["rewards/CountingEnv/mean"] == [-0.5]
    assert metrics["rewards/twice/mean"] == [2.0]
    assert metrics["reward"] == [10 * 2.0 - 0.5]
    assert metrics["env/valid_actions"] == [0.0] * 4
    assert config.reward_weights == [10.0]


@pytest.mark.parametrize("history", ["growing", "window"])
def test_reward_functions_and_the_table_of_completions_see_the_episode(
    history, make_trainer, make_config, tasks, tmp_path
):
    seen = []

    def watching(prompts, completions, episode, **_):
        seen.append((prompts, completions, episode))
        return [float(len(one.turns)) for one in episode]

    config = make_config(history=history, log_completions=True, max_steps=1, num_completions_to_print=0)
    trainer = make_trainer(config, reward_funcs=watching, train_dataset=tasks.select([2]))  # three turns
    trainer.train()
    [(prompts, completions, episodes)] = seen
    assert episodes == trainer.episodes and len(episodes) == 4
    for prompt, completion, episode in zip(prompts, completions, episodes, strict=True):
        assert prompt == [
            {"role": "system", "content": "you count."},
            {"role": "user", "content": "task: count to 3"},
        ]
        assert [message["role"] for message in completion] == ["assistant", "user", "assistant", "user", "assistant"]
        assert [message["content"] for message in completion[1::2]] == ["now at 1", "now at 2"]
        assert prompt + completion == episode.messages
    table = pd.read_parquet(next((tmp_path / "out" / "completions").glob("*.parquet")))
    assert [message["content"] for message in table["completion"][0][1::2]] == ["now at 1", "now at 2"]
    assert table["prompt"][0][1]["content"] == "task: count to 3"
    assert trainer.state.log_history[0]["rewards/watching/mean"] == 3.0


def test_numbers_of_the_environment_are_logged_as_they_were_last_reported(make_trainer, make_config, tasks):
    class Reporting(CountingEnv):
        def step(self, response):
            step = super().step(response)
            return dataclasses.replace(step, metrics={"steps": float(self.turn)} if self.turn % 2 else {})

    trainer = make_trainer(make_config(max_steps=1), environment_factory=Reporting, train_dataset=tasks.select([1]))
    trainer.train()  # two turns, of which the first reports
    assert trainer.state.log_history[0]["env/steps"] == 1.0
    [record, *_] = evaluate_trainer(trainer, tasks.select([2]))
    assert record.metrics == {"steps": 3.0}


def test_a_student_that_reads_the_skills_has_no_teacher_that_reads_them_twice(
    make_trainer, make_config, tasks, tokenizer
):
    config = make_config(student_skills="eval", sdar_coef=0.5, num_generations_eval=1)
    trainer = make_trainer(config, cls=Recording, eval_dataset=tasks)
    trainer.model.eval()
    trainer.current_gradient_accumulation_steps = 1
    output = trainer._generate_and_score_completions([dict(row) for row in tasks])
    for ids, _ in trainer.read:
        for text in tokenizer.batch_decode(ids):
            assert text.count("say every number.") == 1
    assert output["teacher_mask"].sum() == 0
    assert all(e.student_context.count("say every number.") == 1 for e in trainer.episodes)
    trainer.evaluate()


def test_an_environment_without_step_goes_to_trls_tool_loop_and_has_a_teacher_too(
    make_trainer, make_config, tokenizer, tasks, monkeypatch
):
    trainer = make_trainer(make_config(max_completion_length=200), cls=Recording, environment_factory=CalculatorEnv)
    call = '<tool_call>{"name": "add", "arguments": {"a": 2, "b": 40}}</tool_call><|im_end|>'
    texts = iter([call] * 4 + ["done<|im_end|>"] * 4)
    monkeypatch.setattr(
        trainer,
        "_generate_single_turn",
        lambda ids, *_, **__: ([tokenizer(next(texts), add_special_tokens=False)["input_ids"] for _ in ids], None),
    )
    inputs = scored_batch(trainer)
    assert trainer._metrics["train"]["rewards/CalculatorEnv/mean"] == [1.0]
    [(teacher_ids, _)] = trainer.read
    text = tokenizer.decode(teacher_ids[0])
    assert "42" in text and "even tasks want calm." in text and '"add"' in text and "use the tool." in text
    assert "calm" not in tokenizer.decode(inputs["prompt_ids"][0])
    assert torch.equal(teacher_ids[:, -inputs["completion_ids"].size(1) :], inputs["completion_ids"])
    assert inputs["tool_mask"].sum() < inputs["completion_mask"].sum()


def test_without_an_environment_the_teacher_reads_the_prompts_of_the_dataset(make_trainer, tokenizer):
    trainer = make_trainer(
        cls=Recording, environment_factory=None, reward_funcs=lambda completions, **_: [0.0] * len(completions)
    )
    trainer.train()
    assert any("even tasks want calm." in tokenizer.decode(ids[0]) for ids, _ in trainer.read)


def test_environments_by_name_each_play_their_own_tasks_and_give_their_returns(make_trainer, make_config, tasks):
    class Backwards(CountingEnv):
        def reset(self, **task):
            return super().reset(**task)[::-1]

    rows = [{**task, "environment": ["a", "b"][index % 2]} for index, task in enumerate(tasks)]
    factories = {"a": CountingEnv, "b": Backwards}
    trainer = make_trainer(
        make_config(max_steps=1), environment_factory=factories, train_dataset=Dataset.from_list(rows)
    )
    inputs = scored_batch(trainer, count=8)
    for episode in trainer.episodes:
        said = episode.prompt[-1]["content"].removeprefix("task: ")
        assert said.startswith("count to") == (episode.task["environment"] == "a")
    returns = torch.tensor([e.episode_return - 0.1 * e.invalid_actions for e in trainer.episodes]).view(2, 4)
    expected = (returns - returns.mean(1, keepdim=True)) / (returns.std(1, keepdim=True) + 1e-4)
    torch.testing.assert_close(inputs["advantages"].cpu().view(2, 4), expected, rtol=1e-4, atol=1e-4)
    assert "rewards/environment_reward/mean" in trainer._metrics["train"]


def test_text_and_tool_environments_do_not_mix(make_trainer):
    with pytest.raises(ValueError, match="cannot be mixed"):
        make_trainer(environment_factory={"a": CountingEnv, "b": CalculatorEnv})


def test_distillation_without_anything_to_read_is_refused(make_trainer):
    with pytest.raises(ValueError, match="nothing to read"):
        make_trainer(skills=None)


# A run


def test_training_changes_the_weights_logs_its_metrics_and_saves_what_plain_transformers_loads(
    make_trainer, make_config, tmp_path, random_model_folder
):
    trainer = make_trainer(make_config(save_strategy="steps", save_steps=2, beta=0.01))
    before = weights(trainer)
    trainer.train()
    assert all(not torch.equal(before[name], value) for name, value in weights(trainer).items())
    logged = trainer.state.log_history[0]
    for key in ("reward", "kl", "env/success", "env/return", "env/turns", "env/valid_actions", "env/stop/won"):
        assert key in logged
    for key in ("loss", "gate_mean", "gate_above_half", "gap_mean", "gap_std", "teacher_overflow", "no_own_skill"):
        assert f"sdar/{key}" in logged
    assert 0 < logged["sdar/gate_mean"] < 1

    checkpoint = tmp_path / "out" / "checkpoint-2"
    loaded = AutoModelForCausalLM.from_pretrained(checkpoint)
    for name, value in loaded.named_parameters():
        assert torch.equal(value, trainer.model.get_parameter(name).cpu())
    AutoTokenizer.from_pretrained(checkpoint)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "sdar" in card and "Self-Distilled Agentic Reinforcement Learning" in card and "2605.15155" in card


def test_lora_trains_and_its_adapter_loads(make_trainer, make_config, tmp_path, random_model_folder):
    trainer = make_trainer(peft_config=LoraConfig(**LORA))
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    base = AutoModelForCausalLM.from_pretrained(random_model_folder)
    model = PeftModel.from_pretrained(base, tmp_path / "adapter")
    assert any("lora_B" in name and value.abs().sum() > 0 for name, value in model.named_parameters())


def test_trl_evaluation_works_and_weighs_all_episodes_alike(make_trainer, make_config, tasks):
    config = make_config(per_device_eval_batch_size=6, num_generations_eval=1)
    trainer = make_trainer(config, eval_dataset=tasks)  # 8 tasks in batches of 6 and 2
    trainer.rollout.backend.generate = lambda running: (
        [trainer.processing_class("e", add_special_tokens=False)["input_ids"]] * len(running),
        None,
    )
    metrics = trainer.evaluate()
    lengths = [task["length"] for task in tasks]
    assert metrics["eval_env/turns"] == pytest.approx(sum(lengths) / len(lengths))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gate": "hard"}, "`gate` must be one of gap"),
        ({"sdar_coef": -1.0}, "`sdar_coef` must not be negative"),
        ({"max_turns": 0}, "`max_turns` must be at least 1"),
        ({"teacher_overflow": "cut"}, "`teacher_overflow` must be one of error, skip"),
        ({"max_completion_length": None}, "`max_completion_length` must be of type int, got None"),
        ({"remove_unused_columns": True}, "must stay False"),
        ({"num_generations": 3}, "must be divisible by num_generations"),
    ],
)
def test_bad_options_are_refused_with_what_to_do(options, message, make_config):
    with pytest.raises(ValueError, match=message):
        make_config(SDARConfig, **options)


def test_every_option_has_a_help_text():
    own = set(SDARConfig.__dataclass_fields__) - set(GRPOConfig.__dataclass_fields__)
    assert own and all(SDARConfig.__dataclass_fields__[name].metadata.get("help") for name in own)
    assert all(f"{name} (" in SDARConfig.__doc__ for name in own)


def test_the_time_of_rollout_and_teacher_is_part_of_the_steps(make_trainer, make_config):
    def logged(**kwargs):
        trainer = make_trainer(make_config(max_steps=1, **kwargs))
        trainer.train()
        return trainer.state.log_history[0]

    times = logged(sdar_coef=0.1)
    assert times["time/rollout"] > 0 < times["time/teacher"]
    assert times["time/rollout"] + times["time/teacher"] < times["step_time"]
    assert "time/teacher" not in logged(sdar_coef=0.0)
