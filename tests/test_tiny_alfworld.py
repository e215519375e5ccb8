"""The embedded policy of ALFWorld: its premise, its tokenizer, its size."""

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from sdar_trl.envs import load_world
from sdar_trl.evaluation import evaluate, policy_rollout, summarize
from sdar_trl.policies import policy_limits, policy_path


FOLDER = policy_path("tiny-alfworld")


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


def test_the_policy_plays_better_with_skills_than_without(tokenizer):
    world = load_world("alfworld", admissible_actions=False)
    panel = world.dataset("validation").select(range(64))
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype="float32")
    rollout = policy_rollout(model, tokenizer, world.environment_factory, **policy_limits("tiny-alfworld"))
    without, with_skills = (
        summarize(evaluate(rollout, panel, skills=library, batch_size=24)).success
        for library in (None, world.skills())
    )
    rollout.close()
    assert 0.1 < without < with_skills


def test_the_policy_is_small_and_carries_its_limits():
    assert sum(file.stat().st_size for file in Path(FOLDER).iterdir()) < 8e6
    limits = policy_limits("tiny-alfworld")
    assert limits == policy_limits(FOLDER) and set(limits) == set(policy_limits("tiny"))
    assert limits["max_turns"] <= 50


def test_a_thing_with_its_number_is_one_token_and_nothing_is_lost(tokenizer):
    text = "<action>take cabinet 12</action> a ü € diningtable 3."
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert {" cabinet 12", " diningtable 3"} <= {tokenizer.decode([token]) for token in ids}
