"""Trainers with an engine, and a model that it has kernels for."""

import on_cpu  # noqa: F401  before anything that loads vLLM
import pytest


@pytest.fixture
def make_engine_trainer(make_trainer, make_config):
    """A trainer with an engine of its own; keyword arguments are of its configuration."""

    def make(given=None, **options):
        engine = {"use_vllm": True, "vllm_mode": "colocate", "vllm_gpu_memory_utilization": 0.05}
        config = make_config(**{**engine, "temperature": 1.0, "max_completion_length": 400, **options})
        return make_trainer(config, **(given or {}))

    return make


@pytest.fixture(scope="session")
def random_model_folder(tokenizer, tmp_path_factory) -> str:
    """As the other tests' model, with heads of a size that the engine has kernels for."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        initializer_range=0.1,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    folder = tmp_path_factory.mktemp("model")
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
