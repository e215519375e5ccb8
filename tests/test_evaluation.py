"""Panels, intervals, and evaluation with and without skills."""

import dataclasses
import json
import math

import pytest
import torch
from steps import ids_and_mask
from toys import CountingEnv
from transformers import AutoModelForCausalLM

from sdar_trl.evaluation import Record, evaluate, policy_rollout, results_table, summarize, task_types_table


def records(successes, total):
    return [
        Record(
            task_id=str(i),
            task_type="ab"[i % 2],
            seed=0,
            success=i < successes,
            score=1.0 if i < successes else 0.5,
            episode_return=0.0,
            turns=1,
            valid_actions=1.0,
            stop_reason="won" if i < successes else "lost",
        )
        for i in range(total)
    ]


@pytest.mark.parametrize(("successes", "total"), [(0, 10), (64, 128), (100, 128), (128, 128)])
def test_the_interval_is_wilsons(successes, total):
    result = summarize(records(successes, total))
    p, z = successes / total, 1.959963984540054
    centre = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    assert result.success == p and result.n == total
    assert result.ci_low == pytest.approx(max(centre - half, 0), abs=1e-12)
    assert result.ci_high == pytest.approx(min(centre + half, 1), abs=1e-12)
    assert result.score == pytest.approx(p + 0.5 * (1 - p))


def test_success_is_told_by_task_type():
    assert summarize(records(1, 4)).by_task_type == {"a": 0.5, "b": 0.0}


def test_the_table_names_every_result():
    table = results_table({"before": summarize(records(32, 128)), "after": summarize(records(64, 128))})
    assert "before" in table and "25.0%" in table and "18.3% to 33.2%" in table and "0.750" in table


def test_a_table_has_the_success_of_each_task_type_and_leaves_what_was_not_played_empty():
    results = {"one": summarize(records(1, 4)), "another": summarize(records(3, 3))}
    results["another"].by_task_type.pop("b")
    assert [line.split() for line in task_types_table(results).splitlines()] == [
        ["a", "b"],
        ["one", "50.0%", "0.0%"],
        ["another", "100.0%"],
    ]


@pytest.fixture
def rollout(random_model_folder, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(random_model_folder)
    return policy_rollout(model, tokenizer, CountingEnv, temperature=1.0, max_response_length=8)


def episodes_of(rollout, tasks, **options):
    episodes = []
    evaluate(rollout, tasks, on_episode=episodes.append, **options)
    return episodes


def test_the_same_seed_gives_the_same_episodes_and_leaves_the_random_state_alone(rollout, tasks):
    state = torch.random.get_rng_state()
    first, again, other = (
        [ids_and_mask(e) for e in episodes_of(rollout, tasks, seed=seed, batch_size=3)] for seed in (1, 1, 2)
    )
    assert first == again and first != other
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_policy_reads_skills_only_when_it_is_given_them(rollout, tasks, skills, tokenizer):
    for library in (None, skills):
        for episode in episodes_of(rollout, tasks, skills=library):
            text = tokenizer.decode(episode.prompt_ids)
            assert ("say every number." in text) == (library is not None)
            assert ("even tasks want calm." in text) == (library is not None and episode.task["task_type"] == "even")
            assert f"count to {episode.task['length']}" in text


def test_a_policy_whose_template_has_no_system_role_is_evaluated_with_skills(
    random_model_folder, tokenizer, tasks, skills
):
    plain = type(tokenizer).from_pretrained(tokenizer.name_or_path)
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    plain.chat_template = refuses + plain.chat_template
    rows = [{**task, "prompt": task["prompt"][1:]} for task in tasks]
    model = AutoModelForCausalLM.from_pretrained(random_model_folder)
    options = {"temperature": 0, "max_response_length": 8}
    with pytest.raises(ValueError, match='context_role="user"'):
        evaluate(policy_rollout(model, plain, CountingEnv, **options), rows, skills=skills)
    rollout = policy_rollout(model, plain, CountingEnv, context_role="user", **options)
    for episode in episodes_of(rollout, rows, skills=skills):
        assert "<|im_start|>user\n# skills" in plain.decode(episode.prompt_ids)


def test_a_record_says_what_became_of_each_task(rollout, tasks):
    found = evaluate(rollout, [*tasks, {**tasks[0], "fails_at": 1}], seed=3)
    assert [record.task_id for record in found] == [task["task_id"] for task in [*tasks, tasks[0]]]
    assert {record.seed for record in found} == {3}
    assert [record.turns for record in found][:8] == [task["length"] for task in tasks]
    assert found[-1].stop_reason == "env_error" and not found[-1].success
    data = found[0].to_dict()
    assert {"task_id", "seed", "success", "score", "return", "turns", "stop_reason"} <= set(data)
    assert json.loads(json.dumps(data)) == data


def test_numbers_of_the_environment_are_columns_of_the_table():
    rows = [dataclasses.replace(record, metrics={"f1": 0.25 * i}) for i, record in enumerate(records(1, 4))]
    result = summarize(rows)
    assert result.metrics == {"f1": 0.375}
    assert "f1" in results_table({"a": result, "b": summarize(records(1, 4))}) and "0.375" in results_table(
        {"a": result}
    )


def test_an_empty_panel_is_an_error():
    with pytest.raises(ValueError, match="panel was empty"):
        summarize([])
