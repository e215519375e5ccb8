"""Mistakes that newcomers make, on purpose: each is refused with what was wrong, what was expected or what to do,
before anything is trained, or at the first step."""

import pytest
import torch
from datasets import Dataset
from toys import CalculatorEnv, CountingEnv
from trl import GRPOConfig

from sdar_trl import SDARConfig, SkillLibrary, evaluate, evaluate_trainer, load_world
from sdar_trl.envs import Step


class WithoutReset:
    def step(self, response):
        return Step("a page")

    def close(self):
        pass


class LikeGymnasium(CountingEnv):
    def reset(self, seed=None, options=None):
        return "a page", {}


class Tuples(CountingEnv):
    def step(self, response):
        return "a page", 0.0, True, False, {}


def rows(**columns):
    return Dataset.from_list([{"length": 1, **columns}] * 8)


LONG = [{"role": "user", "content": "word " * 2000}]

OPTIONS = {
    "method": ("sdra", "got 'sdra'. Did you mean 'sdar'?"),
    "gate": ("gapp", "one of gap, entropy, soft_or, uniform, none, got 'gapp'. Did you mean 'gap'?"),
    "retriever": ("bm26", "Did you mean 'bm25'?"),
    "sdar_coef": (-0.1, "`sdar_coef` must not be negative, got -0.1"),
    "gate_beta": ("5", "`gate_beta` must be of type float, got '5' (str)"),
    "max_turns": (None, "`max_turns` must be of type int, got None"),
    "history_window": (0, "`history_window` must be at least 1, got 0"),
    "temperature": (0.0, "`temperature` must be above 0, got 0.0: the episodes of a group would all be the same"),
    "max_completion_length": (None, "`max_completion_length` must be of type int, got None"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_wrong_option_is_refused_with_what_it_may_be(name, make_config):
    value, message = OPTIONS[name]
    with pytest.raises(ValueError) as error:
        make_config(**{name: value})
    assert message in str(error.value)


TRAINER = {
    "no skills": ({"skills": None}, "Pass `skills`, e.g. `SkillLibrary.bundled"),
    "skills of a folder that is not there": ({"skills": "my_skills"}, "there is none at 'my_skills'"),
    "skills as a class": ({"skills": SkillLibrary}, "got <class 'sdar_trl.skills.library.SkillLibrary'>"),
    "a list of texts as skills": ({"skills": ["be kind"]}, "a folder of skills, a `SkillContext`"),
    "another configuration": ({"config": GRPOConfig("out", bf16=False, use_cpu=True)}, "must be an `SDARConfig`"),
    "a folder as the configuration": ({"config": "out"}, "must be an `SDARConfig`, got str"),
    "a gate by its name": ({"gate": "entropy"}, "got 'entropy'. One by its name is an option: `SDARConfig(gate=...)`"),
    "a gate of two arguments": ({"gate": lambda gap, beta: gap}, "function of (gap, entropy, gate_beta)"),
    "a text as prompt": ({"train_dataset": rows(prompt="go")}, 'Wrap a text as [{"role": "user", "content": text}]'),
    "too few columns": ({"train_dataset": Dataset.from_list([{"prompt": LONG}] * 8)}, "and none is called so"),
    "too few tasks": ({"train_dataset": rows(prompt=LONG).select([])}, "Add tasks, or lower"),
    "no dataset": ({"train_dataset": None}, "given the columns of `train_dataset` by name"),
    "an environment without reset": ({"environment_factory": WithoutReset}, "it has no `reset`"),
    "an instance": ({"environment_factory": CountingEnv()}, "pass its class, `CountingEnv`"),
    "a factory of arguments": ({"environment_factory": lambda task: CountingEnv()}, "is given to `reset`"),
    "a reset as Gymnasium's": ({"environment_factory": LikeGymnasium}, "let it take those that it has no use for"),
    "several environments, none named": ({"environment_factory": {"a": CountingEnv}}, "must name one of ['a']"),
}


@pytest.mark.parametrize("mistake", TRAINER)
def test_what_a_trainer_cannot_use_is_refused_before_the_training(mistake, make_trainer):
    given, message = TRAINER[mistake]
    with pytest.raises((ValueError, TypeError)) as error:
        make_trainer(**given)
    assert message in str(error.value)


FIRST_STEP = {
    "steps as Gymnasium's": ({"environment_factory": Tuples}, "Gymnasium's tuples are not taken"),
    "a prompt that does not fit": ({"train_dataset": rows(prompt=LONG)}, "Shorten it or lower `max_response_length`"),
    "one weight for all tokens": ({"gate": lambda *_: torch.tensor(0.5)}, "; got torch.Size([])"),
    "one weight a row": ({"gate": lambda gap, entropy, beta: gap.mean(1)}, "; got torch.Size([4])"),
    "a number as weight": ({"gate": lambda *_: 0.5}, "; got 0.5"),
    "weights that are no numbers": ({"gate": lambda gap, *_: gap * torch.nan}, "got weights that are not finite"),
    "a context of one text too few": ({"skills": lambda episodes: ["a"]}, "one text for each of the 4 episodes"),
}


@pytest.mark.parametrize("mistake", FIRST_STEP)
def test_what_shows_at_the_first_step_stops_it_there(mistake, make_trainer):
    given, message = FIRST_STEP[mistake]
    with pytest.raises((ValueError, RuntimeError)) as error:
        make_trainer(**given).train()
    assert message in str(error.value)


def test_a_tokenizer_without_a_chat_template_is_refused_with_where_to_get_one(make_trainer, random_model_folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(random_model_folder)
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template, .* take an instruct model"):
        make_trainer(processing_class=tokenizer)


def test_resuming_where_there_is_no_checkpoint_says_what_to_do(make_trainer):
    with pytest.raises(ValueError, match="Begin anew, without `resume_from_checkpoint`"):
        make_trainer().train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="there is none at nowhere"):
        make_trainer().train(resume_from_checkpoint="nowhere")


def test_evaluating_what_is_not_played_here_and_skills_of_no_folder_are_refused(make_trainer, make_config, tasks):
    trainer = make_trainer(
        make_config(max_response_length=512),
        environment_factory=CalculatorEnv,
        train_dataset=tasks.select_columns(["prompt"]),
    )
    with pytest.raises(ValueError, match="call `trainer.evaluate\\(\\)`"):
        evaluate_trainer(trainer, tasks)
    with pytest.raises(ValueError, match="my_skills: no such folder"):
        evaluate(make_trainer().rollout, tasks, skills="my_skills")


def test_an_unknown_world_or_argument_of_one_is_told_with_what_was_meant():
    with pytest.raises(ValueError, match="Did you mean 'webshop'?"):
        load_world("webshp")
    with pytest.raises(ValueError, match="must be one of reward, data_dir, .* got 'data'. Did you mean 'data_dir'?"):
        load_world("webshop", data="WebShop/data")


def test_a_name_that_is_no_option_is_told(tmp_path):
    with pytest.raises(TypeError, match="sdar_coeff"):
        SDARConfig(str(tmp_path), sdar_coeff=0.1)
