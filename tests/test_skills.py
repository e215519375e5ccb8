"""Skill files, libraries and keyword retrieval."""

import pytest

from sdar_trl import KeywordRetriever, Skill, SkillLibrary
from sdar_trl.envs import WebShopEnv
from sdar_trl.skills import format_skills


GOOD = "---\nname: {name}\ndescription: what it is\nkeywords: [shoe, boot]\n---\nWear both.\n"


def write(folder, name, text):
    (folder / name).mkdir()
    (folder / name / "SKILL.md").write_text(text, encoding="utf-8")


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
        ("no front matter", "expected YAML front matter"),
        ("---\nname: a\ndescription: [\n---\nbody", "not YAML"),
        ("---\n- a\n---\nbody", "must be a mapping"),
        ("---\nname: a\n---\nbody", "needs a `description`"),
        ("---\nname: b\ndescription: d\n---\nbody", "must be its folder's, 'a'; got 'b'"),
        ("---\nname: a\ndescription: d\nkeyword: [x]\n---\nbody", r"unknown front matter \['keyword'\]"),
        ("---\nname: a\ndescription: d\nkeywords: x\n---\nbody", "`keywords` must be a list"),
        ("---\nname: a\ndescription: d\nalways: often\n---\nbody", "`always` must be true or false"),
        ("---\nname: a\ndescription: d\n---\n\n", "no text after"),
    ],
)
def test_a_malformed_skill_is_an_error_that_names_the_file(tmp_path, text, message):
    write(tmp_path, "a", text)
    with pytest.raises(ValueError, match=message) as error:
        SkillLibrary.from_folder(tmp_path)
    assert str(tmp_path / "a" / "SKILL.md") in str(error.value)


def test_an_empty_folder_and_an_unknown_environment_are_errors(tmp_path):
    with pytest.raises(ValueError, match="no skills found"):
        SkillLibrary.from_folder(tmp_path)
    with pytest.raises(ValueError, match="there are some for webshop"):
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


def test_every_webshop_task_finds_the_bundled_skill_of_its_family_by_type_and_by_keyword():
    library = SkillLibrary.bundled("webshop")
    env = WebShopEnv()
    for row in WebShopEnv.dataset("test").select(range(100)):
        assert names(library, row) == ["general", row["task_type"]]
        by_keyword = names(library, {"prompt": env.reset(goal=row["goal"])})
        assert row["task_type"] in by_keyword and by_keyword[0] == "general"


def test_skills_are_written_out_whole_under_their_names():
    text = format_skills([Skill("a", "", "One."), Skill("b", "", "Two.")])
    assert text == "# Skills\n\n## a\nOne.\n\n## b\nTwo."
    assert format_skills([]) == ""
