"""Forwards that leave out what nobody looks at, against TRL's own and against float64 row by row."""

import copy

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig
from steps import gradients, scored_batch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from trl.trainer.utils import add_fused_lm_head

from sdar_trl import SDARTrainer, scoring
from sdar_trl.scoring import backbone_in_parts, split_rows
from sdar_trl.vocabulary import FULL_DIVERGENCES


SIZES = {
    "vocab_size": 120,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "initializer_range": 0.5,
    "pad_token_id": 0,
}
MODELS = {
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, tie_word_embeddings=True)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "mistral, sliding window": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=4)),
    "gemma2, sliding window": lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, sliding_window=4)),
    "gpt2, learned positions": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=120, n_embd=16, n_layer=2, n_head=2, pad_token_id=0, initializer_range=0.5)
    ),
}
# prompt, completion, and which tokens of it were sampled
ROWS = [
    ([5, 6, 7], [8, 9, 10, 11], [1, 1, 0, 1]),
    ([5, 6, 7], [12], [1]),
    ([5, 6, 7], [13, 14, 15, 16, 17, 18, 19], [1, 0, 0, 1, 1, 0, 1]),
    ([20, 21, 22, 23, 24, 25], [0, 26], [1, 1]),  # an id that is also the padding's
    ([27], [28, 29], [0, 1]),
    ([30, 31], [32, 33, 34], [0, 0, 0]),  # nothing was sampled
    ([5, 6, 7], [35, 36], [1, 1]),
]


def padded(rows):
    """Ids and attention mask, shape (B, P + T), and what was sampled, shape (B, T), as TRL pads them."""
    width = [max(len(row[part]) for row in rows) for part in (0, 1)]
    ids, mask, sampled = [], [], []
    for prompt, completion, chosen in rows:
        left, right = width[0] - len(prompt), width[1] - len(completion)
        ids.append([0] * left + prompt + completion + [0] * right)
        mask.append([0] * left + [1] * (len(prompt) + len(completion)) + [0] * right)
        sampled.append(chosen + [0] * right)
    return torch.tensor(ids), torch.tensor(mask), torch.tensor(sampled).bool()


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("size", [1, 2, 8])
@pytest.mark.parametrize("name", MODELS)
def test_log_probs_are_those_of_each_row_alone(name, size, share, monkeypatch):
    if share and scoring.cache_obstacle(MODELS[name]()):
        return  # such prompts are never shared, see below
    monkeypatch.setattr(scoring, "SHARED_COST", 9.0)
    torch.manual_seed(0)
    model = MODELS[name]().double().eval()
    add_fused_lm_head(model, temperature=0.7)
    ids, mask, sampled = padded(ROWS)
    parts = split_rows(ids, mask, sampled, size, 64 if share else None)
    assert sorted(torch.cat([part.rows for part in parts]).tolist()) == list(range(len(ROWS)))
    assert any(part.shared for part in parts) == (share and size > 1)
    labels = torch.cat([part.input_ids[part.sampled] for part in parts]).unsqueeze(0)
    with torch.no_grad(), backbone_in_parts(model.base_model, parts):
        found = model(input_ids=ids, shift_labels=labels, fused_lm_head=True).log_probs[0].tolist()
    expected = []
    for row in torch.cat([part.rows for part in parts]).tolist():
        prompt, completion, chosen = ROWS[row]
        logps = (model(torch.tensor([prompt + completion])).logits[0] / 0.7).log_softmax(-1)
        for index, (token, of_policy) in enumerate(zip(completion, chosen, strict=True)):
            if of_policy:
                expected.append(logps[len(prompt) + index - 1, token].item())
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-5, atol=1e-5)
    assert "forward" not in vars(model.base_model)


@pytest.mark.parametrize("name", ["mistral, sliding window", "gemma2, sliding window"])
def test_a_cache_that_forgets_is_not_shared(name):
    assert "sliding window" in scoring.cache_obstacle(MODELS[name]())


def test_a_padded_token_more_costs_nothing_and_shared_prompts_are_read_once():
    ids, mask, sampled = padded([([1] * 50, [2] * 5, [1] * 5)] * 8 + [([3] * 4, [4] * 90, [1] * 90)])
    by_length = split_rows(ids, mask, sampled, 8)
    assert sum(part.input_ids.numel() for part in by_length) == 8 * 55 + 94
    shared = split_rows(ids, mask, sampled, 8, 64)
    assert [part.shared for part in shared] == [49, 0]
    # where little would be saved, rows of like length go through together
    ids, mask, sampled = padded([([1, 2], [5] * n, [1] * n) for n in (10, 90, 10, 90)])
    assert not any(part.shared for part in split_rows(ids, mask, sampled, 2, 64))
    # behind a cache, attention skips nothing: behind long completions that is dearer, the more so in a small model
    ids, mask, sampled = padded([([1] * 100, [2] * 300, [1] * 300)] * 8)
    assert [part.shared for part in split_rows(ids, mask, sampled, 8, 64)] == [0]
    assert [part.shared for part in split_rows(ids, mask, sampled, 8, 4096)] == [99]


# a trainer's loss, against TRL's arithmetic


@pytest.fixture
def ragged(tasks):
    return tasks.map(lambda row, index: {"length": 1 + index % 4}, with_indices=True)


def both_ways(trainer, inputs):
    """Gradients by TRL's arithmetic, and by ours."""
    found = []
    for lean in (False, True):
        trainer.args.lean_forward = lean
        torch.manual_seed(0)
        found.append(gradients(trainer, {**inputs}))
    return found


def assert_alike(theirs, ours):
    assert theirs.keys() == ours.keys()
    assert any(gradient.abs().max() > 1e-5 for gradient in theirs.values())
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=2e-6, msg=lambda text, n=name: f"{n}: {text}")


OPTIONS = {
    **{kind: {"loss_type": kind} for kind in ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")},
    "sequence": {"importance_sampling_level": "sequence"},
    "reference": {"beta": 0.04},
    "off policy": {"beta": 0.04, "num_iterations": 2},
    "entropy": {"entropy_coef": 0.1},
    "high entropy": {"top_entropy_quantile": 0.5},
    "LoRA": {"peft": LoraConfig(r=4, target_modules="all-linear")},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "LoRA, gradient checkpointing": {
        "peft": LoraConfig(r=4, target_modules="all-linear"),
        "gradient_checkpointing": True,
        "beta": 0.04,
    },
    "soft_or": {"gate": "soft_or"},
    **{kind: {"divergence": kind} for kind in FULL_DIVERGENCES},
    "top 5": {"divergence": "reverse_kl", "divergence_top_k": 5},
    "rlsd": {"method": "rlsd"},
    "window": {"history": "window", "history_window": 2},
    "truncated": {"mask_truncated_completions": True, "max_turns": 2},
    "a learned prompt": {"peft": PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"), "beta": 0.0},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_loss_and_gradients_are_those_of_trls_arithmetic(name, make_trainer, make_config, ragged):
    options = dict(OPTIONS[name])
    peft_config = options.pop("peft", None)
    method = {} if "method" in options else {"sdar_coef": 0.7}
    trainer = make_trainer(
        make_config(**method, **options), train_dataset=ragged, peft_config=copy.deepcopy(peft_config)
    )
    rows = [dict(ragged[index]) for index in (0, 1, 2, 3)]
    batches = []
    for lean in (False, True):  # old, reference and teacher log-probs
        trainer.args.lean_forward = lean
        batches.append(scored_batch(trainer, rows=rows))
    if not isinstance(peft_config, PromptTuningConfig):
        mask = batches[0]["completion_mask"] * batches[0]["tool_mask"]
        assert mask.sum(1).unique().numel() > 1
        for key in batches[0]:
            if key.endswith("per_token_logps"):
                torch.testing.assert_close(batches[0][key] * mask, batches[1][key] * mask, rtol=1e-4, atol=1e-5)
    assert_alike(*both_ways(trainer, batches[0]))


def test_a_mixture_of_experts_own_loss_is_that_of_the_whole_batch(make_trainer, make_config, ragged, tokenizer):
    torch.manual_seed(0)
    sizes = {**SIZES, "vocab_size": len(tokenizer), "initializer_range": 0.1}
    config = Qwen3MoeConfig(**sizes, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
    config.eos_token_id, config.output_router_logits, config.router_aux_loss_coef = tokenizer.eos_token_id, True, 0.5
    trainer = make_trainer(
        make_config(sdar_coef=0.7),
        model=Qwen3MoeForCausalLM(config),
        processing_class=tokenizer,
        train_dataset=ragged,
    )
    assert trainer.aux_loss_enabled
    inputs = scored_batch(trainer, rows=[dict(ragged[index]) for index in (0, 1, 2, 3)])
    assert_alike(*both_ways(trainer, inputs))


@pytest.mark.parametrize("kind", ["nothing sampled", "rows of the pad token"])
def test_a_batch_without_sampled_tokens_has_a_loss_of_zero(kind, make_trainer, make_config):
    trainer = make_trainer(make_config(sdar_coef=0.7, divergence="reverse_kl"))
    inputs = scored_batch(trainer)
    inputs["tool_mask"] = torch.zeros_like(inputs["tool_mask"])
    if kind != "nothing sampled":
        inputs["completion_mask"] = torch.zeros_like(inputs["completion_mask"])
    inputs["teacher_hidden"] = inputs["teacher_hidden"][:, :0]
    found = gradients(trainer, inputs)
    assert found and all(not gradient.any() for gradient in found.values())


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo", "bnpo"])
def test_rows_dealt_out_by_length_add_up_to_the_same_step(loss_type, make_trainer, make_config, ragged):
    found = []
    for lean in (False, True):
        config = make_config(
            sdar_coef=0.7,
            loss_type=loss_type,
            lean_forward=lean,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=4,
            steps_per_generation=8,
            num_generations=2,
            max_steps=2,
            lr_scheduler_type="constant",
            optim="sgd",
        )
        trainer = make_trainer(config, train_dataset=ragged)
        widths = []
        compute_loss = trainer.compute_loss

        def counted(model, inputs, *args, widths=widths, compute_loss=compute_loss, **kwargs):
            widths.append((inputs["prompt_mask"].sum(1) + inputs["completion_mask"].sum(1)).max().item())
            return compute_loss(model, inputs, *args, **kwargs)

        trainer.compute_loss = counted
        trainer.train()
        found.append({name: p.detach() for name, p in trainer.model.named_parameters()})
        in_order = widths[:4] == sorted(widths[:4]) and widths[4:] == sorted(widths[4:])
        assert in_order == (lean and loss_type != "bnpo")
    for name, weight in found[0].items():
        torch.testing.assert_close(found[1][name], weight, rtol=1e-4, atol=1e-5)


def test_a_compiled_model_is_scored_as_trl_does(make_trainer, make_config, monkeypatch):
    def never(*args):
        raise AssertionError("split")

    monkeypatch.setattr(scoring, "split_rows", never)
    trainer = make_trainer(make_config(sdar_coef=0.7))
    trainer.args.torch_compile = True
    scored_batch(trainer)


def test_one_forward_of_the_model_a_micro_batch_whatever_its_rows(make_trainer, make_config, ragged, monkeypatch):
    monkeypatch.setattr(scoring, "PART_ROWS", 1)
    trainer: SDARTrainer = make_trainer(make_config(sdar_coef=0.7), train_dataset=ragged)
    inputs = scored_batch(trainer)
    calls = []
    handle = trainer.model.register_forward_hook(lambda *args: calls.append("model"))
    head = trainer.model.base_model.register_forward_hook(lambda *args: calls.append("backbone"))
    trainer.compute_loss(trainer.model, inputs)
    handle.remove()
    head.remove()
    assert calls == ["backbone", "model"]
