"""Episodes as data: written down, read again, told as a conversation."""

import json

import numpy as np
import torch

from sdar_trl import Episode, StopReason, Turn


def played():
    turns = [
        Turn(
            "a door",
            [1, 2],
            [3],
            "open",
            [{"role": "user", "content": "go: a door"}],
            reward=0.25,
            metrics={"f1": 0.5},
        ),
        Turn("a room", [4], [5, 6], "look", valid=False, logprobs=[-0.5, -0.25], gaps=[0.1, -2.0], gates=[0.5, 0.1]),
    ]
    turns[1].entropies, turns[1].metrics, turns[1].environment_seconds = (
        [1.5, 0.0],
        {"f1": 1.0, "searches": 2.0},
        0.125,
    )
    task = {"task_id": "t/1", "task_type": None, "prompt": [{"role": "user", "content": "go: "}], "n": 3, "x": [1.5]}
    return Episode(
        task,
        [{"role": "user", "content": "go: a door"}],
        turns,
        StopReason.WON,
        {"success": True, "parts": [1, 2]},
        "the end",
        ("general", "doors"),
    )


def test_an_episode_comes_back_from_json_as_it_was():
    episode = played()
    again = Episode.from_dict(json.loads(json.dumps(episode.to_dict())))
    assert again == episode
    assert again.stop_reason is StopReason.WON and isinstance(again.skills, tuple)
    empty = Episode({}, [])
    assert Episode.from_dict(json.loads(json.dumps(empty.to_dict()))) == empty


def test_what_json_does_not_know_becomes_its_nearest_kind():
    episode = played()
    episode.info = {"score": np.float32(0.5), "seen": {"a"}, "board": np.eye(2), "t": torch.tensor([1, 2]), 3: object}
    info = json.loads(json.dumps(episode.to_dict()))["info"]
    assert info["score"] == 0.5 and info["seen"] == ["a"] and info["board"] == [[1.0, 0.0], [0.0, 1.0]]
    assert info["t"] == [1, 2] and isinstance(info["3"], str)
    episode.turns[1].gaps = [float("nan"), float("-inf")]
    assert json.loads(json.dumps(episode.to_dict(), allow_nan=False))["turns"][1]["gaps"] == [None, None]


def test_names_that_a_later_version_added_are_passed_over():
    data = played().to_dict()
    data["mood"] = "good"
    data["turns"][0]["mood"] = "good"
    assert Episode.from_dict(data) == played()


def test_the_messages_are_the_conversation_whatever_the_policy_read_of_it():
    assert played().messages == [
        {"role": "user", "content": "go: a door"},
        {"role": "assistant", "content": "open"},
        {"role": "user", "content": "a room"},
        {"role": "assistant", "content": "look"},
    ]


def test_an_environments_numbers_count_as_they_were_last_reported():
    assert played().metrics == {"f1": 1.0, "searches": 2.0}


def test_an_episode_prints_short():
    assert repr(played()) == "Episode(task_id='t/1', turns=2, stop_reason='won')"


def test_fields_that_have_defaults_may_be_missing():
    assert Episode.from_dict({"task": {}, "prompt": []}) == Episode({}, [])
