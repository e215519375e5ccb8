"""The embedded policy: its premise, its tokenizer, and how it is made."""

import random
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from sdar_trl import SkillLibrary
from sdar_trl.chat import Chat
from sdar_trl.envs import WebShopEnv
from sdar_trl.evaluation import evaluate, policy_rollout, summarize
from sdar_trl.history import windowed
from sdar_trl.policies import TINY_POLICY, policy_limits, policy_path
from sdar_trl.policies.tiny import (
    ERRORS,
    MAX_TURNS,
    new_policy,
    scripted_episode,
    scripted_response,
    train_tokenizer,
    warm_start,
)


@pytest.mark.parametrize("history", ["growing", "window"])
def test_the_policy_shops_better_with_skills_than_without_by_ten_points_and_more(history, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(TINY_POLICY, dtype="float32")
    rollout = policy_rollout(model, tokenizer, WebShopEnv, history=history, **policy_limits("tiny"))
    panel = WebShopEnv.dataset("test").select(range(128))
    without, with_skills = (
        summarize(evaluate(rollout, panel, skills=library)).success
        for library in (None, SkillLibrary.bundled("webshop"))
    )
    assert with_skills - without >= 0.10
    assert 0.05 < without < 0.6


def test_the_policy_carries_its_limits_and_others_have_none():
    assert policy_path("tiny") == TINY_POLICY and policy_path("a/model") == "a/model"
    limits = policy_limits("tiny")
    assert limits == policy_limits(TINY_POLICY) == {**limits, "max_turns": MAX_TURNS}
    assert set(limits) == {"max_turns", "max_response_length", "max_completion_length"}
    assert policy_limits("smollm2") == policy_limits("outputs/demo") == {}


def test_the_policy_is_small():
    assert sum(file.stat().st_size for file in Path(TINY_POLICY).iterdir()) < 8e6
    model = AutoModelForCausalLM.from_pretrained(TINY_POLICY)
    assert sum(parameter.numel() for parameter in model.parameters()) < 5e6


@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
def test_the_template_renders_every_role_and_the_tokenizer_loses_nothing(tokenizer, role):
    messages = [{"role": "user", "content": "a ü €"}, {"role": role, "content": "b0x [sep] click[buy now]"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text.endswith(f"<|im_start|>{role}\nb0x [sep] click[buy now]<|im_end|>\n")
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def play(kind, count=150):
    env, rng = WebShopEnv(), random.Random(0)
    won = 0
    for goal in range(count):
        env.reset(goal=goal)
        for _ in range(MAX_TURNS):
            step = env.step(scripted_response(env, ERRORS[kind], rng))
            if step.terminated:
                won += step.info["success"]
                break
    return won / count


def test_the_scripted_player_is_better_the_better_its_skills():
    assert play("own skills") > 0.8 > 0.6 > play("other skills") > play("none")


def test_a_policy_is_made_from_scripted_episodes_in_one_pass():
    env, skills, rng = WebShopEnv(), SkillLibrary.bundled("webshop"), random.Random(0)
    tasks = list(WebShopEnv.dataset("train").select(range(20)))
    tokenizer = train_tokenizer((env.reset(**task) for task in tasks), vocab_size=400)
    conversations = [row for task in tasks[:6] for row in scripted_episode(env, task, skills, Chat(tokenizer), rng)]
    assert len(conversations) == 6
    for ids, mask in conversations:
        responses = tokenizer.decode([token for token, sampled in zip(ids, mask, strict=True) if sampled])
        assert responses.startswith("<action>search[") and responses.count("</action><|im_end|>") > 1
    window = windowed(2, WebShopEnv.history)
    by_turn = scripted_episode(env, tasks[0], skills, Chat(tokenizer), rng, window)
    assert len(by_turn) > 1  # a row a turn, each with one response
    for ids, mask in by_turn:
        responses = tokenizer.decode([token for token, sampled in zip(ids, mask, strict=True) if sampled])
        assert responses.count("</action><|im_end|>") == 1 and mask[-1] == 1
    model = new_policy(tokenizer, hidden_size=64, layers=1)
    before = model.model.embed_tokens.weight.detach().clone()
    warm_start(model, conversations)
    assert (before != model.model.embed_tokens.weight).any()
