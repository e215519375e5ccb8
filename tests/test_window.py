"""Training on rows by turn, against the formulas from rows built by hand."""

import pytest
import torch
from peft import LoraConfig
from steps import gradients, scored_batch
from test_history import WordedEnv
from toys import CountingEnv
from transformers import AutoModelForCausalLM

from sdar_trl import SDARTrainer


LOSS_TYPES = ["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"]
LENGTHS = (4, 1, 3, 2)


class RaggedEnv(WordedEnv):
    """Pays by the turn, so that episodes of a group differ."""

    def step(self, response):
        step = super().step(response)
        return type(step)(step.observation, 0.3 * self.turn + step.reward, step.terminated, info=step.info)


@pytest.fixture
def make(make_trainer, make_config):
    """A trainer on rows by turn; two rows fit at once."""

    def build(env=RaggedEnv, cls=SDARTrainer, peft_config=None, **options):
        defaults = {
            "history": "window",
            "history_window": 2,
            "sdar_coef": 0.7,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "max_completion_length": 60,
            "temperature": 1.0,
        }
        return make_trainer(
            make_config(**{**defaults, **options}), cls=cls, environment_factory=env, peft_config=peft_config
        )

    return build


def ragged_rows(tasks, lengths=LENGTHS, fails_at=None):
    """A group of one task whose episodes have different lengths; the last one may fail."""
    rows = [{**tasks[0], "length": length, "fails_at": None} for length in lengths]
    rows[-1]["fails_at"] = fails_at
    return rows


def prompts_by_hand(episode, tokenizer, context=""):
    """What was read before each response, from the environment's words."""
    result = []
    for index in range(len(episode.turns)):
        past = [(turn.observation, turn.response) for turn in episode.turns[max(0, index - 2) : index]]
        text = WordedEnv.history(episode.turns[0].observation, past, episode.turns[index].observation, index + 1)
        system = f"you count.\n\n{context}" if context else "you count."
        messages = [{"role": "system", "content": system}, {"role": "user", "content": f"task: {text}"}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        result.append(ids)
    return result


def logps_by_hand(model, prompt, completion):
    logits = model(torch.tensor([prompt + completion])).logits[0]
    logps = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1]
    return logps.gather(1, torch.tensor(completion).unsqueeze(1)).squeeze(1)


def advantages_by_hand(returns):
    known = torch.tensor([value for value in returns if value is not None], dtype=torch.float64)
    return [0.0 if value is None else float((value - known.mean()) / (known.std() + 1e-4)) for value in returns]


def reduced(losses, loss_type, max_length):
    """A loss per token of each row, reduced."""
    tokens = sum(len(loss) for loss in losses)
    if loss_type in ("grpo", "sapo"):
        return sum(loss.mean() for loss in losses) / len(losses)
    if loss_type in ("bnpo", "dapo", "cispo", "vespo"):
        return sum(loss.sum() for loss in losses) / tokens
    divisor = len(losses) * max_length if loss_type == "dr_grpo" else len(losses)
    return sum(loss.sum() for loss in losses) / divisor


def whole_step(trainer, inputs):
    """Gradients of an optimisation step over a generation batch, split as TRL splits it."""
    from trl.trainer.utils import split_tensor_dict

    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    trainer.model.zero_grad()
    for batch in split_tensor_dict(inputs, trainer.args.steps_per_generation):
        trainer.compute_loss(trainer.model, batch).backward()
    return {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_the_gradient_of_a_step_is_the_formulas_over_rows_built_by_hand(loss_type, make, tasks, tokenizer, skills):
    """Four episodes of 4, 1, 3 and 2 turns, of which the last fails: nine rows in two steps of accumulation."""
    # "bnpo" takes its mean over each step of accumulation by itself
    size, steps = (4, 1) if loss_type == "bnpo" else (2, 2)
    trainer = make(loss_type=loss_type, gradient_accumulation_steps=steps, per_device_train_batch_size=size)
    trainer.args.per_device_train_batch_size = 2
    inputs = scored_batch(trainer, rows=ragged_rows(tasks, fails_at=2))
    found = whole_step(trainer, inputs)

    episodes = trainer.episodes
    assert [len(episode.turns) for episode in episodes] == [4, 1, 3, 2]
    returns = [e.episode_return - 0.1 * e.invalid_actions for e in episodes[:3]] + [None]
    advantages = advantages_by_hand(returns)
    context = "\n\n".join(["# Skills", *(f"## {s.name}\n{s.body}" for s in skills if s.name in ("general", "even"))])
    model = AutoModelForCausalLM.from_config(trainer.model.config).double()
    model.load_state_dict(trainer.model.state_dict())
    losses = []
    for episode, advantage in zip(episodes, advantages, strict=True):
        failed = episode.stop_reason.value == "env_error"
        plain, informed = (prompts_by_hand(episode, tokenizer, text) for text in ("", context))
        for turn, student_prompt, teacher_prompt in list(zip(episode.turns, plain, informed, strict=True))[
            -1 if failed else 0 :
        ]:
            student = logps_by_hand(model, student_prompt, turn.response_ids)
            with torch.no_grad():
                teacher = logps_by_hand(model, teacher_prompt, turn.response_ids)
            gate = torch.sigmoid(5.0 * (teacher - student.detach()))
            # "cispo" cuts the ratio, here 1, at `epsilon_high`
            weight = min(1.0, trainer.epsilon_high) if loss_type == "cispo" else 1.0
            policy = -weight * advantage * torch.exp(student - student.detach())
            losses.append((policy + 0.7 * gate * (teacher - student)) * (0 if failed else 1))
    if loss_type in ("bnpo", "dapo", "cispo", "vespo"):
        losses = losses[:-1]  # its tokens count nowhere
    reduced(losses, loss_type, 60).backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        error, size = (found[name].cpu() - gradient).norm(), gradient.norm()
        assert error < 2e-3 * size, (name, error, size)


def test_every_row_is_trained_once_and_masked_ones_fill_up(make, tasks, tokenizer):
    trainer = make()
    inputs = scored_batch(trainer, rows=ragged_rows(tasks))
    assert inputs["completion_ids"].size(0) == 12  # ten rows, in two steps of two micro-batches each, in threes
    rows = [
        (prompt, turn.response_ids)
        for e in trainer.episodes
        for prompt, turn in zip(prompts_by_hand(e, tokenizer), e.turns, strict=True)
    ]
    got = []
    for i in range(12):
        prompt = inputs["prompt_ids"][i][inputs["prompt_mask"][i].bool()].tolist()
        got.append((prompt, inputs["completion_ids"][i][inputs["completion_mask"][i].bool()].tolist()))
    assert got[:10] == rows and all(completion == [] for _, completion in got[10:])
    tokens = sum(len(ids) for _, ids in rows)
    assert inputs["num_items_in_batch"] == tokens


def test_all_rows_of_an_episode_have_its_advantage(make, tasks):
    trainer = make()
    inputs = scored_batch(trainer, rows=ragged_rows(tasks))
    expected = advantages_by_hand([e.episode_return - 0.1 * e.invalid_actions for e in trainer.episodes])
    per_row = [value for value, length in zip(expected, LENGTHS, strict=True) for _ in range(length)]
    torch.testing.assert_close(
        inputs["advantages"][:10].double().cpu(), torch.tensor(per_row, dtype=torch.float64), rtol=1e-4, atol=1e-5
    )


def test_no_forward_has_more_rows_than_fit(make, tasks):
    sizes = []

    class Watching(SDARTrainer):
        def _get_per_token_logps_and_entropies(self, model, input_ids, *args, batch_size=None, **kwargs):
            sizes.append(min(input_ids.size(0), batch_size or input_ids.size(0)))
            return super()._get_per_token_logps_and_entropies(model, input_ids, *args, batch_size=batch_size, **kwargs)

    trainer = make(cls=Watching, beta=0.04, num_iterations=2, max_steps=1)
    trainer.train_dataset = tasks.map(lambda row: {**row, "length": 4})
    trainer.train()
    assert max(sizes) == 2
    assert sum(len(episode.turns) for episode in trainer.episodes) == 16


@pytest.mark.parametrize("options", [{}, {"beta": 0.04}, {"num_iterations": 2}, {"steps_per_generation": 4}])
def test_a_window_longer_than_the_episode_trains_like_a_growing_history(options, make):
    """The same rows, so the same losses and weights, to the bit."""
    results = []
    for history in ({"history": "growing"}, {"history": "window", "history_window": 9}):
        trainer = make(env=CountingEnv, max_completion_length=96, max_steps=3, **history, **options)
        trainer.train()
        results.append(trainer)
    left, right = results
    assert all(len(e.turns) == e.task["length"] for e in right.episodes)
    for (name, ours), theirs in zip(left.model.named_parameters(), right.model.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_rows_by_turn_of_one_turn_are_what_trl_is_given(make, tasks):
    """Old and reference log-probs that are scored again for rows are TRL's, where TRL has scored them."""
    expanded = make(beta=0.04, num_iterations=2)
    rows = ragged_rows(tasks, (2, 1, 1, 1))
    batch = scored_batch(expanded, rows=rows)
    last = {id(e): None for e in expanded.episodes}
    plain = make(beta=0.04, num_iterations=2)
    plain._batch_of_rows = lambda output, rows: output  # what TRL made of the last rows
    plain.args.sdar_coef = 0.0
    theirs = scored_batch(plain, rows=rows)
    assert len(last) == 4
    for position, row in enumerate((1, 2, 3, 4)):  # the last row of each episode
        for name in ("old_per_token_logps", "ref_per_token_logps"):
            length = int(theirs["completion_mask"][position].sum())
            torch.testing.assert_close(
                batch[name][row, :length], theirs[name][position, :length], rtol=1e-4, atol=1e-5, msg=name
            )


@pytest.mark.parametrize(
    "options",
    [
        {"num_iterations": 2, "max_steps": 4},
        {"steps_per_generation": 4, "max_steps": 4},
        {"beta": 0.04, "loss_type": "grpo"},
        {"method": "rlsd"},
        {"divergence": "reverse_kl"},
        {"divergence": "jsd", "divergence_top_k": 3},
        {"top_entropy_quantile": 0.5},
        {"entropy_coef": 0.01},
        {"method": "skill_grpo", "sdar_coef": 0.0},
        {"retriever": "ucb"},
    ],
    ids=str,
)
def test_it_trains_with_every_option(options, make):
    trainer = make(**options)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(history) == trainer.args.max_steps
    assert all(torch.isfinite(torch.tensor(entry["loss"])) for entry in history)
    assert any(not torch.equal(old, p) for old, p in zip(before, trainer.model.parameters(), strict=True))


def test_an_adapter_and_its_base_as_reference_train(make):
    adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    trainer = make(peft_config=adapter, beta=0.04)
    trainer.train()
    assert all(entry["kl"] >= 0 for entry in trainer.state.log_history if "loss" in entry)


def test_metrics_count_the_real_tokens(make, tasks):
    """The entropy that is logged is the mean over all sampled tokens, though micro-batches differ."""
    trainer = make(gradient_accumulation_steps=1, per_device_train_batch_size=4)
    inputs = scored_batch(trainer, rows=ragged_rows(tasks, (4, 4, 4, 1)))
    trainer.args.per_device_train_batch_size = 3  # 13 rows in micro-batches that are not equally long
    trainer.compute_loss(trainer.model, inputs)
    entropies = [value for episode in trainer.episodes for turn in episode.turns for value in turn.entropies]
    gates = [value for episode in trainer.episodes for turn in episode.turns for value in turn.gates]
    metrics = trainer._metrics["train"]
    assert len(metrics["entropy"]) == 1
    assert metrics["entropy"][0] == pytest.approx(sum(entropies) / len(entropies), rel=1e-4)
    assert metrics["sdar/gate_mean"] == [pytest.approx(sum(gates) / len(gates), rel=1e-4)]
    lengths = [len(turn.response_ids) for episode in trainer.episodes for turn in episode.turns]
    assert metrics["completions/mean_length"] == [pytest.approx(sum(lengths) / len(lengths))]
    read = sum(len(turn.new_ids) for episode in trainer.episodes for turn in episode.turns)
    assert metrics["num_tokens"] == [read + sum(lengths)]


def test_gaps_gates_and_entropies_of_every_token_are_in_the_episodes(make, tasks):
    trainer = make()
    inputs = scored_batch(trainer, rows=ragged_rows(tasks))
    whole_step(trainer, inputs)
    for episode in trainer.episodes:
        for turn in episode.turns:
            for values in (turn.logprobs, turn.gaps, turn.gates, turn.entropies):
                assert len(values) == len(turn.response_ids)
            gates = torch.sigmoid(5 * torch.tensor(turn.gaps))
            torch.testing.assert_close(torch.tensor(turn.gates), gates, rtol=1e-4, atol=1e-5)


def test_evaluation_by_turn_has_the_same_loss_whatever_the_batch_size(make, tasks):
    losses = []
    for size in (2, 8):
        trainer = make(per_device_eval_batch_size=4, num_generations_eval=1)
        trainer.model.eval()
        torch.manual_seed(0)
        inputs = trainer._generate_and_score_completions(ragged_rows(tasks))
        trainer.args.per_device_eval_batch_size = size
        with torch.no_grad():
            losses.append(trainer.compute_loss(trainer.model, inputs).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_teacher_reads_each_row_with_the_skills_in_its_own_system_message(make, tasks, tokenizer):
    read = []

    class Recording(SDARTrainer):
        def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, *args, **kwargs):
            read.append((input_ids, attention_mask))
            return super()._get_per_token_logps_and_entropies(model, input_ids, attention_mask, *args, **kwargs)

    trainer = make(cls=Recording)
    inputs = scored_batch(trainer, rows=ragged_rows(tasks))
    ids, mask = read[-1]
    length = inputs["completion_ids"].size(1)
    assert torch.equal(ids[:, -length:], inputs["completion_ids"])
    for i in range(10):
        student = tokenizer.decode(inputs["prompt_ids"][i][inputs["prompt_mask"][i].bool()])
        teacher = tokenizer.decode(ids[i, :-length][mask[i, :-length].bool()])
        assert "even tasks want calm." in teacher and "calm" not in student
        head, tail = student.split("you count.", 1)
        assert teacher.startswith(f"{head}you count.\n\n") and teacher.endswith(tail)


def test_a_row_that_does_not_fit_is_left_out_alone(make, tasks):
    trainer = make()
    scored_batch(trainer, rows=ragged_rows(tasks))
    lengths = sorted(len(turn.new_ids) for episode in trainer.episodes for turn in episode.turns)
    skipping = make(max_teacher_length=lengths[-1] + 8, teacher_overflow="skip")
    inputs = scored_batch(skipping, rows=ragged_rows(tasks))
    overflow = skipping._metrics["train"]["sdar/teacher_overflow"]
    assert len(overflow) == 10 and 0 < sum(overflow) < 10
    assert inputs["teacher_mask"][:10, 0].tolist() == [1 - value for value in overflow]


def test_rows_of_episodes_that_were_cut_are_masked_if_so_configured(make, tasks, tokenizer):
    """Two win, the second by a response without an end; of two that use all their turns, one is cut in the last."""
    trainer = make(mask_truncated_completions=True, max_turns=3)
    cut, whole = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("e e", "e<|im_end|>"))
    trainer.rollout.backend.generate = lambda ids: ([[whole, cut][i % 2] for i in range(len(ids))], None)
    inputs = scored_batch(trainer, rows=ragged_rows(tasks, (3, 3, 9, 9)))
    assert [e.stop_reason.value for e in trainer.episodes] == ["won", "won", "max_turns", "max_turns"]
    masks = (inputs["completion_mask"] * inputs["tool_mask"]).sum(1).tolist()
    assert masks == [len(whole)] * 3 + [len(cut)] * 3 + [len(whole)] * 3 + [0, 0, 0]
    assert inputs["num_items_in_batch"] == 6 * len(whole) + 3 * len(cut)
    assert trainer._metrics["train"]["completions/clipped_ratio"] == [0.25]


def test_masked_rows_have_no_gradient(make, tasks):
    """Without them the batch gives the same."""
    trainer = make(loss_type="dapo", gradient_accumulation_steps=1, per_device_train_batch_size=4)
    inputs = scored_batch(
        trainer, rows=ragged_rows(tasks, (4, 2, 2, 1))
    )  # nine rows in three micro-batches: none masked
    assert (inputs["row_turns"] >= 0).all()
    with_more = {
        name: torch.cat([value, torch.zeros_like(value[:3])]) if value.ndim else value
        for name, value in inputs.items()
    }
    with_more["prompt_mask"][-3:, -1] = 1
    with_more["row_turns"][-3:] = -1
    left, right = gradients(trainer, inputs), gradients(trainer, with_more)
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=1e-4, atol=1e-7)


def test_a_run_resumed_in_the_middle_of_a_generation_batch_is_the_run_that_was_never_stopped(make, tmp_path):
    options = {"num_iterations": 2, "steps_per_generation": 4, "max_steps": 6, "beta": 0.04}
    saving = {"save_strategy": "steps", "save_steps": 1}
    whole = make(**options, **saving, output_dir=str(tmp_path / "whole"))
    whole.train()
    for step in (1, 3):  # a generation batch lasts for four optimisation steps
        resumed = make(**options, output_dir=str(tmp_path / "resumed"))
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        for left, right in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
            assert torch.equal(left, right)


def test_siblings_and_hindsight_teach_by_turn(make_trainer, make_config, tasks):
    from sdar_trl import hindsight_context, sibling_context

    for context in (sibling_context, hindsight_context):
        config = make_config(history="window", per_device_train_batch_size=4, max_completion_length=60)
        trainer = make_trainer(config, environment_factory=RaggedEnv, skills=context)
        trainer.train()
        assert all("sdar/gap_mean" in entry for entry in trainer.state.log_history if "loss" in entry)


def test_a_summary_that_replaces_the_history_begins_a_new_row(make_trainer, make_config, tasks):
    """An environment that rewrites its history now and then needs no option of its own."""

    class Summarizing(CountingEnv):
        @staticmethod
        def history(first, past, observation, step):
            return first if step == 1 else f"what matters: {len(past)} said. {observation}"

    trainer = make_trainer(
        make_config(history="window", history_window=9, max_completion_length=60), environment_factory=Summarizing
    )
    inputs = scored_batch(trainer, rows=ragged_rows(tasks))
    assert inputs["completion_ids"].size(0) == 12
    gradients(trainer, inputs)
    assert all(turn.gaps is not None for episode in trainer.episodes for turn in episode.turns)


@pytest.mark.parametrize("mode", ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"])
def test_an_engines_ratio_is_trls_where_trl_has_computed_it(mode, make, tasks, tokenizer):
    """TRL computes it for the last row of each episode; for all rows it is computed again."""
    from test_generation import Engine

    class Unsure(Engine):
        """Finds its tokens about as likely as the random model does."""

        def generate(self, *args, **kwargs):
            _, responses, _, extra = super().generate(*args, **kwargs)
            return None, responses, [[[-7.5 + 0.3 * (i - 1)] for i in range(len(r))] for r in responses], extra

    trainer = make(vllm_importance_sampling_mode=mode, vllm_importance_sampling_clip_min=0.5)
    trainer.use_vllm, trainer._last_loaded_step, trainer.rollout.backend.cached = True, -1, None
    trainer.vllm_importance_sampling_correction = True
    trainer.vllm_generation = Unsure(tokenizer("e no<|im_end|>", add_special_tokens=False)["input_ids"])
    kept = {}
    expand = trainer._batch_of_rows
    trainer._batch_of_rows = lambda output, rows: kept.update(output) or expand(output, rows)
    batch = scored_batch(trainer, rows=ragged_rows(tasks, (2, 1, 1, 1)))
    assert kept["importance_sampling_ratio"].std() > 0
    for position, row in enumerate((1, 2, 3, 4)):
        for name in ("importance_sampling_ratio", "sampling_per_token_logps"):
            left, right = batch[name][row], kept[name][position]
            torch.testing.assert_close(left[: len(right)], right, rtol=1e-4, atol=1e-5)
    assert trainer.vllm_generation.syncs == 1
    gradients(trainer, batch)
