"""The page of episodes, in a browser."""

import json
import time
from collections import Counter

import pytest
from conftest import made_episode

from sdar_trl import Record


TIP = "document.getElementById('tip')"
TOKENS = "document.querySelectorAll('.t')"


def texts(browser, selector):
    return browser.run(f"[...document.querySelectorAll({selector!r})].map(e => e.innerText)")


def open_first(browser):
    browser.press("j")
    browser.wait(f"{TOKENS}.length > 0")


def choose(browser, name, start):
    browser.run(
        f"(() => {{ const s = document.getElementById({name!r});"
        f" s.value = [...s.options].find(o => o.value.startsWith({start!r})).value; s.onchange() }})()"
    )
    return browser.run("document.getElementById('count').textContent")


def test_it_opens_from_disk_and_asks_for_nothing(look, browser, write_run, tmp_path):
    look(write_run())
    open_first(browser)
    assert browser.requests == [(tmp_path / "page.html").as_uri()] and browser.errors == []


def test_the_list_is_filtered_by_each_column(look, browser, write_run):
    steps = {1: [made_episode(n) for n in range(30)], 5: [made_episode(n) for n in range(20)]}
    look(write_run(steps=steps))
    episodes = [episode for step in steps.values() for episode in step]
    count = Counter(episode["stop_reason"] for episode in episodes)
    assert choose(browser, "reason", "lost") == f"{count['lost']} of 50 episodes, 0% won"
    assert choose(browser, "reason", "won") == f"{count['won']} of 50 episodes, 100% won"
    assert choose(browser, "reason", "").startswith("50 of 50")
    assert choose(browser, "step", "Step 5").startswith("20 of 50")
    assert choose(browser, "type", "caves").startswith("10 of 50")
    won = sum(e["success"] for e in steps[5] if e["task"]["task_type"] == "caves")
    assert choose(browser, "success", "Won").startswith(f"{won} of 50")
    browser.press("/", *"walk/9")
    assert texts(browser, ".row") and all("walk/9" in row for row in texts(browser, ".row"))


def test_records_of_two_evaluations_are_beside_each_other(look, browser, tmp_path):
    for name, won in (("before", False), ("after", True)):
        reason = "won" if won else "lost"
        records = [
            Record(f"shop/{number}", "tea", 0, won and number == 1, 0.5, 0.5, 3, 1.0, reason, {"f1": 0.25})
            for number in range(3)
        ]
        lines = [{"about": {"seed": 0}}, *(record.to_dict() for record in records)]
        (tmp_path / f"panel_{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    look(tmp_path / "panel_before.jsonl", tmp_path / "panel_after.jsonl")
    assert choose(browser, "success", "Won") == "1 of 6 episodes, 100% won"
    browser.press("j", "b")
    browser.wait("document.querySelectorAll('article').length == 2")
    won, lost = texts(browser, "article")
    assert "shop/1" in won and "shop/1" in lost and "3 turns" in won and "f1: 0.25" in won
    assert "what was said is not kept" in won and browser.errors == []


def test_the_list_can_be_ordered(look, browser, write_run):
    look(write_run())
    choose(browser, "sort", "Highest")
    rows = texts(browser, ".row")
    assert [row.startswith("✓ won 1.00") for row in rows] == [True] * 4 + [False] * 8


def test_the_conversation_is_there_turn_by_turn_with_the_skills_beside_it(look, browser, write_run):
    look(write_run())
    open_first(browser)
    [text] = texts(browser, "article")
    places = [
        text.index(part) for part in ("You walk.", "Find room 0.", "\nturn 1", "room 0.1", "\nturn 2", "the end")
    ]
    assert places == sorted(places)
    assert texts(browser, ".said") == ["<action>go north</action>"] * 2
    assert "What the teacher read: walking" in text and "Walk on." in text
    left, right = browser.run(
        "['.said', '.teacher pre'].map(s => document.querySelector(s).getBoundingClientRect().left)"
    )
    assert right > left


def test_a_tokens_numbers_are_shown_on_hover(look, browser, write_run):
    look(write_run(steps={1: [made_episode(1)]}))
    open_first(browser)
    browser.point(".said .t:nth-child(3)")
    browser.wait(f"!{TIP}.hidden")
    lines = browser.run(f"{TIP}.innerText").splitlines()
    # -0.7 and -0.75 less: e^-0.7 = 0.497, e^-1.45 = 0.235
    assert lines == [
        '" north"',
        "token id\t2",
        "student log-prob\t−0.700 (p 0.497)",
        "teacher log-prob\t−1.450 (p 0.235)",
        "gap (nats)\t−0.750",
        "entropy (nats)\t2.250",
        "gate\t0.023",
        "adds to sdar/loss\t−0.0172",
    ]
    browser.point("article h2")
    browser.wait(f"{TIP}.hidden")


def test_tokens_are_coloured_by_gap_or_by_gate(look, browser, write_run):
    episode = made_episode(1, turns=1)
    episode["turns"][0]["gates"] = [0.5, 0.1, 0.9, 0.5]  # a gate of another kind
    look(write_run(steps={1: [episode]}))
    open_first(browser)
    kinds = f"[...{TOKENS}].map(t => t.style.backgroundColor.match(/more|less/)?.[0] ?? '')"
    assert browser.run(kinds) == ["", "more", "less", "more"]
    browser.press("c")
    assert browser.run(kinds) == ["", "less", "more", ""]
    shown = browser.run(f"[...{TOKENS}].map(t => getComputedStyle(t).backgroundColor)")
    assert shown[0] == shown[3] and len(set(shown)) == 3


def test_a_turn_without_texts_or_numbers_of_tokens_is_shown_too(look, browser, write_run):
    bare, unscored = made_episode(0, turns=1), made_episode(1, turns=1)
    del bare["turns"][0]["tokens"]
    for name in ("logprobs", "gaps", "gates", "entropies", "losses"):
        unscored["turns"][0][name] = None
    look(write_run(steps={1: [bare, unscored]}))
    browser.press("j")
    browser.wait("document.querySelector('.said') !== null")
    assert texts(browser, ".said") == ["<action>go north</action>"] and browser.run(f"{TOKENS}.length") == 0
    browser.press("j")
    browser.wait(f"{TOKENS}.length == 4")
    browser.press("ArrowRight")
    assert "gap (nats)\t–" in browser.run(f"{TIP}.innerText") and browser.errors == []


def test_two_runs_stand_side_by_side_on_the_same_task(look, browser, write_run):
    look(write_run("one"), write_run("two", {7: [made_episode(n) for n in range(12)]}))
    assert choose(browser, "run", "two").startswith("12 of 24")
    choose(browser, "run", "one")
    open_first(browser)
    browser.press("b")
    browser.wait("document.querySelectorAll('article').length == 2")
    assert texts(browser, "article h2") == ["walk/0", "walk/0"]
    places = [text.splitlines()[2] for text in texts(browser, "article")]
    assert "one · step 1" in places[0] and "two · step 7" in places[1]
    browser.press("j")  # the next task, in both
    browser.wait("[...document.querySelectorAll('h2')].filter(h => h.innerText == 'walk/1').length == 2")
    assert browser.run("location.hash") == "#1+13"
    browser.press("x")
    browser.wait("document.querySelectorAll('article').length == 1")


def test_keys_lead_through_episodes_and_tokens(look, browser, write_run):
    look(write_run())
    open_first(browser)
    assert browser.run("location.hash") == "#0"
    browser.press("j", "j", "k")
    browser.wait("location.hash == '#1' && document.querySelector('h2')?.innerText == 'walk/1'")
    focused = "document.activeElement.innerText"
    browser.press("n")
    assert browser.run(focused) == "go" and browser.run(f"!{TIP}.hidden")
    browser.press("n")
    assert browser.run(focused) == " north"
    browser.press("ArrowRight")
    assert browser.run(focused) == "</action>"
    browser.press("n", "p", "p")
    assert browser.run(focused) == "go"
    browser.press("?")
    assert "next episode" in browser.run("document.querySelector('dialog[open]').innerText")
    browser.run("document.querySelector('dialog button').click()")
    browser.press("Escape")
    browser.wait("document.querySelectorAll('article').length == 0")
    browser.press("/", "j")  # in a text field, keys are letters
    assert browser.run("document.getElementById('search').value") == "j"


def test_it_is_dark_or_light_as_the_system_is_or_as_it_is_told(look, browser, write_run):
    look(write_run())
    brightness = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).reduce((a, b) => a + +b, 0) / 3"
    assert browser.run(brightness) > 230
    browser.prefer("dark")
    assert browser.run(brightness) < 40
    browser.press("t")
    assert browser.run(brightness) > 230
    browser.press("t")
    assert browser.run(brightness) < 40


def test_on_a_phone_there_is_the_list_or_an_episode(look, browser, write_run):
    episode = made_episode(1, words=("<action>", "go" * 90, " north", "</action>"))
    look(write_run(steps={1: [episode]}))
    browser.size(390, 800, mobile=True)
    shown = "['nav', 'main', '#back'].map(s => document.querySelector(s).checkVisibility())"
    fits = (
        "document.documentElement.scrollWidth <= 390 && (document.querySelector('article')?.scrollWidth ?? 0) <= 390"
    )
    assert browser.run(shown) == [True, False, False] and browser.run(fits)
    browser.point(".row", click=True)
    browser.wait(f"{TOKENS}.length > 0")
    assert browser.run(shown) == [False, True, True] and browser.run(fits)
    browser.point(".t:nth-child(2)", click=True)  # a finger has no hover
    assert browser.run(f"!{TIP}.hidden && {TIP}.getBoundingClientRect().right <= 390")
    browser.run("history.back()")
    browser.wait("document.querySelector('nav').checkVisibility()")


def test_5000_episodes_are_usable_in_two_seconds(look, browser, write_run):
    steps = {step: [made_episode(n, turns=8) for n in range(100)] for step in range(50)}
    look(write_run(steps=steps), wait=False)
    browser.wait("document.querySelectorAll('.row').length > 0")
    loaded = browser.run("performance.now()") / 1000  # since the page was asked for
    assert loaded < 2, loaded
    assert browser.run("document.querySelectorAll('.row').length") < 60  # those that can be seen
    start = time.perf_counter()
    assert choose(browser, "step", "Step 49").startswith("100 of 5000")
    browser.press("/", *"walk/7")
    browser.press("Escape")
    open_first(browser)
    assert time.perf_counter() - start < 2
    browser.run("document.getElementById('list').scrollTop = 1e9")
    browser.wait("document.querySelectorAll('.row').length > 0")
    assert browser.errors == []


ATTACKS = [
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    "--><svg onload='window.hacked = 1'>",
    '" autofocus onfocus="window.hacked = 1" x="',
    "<!--<script>",
    "</style></title><iframe src='javascript:parent.hacked = 1'></iframe>",
    "{{script}} ${window.hacked = 1} {data}",
    "\u2028<a href='javascript:window.hacked = 1'>\u202e\0</a>",
]


def hostile(text):
    """An episode in which everything that is text is this one, names too."""

    def spoiled(value):
        if isinstance(value, str):
            return text
        if isinstance(value, list):
            return [spoiled(item) for item in value]
        return {name: spoiled(item) for name, item in value.items()} if isinstance(value, dict) else value

    episode = spoiled(made_episode(1))
    episode["task"][text] = episode["info"][text] = {text: [text]}
    episode["turns"][0]["metrics"] = {text: text, "__proto__": text}
    return episode


@pytest.mark.parametrize("text", ATTACKS, ids=range(len(ATTACKS)))
def test_nothing_that_was_written_acts_in_the_page(look, browser, write_run, tmp_path, text):
    named = write_run('a"><img src=x onerror="window.hacked = 1">')
    look(named, write_run("two", {2: [hostile(text)] * 2}))
    browser.press("j", "k")
    browser.run("location.hash = '#12'")
    browser.wait(f"{TOKENS}.length > 0")
    browser.press("b", "n", "c", "?")
    browser.wait("document.querySelectorAll('article').length == 2")
    browser.run("new Promise(done => setTimeout(done, 50))")
    assert browser.run("window.hacked") is None
    assert browser.requests == [(tmp_path / "page.html").as_uri()] and browser.errors == []
    assert browser.run("document.querySelectorAll('img, svg, iframe, a, [onfocus], [onload], [onerror]').length") == 0
    assert browser.run("document.scripts.length") == browser.run("document.querySelectorAll('body > script').length")
    as_shown = text.replace("\0", "")  # innerText
    said = browser.run("document.querySelector('.t').textContent")
    assert said.replace("\0", "") == as_shown
    assert as_shown in browser.run("document.querySelector('.teacher pre').textContent").replace("\0", "")


def test_the_page_runs_no_script_but_its_own(look, browser, write_run):
    look(write_run())
    browser.run(
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hacked = 1\">');"
        "document.body.append(Object.assign(document.createElement('script'), {text: 'window.hacked = 1'}));"
        "fetch('https://example.com/').catch(() => { window.refused = true })"
    )
    browser.wait("window.refused")
    assert browser.run("window.hacked") is None
    assert all("Content Security Policy" in json.dumps(error) for error in browser.errors) and browser.errors
