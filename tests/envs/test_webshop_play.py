"""WebShop by hand in the terminal, as a person runs it; nouns of titles."""

import json
import os
import re
import subprocess
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest

from sdar_trl.envs import WebShopEnv
from sdar_trl.envs.webshop import nouns
from sdar_trl.envs.webshop.goals import Goal
from sdar_trl.envs.webshop.nouns import LIGHT, installed_models, light_nouns, title_nouns
from sdar_trl.envs.webshop.samples import write_files


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
    for goal in ("9999", "-1"):
        assert f"--goal must be between 0 and 3053, got {goal}" in run("--goal", goal).stderr


def test_a_saved_episode_is_of_its_shop_wherever_it_is_shown_and_of_no_other(tmp_path, monkeypatch):
    for name, products in (("here", 20), ("there", 30)):
        (tmp_path / name / "data").mkdir(parents=True)
        write_files(tmp_path / name / "data", products)
    monkeypatch.chdir(tmp_path / "here")
    saved = str(tmp_path / "episode.json")
    options = ("--data_dir", "data", "--cache_dir", str(tmp_path / "cache"))
    played = run(*options, "--save", saved, typed="search[lamp]\n")
    assert played.returncode == 0 and not (tmp_path / "here" / "data" / ".webshop_cache").exists()
    monkeypatch.chdir(tmp_path / "there")
    shown = run("--replay", saved, *options[2:])
    assert played.stdout.splitlines()[0] == shown.stdout.splitlines()[0]
    write_files(tmp_path / "here" / "data", 30)
    assert "ValueError: The task is of the shop '20 products" in run("--replay", saved, *options[2:]).stderr


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


@pytest.fixture
def asked_anew():
    title_nouns.cache_clear()
    yield
    title_nouns.cache_clear()


def test_spacys_nouns_are_those_the_original_takes(asked_anew):
    tagger = title_nouns()
    assert re.fullmatch(r"en_core_web_sm\w* 3\.[0-9.]+", tagger.name)
    assert tagger.nouns("a lamp for the garden") == ("lamp", "garden")


@pytest.mark.parametrize(
    "names", [["en_core_web_sm_somebody"], ["en_core_web_sm"], ["en_core_web_sm_somebody", "en_core_web_sm"]]
)
def test_the_model_is_found_also_under_the_name_of_anothers_package(tmp_path, monkeypatch, names):
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    before = installed_models()
    monkeypatch.syspath_prepend(tmp_path)
    found = installed_models()
    assert set(found) == {*names, *before}
    assert found[0] == ("en_core_web_sm" if "en_core_web_sm" in found else names[0])


@pytest.mark.parametrize(
    ("package", "reason"),
    [
        (None, "spaCy's en_core_web_sm is not installed"),
        ("en_core_web_sm_broken", "en_core_web_sm_broken cannot be loaded"),
    ],
)
def test_that_the_light_tagger_stands_in_is_told_once_before_scores_are_made(
    tmp_path, monkeypatch, caplog, asked_anew, package, reason
):
    monkeypatch.setattr(nouns, "installed_models", lambda: [package] if package else [])
    monkeypatch.setitem(sys.modules, "spacy", spacy_that_fails())
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        write_files(folder, 20)
        assert WebShopEnv(data_dir=folder).shop.tagger is LIGHT
    [told] = [record.getMessage() for record in caplog.records if "light stand-in" in record.getMessage()]
    assert reason in told and 'pip install "sdar-trl[spacy]"' in told


def spacy_that_fails():
    """spaCy where a model's package holds no model."""
    spacy = ModuleType("spacy")
    spacy.__spec__ = ModuleSpec("spacy", None)

    def load(name, exclude):
        raise OSError(f"[E053] Could not read config file from {name}")

    spacy.load = load
    return spacy


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
