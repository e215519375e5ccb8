"""What a run leaves in its folder: all that was logged, and its episodes."""

import json
import logging

import pytest
from transformers import AutoTokenizer

from sdar_trl import Episode, Turn, recording
from sdar_trl.policies import TINY_POLICY
from sdar_trl.recording import TOKEN_NUMBERS, episode_line, token_texts


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_all_that_is_logged_is_a_line(make_trainer, make_config, tasks, tmp_path):
    trainer = make_trainer(make_config(max_steps=2, eval_strategy="steps", eval_steps=2), eval_dataset=tasks)
    before = trainer.evaluate()
    trainer.train()
    history = list(trainer.state.log_history)
    first, *rest = lines(tmp_path / "out" / "metrics.jsonl")
    assert first["eval_reward"] == before["eval_reward"] and first["step"] == 0
    assert rest == history and [entry["step"] for entry in rest] == [1, 2, 2, 2]
    trainer.evaluate()
    assert lines(tmp_path / "out" / "metrics.jsonl")[-1] == trainer.state.log_history[-1]


def test_numbers_that_json_lacks_are_null(make_trainer, make_config, tmp_path):
    trainer = make_trainer(make_config(max_steps=1))
    trainer.train()
    trainer.log({"mine": float("nan")})
    last = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[-1]
    assert '"mine": null' in last


def test_a_resumed_run_goes_on_in_its_files(make_trainer, make_config, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 1, "save_episodes_every": 1}
    make_trainer(make_config(max_steps=3, **settings)).train()
    files = tmp_path / "out" / "episodes"
    whole = {path.name: path.read_text() for path in files.iterdir()}
    (files / "step_000003.jsonl").write_text("{")  # it was stopped after step 2, while it wrote
    again = make_trainer(make_config(max_steps=3, **settings))
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert lines(tmp_path / "out" / "metrics.jsonl") == again.state.log_history
    assert [e["step"] for e in again.state.log_history if "loss" in e] == [1, 2, 3]
    now = {path.name: lines(path) for path in files.iterdir()}
    assert sorted(now) == sorted(whole) == [f"step_00000{step}.jsonl" for step in (1, 2, 3)]
    assert [turn["response_ids"] for e in now["step_000003.jsonl"] for turn in e["turns"]] == [
        turn["response_ids"] for line in whole["step_000003.jsonl"].splitlines() for turn in json.loads(line)["turns"]
    ]


def test_a_run_begun_anew_replaces_the_files(make_trainer, make_config, tmp_path):
    make_trainer(make_config(max_steps=2, save_episodes_every=1)).train()
    make_trainer(make_config(max_steps=1, save_episodes_every=1)).train()
    assert [path.name for path in (tmp_path / "out" / "episodes").iterdir()] == ["step_000001.jsonl"]
    assert [entry["step"] for entry in lines(tmp_path / "out" / "metrics.jsonl")] == [1, 1]


def test_episodes_of_every_nth_step_are_written_whole(make_trainer, make_config, tmp_path):
    trainer = make_trainer(make_config(max_steps=5, save_episodes_every=2, sdar_coef=0.1))
    trainer.train()
    files = sorted((tmp_path / "out" / "episodes").iterdir())
    assert [path.name for path in files] == ["step_000002.jsonl", "step_000004.jsonl"]
    trainer = make_trainer(make_config(max_steps=2, save_episodes_every=2, sdar_coef=0.1))
    trainer.train()
    written = lines(files[0])
    assert [line["step"] for line in written] == [2] * 4
    for line, episode in zip(written, trainer.episodes, strict=True):
        read = Episode.from_dict(line)
        for turn, original, data in zip(read.turns, episode.turns, line["turns"], strict=True):
            for name in TOKEN_NUMBERS:
                assert getattr(turn, name) == pytest.approx(getattr(original, name), rel=1e-4)
                setattr(turn, name, getattr(original, name))
            tokens = trainer._tokenizer.convert_ids_to_tokens(turn.response_ids)
            assert len(data["tokens"]) == len(tokens)
        assert read == episode


def test_what_the_teacher_read_and_each_tokens_loss_are_in_the_episode(make_trainer, make_config):
    trainer = make_trainer(make_config(max_steps=1, sdar_coef=0.1, num_generations=2))
    trainer.train()
    for episode in trainer.episodes:
        word = "calm" if episode.task["task_type"] == "even" else "courage"
        assert f"tasks want {word}." in episode.teacher_context and "say every number." in episode.teacher_context
    turns = [turn for episode in trainer.episodes for turn in episode.turns]
    assert all(
        turn.losses == pytest.approx([a * b for a, b in zip(turn.gates, turn.gaps, strict=True)]) for turn in turns
    )
    found = [value for turn in turns for value in turn.losses]
    assert trainer.state.log_history[0]["sdar/loss"] == pytest.approx(sum(found) / len(found))


def test_without_a_teacher_nothing_was_read(make_trainer, make_config):
    trainer = make_trainer(make_config(max_steps=1, sdar_coef=0.0))
    trainer.train()
    assert {episode.teacher_context for episode in trainer.episodes} == {""}
    assert {turn.losses for episode in trainer.episodes for turn in episode.turns} == {None}


def test_a_step_has_a_bound_and_what_is_left_out_is_told(make_trainer, make_config, tmp_path, monkeypatch, caplog):
    make_trainer(make_config(max_steps=1, save_episodes_every=1)).train()
    file = tmp_path / "out" / "episodes" / "step_000001.jsonl"
    whole = file.read_text().splitlines(keepends=True)
    assert len(whole) == 4
    monkeypatch.setattr(recording, "STEP_BYTES", len(whole[0]) + len(whole[1]) + 10)
    with caplog.at_level(logging.WARNING):
        make_trainer(make_config(max_steps=1, save_episodes_every=1)).train()
    assert len(lines(file)) == 2 and file.stat().st_size <= recording.STEP_BYTES
    assert "Of the 4 episodes of step 1, 2 are written down" in caplog.text


def test_none_are_written_unless_asked_for(make_trainer, make_config, tmp_path):
    make_trainer(make_config(max_steps=1)).train()
    assert not (tmp_path / "out" / "episodes").exists()
    with pytest.raises(ValueError, match="`save_episodes_every` must be at least 1, got 0"):
        make_config(save_episodes_every=0)


def test_texts_of_tokens_join_to_the_text():
    tokenizer = AutoTokenizer.from_pretrained(TINY_POLICY)
    text = " click[buy now] → “naïve” 🛒🛒 </action>"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    texts = token_texts(tokenizer, ids, {})
    assert "".join(texts) == tokenizer.decode(ids) == text
    assert len(texts) == len(ids) and "" in texts and "🛒" in texts
    cut = ids[: ids.index(tokenizer("🛒", add_special_tokens=False)["input_ids"][0]) + 1]
    assert token_texts(tokenizer, cut, {})[-1] == "\ufffd"  # half a character at the end


def test_a_line_is_a_line_whatever_is_in_it(tokenizer):
    turn = Turn("a\nb", [1], [2, 3], "\u2028</script>", logprobs=[-1.23456789, None])
    line = episode_line(Episode({"x": float("nan")}, [], [turn]), tokenizer, {}, step=3)
    assert line.count("\n") == 1 and line.isascii()
    data = json.loads(line)
    assert data["step"] == 3 and data["turns"][0]["logprobs"] == [-1.2346, None]
    assert Episode.from_dict(data).turns[0].response == "\u2028</script>"
