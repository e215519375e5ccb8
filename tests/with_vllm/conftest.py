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
    from random_models import save_random_model

    shape = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 2,
        "head_dim": 32,
        "initializer_range": 0.1,
    }
    return save_random_model(tmp_path_factory.mktemp("model"), tokenizer, **shape)
