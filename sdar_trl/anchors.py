"""GiGPO's advantage of a step: against the steps that other episodes of the group took from the same state.

Source of the formulas: "Group-in-Group Policy Optimization for LLM Agent Training" (arXiv 2505.10978).
"""

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean, stdev

import torch

from .episodes import Episode, StopReason
from .losses import turn_numbers


Step = tuple[str, float]
"""The observation a turn responds to, by which the environment's state is known, and the discounted return from it."""


def episode_steps(episode: Episode, discount: float, invalid_action_penalty: float) -> list[Step]:
    """
    The steps of an episode, with what followed each: `R_k = sum_{j >= k} discount^(j - k) * r_j`.

    Args:
        episode ([`Episode`]):
            A finished episode.
        discount (`float`):
            Per turn.
        invalid_action_penalty (`float`):
            Subtracted from the reward of a turn without a legal action.

    Returns:
        `list[tuple]`: one a turn; none if the environment failed: who knows what would have followed.
    """
    if episode.stop_reason is StopReason.ENV_ERROR:
        return []
    steps: list[Step] = []
    following = 0.0
    for turn in reversed(episode.turns):
        following = turn.reward - invalid_action_penalty * (not turn.valid) + discount * following
        steps.append((turn.observation, following))
    return steps[::-1]


def step_advantages(
    episodes: Sequence[Sequence[Step]], group_size: int, scale: bool
) -> tuple[list[list[float]], list[list[bool]]]:
    """
    How much more came of each step than of all the group's steps from the same observation (its anchor group G):
    `A_k = (R_k - mean(R in G)) / (std(R in G) + 1e-4)`. A step that has no other to be compared with has 0.

    Args:
        episodes (`list[list[tuple]]`):
            The steps of each episode of all processes, the episodes of a task following each other.
        group_size (`int`):
            Episodes of a task.
        scale (`bool`):
            Whether to divide by the standard deviation.

    Returns:
        `tuple`: of each step of each episode its advantage, and whether another has its observation.
    """
    anchors: defaultdict[tuple[int, str], list[float]] = defaultdict(list)
    for index, steps in enumerate(episodes):
        for observation, following in steps:
            anchors[index // group_size, observation].append(following)

    def advantage(value: float, group: list[float]) -> float:
        if len(group) == 1:
            return 0.0
        return (value - fmean(group)) / (stdev(group) + 1e-4 if scale else 1.0)

    groups = [[anchors[index // group_size, seen] for seen, _ in steps] for index, steps in enumerate(episodes)]
    found = [
        [advantage(value, group) for (_, value), group in zip(steps, of_steps, strict=True)]
        for steps, of_steps in zip(episodes, groups, strict=True)
    ]
    return found, [[len(group) > 1 for group in of_steps] for of_steps in groups]


def at_tokens(values: Sequence[Sequence[float]], rows: torch.Tensor, sampled: torch.Tensor) -> torch.Tensor:
    """
    What is known of turns, at the tokens that the policy sampled in them.

    Args:
        values (`list[list[float]]`):
            Of each turn of each episode; an episode without any has 0.
        rows (`torch.Tensor`):
            Which turns each row holds, as [`~sdar_trl.rows.row_turns`] says, shape (B, 3).
        sampled (`torch.Tensor`):
            1 for these tokens, shape (B, T).

    Returns:
        `torch.Tensor`: the values, 0 at other tokens, shape (B, T).
    """
    most = max(1, *map(len, values))
    table = torch.tensor([[*turns, *[0.0] * (most - len(turns))] for turns in values], device=sampled.device)
    turns = (rows[:, 1:2].clamp(min=0) + turn_numbers(sampled)).clamp(max=most - 1)
    return table[rows[:, 0].clamp(min=0)].gather(1, turns) * sampled
