"""The methods, and what their parts do to a step, from outside."""

import numpy as np
import pytest
import torch
from peft import LoraConfig
from steps import gradients, scored_batch, teacher_prompts_of
from trl import GRPOConfig

from sdar_trl import SDARConfig, SDARTrainer, SkillLibrary
from sdar_trl.envs import WebShopEnv
from sdar_trl.evaluation import evaluate_trainer
from sdar_trl.losses import GATES
from sdar_trl.methods import METHODS
from sdar_trl.policies import TINY_POLICY
from sdar_trl.vocabulary import FULL_DIVERGENCES, top_k_divergence


LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"]}


def trained_weights(trainer):
    trainer.train()
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


# The table


def test_a_method_sets_its_values_and_each_can_be_overridden(tmp_path):
    config = SDARConfig(str(tmp_path), method="rlsd", use_cpu=True, bf16=False)
    assert (config.signal, config.sdar_coef, config.sdar_coef_schedule, config.schedule_steps) == (
        "advantage",
        0.5,
        "linear",
        100,
    )
    config = SDARConfig(str(tmp_path), method="skill_sd", sdar_coef=0.02, use_cpu=True, bf16=False)
    assert (config.divergence, config.gate, config.sdar_coef) == ("sampled_k3_weighted", "none", 0.02)


def test_the_default_is_sdar_as_published(tmp_path):
    config = SDARConfig(str(tmp_path), use_cpu=True, bf16=False)
    assert (config.sdar_coef, config.gate, config.gate_beta, config.divergence) == (
        0.01,
        "gap",
        5.0,
        "sampled_reverse_kl",
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "ppo"}, "`method` must be one of sdar, grpo"),
        ({"gate": "hard"}, "`gate` must be one of gap, entropy"),
        ({"divergence": "k1"}, "`divergence` must be one of sampled_reverse_kl"),
        ({"method": "rlsd", "gate": "gap"}, "moves advantages by the gap alone"),
        ({"method": "rlsd", "divergence": "jsd"}, "moves advantages by the gap alone"),
        ({"method": "rlsd", "policy_coef": 0.0}, "works through the policy loss"),
        ({"method": "rlsd", "sdar_coef": 1.5}, "lie in \\[0, 1\\]"),
        ({"divergence_top_k": 5}, "reduces a divergence over the whole vocabulary"),
        ({"student_skills": "train"}, "the student cannot read them in training"),
        ({"schedule_steps": 0}, "`schedule_steps` must be at least 1"),
    ],
)
def test_combinations_that_make_no_sense_are_refused_with_the_reason(options, message, make_config):
    with pytest.raises(ValueError, match=message):
        make_config(**options)


TRAINING_METHODS = [name for name in METHODS if name != "skill_prompt"]


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("method", TRAINING_METHODS)
def test_every_method_trains_on_the_shop(method, lora, make_config):
    config = make_config(
        method=method,
        max_steps=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        num_generations=2,
        max_turns=2,
        max_response_length=16,
        max_completion_length=400,
        # a first episode seldom differs from another in reward; the penalty sees to it
        invalid_action_penalty=0.5,
    )
    trainer = SDARTrainer(
        model=TINY_POLICY,
        args=config,
        train_dataset=WebShopEnv.dataset("train"),
        environment_factory=WebShopEnv,
        skills=SkillLibrary.bundled("webshop"),
        peft_config=LoraConfig(**LORA) if lora else None,
    )
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2 and np.isfinite(losses).all()
    changed = any(not torch.equal(before[name], p) for name, p in trainer.model.named_parameters())
    # rewards may all be equal in these few short episodes; a distillation always has something to say
    assert changed or config.sdar_coef == 0 or config.signal == "advantage"
    has_teacher = any("sdar/gap_mean" in entry for entry in trainer.state.log_history)
    assert has_teacher == (config.sdar_coef > 0)


def test_skill_prompting_trains_nothing_and_evaluates_with_skills(make_trainer, make_config, tasks, tokenizer):
    trainer = make_trainer(make_config(method="skill_prompt"))
    with pytest.raises(ValueError, match="trains nothing"):
        trainer.train()
    played = []
    play = trainer.rollout.play
    trainer.rollout.play = lambda *args: played.extend(play(*args)) or played
    evaluate_trainer(trainer, tasks)
    assert all("say every number." in tokenizer.decode(episode.prompt_ids) for episode in played)


@pytest.mark.parametrize(
    ("student_skills", "in_train", "in_eval"), [("train", 1, 0), ("eval", 0, 1), ("always", 1, 1)]
)
def test_the_student_reads_skills_when_it_is_told_to(
    student_skills, in_train, in_eval, make_trainer, make_config, tokenizer
):
    trainer = make_trainer(make_config(method="grpo", student_skills=student_skills))
    for training, expected in ((True, in_train), (False, in_eval)):
        trainer.model.train(training)
        trainer._generate_and_score_completions([dict(trainer.train_dataset[0])] * 4)
        for episode in trainer.episodes:
            assert ("say every number." in tokenizer.decode(episode.prompt_ids)) == bool(expected)


def test_the_student_reads_skills_in_trls_own_loop_too(make_trainer, make_config, tokenizer, tasks):
    trainer = make_trainer(
        make_config(method="skill_grpo"), environment_factory=None, reward_funcs=lambda completions, **_: [0.0] * 4
    )
    output = scored_batch(trainer)
    assert all("say every number." in tokenizer.decode(ids) for ids in output["prompt_ids"])


def test_skills_for_the_student_must_be_a_library(make_trainer, make_config):
    with pytest.raises(ValueError, match="must be a `SkillLibrary`"):
        make_trainer(make_config(method="skill_grpo"), skills=lambda episodes: [""] * len(episodes))


# RLSD


def test_rlsd_at_weight_zero_is_grpo_to_the_bit(make_trainer, make_config):
    rlsd = trained_weights(make_trainer(make_config(method="rlsd", sdar_coef=0.0)))
    grpo = trained_weights(make_trainer(make_config(method="grpo")))
    for name in rlsd:
        assert torch.equal(rlsd[name], grpo[name]), name


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"])
def test_rlsd_gives_each_token_the_advantage_of_the_formula_under_every_loss_type(
    loss_type, make_trainer, make_config
):
    level = "sequence" if loss_type == "luspo" else "token"
    trainer = make_trainer(make_config(method="rlsd", loss_type=loss_type, importance_sampling_level=level))
    inputs = scored_batch(trainer)
    plain = make_trainer(make_config(method="grpo", loss_type=loss_type, importance_sampling_level=level))
    rewards = scored_batch(plain)["advantages"]
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    with torch.no_grad():
        old, _, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, mask, inputs["completion_ids"].size(1)
        )
    a, gap = rewards.unsqueeze(1), inputs["teacher_per_token_logps"] - old
    expected = a * (0.5 + 0.5 * torch.exp(torch.sign(a) * gap).clamp(0.8, 1.2))
    torch.testing.assert_close(inputs["advantages"], expected)
    moved, unmoved = gradients(trainer, inputs), gradients(plain, {**inputs, "advantages": rewards})
    assert any(not torch.allclose(moved[name], unmoved[name], atol=1e-8) for name in moved)


def test_rlsds_weight_comes_down_to_zero_and_then_no_teacher_is_asked(make_trainer, make_config, skills):
    trainer = make_trainer(make_config(method="rlsd", max_steps=4, schedule_steps=2))
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry.get("sdar/coef") for entry in entries] == [0.5, 0.25, None, None]


# Gates, divergences, schedules


def test_a_gate_of_ones_own_gets_gap_entropy_and_beta(make_trainer, make_config):
    seen = []

    def gate(gap, entropy, beta):
        seen.append((gap, entropy, beta))
        return GATES["gap"](gap, entropy, beta)

    own = make_trainer(make_config(sdar_coef=0.7, gate="uniform"), gate=gate)
    named = make_trainer(make_config(sdar_coef=0.7))
    inputs = scored_batch(own)
    left, right = gradients(own, inputs), gradients(named, inputs)
    assert all(torch.equal(left[name], right[name]) for name in left)
    [(gap, entropy, beta)] = seen
    assert gap.shape == entropy.shape == inputs["completion_ids"].shape and beta == 5.0
    assert not gap.requires_grad and not entropy.requires_grad


def test_normalised_entropy_lies_between_zero_and_one(make_trainer, make_config):
    seen = {}
    for normalize in (False, True):
        trainer = make_trainer(
            make_config(normalize_entropy=normalize),
            gate=lambda gap, entropy, beta, normalize=normalize: seen.setdefault(normalize, entropy),
        )
        inputs = scored_batch(trainer)
        trainer.compute_loss(trainer.model, inputs)
    vocabulary = trainer.model.config.vocab_size
    assert seen[False].max() > 1
    assert 0 <= seen[True].min() and seen[True].max() <= 1
    torch.testing.assert_close(seen[True] * np.log(vocabulary), seen[False])


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("top_k", [None, 3])
@pytest.mark.parametrize("divergence", FULL_DIVERGENCES)
def test_the_gradient_over_the_vocabulary_is_grpos_plus_the_dense_formulas(
    divergence, top_k, lora, make_trainer, make_config
):
    options = {"sdar_coef": 0.7, "divergence": divergence, "divergence_top_k": top_k, "temperature": 0.9}
    # an adapter begins as zero and would leave half of its gradients there
    peft_config = LoraConfig(**LORA, init_lora_weights=False) if lora else None
    torch.manual_seed(3)
    trainer = make_trainer(make_config(**options), peft_config=peft_config)
    with torch.no_grad():  # as it is initialised, no token is much likelier than another
        for parameter in trainer.model.parameters():
            parameter.mul_(4)
    inputs = scored_batch(trainer)
    with_distillation = gradients(trainer, inputs)
    trainer.args.sdar_coef = 0.0
    grpo = gradients(trainer, inputs)

    # the same from whole logits
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    length = inputs["completion_ids"].size(1)
    teacher_prompts = teacher_prompts_of(trainer)
    encoded = [
        trainer.processing_class.apply_chat_template(p, add_generation_prompt=True, return_dict=False)
        for p in teacher_prompts
    ]
    longest = max(len(prompt) for prompt in encoded)
    pad = trainer.processing_class.pad_token_id
    left = ids.new_tensor([[pad] * (longest - len(prompt)) + prompt for prompt in encoded])
    left_mask = ids.new_tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in encoded])

    def log_probs(ids, attention):
        logits = trainer.model(input_ids=ids, attention_mask=attention).logits[:, -length - 1 : -1] / 0.9
        return logits.log_softmax(-1)

    trainer.model.eval()
    with torch.no_grad():
        teacher = log_probs(
            torch.cat([left, inputs["completion_ids"]], 1), torch.cat([left_mask, inputs["completion_mask"]], 1)
        )
    trainer.model.train()
    trainer.model.zero_grad()
    student = log_probs(ids, attention)
    sampled = inputs["completion_ids"].unsqueeze(-1)
    gap = (teacher.gather(-1, sampled) - student.gather(-1, sampled)).squeeze(-1).detach()
    if top_k is None:
        p, q = student.exp(), teacher.exp()
        middle = torch.log((p + q) / 2)
        dense = {
            "reverse_kl": p * (student - teacher),
            "forward_kl": q * (teacher - student),
            "jsd": (p * (student - middle) + q * (teacher - middle)) / 2,
        }[divergence].sum(-1)
    else:
        top = teacher.topk(top_k).indices
        dense = top_k_divergence(divergence, student.gather(-1, top), teacher.gather(-1, top))
    mask = inputs["completion_mask"] * inputs["tool_mask"]
    ((torch.sigmoid(5.0 * gap) * dense * mask).sum() / mask.sum()).backward()
    expected = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
    assert any(gradient.abs().max() > 1e-3 for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(with_distillation[name] - grpo[name], 0.7 * gradient, rtol=2e-3, atol=1e-5)


def test_off_policy_the_teacher_keeps_the_output_layer_it_was_run_with(make_trainer, make_config):
    """With the teacher equal to the student, the first step's divergence is zero, and the second's is not."""
    trainer = make_trainer(
        make_config(sdar_coef=1.0, divergence="reverse_kl", gate="none", num_iterations=2, max_steps=2, beta=0.0),
        skills=lambda episodes: ["x"] * len(episodes),
    )
    inputs = scored_batch(trainer)
    head = trainer.model.get_output_embeddings().weight
    kept = trainer.distillation.divergence.teacher_weight
    assert torch.equal(kept, head)
    before = trainer.compute_loss(trainer.model, inputs).item()
    with torch.no_grad():
        head.mul_(1.1)
    assert torch.allclose(kept * 1.1, head)
    assert trainer.compute_loss(trainer.model, inputs).item() != before


def test_coefficient_and_beta_follow_their_schedules(make_trainer, make_config):
    trainer = make_trainer(
        make_config(sdar_coef=0.4, sdar_coef_schedule="warmup", gate_beta_schedule="cosine", max_steps=4)
    )
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    np.testing.assert_allclose([entry["sdar/coef"] for entry in entries], [0.0, 0.1, 0.2, 0.3])
    expected = 5 * (1 + np.cos(np.pi * np.arange(4) / 4)) / 2
    np.testing.assert_allclose([entry["sdar/gate_beta"] for entry in entries], expected)


def test_with_policy_coefficient_zero_only_the_distillation_is_left(make_trainer, make_config):
    both = make_trainer(make_config(sdar_coef=0.7))
    alone = make_trainer(make_config(sdar_coef=0.7, policy_coef=0.0))
    inputs = scored_batch(both)
    total, distillation = gradients(both, inputs), gradients(alone, inputs)
    both.args.sdar_coef = 0.0
    grpo = gradients(both, inputs)
    for name in total:
        torch.testing.assert_close(distillation[name], total[name] - grpo[name], rtol=1e-3, atol=1e-6)


def test_every_option_of_grpo_is_still_there():
    assert set(GRPOConfig.__dataclass_fields__) < set(SDARConfig.__dataclass_fields__)
