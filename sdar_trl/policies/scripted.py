"""The scripted shopper that the embedded policy is warm-started on. It errs, and less so with skills in its prompt."""

import random
from collections.abc import Callable
from typing import Any

from ..chat import Chat
from ..envs import WebShopEnv
from ..episodes import Episode, Turn
from ..history import History, growing, with_observation
from ..skills import Skill, SkillLibrary, format_skills
from .names import policy_limits


# How often it errs: (opens a product that does not fit, buys before all options are chosen, searches for too little,
# writes no legal action), by what is in its prompt. Without the skills of its task it is a poor shopper, with them
# nearly an expert.
ERRORS = {
    "own skills": (0.02, 0.02, 0.02, 0.0),
    "other skills": (0.15, 0.25, 0.2, 0.01),
    "none": (0.25, 0.4, 0.4, 0.02),
}
MAX_TURNS = policy_limits("tiny")["max_turns"]


def scripted_response(env: WebShopEnv, errors: tuple[float, ...], rng: random.Random) -> str:
    """
    What the scripted player says to the page before it.

    Args:
        env ([`WebShopEnv`]):
            The environment in play; the player knows the goal.
        errors (`tuple[float, ...]`):
            Probabilities of its kinds of errors.
        rng (`random.Random`):
            Draws them.

    Returns:
        `str`: the response.
    """
    wrong_product, no_options, poor_query, illegal = errors
    page, goal = env.page, env.goal
    if rng.random() < illegal:
        return _respond(f"click[{rng.choice(goal.attributes)}]")
    if page.kind == "search":
        wanted = sorted(goal.attributes, key=goal.instruction.find)
        if rng.random() < poor_query:
            wanted = wanted[:0]
        return _respond(f"search[{' '.join([*wanted, goal.query])}]")
    if page.kind == "results":
        listed = [product.asin for product in page.listed]
        if listed and rng.random() < wrong_product:
            return _respond(f"click[{rng.choice(listed[:4]).lower()}]")
        if goal.asin in listed:
            return _respond(f"click[{goal.asin.lower()}]")
        return _respond("click[next >]" if listed else "click[back to search]")
    missing = [
        (name, value)
        for name, value in goal.options.items()
        if page.options.get(name) != value and value in page.clickables
    ]
    if missing and rng.random() >= no_options:
        name, value = missing[0]
        return _respond(f"click[{value}]", thought=f"{name}: {value} ")
    return _respond("click[buy now]")


def _respond(action: str, thought: str = "") -> str:
    return f"{thought}<action>{action}</action>"


def scripted_context(skills: SkillLibrary, task_type: str, rng: random.Random) -> tuple[str, str]:
    """Skills to put into the prompt of a scripted episode, and which row of `ERRORS` they call for."""
    general = [skill for skill in skills if skill.always]
    own = [skill for skill in skills if task_type in skill.task_types]
    others = [skill for skill in skills if not skill.always and skill not in own]
    [kind] = rng.choices(["none", "own skills", "other skills"], [0.3, 0.5, 0.2])
    if kind == "none":
        return "", kind
    if kind == "own skills":
        return format_skills([*general, *own]), kind
    chosen: list[Skill] = rng.sample(others, rng.randint(0, 2))
    return format_skills([*general, *chosen]), kind


def played_rows(
    env: Any,
    task: dict[str, Any],
    respond: Callable[[str], str | None],
    chat: Chat,
    context: str = "",
    history: History = growing,
    max_turns: int = MAX_TURNS,
) -> list[tuple[list[int], list[int]]]:
    """
    An episode of a scripted player, as rows to learn from.

    Args:
        env (`object`):
            The environment.
        task (`dict`):
            A row of its dataset.
        respond (`Callable[[str], str or None]`):
            The player: its response to an observation, `None` if it gives up.
        chat ([`Chat`]):
            Renders the conversation.
        context (`str`, *optional*, defaults to `""`):
            What is added to the prompt.
        history (`History`, *optional*, defaults to [`growing`]):
            What the player reads in each turn.
        max_turns (`int`, *optional*, defaults to `MAX_TURNS`):
            Most turns.

    Returns:
        `list[tuple[list[int], list[int]]]`: of each row, its ids, and 1 for those of responses.
    """
    observation = env.reset(**task)
    episode = Episode(task, with_observation(task["prompt"], observation))
    rows: list[tuple[list[int], list[int]]] = []
    response: list[int] = []
    while len(episode.turns) < max_turns and (text := respond(observation)) is not None:
        messages = history(episode, observation)
        if messages is None:
            read = chat.observation_ids(observation, response)
        else:
            read = chat.prompt_ids(chat.with_context(messages, context))
            rows.append(([], []))
        response = [*chat.tokenizer(text, add_special_tokens=False)["input_ids"], chat.end_of_turn_id]
        ids, mask = rows[-1]
        rows[-1] = ids + read + response, mask + [0] * len(read) + [1] * len(response)
        episode.turns.append(Turn(observation, read, response, text))
        step = env.step(text)
        if step.terminated:
            break
        observation = step.observation
    return rows


def scripted_episode(
    env: WebShopEnv,
    task: dict[str, Any],
    skills: SkillLibrary,
    chat: Chat,
    rng: random.Random,
    history: History = growing,
) -> list[tuple[list[int], list[int]]]:
    """
    Play one scripted episode.

    Args:
        env ([`WebShopEnv`]):
            The environment.
        task (`dict`):
            A row of its dataset.
        skills ([`SkillLibrary`]):
            Skills that may be in the prompt.
        chat ([`Chat`]):
            Renders the conversation.
        rng (`random.Random`):
            Draws prompt and errors.
        history (`History`, *optional*, defaults to [`growing`]):
            What the player reads in each turn.

    Returns:
        `list[tuple[list[int], list[int]]]`: as [`played_rows`].
    """
    context, kind = scripted_context(skills, task["task_type"], rng)
    return played_rows(env, task, lambda _: scripted_response(env, ERRORS[kind], rng), chat, context, history)
