"""Means with 95% intervals, over tasks and over runs."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import comb
from scipy.stats import binomtest, bootstrap
from scipy.stats import t as student_t

from ..envs.border import plain


RESAMPLES = 4999


@dataclass(frozen=True)
class Estimate:
    """
    A mean and its 95% interval.

    Args:
        mean (`float`):
            The mean.
        ci_low (`float`):
            Lower end of the interval; NaN where nothing can be said, as of a single task.
        ci_high (`float`):
            Upper end.
    """

    mean: float
    ci_low: float
    ci_high: float

    def to_dict(self) -> dict[str, Any]:
        """As a dictionary, for JSON; NaN is `None`."""
        return plain(asdict(self))


def wilson(successes: int, count: int) -> Estimate:
    """A share of independent trials, with Wilson's interval."""
    interval = binomtest(successes, count).proportion_ci(0.95, method="wilson")
    return Estimate(successes / count, float(interval.low), float(interval.high))


def over_tasks(tries: Sequence[Sequence[float]], share: bool = False) -> Estimate:
    """
    The mean over tasks of each task's mean.

    The interval is for other tasks of the kind. It is the BCa bootstrap of the tasks' means: tasks are drawn again,
    each with all its tries, since tries of one task resemble each other.

    Args:
        tries (`list[list[float]]`):
            The values of each task's tries.
        share (`bool`, *optional*, defaults to `False`):
            Whether values are 0 or 1. Then single tries have Wilson's interval, and so have, counted as one try each,
            tasks that all have the same mean, from which a bootstrap would conclude that there are no others.

    Returns:
        [`Estimate`]: the mean, and its interval.
    """
    means = np.array([np.mean(values) for values in tries])
    mean, same = float(means.mean()), bool(np.ptp(means) == 0)
    if share and (all(len(values) == 1 for values in tries) or same and mean in (0, 1)):
        return wilson(round(means.sum()), len(means))
    if len(means) == 1:
        return Estimate(mean, float("nan"), float("nan"))
    if same:
        return Estimate(mean, mean, mean)
    interval = bootstrap((means,), np.mean, n_resamples=RESAMPLES, rng=np.random.default_rng(0)).confidence_interval
    return Estimate(mean, float(interval.low), float(interval.high))


def over_runs_and_tasks(values: np.ndarray) -> Estimate:
    """
    The mean of a table of runs by tasks, both drawn from many.

    The interval is for other seeds of the training and other tasks. Its variance is the two-way clustered one
    (Cameron, Gelbach and Miller, 2011): that of the runs' means, plus that of the tasks' means, less what is in both.
    Student's t has the degrees of freedom of Welch and Satterthwaite, so few runs have a wide interval.

    Args:
        values (`np.ndarray`):
            Shape (runs, tasks); of each run and task the mean over its tries. With one run, the interval is that of
            [`over_tasks`], and says nothing of other runs.

    Returns:
        [`Estimate`]: the mean, and its interval.
    """
    runs, tasks = values.shape
    if runs == 1 or tasks == 1:
        return over_tasks(values.reshape(-1, 1).tolist())
    mean, by_run, by_task = values.mean(), values.mean(1), values.mean(0)
    rest = values - by_run[:, None] - by_task + mean
    of_runs, of_tasks = by_run.var(ddof=1) / runs, by_task.var(ddof=1) / tasks
    of_both = (rest**2).sum() / ((runs - 1) * (tasks - 1)) / (runs * tasks)
    # either part alone is a lower bound, and an estimate of a difference may fall below it
    variance = max(of_runs + of_tasks - of_both, of_runs, of_tasks)
    if variance == 0:
        return Estimate(float(mean), float(mean), float(mean))
    parts = ((of_runs, runs - 1), (of_tasks, tasks - 1), (of_both, (runs - 1) * (tasks - 1)))
    freedom = variance**2 / sum(part**2 / own for part, own in parts)
    half = student_t.ppf(0.975, freedom) * variance**0.5
    return Estimate(float(mean), float(mean - half), float(mean + half))


def pass_at(k: int, tries: int, wins: int) -> float:
    """Probability that at least one of `k` of a task's tries, drawn without replacement, is among its `wins`."""
    return 1 - float(comb(tries - wins, k) / comb(tries, k))
