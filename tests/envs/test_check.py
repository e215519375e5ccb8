"""The check of environments, each of whose complaints a broken one provokes."""

import re
from pathlib import Path

import pytest

from sdar_trl.envs import Step, TextEnv, WebShopEnv, check_env, parse_tag
from sdar_trl.envs.check import NONSENSE


DOCS = Path(__file__).parents[2] / "docs"


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
        return Step(word, float(done), terminated=done, valid=done, info={"success": done} if done else {})

    def close(self):
        pass


def broken(**methods):
    return type("Broken", (Echo,), methods)()


def test_a_conforming_environment_passes():
    check_env(Echo(), [{"word": "a"}, {"word": "b"}])
    check_env(Echo(), [{"word": "a"}], policy=lambda observation: "<action>end</action>")
    assert isinstance(Echo(), TextEnv)


def test_what_was_checked_is_told(capsys):
    check_env(Echo(), [{"word": "a"}, {"word": "b"}], max_turns=4)
    check_env(Echo(), [{"word": "a"}], max_turns=4, policy=lambda observation: "<action>end</action>")
    assert capsys.readouterr().out.splitlines() == [
        "Echo keeps to the protocol: 2 tasks, 8 turns.",
        "Echo keeps to the protocol: 1 task, 5 turns.",
    ]


def test_where_any_text_is_legal_no_nonsense_is_asked_for_and_odd_text_must_not_raise():
    said = []
    free = broken(step=lambda self, response: said.append(response) or Step("anything goes"))
    with pytest.raises(AssertionError, match="valid=False"):
        check_env(free, [{"word": "a"}])
    said.clear()
    check_env(free, [{"word": "a"}], nonsense=())
    assert set(said) == set(NONSENSE)
    fragile = broken(step=lambda self, response: Step(response.encode("ascii").decode()))
    with pytest.raises(AssertionError, match="not to raise; got UnicodeEncodeError"):
        check_env(fragile, [{"word": "a"}], nonsense=())


def test_nonsense_of_ones_own_is_sent_in_place_of_the_usual():
    letters = broken(step=lambda self, response: Step("", valid=response.isalpha()))
    check_env(letters, [{"word": "a"}], nonsense=("1", "a b"))
    with pytest.raises(AssertionError, match="valid=False for the response 'ab'"):
        check_env(letters, [{"word": "a"}], nonsense=("1", "ab"))


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({"word": "a"}, "rows of a dataset, not one row"),
        ([{"word": "a", "prompt": "go"}], "`prompt` to be a list of messages; got 'go'"),
        ([{"word": "a", "prompt": []}], "`prompt` to be a list of messages"),
        (
            [{"word": "a", "prompt": [{"role": "system", "content": "go"}]}],
            "last message of `prompt` to be the user's",
        ),
    ],
)
def test_rows_that_a_trainer_could_not_use_are_found(tasks, message):
    with pytest.raises(AssertionError, match=message):
        check_env(Echo(), tasks)


def test_the_environment_of_the_docs_passes_with_its_world_and_its_history():
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "environments.md").read_text(), re.DOTALL)
    assert len(blocks[0].splitlines()) < 50
    names: dict = {}
    for block in blocks:
        exec(block, names)
    world = names["Lock"](digits=4)
    tasks = world.dataset("test").select(range(3))
    check_env(world.environment_factory(), tasks, policy=lambda observation: "<guess>1234</guess>")
    check_env(names["WindowLockEnv"](), names["LockEnv"].dataset("train").select(range(3)))
    codes = [code for split in ("train", "test") for code in names["LockEnv"].dataset(split)["code"]]
    assert len(set(codes)) == 1000


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
    endless = broken(step=lambda self, r: Step("", terminated="end" in r, valid="end" in r, info={"success": False}))
    with pytest.raises(AssertionError, match="after the end of an episode to raise RuntimeError"):
        check_env(endless, [{"word": "a"}], policy=lambda observation: "end")


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (broken(reset=lambda self, **_: None), "return the first observation, a str; got None"),
        (broken(step=lambda self, response: "text"), "return a Step; got 'text'"),
        (
            broken(step=lambda self, response: Step("", "1", valid=False)),
            "reward to be a finite number; got '1'",
        ),
        (broken(step=lambda self, response: Step("", terminated=0)), "terminated to be a bool; got 0"),
        (broken(step=lambda self, response: Step("")), "valid=False"),
        (broken(step=lambda self, response: Step("", True)), "finite number; got True"),
        (broken(step=lambda self, response: Step("", metrics=[1])), r"Step.metrics to be a dict; got \[1\]"),
        (broken(step=lambda self, response: Step("", metrics={1: 1})), "names in Step.metrics to be str; got 1"),
        (broken(step=lambda self, response: Step("", metrics={"a": float("nan")})), "'a'.* finite number; got nan"),
        (broken(step=lambda self, response: response.index("<action>f")), "not to raise; got ValueError"),
        (broken(reset=lambda self, word: word), "accept any column; got TypeError"),
        (broken(step=lambda self, response: Step("", truncated=True, valid=False)), "at the end .* got None"),
        (
            broken(step=lambda self, response: Step("", terminated=True, valid=False, info={"success": False})),
            "step after the end of an episode to raise RuntimeError",
        ),
        (type("Closed", (), {"reset": None})(), "an object with reset, step and close"),
        (Echo, "an instance, not the class"),
        (
            broken(step=lambda self, r: Step("", terminated=True, valid=False, info={"success": True})),
            "no success for the response",
        ),
        (broken(history=staticmethod(lambda first: first)), r"static method of \(first, past, observation, step\)"),
        (broken(history=lambda self, first, past, observation, step: first), "to be a static method"),
        (broken(history=staticmethod(lambda first, past, observation, step: past)), "return a str; got"),
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
