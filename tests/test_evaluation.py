"""Panels, intervals, and evaluation with and without skills."""

import dataclasses
import json
import math

import pytest
import torch
from steps import ids_and_mask
from toys import CountingEnv
from transformers import AutoModelForCausalLM, GenerationConfig

from sdar_trl import Episode, Turn
from sdar_trl.evaluation import (
    Record,
    evaluate,
    evaluate_trainer,
    measures_table,
    policy_rollout,
    read_records,
    results_table,
    summarize,
    task_type_table,
)
from sdar_trl.sampling import StreamSampling


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


def test_a_table_has_success_within_each_type_side_by_side():
    results = {"before": summarize(records(1, 4)), "after": summarize(records(3, 4)), "a": summarize(records(0, 1))}
    assert task_type_table(results).splitlines() == [
        "task type    before     after         a",
        "a             50.0%    100.0%      0.0%",
        "b              0.0%     50.0%          ",
    ]


def test_the_table_names_every_result():
    table = results_table({"before": summarize(records(32, 128)), "after": summarize(records(64, 128))})
    assert "before" in table and "25.0%" in table and "18.3% to 33.2%" in table and "0.750" in table


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


# Streams of their own: whatever is played beside an episode


def texts(rollout, tasks, **options):
    """Responses of each episode by its task, in the order of the tries."""
    found = {}
    for episode in episodes_of(rollout, tasks, **options):
        found.setdefault(episode.task["task_id"], []).append([turn.response_ids for turn in episode.turns])
    return found


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_an_episode_does_not_depend_on_what_is_played_beside_it(random_model_folder, tokenizer, tasks, temperature):
    model = AutoModelForCausalLM.from_pretrained(random_model_folder)
    rollout = policy_rollout(model, tokenizer, CountingEnv, temperature=temperature, max_response_length=8)
    options = {"tries": 3, "seed": 5}
    expected = texts(rollout, tasks, batch_size=24, **options)
    assert texts(rollout, tasks, batch_size=1, **options) == expected
    assert texts(rollout, tasks.select([6, 3, 1]), batch_size=4, **options) == {
        name: expected[name] for name in ("count/6", "count/3", "count/1")
    }
    rollout.max_cache_tokens = 2000  # waves
    assert texts(rollout, tasks, batch_size=24, **options) == expected
    differ = [tries[0] != tries[1] for tries in expected.values()]
    assert all(differ) if temperature else not any(differ)


def test_records_do_not_depend_on_the_batch_size(rollout, tasks):
    panels = [evaluate(rollout, tasks, tries=2, batch_size=size) for size in (1, 5, 64)]
    assert panels[0] == panels[1] == panels[2]
    assert [(r.task_id, r.attempt) for r in panels[0]] == [(f"count/{i}", n) for i in range(8) for n in range(2)]


def test_a_trainer_plays_the_same_episodes_as_a_plain_model(make_trainer, make_config, tasks, tokenizer):
    for reuse_cache in (True, False):
        trainer = make_trainer(make_config(reuse_cache=reuse_cache))
        limits = {"max_turns": 4, "max_response_length": 8, "max_completion_length": 96}
        plain = policy_rollout(trainer.model, tokenizer, CountingEnv, temperature=0.7, **limits)
        expected = evaluate(plain, tasks, tries=2, seed=3)
        assert evaluate_trainer(trainer, tasks, tries=2, seed=3, temperature=0.7, batch_size=5) == expected


@pytest.mark.parametrize(
    "options", [{"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.6}, {"min_p": 0.2}, {"temperature": 2.0, "top_k": 4}]
)
def test_the_streams_sample_from_the_distribution_that_generate_samples_from(options):
    config = GenerationConfig(max_new_tokens=1, **{"top_k": 0, "do_sample": True, **options})
    logits = torch.tensor([[2.0, 1.0, 0.5, 0.0, -1.0, -torch.inf]])
    count = 20_000
    sampling = StreamSampling([[7, row] for row in range(count)], config, start=4)
    picked = sampling(torch.zeros(count, 4, dtype=torch.long), logits.expand(count, -1)).argmax(-1)
    expected = logits.double() / options.get("temperature", 1.0)
    if "top_k" in options:
        expected[expected < expected.topk(options["top_k"]).values.min()] = -torch.inf
    probabilities = expected.softmax(-1)[0]
    if "top_p" in options:  # the likeliest until their sum reaches it
        probabilities[probabilities.cumsum(0) - probabilities >= options["top_p"]] = 0
    if "min_p" in options:
        probabilities[probabilities < options["min_p"] * probabilities.max()] = 0
    probabilities /= probabilities.sum()
    shares = picked.bincount(minlength=6) / count
    deviation = (probabilities * (1 - probabilities) / count).sqrt()
    assert ((shares - probabilities).abs() <= 4.5 * deviation).all()


# Several tries


def tried(wins_of):
    """Records of tasks with several tries, from the wins of each."""
    return [
        dataclasses.replace(one, task_id=str(task), success=bool(won), attempt=attempt, actions=f"{attempt % 2}")
        for task, wins in enumerate(wins_of)
        for attempt, won in enumerate(wins)
        for one in records(0, 1)
    ]


def test_several_tries_are_told_as_pass_at_k_and_by_how_many_ways_they_are():
    result = summarize(tried([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]))
    assert result.n == 3 and result.tries == 4 and result.success == pytest.approx(0.25)
    assert {k: one.mean for k, one in result.pass_at.items()} == pytest.approx({2: (1 / 2 + 5 / 6) / 3, 4: 2 / 3})
    assert result.distinct_actions == 2
    line = results_table({"policy": result}).splitlines()[1]
    assert "44.4%" in line and "66.7%" in line and "2.00 of 4" in line
    assert json.loads(json.dumps(result.to_dict()))["pass_at"]["4"]["mean"] == pytest.approx(2 / 3)


def test_single_tries_have_no_pass_at_k():
    assert summarize(records(3, 8)).pass_at == {} and "pass@" not in results_table({"a": summarize(records(3, 8))})


def test_every_measure_has_an_interval_in_each_task_type():
    result = summarize(records(20, 40))
    lines = measures_table(result).splitlines()
    assert lines[0].split() == ["task", "type", "tasks", "success", "score", "return", "turns", "valid_actions"]
    assert [line.split()[:2] for line in lines[1:]] == [["all", "40"], ["a", "20"], ["b", "20"]]
    assert "0.500 (0.352 to 0.648)" in lines[1] and "1.000 (1.000 to 1.000)" in lines[1]
    data = result.to_dict()
    assert set(data["task_types"]) == {"a", "b"} and set(data["estimates"]["score"]) == {"mean", "ci_low", "ci_high"}
    assert data["task_types"]["a"]["success"]["mean"] == 0.5


def test_episodes_that_acted_alike_have_the_same_hash_of_actions():
    def record(*responses):
        turns = [Turn("", [], [], response) for response in responses]
        return Record.of(Episode({"task_id": "a"}, [], turns), 0)

    first = record("so <action>go  north</action>", "<search>who</search>")
    assert record("well, <action> go north </action>!", "<search>who</search>").actions == first.actions
    others = [
        record("<action>go south</action>", "<search>who</search>"),
        record("<action>go north</action>", "<answer>who</answer>"),
        record("<action>go north</action>"),
        record("go north", "who"),
        record("go north", "me"),
    ]
    assert len({first.actions, *(other.actions for other in others)}) == 6


# Records on disk


def test_an_evaluation_that_was_stopped_goes_on_and_plays_nothing_twice(rollout, tasks, tmp_path):
    path = tmp_path / "folder" / "records.jsonl"
    options = {"tries": 2, "batch_size": 3, "path": path, "about": {"temperature": 1.0}}
    expected = evaluate(rollout, tasks, tries=2)
    stopped = iter(range(7))
    with pytest.raises(StopIteration):
        evaluate(rollout, tasks, on_episode=lambda episode: next(stopped), **options)
    with path.open("a") as file:
        file.write('{"task_id": "count/5", "succ')  # cut in the middle of a line
    played = []
    assert evaluate(rollout, tasks, on_episode=played.append, **options) == expected
    assert len(played) == 16 - 6
    assert evaluate(rollout, tasks, on_episode=played.append, **options) == expected and len(played) == 10
    about, read = read_records(path)
    assert about == {"seed": 0, "tries": 2, "temperature": 1.0}
    assert sorted(read, key=lambda r: (r.task_id, r.attempt)) == expected


def test_a_file_of_another_evaluation_is_refused(rollout, tasks, tmp_path):
    path = tmp_path / "records.jsonl"
    evaluate(rollout, tasks, path=path)
    with pytest.raises(ValueError, match="seed: 0 there, 1 now"):
        evaluate(rollout, tasks, path=path, seed=1)
    with pytest.raises(ValueError, match="another evaluation .panel"):
        evaluate(rollout, tasks, path=path, about={"panel": "x"})
    path.write_text("{}\n")
    with pytest.raises(ValueError, match="is no file of records"):
        evaluate(rollout, tasks, path=path)


def test_a_trainers_panel_goes_on_too(make_trainer, tasks, tmp_path):
    trainer = make_trainer()
    path = tmp_path / "records.jsonl"
    expected = evaluate_trainer(trainer, tasks, path=path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:4]) + "\n")
    play, played = trainer.rollout.play, []
    trainer.rollout.play = lambda tasks, *rest: played.extend(tasks) or play(tasks, *rest)
    assert evaluate_trainer(trainer, tasks, path=path) == expected and len(played) == 5
    assert sorted(path.read_text().splitlines()) == sorted(lines)


def test_what_is_no_record_is_told(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text('{"about": {}}\n{"task_id": "a"}\n{"task_id": "b"}\n')
    with pytest.raises(ValueError, match="Line 2 of .* is no record"):
        read_records(path)
