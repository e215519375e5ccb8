"""What the teacher reads: skills within limits, siblings, hindsight; and what a trainer makes of it."""

import pytest
import torch
from toys import CalculatorEnv

from sdar_trl import (
    Episode,
    Skill,
    SkillContext,
    SkillLibrary,
    StopReason,
    Turn,
    hindsight_context,
    sibling_context,
)
from sdar_trl.skills import FullRetriever, RandomRetriever, UCBRetriever, format_skills


LIBRARY = SkillLibrary(
    [
        Skill("general", "", "be quick.", always=True),
        Skill("even", "", "even tasks want calm, and patience, and care.", task_types=("even",)),
        Skill("odd", "", "odd tasks want courage.", task_types=("odd",)),
        Skill("numbers", "", "count.", task_types=("even", "odd")),
    ]
)


def episode(task_type="even", task_id="0", reward=1.0, won=True, response="<action>go</action>"):
    ids = [ord(letter) for letter in response]
    turns = [Turn("a door", [1], ids, "look"), Turn("a room", [2], ids, response, reward=reward)]
    return Episode(
        {"task_type": task_type, "task_id": task_id},
        [{"role": "user", "content": "count"}],
        turns,
        StopReason.WON if won else StopReason.LOST,
        feedback="the end.",
    )


def words(text):
    return len(text.split())


# Skills


def test_top_k_limits_the_skills_besides_those_for_all():
    context = SkillContext(FullRetriever(LIBRARY), top_k=2)
    [one] = episodes = [episode()]
    assert context(episodes) == [format_skills(LIBRARY.skills[:3])]
    assert one.skills == ("general", "even", "odd")


def test_a_retriever_that_ranks_all_selects_one_unless_told():
    for retriever in (UCBRetriever(LIBRARY), RandomRetriever(LIBRARY)):
        context = SkillContext(retriever)
        context([episode()])
        assert context.metrics["skills"] == [2.0]


def test_what_does_not_fit_is_dropped_whole_from_the_lowest_rank_and_counted():
    whole = format_skills([skill for skill in LIBRARY if skill.name != "odd"])
    for limit, expected in ((words(whole), 3), (words(whole) - 1, 2), (6, 1), (3, 0)):
        context = SkillContext(LIBRARY, max_tokens=limit, count_tokens=words)
        [one] = episodes = [episode()]
        [text] = context(episodes)
        assert words(text) <= limit and len(one.skills) == expected
        assert one.skills == ("general", "even", "numbers")[:expected]
        assert text == format_skills([skill for skill in LIBRARY if skill.name in one.skills])
        assert context.metrics["dropped_skills"] == [3.0 - expected]
        assert context.metrics["no_own_skill"] == [float(expected < 2)]


def test_a_limit_in_tokens_needs_a_tokenizer():
    with pytest.raises(ValueError, match="needs `count_tokens`"):
        SkillContext(LIBRARY, max_tokens=10)


def test_the_table_says_how_often_each_skill_was_read_and_with_what_return():
    context = SkillContext(LIBRARY)
    context.update([("even", ["general", "even"], 1.0), ("even", ["general", "even"], 0.0), ("odd", ["general"], 0.5)])
    assert context.retriever.totals() == {"general": (3, 0.5), "even": (2, 0.5), "odd": (0, 0.0), "numbers": (0, 0.0)}
    assert "general         3        0.500" in context.table()


# Beyond skills


def test_a_sibling_context_is_a_success_of_the_same_task_by_another_episode():
    winner = episode(response="<action>win</action>")
    loser = episode(won=False, response="<action>lose</action>")
    alone = episode(task_id="1")
    texts = sibling_context([winner, loser, alone])
    assert texts[0] == texts[2] == ""
    assert texts[1] == "# An attempt at this task that succeeded\n\na door\n> look\na room\n> <action>win</action>"


def test_hindsight_is_the_episodes_own_outcome_and_the_environments_last_words():
    failed = episode(won=False, reward=0.25)
    raised = episode()
    raised.stop_reason = StopReason.ENV_ERROR
    won, lost, none = hindsight_context([episode(), failed, raised])
    assert won == "# How this attempt ended\n\nIt succeeded after 2 turns, with a return of 1.00.\nthe end."
    assert "It failed after 2 turns, with a return of 0.25." in lost
    assert none == ""


# In training


@pytest.fixture
def skills():
    return LIBRARY


@pytest.mark.parametrize("context", [sibling_context, hindsight_context])
def test_the_other_contexts_train(context, make_trainer, make_config):
    trainer = make_trainer(skills=context)
    trainer.train()
    assert all("sdar/gap_mean" in entry for entry in trainer.state.log_history if "loss" in entry)


def test_ucb_learns_from_the_returns_of_all_episodes(make_trainer, make_config):
    trainer = make_trainer(make_config(retriever="ucb", max_steps=4))
    seen = []
    score = trainer._generate_and_score_completions

    def record(inputs):
        output = score(inputs)
        seen.extend((e.task["task_type"], e.skills, e.episode_return) for e in trainer.episodes)
        return output

    trainer._generate_and_score_completions = record
    trainer.train()
    expected = {}
    for task_type, names, value in seen:
        for name in names:
            count, total = expected.setdefault(task_type, {}).get(name, (0, 0.0))
            expected[task_type][name] = [count + 1, total + value]
    assert trainer.teacher_context.retriever.statistics == expected
    assert len(seen) == 16
    last = [entry for entry in trainer.state.log_history if "loss" in entry][-1]
    for name, (count, mean) in trainer.teacher_context.retriever.totals().items():
        assert last[f"sdar/ucb/{name}/count"] == count
        assert last[f"sdar/ucb/{name}/mean_return"] == pytest.approx(mean)


def test_a_resumed_run_selects_what_an_uninterrupted_one_would(make_trainer, make_config, tmp_path):
    options = {"retriever": "ucb", "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = make_trainer(make_config(**options, output_dir=str(tmp_path / "whole")))
    whole.train()
    resumed = make_trainer(make_config(**options, output_dir=str(tmp_path / "resumed")))
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    state = torch.load(checkpoint / "resume_0.pt")["retriever"]
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert state["statistics"] != whole.teacher_context.retriever.statistics
    assert resumed.teacher_context.retriever.statistics == whole.teacher_context.retriever.statistics
    for left, right in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(left, right)


def test_evaluation_teaches_the_retriever_nothing(make_trainer, make_config, tasks):
    trainer = make_trainer(make_config(retriever="ucb"), eval_dataset=tasks)
    trainer.evaluate()
    assert trainer.teacher_context.retriever.statistics == {}


def test_returns_of_trls_own_environments_count_too(make_trainer, make_config):
    trainer = make_trainer(
        make_config(retriever="full", max_steps=1), environment_factory=CalculatorEnv, reward_funcs=None
    )
    trainer.train()
    assert trainer.teacher_context.retriever.totals()["even"][0] == 4


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"retriever": "full"}, ("general", "even", "odd", "numbers")),
        ({"retriever": "full", "skills_top_k": 1}, ("general", "even")),
        ({"retriever": "keyword"}, ("general", "even", "numbers")),
        ({"retriever": "keyword", "max_context_tokens": 30}, ("general",)),
        ({"retriever": "none"}, ()),
    ],
)
def test_the_configuration_picks_the_skills(options, names, make_trainer, make_config):
    trainer = make_trainer(make_config(**options))
    trainer.current_gradient_accumulation_steps = 1
    output = trainer._generate_and_score_completions([dict(trainer.train_dataset[0])] * 4)
    assert {e.skills for e in trainer.episodes} == {names}
    assert output["teacher_mask"].sum() == (4 if names else 0)


def test_the_embedding_retriever_needs_a_model(make_config):
    with pytest.raises(ValueError, match="needs `embedding_model`"):
        make_config(retriever="embedding")
