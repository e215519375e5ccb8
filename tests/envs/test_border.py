"""What environments answer and rows hold, of every kind; and what becomes of it."""

import dataclasses
import enum
import json
import math
import pickle
from decimal import Decimal

import numpy as np
import pytest
import torch

from sdar_trl.envs import Step
from sdar_trl.envs.border import Border, BorderError, content_text, number, plain, portable


@pytest.mark.parametrize(
    "value",
    [1, True, 1.0, np.float32(1), np.float64(1), np.int64(1), np.array(1.0), np.array([1.0]), torch.tensor(1), "bool"],
)
def test_numbers_of_every_kind_become_plain_floats(value):
    value = np.bool_(True) if value == "bool" else value
    step = Border().step(Step("", value, metrics={"m": value}))
    assert step.reward == 1.0 and type(step.reward) is float and type(step.metrics["m"]) is float


@pytest.mark.parametrize(
    "value", [None, "1", b"1", float("nan"), math.inf, -math.inf, [1.0], 1j, np.ones(2), torch.ones(2), 10**400, {}]
)
def test_a_reward_that_is_no_finite_number_is_an_error_that_says_what_came(value):
    with pytest.raises(BorderError, match=r"`step\(response\)` must return a `Step` whose `reward` is a finite"):
        Border().step(Step("", value))
    assert number(value) is None


@pytest.mark.parametrize("value", [np.bool_(True), 1, torch.tensor(True), 1.0, np.int64(1)])
def test_flags_become_plain_bools(value):
    step = Border().step(Step("", terminated=value, truncated=value, valid=value, info={"success": value}))
    assert step.terminated is step.truncated is step.valid is step.info["success"] is True


@pytest.mark.parametrize("name", ["terminated", "truncated", "valid"])
@pytest.mark.parametrize("value", [None, "False", 2, 0.5])
def test_a_flag_that_could_mean_either_is_an_error(name, value):
    with pytest.raises(BorderError, match=f"whose `{name}` is a bool; got"):
        Border().step(Step("", **{name: value}))
    with pytest.raises(BorderError, match="info\\['success'\\]"):
        Border().step(Step("", terminated=True, info={"success": "yes"}))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "must return a `Step`; got None"),
        ("text", r"must return a `Step`; got 'text' \(str\)"),
        (("obs", 0.0, False, False, {}), "a tuple of 5.*Gymnasium"),
        (("obs", 0.0, False, {}), "a tuple of 4"),
        ({"observation": "x", "reward": 1.0}, r"must return a `Step`; got .*\(dict\)"),
        (Step, "must return a `Step`"),
        (Step(3), "whose `observation` is a text; got 3"),
        (Step("", info=[1]), "whose `info` is a dict"),
    ],
)
def test_what_is_no_step_is_an_error_that_says_what_came(value, message):
    with pytest.raises(BorderError, match=message):
        Border().step(value)


def test_a_step_of_ones_own_with_the_same_fields_is_taken():
    mine = dataclasses.make_dataclass("Mine", [field.name for field in dataclasses.fields(Step)])
    assert Border().step(mine("x", 1, False, False, True, None, None)) == Step("x", 1.0)


def test_reset_gives_a_text_or_parts_of_text_or_nothing():
    border = Border()
    assert border.observation(None) == ""
    assert border.observation(np.str_("a")) == "a" and type(border.observation(np.str_("a"))) is str
    assert border.observation([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]) == "ab"
    with pytest.raises(BorderError, match=r"`reset` must return the observation, a text; got .*a tuple of 2.*Gymnas"):
        border.observation(("a", {}))
    for value in (3, {"a": 1}, b"a", [{"type": "image"}], object()):
        with pytest.raises(BorderError, match="`reset` must return the observation, a text; got"):
            border.observation(value)


def test_info_becomes_what_json_and_checkpoints_hold(tmp_path):
    class Colour(enum.Enum):
        RED = "red"

    info = {
        "score": np.float64(0.5),
        "seen": {"a"},
        "frozen": frozenset({1}),
        "board": np.eye(2),
        "pair": (np.int64(1), None),
        "deep": {"t": torch.tensor(2.5), 3: [np.bool_(True)]},
        "colour": Colour.RED,
        "price": Decimal("1.5"),
        "thing": object(),
        "half": "\ud83d!",
    }
    step = Border().step(Step("", info=info))
    assert json.loads(json.dumps(step.info)) == step.info
    torch.save(step.info, tmp_path / "info.pt")
    assert torch.load(tmp_path / "info.pt", weights_only=True) == step.info
    assert step.info["board"] == [[1.0, 0.0], [0.0, 1.0]] and step.info["half"] == "?!"
    assert step.info["deep"] == {"t": 2.5, "3": [True]} and step.info["colour"] == "red"
    assert type(step.info["score"]) is float and plain(np.float64(1)).__class__ is float


def test_what_has_no_plain_kind_becomes_none_or_its_text_and_a_dict_without_end_is_an_error():
    class Secret:
        def __repr__(self):
            raise ValueError("no words")

    given = {"nan": math.nan, "inf": [np.float32(math.inf)], "huge": 10**5000, "long": np.longdouble(2), 10**5000: 1}
    assert plain({**given, "secret": Secret(), "meta": torch.ones(1, device="meta")}) == {
        **{"nan": None, "inf": [None], "huge": None, "long": "2.0", "secret": "<what cannot be shown: ValueError>"},
        "<what cannot be shown: ValueError>": 1,
        "meta": "tensor(..., device='meta', size=(1,))",
    }
    endless = {}
    endless["self"] = endless
    with pytest.raises(BorderError, match="whose `info` JSON can hold; got {'self': {...}} .dict., nested too deep"):
        Border().step(Step("", info=endless))
    with pytest.raises(BorderError, match="whose `reward` is a finite number; got <what cannot be shown: ValueErr"):
        Border().step(Step("", 10**5000))


def test_what_is_no_number_is_told_from_another_process_too(caplog):
    def sent(info):
        return pickle.loads(pickle.dumps(portable(Step("", terminated=True, info={**info, "thing": lambda: None}))))

    step = Border().step(sent({"success": np.bool_(True), "score": np.float32(math.inf)}))
    assert step.info.keys() == {"success", "thing"} and step.info["success"] is True
    assert "info['score']` must be a finite number; got nan" in caplog.text
    with pytest.raises(BorderError, match="whose `info..success..` is a bool; got nan"):
        Border().step(sent({"success": math.nan}))


def test_metrics_and_scores_that_are_no_numbers_are_left_out_and_told_once(caplog):
    border = Border()
    for _ in range(3):
        step = border.step(Step("", metrics={"a": math.nan, "b": 2, 3: 1.0, "c": None}, info={"score": "high"}))
        assert step.metrics == {"b": 2.0, "3": 1.0} and step.info == {}
        assert border.step(Step("", metrics=[1])).metrics == {}
    assert caplog.text.count("Step.metrics['a']` must be a finite number; got nan (float)") == 1
    assert caplog.text.count("`Step.metrics` must be a dict") == 1 and caplog.text.count("info['score']") == 1


def test_half_a_character_is_repaired_and_told_once(caplog):
    border = Border()
    for _ in range(2):
        assert border.observation("Two mugs \ud83d for $9") == "Two mugs ? for $9"
        assert border.step(Step("a \udc00")).observation == "a ?"
    assert len(caplog.records) == 2
    assert border.observation("Two mugs 🛒") == "Two mugs 🛒"


def test_a_prompt_is_messages_of_text_that_end_in_the_users():
    border = Border()
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    prompt = ({"role": "system", "content": None}, {"role": "user", "content": parts, "name": "x"})
    expected = [{"role": "system", "content": ""}, {"role": "user", "content": "ab", "name": "x"}]
    assert border.messages(prompt, "row 0") == expected
    assert border.messages(np.array(prompt), "row 0") == expected
    assert border.messages(None, "row 0") == [{"role": "user", "content": ""}]
    assert border.messages([{"role": "user", "content": "\ud83d"}], "row 0")[0]["content"] == "?"
    assert content_text([{"type": "image", "image": 1}]) is None


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("go", r"list of messages .* got 'go' \(str\) in row 3. Wrap a text"),
        ([], "list of messages"),
        ([{"role": "system", "content": "go"}], "last message of `prompt` must be the user's, .* in row 3: .* Add"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "must be the user's"),
        ([{"role": "user", "content": 3}], r"content of a message must be a text, .*got 3 \(int\) in row 3"),
        ([{"role": "user", "content": [{"type": "image", "image": 1}]}], "parts that are text"),
        (["go"], "a dict with `role` and `content`"),
        ([{"content": "go"}], "a dict with `role` and `content`"),
    ],
)
def test_a_prompt_that_cannot_be_read_is_an_error_that_names_the_row_and_the_mend(prompt, message):
    with pytest.raises(BorderError, match=message):
        Border().messages(prompt, "row 3")
