"""The environment protocol."""

import pytest

from sdar_trl.envs import Step, parse_tag


def test_a_step_needs_nothing_but_an_observation():
    step = Step("a page")
    assert (step.reward, step.terminated, step.truncated, step.valid) == (0.0, False, False, True)
    assert step.info == step.metrics == {}
    step.metrics["score"] = 1.0
    assert Step("another").metrics == {}


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
