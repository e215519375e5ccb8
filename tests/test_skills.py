"""Skill files, libraries and keyword retrieval."""

import json
import logging
import random
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer

from sdar_trl import KeywordRetriever, Skill, SkillLibrary
from sdar_trl.envs import WebShopEnv
from sdar_trl.policies import TINY_POLICY
from sdar_trl.skills import (
    BM25Retriever,
    EmbeddingRetriever,
    FullRetriever,
    NoRetriever,
    RandomRetriever,
    UCBRetriever,
    format_skills,
)
from sdar_trl.skills.__main__ import load_tasks
from sdar_trl.skills.library import BUNDLED


GOOD = "---\nname: {name}\ndescription: what it is\nkeywords: [shoe, boot]\n---\nWear both.\n"


def write(folder, name, text):
    (folder / name).mkdir()
    (folder / name / "SKILL.md").write_bytes(text if isinstance(text, bytes) else text.encode())


def test_a_folder_of_skill_files_is_a_library(tmp_path):
    write(tmp_path, "shoes", GOOD.format(name="shoes"))
    write(
        tmp_path, "all", "---\nname: all\ndescription: d\nalways: true\ntask_types: [x]\n---\n# Title\n\nText --- more"
    )
    general, shoes = SkillLibrary.from_folder(tmp_path)
    assert (shoes.body, shoes.keywords, shoes.always) == ("Wear both.", ("shoe", "boot"), False)
    assert (general.body, general.task_types, general.always) == ("# Title\n\nText --- more", ("x",), True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no front matter", ":1: expected YAML front matter"),
        ("---\nname: a\ndescription: [\n---\nbody", ":4: the front matter is not YAML"),
        ("---\n- a\n---\nbody", ":2: the front matter must be a mapping"),
        ("---\nname: a\n---\nbody", ":1: the front matter needs a `description`"),
        ("---\nname: b\ndescription: d\n---\nbody", ":2: `name` must be its folder's, 'a'; got 'b'"),
        ("---\nname: a\ndescription: d\nkeyword: [x]\n---\nbody", ":4: unknown front matter 'keyword'"),
        ("---\nname: a\ndescription: d\nkeywords: x\n---\nbody", ":4: `keywords` must be a list"),
        ("---\nname: a\ndescription: d\nalways: often\n---\nbody", ":4: `always` must be true or false"),
        ("---\nname: a\ndescription: d\n---\n\n", ":5: the skill has no text after"),
        (b"---\nname: a\ndescription: d\n---\ncaf\xe9", ":5: not UTF-8"),
    ],
)
def test_a_malformed_skill_is_an_error_that_names_the_file_and_the_line(tmp_path, text, message):
    write(tmp_path, "a", text)
    with pytest.raises(ValueError, match=message) as error:
        SkillLibrary.from_folder(tmp_path)
    assert str(tmp_path / "a" / "SKILL.md") in str(error.value)


def test_windows_line_ends_and_a_byte_order_mark_are_read(tmp_path):
    write(tmp_path, "a", b"\xef\xbb\xbf---\r\nname: a\r\ndescription: d\r\n---\r\none\r\ntwo")
    [skill] = SkillLibrary.from_folder(tmp_path)
    assert skill.body == "one\ntwo"


HEAD = "---\nname: a\ndescription: d\n---\n"
IN_TMP_PATH = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200)


def put(folder, path, text=HEAD + "body"):
    file = folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


@pytest.mark.parametrize(
    ("front", "keywords", "description"),
    [
        ("description: d\n# ---- which tasks ----\nkeywords: [tea]\n", ("tea",), "d"),
        ("description: tea ---\nkeywords: [tea]\n", ("tea",), "tea ---"),
        ("description: 'a --- b'\nkeywords:\n- tea --- \n", ("tea ---",), "a --- b"),
        ("description: |\n  one\n  ---\n  two\nkeywords: [tea]\n", ("tea",), "one\n---\ntwo\n"),
        ("keywords: [tea]\ndescription: one\u2028two\n", ("tea",), "one\u2028two"),
        ("keywords: [tea]\ndescription: --- \\\n", ("tea",), "--- \\"),
    ],
)
def test_dashes_inside_the_front_matter_cut_nothing_off(tmp_path, front, keywords, description):
    for line_end in ("\n", "\r\n"):
        text = f"---  \nname: a\n{front}task_types: [x]\n--- \t\none\n---\ntwo".replace("\n", line_end)
        skill = Skill.from_file(put(tmp_path, "a/SKILL.md", text))
        assert (skill.description, skill.keywords, skill.task_types) == (description, keywords, ("x",))
        assert skill.body == "one\n---\ntwo"


def test_the_front_matters_words_are_texts_as_they_are_written(tmp_path):
    front = "name: '7'\ndescription: 2024-01-01\nkeywords: [no, 1.50, 7, é]\ntask_types: ~\nalways: yes"
    skill = Skill.from_file(put(tmp_path, "7/SKILL.md", f"---\n{front}\n---\nbody"))
    assert (skill.description, skill.keywords, skill.task_types) == ("2024-01-01", ("no", "1.50", "7", "é"), ())
    assert skill.always is True


def test_a_key_that_stands_twice_is_an_error(tmp_path):
    twice = "---\nname: a\ndescription: d\nkeywords: [tea]\nkeywords: [mug]\n---\nbody"
    with pytest.raises(ValueError, match="SKILL.md:2: the front matter is not YAML: a key stands twice"):
        Skill.from_file(put(tmp_path, "a/SKILL.md", twice))
    put(tmp_path, "skill_mapping.json", '{"skill_files": {},\n"task_to_skill": {}, "skill_files": {}}')
    with pytest.raises(ValueError, match="'skill_files' stands twice"):
        SkillLibrary.from_folder(tmp_path)


@IN_TMP_PATH
@given(body=st.text(), description=st.text(), words=st.lists(st.text()))
def test_any_text_is_a_body_a_description_and_a_keyword(tmp_path, body, description, words):
    body, description = f"x{body}x".replace("\r\n", "\n"), f"x{description}"
    words = [word for word in words if word.strip()]
    front = yaml.safe_dump({"name": "a", "description": description, "keywords": words})
    skill = Skill.from_file(put(tmp_path, "a/SKILL.md", f"---\n{front}---\n{body}"))
    assert (skill.body, skill.description, skill.keywords) == (body, description, tuple(words))


@IN_TMP_PATH
@given(data=st.binary(), front=st.booleans())
def test_any_bytes_are_a_skill_or_an_error_that_names_the_file(tmp_path, data, front):
    file = put(tmp_path, "a/SKILL.md", b"---\n" + data + b"\n---\nbody" if front else data)
    try:
        assert Skill.from_file(file).body
    except ValueError as error:
        assert str(error).startswith(f"{file}:")


@pytest.mark.parametrize("nested", ["[" * 5000, "{a: " * 3000, "? " * 3000])
def test_front_matter_that_is_nested_without_end_is_an_error_that_names_the_file(tmp_path, nested):
    file = put(tmp_path, "a/SKILL.md", f"---\nname: a\nmetadata: {nested}\n---\nbody")
    with pytest.raises(ValueError, match="SKILL.md:.* the front matter is not YAML"):
        Skill.from_file(file)


# What a folder holds besides


@pytest.mark.parametrize(
    "path",
    [
        "drinks/coffee/SKILL.md",
        "juice/skill.md",
        "juice/Skill.MD",
        "juice/SKILLS.md",
        "juice/SKILL.md.txt",
        "SKILL.md",
        "tea/SKILL.markdown",
        "tea/more/deep/SKILL.md",
    ],
)
def test_a_file_that_looks_like_a_skill_and_would_not_be_read_is_named(tmp_path, path):
    put(tmp_path, "tea/SKILL.md", HEAD.replace("name: a", "name: tea") + "body")
    put(tmp_path, "milk/skill.md")
    put(tmp_path, path)
    with pytest.raises(ValueError, match="would not be read: .*Skills are read from") as error:
        SkillLibrary.from_folder(tmp_path)
    assert path in str(error.value) and "milk/skill.md" in str(error.value)


def test_a_skills_own_files_are_its_own_and_texts_outside_of_skills_are_warned_of(tmp_path, caplog):
    put(tmp_path, "a/SKILL.md")
    put(tmp_path, "a/references/tea.md", "more")
    put(tmp_path, "README.md", "about")
    with caplog.at_level(logging.WARNING):
        assert len(SkillLibrary.from_folder(tmp_path)) == 1
    assert not caplog.records
    put(tmp_path, "coffee/coffee.md", "strong")
    put(tmp_path, "milk.md", "white")
    with caplog.at_level(logging.WARNING):
        assert len(SkillLibrary.from_folder(tmp_path)) == 1
    assert "coffee/coffee.md, milk.md" in caplog.text and "README" not in caplog.text


def test_links_do_not_lead_out_of_a_skill_folder(tmp_path):
    inside, outside = tmp_path / "skills", tmp_path / "elsewhere"
    put(outside, "a/SKILL.md")
    put(inside, "b/SKILL.md", HEAD.replace("name: a", "name: b") + "body")
    (inside / "a").symlink_to(outside / "a")
    with pytest.raises(ValueError, match=f"a/SKILL.md: lies outside the folder, at {outside}"):
        SkillLibrary.from_folder(inside)
    (inside / "a").unlink()
    (inside / "a").mkdir()
    (inside / "a" / "SKILL.md").symlink_to(outside / "a" / "SKILL.md")
    with pytest.raises(ValueError, match="a/SKILL.md: lies outside the folder"):
        SkillLibrary.from_folder(inside)
    (inside / "a" / "SKILL.md").unlink()
    (tmp_path / "linked").symlink_to(inside)  # the folder itself may be a link
    assert [skill.name for skill in SkillLibrary.from_folder(tmp_path / "linked")] == ["b"]


def test_links_that_lead_nowhere_or_in_a_circle_are_named(tmp_path):
    put(tmp_path, "a/SKILL.md")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="would not be read: gone"):
        SkillLibrary.from_folder(tmp_path)
    (tmp_path / "gone").unlink()
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    assert len(SkillLibrary.from_folder(tmp_path / "a" / "up")) == 1
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "SKILL.md").symlink_to(tmp_path / "b" / "SKILL.md")
    with pytest.raises(ValueError, match="would not be read: b/SKILL.md|b/SKILL.md: cannot be read"):
        SkillLibrary.from_folder(tmp_path)


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        SkillLibrary.from_folder(tmp_path / "nowhere")


def test_a_skill_for_an_unknown_task_type_is_an_error_where_the_types_are_known(tmp_path):
    write(tmp_path, "a", "---\nname: a\ndescription: d\ntask_types: [heat, heatt]\n---\nbody")
    with pytest.raises(ValueError, match=r"'a' is for unknown task types \['heatt'\]; expected some of \['heat'\]"):
        SkillLibrary.from_folder(tmp_path, task_types=["heat"])


def test_an_empty_folder_and_an_unknown_environment_are_errors(tmp_path):
    with pytest.raises(ValueError, match="no skills found"):
        SkillLibrary.from_folder(tmp_path)
    with pytest.raises(ValueError, match="there are some for alfworld, search_qa, webshop"):
        SkillLibrary.bundled("chess")
    with pytest.raises(ValueError, match=r"unique, got \['a'\]"):
        SkillLibrary([Skill("a", "", "x"), Skill("a", "", "y")])


def names(library, task):
    return [skill.name for skill in KeywordRetriever(library).select([task])[0]]


def test_a_task_gets_the_skills_for_all_and_those_of_its_type(skills):
    assert names(skills, {"task_type": "even", "prompt": "odd"}) == ["general", "even"]


def test_keywords_decide_where_no_skill_names_the_type():
    library = SkillLibrary(
        [Skill("shoes", "", "x", keywords=("shoe",)), Skill("tea", "", "x", keywords=("green tea",))]
    )
    prompt = [{"role": "system", "content": "green tea"}, {"role": "user", "content": "A Green Tea, no shoes"}]
    assert names(library, {"prompt": prompt, "task_type": "grocery"}) == ["tea"]  # a whole word, in any case
    assert names(library, {"prompt": "shoe"}) == ["shoes"]
    assert names(library, {"prompt": "hat"}) == []


@pytest.mark.parametrize(
    ("keyword", "text"),
    [
        ("绿茶", "我想买绿茶两盒"),
        ("お茶", "熱いお茶を買う"),
        ("Tシャツ", "白いtシャツを"),
        ("녹차", "녹차를 사세요"),
        ("ชา", "ซื้อชาเขียว"),
        ("tea", "买tea吧"),
        ("茶 tea", "喝茶  TEA吧"),
        ("चाय", "एक चाय दो"),
        ("c++", "learn C++ now"),
        ("c++", "(c++17)"),
        ("c#", "use C#."),
        (".net", "ASP.NET"),
        ("100%", "of 100% cotton"),
        ("☕️", "x☕️tea"),
        ("tea", "☕️tea"),
        ("tea", "Tea™"),
        ("green tea", "Green\n TEA"),
        ("café", "cafe\u0301"),
        ("straße", "STRASSE"),
        ("strasse", "große Straße"),
        ("istanbul", "İSTANBUL"),
        ("İstanbul", "istanbul'a"),
        ("ısparta", "ISPARTA"),
        ("σοφός", "ΣΟΦΌΣ"),
    ],
)
def test_a_keyword_is_found_whatever_its_script_and_its_signs(keyword, text):
    assert names(SkillLibrary([Skill("a", "", "x", keywords=("no such word", keyword))]), {"prompt": text}) == ["a"]


@pytest.mark.parametrize(
    ("keyword", "text"),
    [
        ("hat", "that"),
        ("tea", "steak"),
        ("tea", "teas"),
        ("tea", "tea_set"),
        ("чай", "случай"),
        ("चा", "चाय"),
        ("c++", "abc++"),
        ("100%", "2100%"),
        ("5号", "15号"),
        (" ", "a b"),
    ],
)
def test_a_keyword_is_not_found_inside_a_word(keyword, text):
    assert names(SkillLibrary([Skill("a", "", "x", keywords=(keyword,))]), {"prompt": text}) == []


@settings(deadline=None)
@given(keyword=st.text(min_size=1), before=st.text(), after=st.text())
def test_any_keyword_between_blanks_is_found(keyword, before, after):
    library = SkillLibrary([Skill("a", "", "x", keywords=(keyword,))])
    assert names(library, {"prompt": f"{before} {keyword} {after}"}) == ["a"] * bool(keyword.strip())


def test_a_task_is_matched_by_its_last_user_message_however_it_is_written():
    library = SkillLibrary([Skill("tea", "", "x", keywords=("tea",))])
    parts = [{"type": "text", "text": "green "}, {"type": "image"}, "tea"]
    assert names(library, {"prompt": [{"role": "user", "content": parts}], "task_type": None}) == ["tea"]
    for prompt in (None, "", [], [{"role": "user", "content": None}], [{"role": "system", "content": "tea"}]):
        assert names(library, {"prompt": prompt}) == []


def test_every_webshop_task_finds_the_bundled_skill_of_its_family_by_type_and_by_keyword():
    library = SkillLibrary.bundled("webshop")
    env = WebShopEnv()
    for row in WebShopEnv.dataset("test").select(range(100)):
        assert names(library, row) == ["general", row["task_type"]]
        by_keyword = names(library, {"prompt": env.reset(goal=row["goal"])})
        assert row["task_type"] in by_keyword and by_keyword[0] == "general"


# The official repository's layout

OFFICIAL = {
    "skill_files": {"general_skills": "general.md", "place": "place.md", "heat": "heat.md", "other": "other.md"},
    "task_to_skill": {
        "pick_and_place": "place",
        "pick_two_obj_and_place": "place",
        "pick_heat_then_place_in_recep": "heat",
        "unkeyed": "other",
    },
    "task_keywords": {
        "pick_heat_then_place_in_recep": ["heat", "hot"],
        "pick_two_obj_and_place": ["put two"],
        "pick_and_place": ["put"],
        "unkeyed": [],
    },
}


def write_official(folder, mapping=OFFICIAL, **files):
    text = mapping if isinstance(mapping, str) else json.dumps(mapping, indent=1)
    (folder / "skill_mapping.json").write_text(text)
    for name in ("general", "place", "heat", "other"):
        (folder / f"{name}.md").write_text(files.get(name, f"about {name}"))


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        # by task type, which is looked for anywhere in the task's
        ({"task_type": "pick_and_place_simple", "prompt": "heat"}, ["general_skills", "place"]),
        ({"task_type": "pick_two_obj_and_place"}, ["general_skills", "place"]),
        ({"task_type": "pick_heat_then_place_in_recep"}, ["general_skills", "heat"]),
        # by any keyword, anywhere in the text
        ({"prompt": "put two mugs"}, ["general_skills", "place"]),
        ({"prompt": "PUT a hot mug away"}, ["general_skills", "place", "heat"]),
        ({"prompt": "a photo"}, ["general_skills", "heat"]),  # "hot" is in "photo", as in the official code
        ({"prompt": "look around"}, ["general_skills"]),
    ],
)
def test_the_official_layout_gives_the_skills_that_its_rules_name(tmp_path, task, expected):
    write_official(tmp_path)
    assert names(SkillLibrary.from_folder(tmp_path), task) == expected


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ('{\n "skill_files": {,', "skill_mapping.json:2: not JSON"),
        ({"skill_files": {}}, "expected an object `task_to_skill`, got None"),
        ({**OFFICIAL, "skill_files": []}, r":2: expected an object `skill_files`, got \[\]"),
        ({**OFFICIAL, "task_to_skill": {"x": "fly"}}, "task type 'x' wants skill 'fly'"),
        ({**OFFICIAL, "task_keywords": {"fly": ["up"]}}, "keywords for 'fly', a task type"),
        ({**OFFICIAL, "task_keywords": {"unkeyed": "up"}}, "keywords of 'unkeyed' must be a list"),
        ({**OFFICIAL, "skill_files": {**OFFICIAL["skill_files"], "heat": "../heat.md"}}, "lies outside the folder"),
        ({**OFFICIAL, "skill_files": {**OFFICIAL["skill_files"], "heat": "hot.md"}}, "is missing: 'hot.md'"),
        ({**OFFICIAL, "skill_files": {**OFFICIAL["skill_files"], "heat": "/etc/passwd"}}, "lies outside the folder"),
        ({**OFFICIAL, "skill_files": {**OFFICIAL["skill_files"], "heat": "out.md"}}, "lies outside the folder"),
        ({**OFFICIAL, "skill_files": {**OFFICIAL["skill_files"], "heat": 5}}, "must be a path in the folder, got 5"),
        ({**OFFICIAL, "skill_files": {**OFFICIAL["skill_files"], "heat": "a\0"}}, "must be a path in the folder"),
        ({**OFFICIAL, "skill_files": {**OFFICIAL["skill_files"], "heat": "\ud83d"}}, "must be a path in the folder"),
        ({**OFFICIAL, "skill_files": {**OFFICIAL["skill_files"], "heat": "."}}, "is missing: '.'"),
        ({**OFFICIAL, "skill_files": {**OFFICIAL["skill_files"], "heat": "x" * 999}}, "is missing"),
        ({**OFFICIAL, "task_to_skill": {"x": ["place"]}}, r"task type 'x' wants skill \['place'\]"),
        ({**OFFICIAL, "task_keywords": {"unkeyed": [" "]}}, "keywords of 'unkeyed' must be a list"),
        ("[]", r":1: expected an object, got \[\]"),
        ("[" * 100_000, ":1: not JSON that can be read"),
    ],
)
def test_a_malformed_mapping_is_an_error_that_names_the_file(tmp_path, mapping, message):
    write_official(tmp_path, mapping)
    (tmp_path / "out.md").symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match=message) as error:
        SkillLibrary.from_folder(tmp_path)
    assert str(tmp_path / "skill_mapping.json") in str(error.value)


def test_what_the_mapping_does_not_list_is_named(tmp_path, caplog):
    write_official(tmp_path, {**OFFICIAL, "task_keyword": {}})
    put(tmp_path, "cool.md", "about cool")
    with caplog.at_level(logging.WARNING):
        assert len(SkillLibrary.from_folder(tmp_path)) == 4
    assert "not read: cool.md" in caplog.text and "not read: task_keyword" in caplog.text
    put(tmp_path, "tea/SKILL.md")
    with pytest.raises(ValueError, match=r"would not be read: tea/SKILL.md. Where there is a skill_mapping.json"):
        SkillLibrary.from_folder(tmp_path)


def test_an_empty_file_of_the_official_layout_is_an_error(tmp_path):
    write_official(tmp_path, heat="\n")
    with pytest.raises(ValueError, match="heat.md:1: the skill has no text"):
        SkillLibrary.from_folder(tmp_path)


# Bundled


@pytest.mark.parametrize(
    ("environment", "rows"),
    [
        (
            "alfworld",
            {
                "pick_and_place_simple": "Your task is to: put some soap in drawer.",
                "look_at_obj_in_light": "Your task is to: look at bowl under the desklamp.",
                "pick_clean_then_place_in_recep": "Your task is to: clean some plate and put it in cabinet.",
                "pick_heat_then_place_in_recep": "Your task is to: put a hot apple in fridge.",
                "pick_cool_then_place_in_recep": "Your task is to: cool some potato and put it in microwave.",
                "pick_two_obj_and_place": "Your task is to: put two cellphone in bed.",
            },
        ),
        (
            "search_qa",
            {
                "direct": "who wrote hamlet",
                "multi_hop": "When was the director of Jaws born?",
                "comparison": "Who is older, Ann or Bob?",
            },
        ),
    ],
)
def test_every_task_type_has_a_bundled_skill_of_its_own(environment, rows):
    library = SkillLibrary.bundled(environment)
    for task_type, text in rows.items():
        assert names(library, {"task_type": task_type, "prompt": ""}) == ["general", task_type]
        if task_type != "direct":
            assert task_type in names(library, {"prompt": text})


# Retrievers

TOPICS = SkillLibrary(
    [
        Skill("general", "", "for all", always=True),
        Skill("tea", "hot drinks", "Choose the flavor of the tea, then the count."),
        Skill("shoes", "things to wear", "Shoe sizes are plain numbers; choose the color of the shoes."),
        Skill("lamps", "light", "A lamp for the living room."),
    ]
)


def test_random_depends_on_the_task_and_the_seed_alone():
    tasks = [{"task_id": f"t/{index}"} for index in range(200)]
    first = [[skill.name for skill in skills] for skills in RandomRetriever(TOPICS).select(tasks)]
    again = [[skill.name for skill in skills] for skills in RandomRetriever(TOPICS).select(tasks[::-1])]
    assert first == again[::-1]
    assert first != [[s.name for s in skills] for skills in RandomRetriever(TOPICS, seed=1).select(tasks)]
    leaders = Counter(skills[1] for skills in first)
    assert all(skills[0] == "general" and len(set(skills)) == 4 for skills in first)
    assert all(40 <= leaders[name] <= 95 for name in ("tea", "shoes", "lamps"))  # about a third each


def test_full_is_all_and_none_is_nothing():
    assert FullRetriever(TOPICS).select([{}]) == [list(TOPICS)]
    assert NoRetriever(TOPICS).select([{}, {}]) == [[], []]


def test_bm25_ranks_by_the_formula():
    query = "choose the color of these shoes for tea"
    retriever = BM25Retriever(TOPICS)
    ranked = retriever.rank({"prompt": query})
    documents = {s.name: re.findall(r"\w\w+", f"{s.name} {s.description} {s.body}".lower()) for s in retriever.special}
    mean_length = np.mean([len([w for w in words if w not in STOP]) for words in documents.values()])
    scores = {}
    for name, words in documents.items():
        words = [word for word in words if word not in STOP]
        scores[name] = 0.0
        for term in set(query.split()) - STOP:
            frequency = words.count(term)
            holders = sum(term in other for other in documents.values())
            idf = np.log(1 + (len(documents) - holders + 0.5) / (holders + 0.5))
            length = 1 - 0.75 + 0.75 * len(words) / mean_length
            scores[name] += idf * frequency / (frequency + 1.5 * length)
    expected = sorted((name for name, score in scores.items() if score > 0), key=lambda name: -scores[name])
    assert [skill.name for skill in ranked] == expected == ["shoes", "tea"]
    assert BM25Retriever(TOPICS).rank({"prompt": "zebra"}) == []


NOTHING_TO_RANK = {
    "only skills for every task": [Skill("general", "", "for all", always=True)],
    "empty bodies": [Skill("general", "", "for all", always=True), Skill("tea", "", ""), Skill("a", "", "")],
    "an empty skill": [Skill("", "", "")],
    "only stop words": [Skill("the", "of", "and it is")],
}


@pytest.mark.parametrize("skills", NOTHING_TO_RANK.values(), ids=NOTHING_TO_RANK)
def test_a_ranker_with_nothing_to_rank_gives_the_skills_for_every_task(skills):
    library = SkillLibrary(skills)
    general = [skill.name for skill in skills if skill.always]
    texts = ["7 * 8 = ?", "", "the", "\n", "🍵", "茶"]
    tasks = [*({"prompt": [{"role": "user", "content": text}]} for text in texts), {"prompt": None}, {}]
    for chosen in BM25Retriever(library).select(tasks):
        assert [skill.name for skill in chosen] == general
    embeddings = EmbeddingRetriever(library, TINY_POLICY).select(tasks)
    assert [[s.name for s in embeddings[i]] for i in (1, 3, 6, 7)] == [general] * 4
    everything = sorted(skill.name for skill in skills)
    for chosen in [*RandomRetriever(library).select(tasks), *UCBRetriever(library).select(tasks), embeddings[0]]:
        assert sorted(skill.name for skill in chosen) == everything


def test_bm25_gives_none_for_a_task_without_words_and_ranks_beside_an_empty_skill():
    retriever = BM25Retriever(SkillLibrary([*TOPICS, Skill("", "", "")]))
    assert retriever.rank({"prompt": "7 * 8 = ?"}) == [] == retriever.rank({"prompt": ""})
    assert [skill.name for skill in retriever.rank({"prompt": "green tea"})] == ["tea"]


def test_random_goes_by_the_text_of_a_task_without_an_id():
    retriever = RandomRetriever(TOPICS)
    texts = [f"task {index}" for index in range(20)]
    with_none, without = ([{**row, "prompt": text} for text in texts] for row in ({"task_id": None}, {}))
    assert retriever.select(with_none) == retriever.select(without)
    assert len({skills[1].name for skills in retriever.select(with_none)}) == 3


STOP = set(
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they was "
    "will with".split()
)


def test_embeddings_rank_by_the_cosine(tmp_path):
    retriever = EmbeddingRetriever(TOPICS, TINY_POLICY)
    model = SentenceTransformer(TINY_POLICY)
    texts = [f"{skill.name}\n{skill.description}\n{skill.body}" for skill in retriever.special]
    for query in ("green tea, 20 count", "a lamp"):
        vectors = model.encode([query, *texts]).astype(np.float64)
        cosines = [v @ vectors[0] / np.linalg.norm(v) / np.linalg.norm(vectors[0]) for v in vectors[1:]]
        expected = [texts[i].split("\n")[0] for i in np.argsort(-np.array(cosines))]
        assert [skill.name for skill in retriever.rank({"prompt": query})] == expected


def test_embeddings_without_their_package_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ImportError, match=r"sdar-trl\[embedding\]"):
        EmbeddingRetriever(TOPICS, "model")


def test_ucb_bounds_equal_the_formula_and_untried_skills_come_first():
    retriever = UCBRetriever(TOPICS, c=0.7)
    retriever.update(
        [("x", ["general", "tea"], 1.0), ("x", ["tea"], 0.0), ("x", ["shoes"], 0.25), ("y", ["tea"], 9.0)]
    )
    bounds = retriever.bounds("x")
    np.testing.assert_allclose(bounds["tea"], 0.5 + 0.7 * np.sqrt(np.log(3) / 2))
    np.testing.assert_allclose(bounds["shoes"], 0.25 + 0.7 * np.sqrt(np.log(3) / 1))
    assert bounds["lamps"] == np.inf and "general" not in bounds
    assert [skill.name for skill in retriever.rank({"task_type": "x"})] == ["lamps", "tea", "shoes"]
    for_all = UCBRetriever(TOPICS, c=0.7, per_task_type=False)
    for_all.load_state_dict(retriever.state_dict())
    np.testing.assert_allclose(for_all.bounds("x")["tea"], 10 / 3 + 0.7 * np.sqrt(np.log(4) / 3))


def test_ucbs_regret_on_a_bandit_is_far_below_randoms():
    means = {"tea": 0.2, "shoes": 0.5, "lamps": 0.8}

    def regret(retriever):
        rng = random.Random(0)
        total = 0.0
        for index in range(2_000):
            task = {"task_id": index, "task_type": "x"}
            choice = retriever.rank(task)[0].name
            total += 0.8 - means[choice]
            retriever.update([("x", [choice], float(rng.random() < means[choice]))])
        return total

    assert regret(UCBRetriever(TOPICS)) < 0.25 * regret(RandomRetriever(TOPICS))


def test_a_retrievers_state_survives_json_exactly():
    retriever = UCBRetriever(TOPICS)
    retriever.update([("x", ["tea"], 0.1 * index) for index in range(7)])
    again = UCBRetriever(TOPICS)
    again.load_state_dict(json.loads(json.dumps(retriever.state_dict())))
    assert again.bounds("x") == retriever.bounds("x")
    for each in (retriever, again):
        each.update([("x", ["shoes"], 0.3)])
    assert again.statistics == retriever.statistics


# The command


def check(*args):
    command = [sys.executable, "-m", "sdar_trl.skills", "check", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_check_command_reports_tasks_lengths_and_what_is_missing(tmp_path):
    write(tmp_path, "all", "---\nname: all\ndescription: d\nalways: true\n---\nbuy what is asked for")
    write(tmp_path, "tea", "---\nname: tea\ndescription: d\ntask_types: [grocery]\n---\nchoose the flavor")
    rows = [{"task_id": "t/0", "task_type": "grocery"}, {"task_id": "t/1", "task_type": "garden", "prompt": "lamp"}]
    (tmp_path / "tasks.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    done = check(tmp_path, "--tasks", tmp_path / "tasks.jsonl", "--tokenizer", TINY_POLICY, "--show")
    assert done.returncode == 1  # some task gets none
    assert "t/0: all, tea" in done.stdout and "t/1: all" in done.stdout
    assert "1 of 2 tasks get no skill of their own.\n  t/1 (garden)" in done.stdout
    tokens = len(AutoTokenizer.from_pretrained(TINY_POLICY)("choose the flavor")["input_ids"])
    assert re.search(rf"tea +{tokens} +1 +type: grocery", done.stdout)
    assert check(tmp_path, "--tasks", "webshop", "--count", "20").returncode == 1
    assert check(BUNDLED / "webshop", "--tasks", "webshop", "--count", "20").returncode == 0


def test_the_check_command_says_what_is_wrong(tmp_path):
    write(tmp_path, "a", "nothing")
    done = check(tmp_path, "--tasks", "webshop", "--count", "2")
    assert done.returncode == 1 and "error: " in done.stderr and "SKILL.md:1: expected YAML" in done.stderr
    (tmp_path / "t.jsonl").write_text("{}\n{")
    assert "t.jsonl:2: not JSON" in check(tmp_path, "--tasks", tmp_path / "t.jsonl").stderr


def test_skills_are_written_out_whole_under_their_names():
    text = format_skills([Skill("a", "", "One."), Skill("b", "", "Two.")])
    assert text == "# Skills\n\n## a\nOne.\n\n## b\nTwo."
    assert format_skills([]) == ""


# Marks that may stand inside a text


def test_front_matter_ends_at_a_line_that_is_its_mark_and_nowhere_else(tmp_path):
    folder = tmp_path / "tea"
    folder.mkdir()
    front = "name: tea\ndescription: about tea ---\n# ---- which tasks ----\ntask_types: [grocery]\nkeywords: [tea]\n"
    (folder / "SKILL.md").write_text(f"---\n{front}--- \nbrew ---\n---\nit.\n")
    skill = Skill.from_file(folder / "SKILL.md")
    assert skill.description == "about tea ---" and skill.keywords == ("tea",) and skill.task_types == ("grocery",)
    assert skill.body == "brew ---\n---\nit."


def test_a_line_of_tasks_ends_at_its_line_feed_alone(tmp_path):
    file = tmp_path / "tasks.jsonl"
    rows = [{"task_id": str(i), "prompt": f"a\u2028b\x85c {i}"} for i in range(3)]
    file.write_text("\ufeff" + "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", "utf-8")
    assert load_tasks(str(file), 100_000) == rows
    assert load_tasks(str(file), 2) == rows[:2]
    file.write_text("")
    with pytest.raises(ValueError, match="no tasks"):
        load_tasks(str(file), 5)


@pytest.mark.parametrize(
    ("data", "count", "message"),
    [
        (b"", 9, "t.jsonl: no tasks; expected a JSON object in each line"),
        (b"\n \n", 9, "no tasks"),
        (b"\xef\xbb\xbf", 9, "no tasks"),
        (b"{}\n\n[1]", 9, "t.jsonl:3: expected an object, got"),
        (b"{}\n\xff", 9, "t.jsonl:2: not UTF-8"),
        (b"{}", 0, "`--count` must be at least 1, got 0"),
    ],
)
def test_the_check_command_says_what_is_wrong_with_its_tasks(tmp_path, data, count, message):
    with pytest.raises(ValueError, match=message):
        load_tasks(str(put(tmp_path, "t.jsonl", data)), count)


def test_the_check_command_takes_all_tasks_where_there_are_fewer_than_asked_for():
    assert len(load_tasks("webshop", 100_000)) == len(WebShopEnv.dataset("train"))
