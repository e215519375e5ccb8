"""Responses with the cache kept between turns, against the same without."""

import copy
import random
from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig
from steps import ids_and_mask
from toys import CountingEnv
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GenerationConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3NextConfig,
)

from sdar_trl import SDARTrainer
from sdar_trl.evaluation import policy_rollout
from sdar_trl.generation import CachedGenerator, reuse_obstacle
from sdar_trl.policies import policy_path


SMALL = {
    "vocab_size": 200,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.3,  # so that the likeliest token depends on the history
}
CONFIGS = {
    "Qwen2": Qwen2Config(**SMALL),
    "Qwen3": Qwen3Config(**SMALL, head_dim=8),
    "Llama": LlamaConfig(**SMALL),
}


def build(config, **kwargs):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, **kwargs).eval()


@pytest.fixture(params=[*CONFIGS, "SmolLM2"])
def model(request):
    if request.param != "SmolLM2":
        return build(CONFIGS[request.param])
    return AutoModelForCausalLM.from_pretrained(policy_path("smollm2"), dtype=torch.float32)


def conversations(model, reuse_cache, stop_ids=(7,), **sampling):
    """Six conversations of different lengths, some over before the others: the histories and responses of each turn,
    and how many tokens each forward pass of the model was given."""
    sampling = {"do_sample": False, **sampling}
    config = GenerationConfig(max_new_tokens=10, eos_token_id=list(stop_ids), pad_token_id=0, **sampling)
    generator = CachedGenerator(lambda: nullcontext(model), config, reuse_cache)
    widths = []
    hook = model.register_forward_pre_hook(
        lambda _, __, kwargs: widths.append(kwargs["input_ids"].size(1)), with_kwargs=True
    )
    generous = random.Random(0)

    def text(shortest, longest):
        return [generous.randrange(10, 200) for _ in range(generous.randrange(shortest, longest))]

    rows = [text(5, 60) for _ in range(6)]
    rows[2] = list(rows[1])  # two of a group begin alike
    over = {0: [2], 1: [0, 4], 2: [5], 3: [1]}
    running = list(range(6))
    played = []
    torch.manual_seed(1)
    for turn in range(5 if model.num_parameters() < 1e6 else 3):
        histories = [list(rows[i]) for i in running]
        responses, _ = generator.generate(histories)
        played.append((histories, responses))
        for i, response in zip(running, responses, strict=True):
            rows[i] += response + text(1, 30)
        running = [i for i in running if i not in over.get(turn, [])]
    hook.remove()
    return played, widths


def frequent_token(model):
    """A token that greedy decoding comes across, so that as a stop token it ends responses early."""
    played, _ = conversations(model, reuse_cache=False)
    tokens = [token for _, responses in played for response in responses for token in response[2:6]]
    return max(set(tokens), key=tokens.count)


def test_greedy_responses_are_those_without_reuse(model):
    stop_ids = (7, frequent_token(model))
    with_reuse, widths = conversations(model, True, stop_ids=stop_ids)
    without, all_widths = conversations(model, False, stop_ids=stop_ids)
    assert with_reuse == without
    lengths = {len(response) for _, responses in without for response in responses}
    assert len(lengths) > 1  # some responses stopped early
    # the first pass reads everything; in later turns no pass reads more than a response's rest and an observation
    assert widths[0] == all_widths[0] and max(widths[1:]) <= 10 + 30 < max(all_widths[1:])


@pytest.mark.parametrize("name", CONFIGS)
def test_a_row_in_a_batch_gets_the_response_it_gets_alone(name):
    model = build(CONFIGS[name])
    played, _ = conversations(model, True)
    for histories, responses in played:
        for history, response in zip(histories, responses, strict=True):
            config = GenerationConfig(max_new_tokens=10, do_sample=False, eos_token_id=[7], pad_token_id=0)
            alone = model.generate(torch.tensor([history]), generation_config=config)
            assert alone[0, len(history) :].tolist() == response


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "top_p": 0.9, "top_k": 30, "repetition_penalty": 1.3}])
def test_sampling_parameters_apply_as_without_reuse(options):
    model = build(CONFIGS["Qwen3"])
    with_reuse, without = (conversations(model, reuse, do_sample=True, **options)[0] for reuse in (True, False))
    assert with_reuse == without


def test_the_log_probs_at_sampling_time_are_those_of_a_fresh_forward(model):
    """The logits of every pass of the model, with reuse and sampling, against a forward of each conversation alone."""
    at_sampling = []
    hook = model.register_forward_hook(
        lambda *args: at_sampling.append(torch.log_softmax(args[-1].logits[:, -1].float(), -1))
    )
    played, _ = conversations(model, True, do_sample=True, temperature=1.0)
    hook.remove()
    passes = iter(at_sampling)
    largest = 0.0
    for histories, responses in played:
        steps = [next(passes) for _ in range(max(len(response) for response in responses))]
        for row, (history, response) in enumerate(zip(histories, responses, strict=True)):
            logits = model(torch.tensor([history + response])).logits[0, len(history) - 1 : -1]
            fresh = torch.log_softmax(logits.float(), -1)
            for step, token in enumerate(response):
                largest = max(largest, (steps[step][row, token] - fresh[step, token]).abs().item())
    assert largest < 1e-4


def with_and_without_reuse():
    model = build(CONFIGS["Llama"])
    config = GenerationConfig(max_new_tokens=5, do_sample=False, eos_token_id=[7], pad_token_id=0)
    return [CachedGenerator(lambda: nullcontext(model), config, reuse) for reuse in (True, False)]


def test_a_batch_that_continues_nothing_starts_anew():
    cached, plain = with_and_without_reuse()
    first, second = [[11, 12, 13], [21, 22]], [[21, 22, 23, 24], [11, 12, 13, 14]]
    for rows in (first, second, first):
        assert cached.generate(rows) == plain.generate(rows)


def test_a_row_shorter_than_anothers_observation_is_computed_anew():
    cached, plain = with_and_without_reuse()
    rows = [[11, 12, 13], [*range(20, 80)]]
    for observations in ([[21], [*range(100, 199)]], [[*range(100, 199)], [21]], [[22], [23]]):
        responses = cached.generate(rows)
        assert responses == plain.generate(rows)
        rows = [row + r + text for row, r, text in zip(rows, responses[0], observations, strict=True)]


@pytest.mark.parametrize("sampling", [{"do_sample": False}, {"do_sample": True, "temperature": 0.8}])
def test_a_prompt_that_a_group_shares_is_read_once_and_answered_as_before(sampling):
    model = build(CONFIGS["Qwen3"])
    prompts = [[*range(20, 60)], [*range(100, 109)]]
    rows = [list(prompt) for prompt in prompts for _ in range(4)]
    read, found = [], []
    hook = model.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: read.append((args or (kwargs["input_ids"],))[0].numel()), with_kwargs=True
    )
    for reuse in (True, False):
        config = GenerationConfig(max_new_tokens=5, eos_token_id=[7], pad_token_id=0, **sampling)
        generator = CachedGenerator(lambda: nullcontext(model), config, reuse)
        read.clear()
        torch.manual_seed(0)
        first, _ = generator.generate(rows)
        later, _ = generator.generate([row + r + [50, 51] for row, r in zip(rows, first, strict=True)])
        found.append((first, later))
        assert read[:2] == ([2 * 40, 8] if reuse else [8 * 40, 8])
    hook.remove()
    assert found[0] == found[1]


def test_models_without_a_plain_cache_have_an_obstacle_and_others_none():
    config = GenerationConfig()
    for plain in CONFIGS.values():
        assert reuse_obstacle(build(plain), config) is None
    sliding = build(MistralConfig(**SMALL, sliding_window=16))
    assert "sliding window" in reuse_obstacle(sliding, config)
    assert "sliding window" in reuse_obstacle(build(Gemma3TextConfig(**SMALL, head_dim=8)), config)
    assert "linear attention" in reuse_obstacle(build(Qwen3NextConfig(**SMALL, head_dim=8, num_experts=2)), config)
    assert "linear attention" in reuse_obstacle(
        build(MambaConfig(vocab_size=200, hidden_size=32, num_hidden_layers=2)), config
    )
    static = GenerationConfig(cache_implementation="static")
    assert "'static'" in reuse_obstacle(build(CONFIGS["Llama"]), static)
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    assert "rotation" in reuse_obstacle(build(LlamaConfig(**SMALL, rope_parameters=dynamic)), config)


def test_a_configuration_that_turns_the_cache_off_does_not_turn_reuse_off():
    model = build(CONFIGS["Llama"])
    model.config.use_cache = model.generation_config.use_cache = False  # as training scripts do
    _, widths = conversations(model, reuse_cache=True)
    assert widths.count(1) > len(widths) / 2


def test_a_model_with_a_sliding_window_plays_all_the_same_and_says_so_once(tokenizer, tasks, caplog):
    small = {**SMALL, "vocab_size": len(tokenizer)}
    model = build(MistralConfig(**small, sliding_window=16))
    rollout = policy_rollout(model, tokenizer, CountingEnv, temperature=0, max_response_length=8)
    rollout.play(list(tasks))
    rollout.play(list(tasks))
    assert caplog.text.count("prefilled again in every turn") == 1


# In the trainer


@pytest.fixture
def rollouts(random_model_folder, tasks, skills, make_config):
    """The rows of a training batch of rollouts with the given options, all trainers with the same seeds."""

    def play(peft_config=None, **options):
        config = make_config(max_turns=6, max_completion_length=400, temperature=1.0, **options)
        trainer = SDARTrainer(
            model=random_model_folder,
            args=config,
            train_dataset=tasks,
            environment_factory=CountingEnv,
            skills=skills,
            peft_config=peft_config,
        )
        trainer.model.train()
        if config.gradient_checkpointing:
            trainer.model.gradient_checkpointing_enable()
        trainer.current_gradient_accumulation_steps = 1
        torch.manual_seed(3)
        rows = [{**tasks[index], "length": length} for index, length in enumerate((6, 1, 4, 2))]
        trainer._generate_and_score_completions(rows)
        return trainer, [ids_and_mask(episode) for episode in trainer.episodes]

    return play


@pytest.mark.parametrize("lora", [False, True])
def test_the_trainer_samples_the_same_with_and_without_reuse(lora, rollouts, monkeypatch):
    def adapter():
        return LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False) if lora else None

    widths = []
    generate = CachedGenerator.generate

    def spy(self, *given):
        result = generate(self, *given)
        widths.append(self._cache.get_seq_length())
        return result

    monkeypatch.setattr(CachedGenerator, "generate", spy)
    torch.manual_seed(0)
    trainer, with_reuse = rollouts(adapter(), gradient_checkpointing=True)
    torch.manual_seed(0)
    _, without = rollouts(adapter(), gradient_checkpointing=True, reuse_cache=False)
    assert len(widths) == 6 and widths == sorted(widths)
    assert with_reuse == without
    assert trainer.model.is_gradient_checkpointing
    assert trainer.rollout.backend.cached._cache is None  # it does not outlive the rollout


def test_the_cache_goes_when_a_rollout_fails(rollouts, tasks, monkeypatch):
    trainer, _ = rollouts()
    calls = iter(range(3))
    generate = trainer.rollout.backend.generate

    def fails(ids):
        if next(calls) == 2:
            assert trainer.rollout.backend.cached._cache is not None
            raise RuntimeError("out of memory")
        return generate(ids)

    trainer.rollout.backend.generate = fails
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.rollout.play([{**tasks[0], "length": 9}])
    assert trainer.rollout.backend.cached._cache is None


def test_a_cap_on_the_cache_splits_the_batch_into_waves(tokenizer, random_model_folder, tasks):
    model = AutoModelForCausalLM.from_pretrained(random_model_folder)
    rollout = policy_rollout(
        model, tokenizer, CountingEnv, temperature=0, max_response_length=8, max_completion_length=96
    )
    together = [ids_and_mask(episode) for episode in rollout.play(list(tasks))]
    sizes, tokens = [], []
    generator = rollout.backend
    generate = generator.generate

    def spy(ids):
        result = generate(ids)
        sizes.append(len(ids))
        tokens.append(len(ids) * generator._cache.get_seq_length())
        return result

    rollout.backend.generate = spy
    rollout.max_cache_tokens = 3 * (len(together[0][0]) + 5 + 96)
    assert [ids_and_mask(episode) for episode in rollout.play(list(tasks))] == together
    assert sizes == [3, 2, 1, 3, 2, 1, 2, 1]
    assert max(tokens) <= rollout.max_cache_tokens
    rollout.max_cache_tokens = 1
    rollout.play(list(tasks))
    assert sizes[8:] == [1] * sum(task["length"] for task in tasks)


def test_a_turn_ends_with_the_templates_token_though_the_tokenizers_end_is_another(
    make_trainer, random_model_folder, tokenizer, tmp_path
):
    base = copy.deepcopy(tokenizer)  # as a base model's that was given a chat template
    base.add_special_tokens({"eos_token": "<|endoftext|>", "extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    model = AutoModelForCausalLM.from_pretrained(random_model_folder)
    model.config.eos_token_id = model.generation_config.eos_token_id = base.eos_token_id
    model.save_pretrained(tmp_path / "base")
    base.save_pretrained(tmp_path / "base")
    trainer = make_trainer(model=str(tmp_path / "base"))
    assert trainer.generation_config.eos_token_id == [base.eos_token_id, tokenizer.eos_token_id]


def test_a_process_whose_episodes_have_ended_generates_along(rollouts):
    trainer, _ = rollouts()
    turns = iter([1, 1, 0])
    trainer.rollout.backend.any_running = lambda count: bool(next(turns))
    calls = []
    generate = trainer.rollout.backend.generate
    trainer.rollout.backend.generate = lambda ids: calls.append(ids) or generate(ids)
    trainer.rollout.play([])
    assert calls == [[], []]


# TRL's own engines


class Engine:
    """vLLM as TRL's trainer sees it."""

    temperature = 1.0

    def __init__(self, response):
        self.response, self.prompts, self.syncs = response, [], 0

    def sync_weights(self):
        self.syncs += 1

    def generate(self, prompts, images, num_generations, profiler):
        self.prompts.append(prompts)
        return None, [self.response] * len(prompts), [[[-0.5]] * len(self.response)] * len(prompts), None


def test_vllm_goes_through_trls_own_method_with_one_weight_sync_a_rollout(rollouts, tokenizer, tasks):
    trainer, _ = rollouts()
    response = tokenizer("e<|im_end|>", add_special_tokens=False)["input_ids"]
    trainer.use_vllm, trainer._last_loaded_step, trainer.rollout.backend.cached = True, -1, None
    trainer.vllm_generation = Engine(response)
    trainer.vllm_importance_sampling_correction = False
    trainer._generate_and_score_completions([{**tasks[0], "length": length} for length in (3, 1, 2, 3)])
    assert trainer.vllm_generation.syncs == 1
    assert [len(prompts) for prompts in trainer.vllm_generation.prompts] == [4, 3, 2]
    assert trainer.episodes[0].turns[0].logprobs == [-0.5] * len(response)


def test_continuous_batching_goes_through_trls_own_method(rollouts, tokenizer, tasks, monkeypatch):
    trainer, _ = rollouts()
    response = tokenizer("e<|im_end|>", add_special_tokens=False)["input_ids"]
    batches = []

    class Output:
        generated_tokens = response

    def generate_batch(prompts, **kwargs):
        batches.append(len(prompts))
        return dict.fromkeys(range(len(prompts)), Output)

    trainer.use_transformers_continuous_batching, trainer.rollout.backend.cached = True, None
    trainer.continuous_batching_config = None
    monkeypatch.setattr(trainer.model, "generate_batch", generate_batch, raising=False)
    trainer._generate_and_score_completions([{**tasks[0], "length": length} for length in (3, 1, 2, 3)])
    assert batches == [4, 3, 2]
