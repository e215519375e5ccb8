"""Small real things the tests share: a tokenizer, a randomly initialised Qwen3, tasks and skills."""

import os


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait must not take another process's core

from importlib.util import find_spec

import pytest
from no_skips import pytest_make_collect_report, pytest_runtest_makereport  # noqa: F401


collect_ignore = [] if find_spec("vllm") else ["with_vllm"]  # has an environment of its own: make test-vllm

# Imported inside the fixtures, since pytest-xdist's own process runs no tests and starts at once without them.


@pytest.fixture(scope="session")
def tokenizer():
    from transformers import AutoTokenizer

    from sdar_trl.policies import TINY_POLICY

    return AutoTokenizer.from_pretrained(TINY_POLICY)


@pytest.fixture(scope="session")
def random_model_folder(tokenizer, tmp_path_factory) -> str:
    """A saved, randomly initialised Qwen3, so that a reference model can be loaded from its path."""
    from random_models import save_random_model

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "head_dim": 8}
    return save_random_model(tmp_path_factory.mktemp("model"), tokenizer, **shape)


@pytest.fixture(scope="session")
def other_model_folder(tokenizer, tmp_path_factory) -> str:
    """A wider one, that may teach it."""
    from random_models import save_random_model

    shape = {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4, "head_dim": 12}
    return save_random_model(tmp_path_factory.mktemp("other_model"), tokenizer, **shape)


@pytest.fixture
def tasks():
    from datasets import Dataset

    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "system", "content": "you count."}, {"role": "user", "content": "task: "}],
                "task_id": f"count/{index}",
                "task_type": "even" if index % 2 == 0 else "odd",
                "length": 1 + index % 3,
            }
            for index in range(8)
        ]
    )


@pytest.fixture
def skills():
    from sdar_trl import Skill, SkillLibrary

    return SkillLibrary(
        [
            Skill("general", "for all", "say every number.", always=True),
            Skill("even", "for even", "even tasks want calm.", task_types=("even",)),
            Skill("odd", "for odd", "odd tasks want courage.", task_types=("odd",)),
        ]
    )


@pytest.fixture
def make_config(tmp_path):
    """A small configuration in float32, on an accelerator where there is one; keyword arguments override it."""
    import torch

    from sdar_trl import SDARConfig

    def make(cls=SDARConfig, **kwargs):
        defaults = {
            "output_dir": str(tmp_path / "out"),
            "per_device_train_batch_size": 4,
            "num_generations": 4,
            "max_completion_length": 96,
            "max_steps": 2,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": not torch.accelerator.is_available(),
            "bf16": False,
            "disable_tqdm": True,
        }
        if cls is SDARConfig:
            defaults |= {"max_response_length": 8, "max_turns": 4}
        return cls(**{**defaults, **kwargs})

    return make


@pytest.fixture
def make_trainer(random_model_folder, tasks, skills, make_config):
    """A trainer of the random model on the counting environment; keyword arguments override."""
    from toys import CountingEnv

    from sdar_trl import SDARTrainer

    def make(config=None, cls=SDARTrainer, **kwargs):
        defaults = {
            "model": random_model_folder,
            "train_dataset": tasks,
            "environment_factory": CountingEnv,
            "skills": skills,
        }
        return cls(args=config or make_config(), **{**defaults, **kwargs})

    return make
