"""The embedded policy for Search-QA: its premise, its player, and how it is made."""

import random
from collections import defaultdict
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from sdar_trl import SkillLibrary
from sdar_trl.chat import Chat
from sdar_trl.envs import SearchEnv
from sdar_trl.envs.search_qa.questions import KINDS
from sdar_trl.evaluation import evaluate, policy_rollout, summarize
from sdar_trl.history import windowed
from sdar_trl.policies import policy_limits, policy_path
from sdar_trl.policies.search_qa import (
    ERRORS,
    MAX_TURNS,
    NAME,
    build_tokenizer,
    scripted_episode,
    scripted_player,
    transferred,
)


def test_the_policy_answers_better_with_skills_than_without_by_ten_points_and_more():
    folder = policy_path(NAME)
    rollout = policy_rollout(
        AutoModelForCausalLM.from_pretrained(folder, dtype="float32"),
        AutoTokenizer.from_pretrained(folder),
        SearchEnv,
        **policy_limits(NAME),
    )
    panel = SearchEnv.dataset("test").select(range(128))
    without, with_skills = (
        summarize(evaluate(rollout, panel, skills=library)).success
        for library in (None, SkillLibrary.bundled("search_qa"))
    )
    rollout.close()
    assert with_skills - without >= 0.10
    assert 0.05 < without < 0.7


def test_the_policy_is_small_and_carries_its_limits():
    folder = policy_path(NAME)
    assert Path(folder).name == "tiny_search_qa"
    assert sum(file.stat().st_size for file in Path(folder).iterdir()) < 8e6
    assert policy_limits(folder) == policy_limits(NAME) == {**policy_limits(NAME), "max_turns": MAX_TURNS}


def play(kind, count=600):
    """Success of the scripted player by kind of question."""
    env, rng, won = SearchEnv(), random.Random(0), defaultdict(list)
    for task in SearchEnv.dataset("train").select(range(count)):
        env.reset(**task)
        respond = scripted_player(env, task["question"], ERRORS[kind], rng)
        steps = (env.step(respond()) for _ in range(MAX_TURNS))
        last = next((step for step in steps if step.terminated), None)
        won[task["task_type"]].append(last is not None and last.info["success"])
    return {kind: sum(successes) / len(successes) for kind, successes in won.items()}


def test_the_scripted_player_is_better_the_better_its_skills_in_each_kind():
    own, other, none = (play(kind) for kind in ERRORS)
    for kind in KINDS:
        assert own[kind] > 0.85 > other[kind] > none[kind]


def test_a_policy_is_made_from_scripted_episodes():
    env, skills, rng = SearchEnv(), SkillLibrary.bundled("search_qa"), random.Random(0)
    tasks = list(SearchEnv.dataset("train").select(range(20)))
    tokenizer = build_tokenizer(env, tasks, skills)
    chat = Chat(tokenizer)
    things = ("armenia", "Katima Mulilo", "33615", "calling", "<search>"[1:-1])
    assert all(len(tokenizer(f" {thing}", add_special_tokens=False)["input_ids"]) == 1 for thing in things)
    in_title, in_text = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in ('(Title: "Basel")', " Basel")
    )
    assert in_text[0] in in_title
    for task in tasks:
        [(ids, mask)] = scripted_episode(env, task, chat, rng)
        responses = tokenizer.decode([token for token, sampled in zip(ids, mask, strict=True) if sampled])
        assert "</answer><|im_end|>" in responses and "<information>" not in responses
    by_turn = scripted_episode(env, tasks[0], chat, rng, skills, windowed(4, SearchEnv.history))
    assert all(mask[-1] == 1 and mask.count(1) < 40 for _, mask in by_turn)
    model = transferred(tokenizer)
    known = AutoModelForCausalLM.from_pretrained(policy_path("tiny"), dtype="float32")
    assert (model.model.layers[0].mlp.up_proj.weight == known.model.layers[0].mlp.up_proj.weight).all()
    assert model.config.vocab_size == len(tokenizer) != known.config.vocab_size
