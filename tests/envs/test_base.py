"""The environment protocol and its conformance check."""

import pytest

from sdar_trl.envs import Step, TextEnv, WebShopEnv, check_env, parse_tag


class Echo:
    """Conforms: repeats the task, takes `<action>end</action>`."""

    def reset(self, *, word, **_):
        self.word = word
        return word

    def step(self, response):
        done = parse_tag(response, "action") == "end"
        return Step(self.word, float(done), done, False, done, {"success": done} if done else {})

    def close(self):
        pass


def broken(**methods):
    return type("Broken", (Echo,), methods)()


def test_a_conforming_environment_passes():
    check_env(Echo(), [{"word": "a"}, {"word": "b"}])
    assert isinstance(Echo(), TextEnv)


def test_webshop_passes():
    check_env(WebShopEnv(), list(WebShopEnv.dataset("validation").select(range(5))))


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (broken(reset=lambda self, **_: None), "return the first observation, a str; got None"),
        (broken(step=lambda self, response: "text"), "return a Step; got 'text'"),
        (broken(step=lambda self, response: Step("", "1", False, False, False)), "reward to be a number; got '1'"),
        (broken(step=lambda self, response: Step("", 0.0, 0, False, False)), "terminated to be a bool; got 0"),
        (broken(step=lambda self, response: Step("", 0.0, False, False, True)), "valid=False"),
        (broken(step=lambda self, r: Step("", 0.0, True, False, False, {"success": True})), "nonsense not to succeed"),
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
