"""The environment protocol and its conformance check."""

import re

import pytest

from sdar_trl.envs import Step, TextEnv, WebShopEnv, check_env, parse_tag


class Echo:
    """Conforms: repeats the task, takes `<action>end</action>`."""

    def reset(self, *, word, **_):
        self.word = word
        return word

    def step(self, response):
        if self.word is None:
            raise RuntimeError("call reset")
        done = parse_tag(response, "action") == "end"
        word, self.word = self.word, None if done else self.word
        return Step(word, float(done), done, False, done, {"success": done} if done else {})

    def close(self):
        pass


def broken(**methods):
    return type("Broken", (Echo,), methods)()


def test_a_conforming_environment_passes():
    check_env(Echo(), [{"word": "a"}, {"word": "b"}])
    check_env(Echo(), [{"word": "a"}], policy=lambda observation: "<action>end</action>")
    assert isinstance(Echo(), TextEnv)


def test_webshop_passes_from_the_first_observation_to_the_purchase():
    def buy_the_first_product(observation):
        clicks = re.findall(r"click\[(.+?)\]", observation)
        click = "buy now" if "buy now" in clicks else next((name for name in clicks if name.startswith("b0")), None)
        return f"<action>click[{click}]</action>" if click else "<action>search[red]</action>"

    check_env(WebShopEnv(), WebShopEnv.dataset("validation").select(range(5)), policy=buy_the_first_product)


def test_a_policy_that_ends_nothing_and_tasks_that_are_none_are_told():
    with pytest.raises(AssertionError, match="end the episode in 3 turns"):
        check_env(Echo(), [{"word": "a"}], max_turns=3, policy=lambda observation: "")
    with pytest.raises(AssertionError, match="at least one task"):
        check_env(Echo(), [])


def test_a_step_after_the_end_that_is_answered_is_found():
    endless = broken(step=lambda self, r: Step("", 0.0, "end" in r, False, "end" in r, {"success": False}))
    with pytest.raises(AssertionError, match="after the end of an episode to raise RuntimeError"):
        check_env(endless, [{"word": "a"}], policy=lambda observation: "end")


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (broken(reset=lambda self, **_: None), "return the first observation, a str; got None"),
        (broken(step=lambda self, response: "text"), "return a Step; got 'text'"),
        (
            broken(step=lambda self, response: Step("", "1", False, False, False)),
            "reward to be a finite number; got '1'",
        ),
        (broken(step=lambda self, response: Step("", 0.0, 0, False, False)), "terminated to be a bool; got 0"),
        (broken(step=lambda self, response: Step("", 0.0, False, False, True)), "valid=False"),
        (broken(step=lambda self, response: Step("", True, False, False, False)), "finite number; got True"),
        (broken(step=lambda self, response: response.index("<action>f")), "not to raise; got ValueError"),
        (broken(reset=lambda self, word: word), "accept any column; got TypeError"),
        (broken(step=lambda self, response: Step("", 0.0, False, True, False)), "'success'] at the end .* got None"),
        (
            broken(step=lambda self, response: Step("", 0.0, True, False, False, {"success": False})),
            "step after the end of an episode to raise RuntimeError",
        ),
        (type("Closed", (), {"reset": None})(), "an object with reset, step and close"),
        (
            broken(step=lambda self, r: Step("", 0.0, True, False, False, {"success": True})),
            "no success for the response",
        ),
    ],
)
def test_a_broken_environment_is_told_what_was_expected_and_what_came(env, message):
    with pytest.raises(AssertionError, match=message):
        check_env(env, [{"word": "a"}])


def test_a_reset_that_differs_from_time_to_time_is_found():
    class Counting(Echo):
        count = 0

        def reset(self, **task):
            self.count += 1
            super().reset(**task)
            return str(self.count)

    with pytest.raises(AssertionError, match="same first observation"):
        check_env(Counting(), [{"word": "a"}])


@pytest.mark.parametrize(
    ("response", "action"),
    [
        ("<action>search[a]</action>", "search[a]"),
        ("I think <action> click[b] </action> is right", "click[b]"),
        ("<action>first</action> no, <action>second</action>", "second"),
        ("<action>open <action>closed</action>", "closed"),
        ("<action>two\nlines</action>", "two\nlines"),
        ("<action>open", None),
        ("</action><action>", None),
        ("", None),
    ],
)
def test_the_last_complete_tag_counts(response, action):
    assert parse_tag(response, "action") == action
