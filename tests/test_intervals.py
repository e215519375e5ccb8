"""Intervals have the level they claim, by simulation against known distributions."""

import itertools
import math

import numpy as np
import pytest

from sdar_trl.evaluation.intervals import over_runs_and_tasks, over_tasks, pass_at


def coverage(draw, estimate, truth, rounds):
    """Share of simulated data sets whose interval holds the truth."""
    rng = np.random.default_rng(0)
    found = [estimate(draw(rng)) for _ in range(rounds)]
    return np.mean([one.ci_low <= truth <= one.ci_high for one in found])


def test_the_bootstrap_over_tasks_covers_the_mean_of_skewed_values():
    share = coverage(lambda rng: rng.exponential(size=(100, 1)).tolist(), over_tasks, 1.0, 400)
    assert 0.91 <= share <= 0.98


def test_tries_of_one_task_resemble_each_other_and_the_interval_knows_it():
    def tasks(rng):  # each task is won with a probability of its own, uniform on [0, 1]
        return (rng.random((64, 8)) < rng.random((64, 1))).astype(float).tolist()

    assert 0.92 <= coverage(tasks, lambda tries: over_tasks(tries, share=True), 0.5, 400) <= 0.98
    # as if all tries were tasks, it would be too narrow
    apart = coverage(tasks, lambda tries: over_tasks([[one] for t in tries for one in t], share=True), 0.5, 400)
    assert apart < 0.85


def test_single_tries_of_shares_have_an_interval_that_covers():
    share = coverage(
        lambda rng: (rng.random((50, 1)) < 0.1).astype(float).tolist(), lambda t: over_tasks(t, True), 0.1, 2000
    )
    assert 0.93 <= share <= 0.98


@pytest.mark.parametrize(
    ("of_runs", "of_tasks", "of_both"), [(0.1, 0.0, 0.3), (0.0, 0.4, 0.2), (0.05, 0.3, 0.3), (0, 0, 0.4)]
)
@pytest.mark.parametrize("runs", [3, 5])
def test_the_interval_over_runs_and_tasks_covers_whatever_varies(of_runs, of_tasks, of_both, runs):
    def table(rng):
        return (
            0.2
            + of_runs * rng.standard_normal((runs, 1))
            + of_tasks * rng.standard_normal((1, 60))
            + of_both * rng.standard_normal((runs, 60))
        )

    assert coverage(table, over_runs_and_tasks, 0.2, 2000) >= 0.93


def test_the_interval_over_runs_and_tasks_is_students_where_tasks_do_not_differ():
    values = np.array([[0.1], [0.2], [0.6]]) + np.zeros((1, 50))
    found = over_runs_and_tasks(values)
    half = 4.302652729911275 * values[:, 0].std(ddof=1) / math.sqrt(3)  # t at 0.975 with 2 degrees of freedom
    assert (found.mean, found.ci_low, found.ci_high) == pytest.approx((0.3, 0.3 - half, 0.3 + half))


def test_one_run_has_the_interval_over_tasks():
    values = np.random.default_rng(1).random((1, 30))
    assert over_runs_and_tasks(values) == over_tasks([[one] for one in values[0]])


def test_every_task_weighs_alike_whatever_the_number_of_its_tries():
    assert over_tasks([[1.0] * 9, [0.0]]).mean == 0.5


def test_the_same_values_have_the_same_interval():
    values = np.random.default_rng(2).random((20, 2)).tolist()
    assert over_tasks(values) == over_tasks(values)


def test_what_nothing_can_be_said_of_has_no_interval_and_json_has_null():
    found = over_tasks([[0.5, 0.7]])
    assert found.mean == pytest.approx(0.6) and math.isnan(found.ci_low)
    assert found.to_dict() == {"mean": found.mean, "ci_low": None, "ci_high": None}


def test_tasks_that_are_all_won_leave_room_for_others():
    found = over_tasks([[1.0, 1.0]] * 20, share=True)
    assert found.mean == found.ci_high == 1 and found.ci_low == pytest.approx(20 / (20 + 1.959963984540054**2))


@pytest.mark.parametrize(("tries", "wins", "k"), [(5, 2, 2), (6, 0, 3), (4, 4, 2), (5, 3, 5)])
def test_pass_at_k_is_the_share_of_draws_with_a_win(tries, wins, k):
    draws = list(itertools.combinations([True] * wins + [False] * (tries - wins), k))
    assert pass_at(k, tries, wins) == pytest.approx(sum(map(any, draws)) / len(draws))
