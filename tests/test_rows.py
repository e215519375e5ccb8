"""Rows follow from an episode's data, and add up to it."""

import pytest
import torch

from sdar_trl import Episode, StopReason, Turn
from sdar_trl.rows import episode_rows, micro_batches, padded_count, record_tokens, row_turns, rows_batch


FRESH = [{"role": "user", "content": "anew"}]


def episode(*turns, stop_reason=StopReason.WON):
    """Turns by (ids read, ids said, whether they were rendered anew)."""
    made = [
        Turn("", read, said, "", FRESH if fresh else None, logprobs=[-1.0] * len(said)) for read, said, fresh in turns
    ]
    return Episode({}, [{"role": "user", "content": "go"}], made, stop_reason)


def contents(one):
    return [(row.prompt_ids, row.completion_ids, row.mask) for row in episode_rows(one, 0)]


def test_a_history_that_only_grows_is_one_row():
    assert contents(episode(([1, 2], [3], True), ([4], [5, 6], False), ([7], [8], False))) == [
        ([1, 2], [3, 4, 5, 6, 7, 8], [1, 0, 1, 1, 0, 1])
    ]


def test_a_history_that_is_always_fresh_is_one_row_a_turn():
    assert contents(episode(([1, 2], [3], True), ([1, 4], [5, 6], True))) == [
        ([1, 2], [3], [1]),
        ([1, 4], [5, 6], [1, 1]),
    ]


def test_a_rewrite_in_the_middle_begins_a_new_row_and_the_others_go_on():
    turns = ([1], [2], True), ([3], [4], False), ([9, 9], [5], True), ([6], [7], False)
    assert contents(episode(*turns)) == [([1], [2, 3, 4], [1, 0, 1]), ([9, 9], [5, 6, 7], [1, 0, 1])]


def test_the_messages_of_a_row_are_those_its_prompt_was_rendered_from():
    one = episode(([1], [2], True), ([3], [4], False), ([9], [5], True))
    one.turns[0].messages = None  # nothing said: the episode's own
    assert [row.messages for row in episode_rows(one, 0)] == [one.prompt, FRESH]


def test_a_failed_episode_has_one_row_that_trains_nothing():
    turns = ([1], [2], True), ([3], [4], True)
    assert contents(episode(*turns, stop_reason=StopReason.ENV_ERROR)) == [([3], [4], [0])]
    assert contents(episode(stop_reason=StopReason.ENV_ERROR)) == [([0], [0], [0])]


def test_observations_have_no_log_probs():
    [row] = episode_rows(episode(([1, 2], [3], True), ([4], [5, 6], False)), 0)
    assert row.logprobs == [-1.0, 0.0, -1.0, -1.0]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("most", [1, 4, 5, 9, 23, 64])
def test_the_padded_count_splits_into_equal_parts_that_fit_and_wastes_less_than_one_row_a_part(
    most, steps, batch_size
):
    count = padded_count(most, steps, batch_size)
    assert count % steps == 0 and count >= most
    parts = -(-(count // steps) // batch_size)
    assert (count // steps) % parts == 0 and count // steps // parts <= batch_size
    assert count - most < steps * parts


def test_a_batch_of_rows_keeps_every_token_and_masks_what_fills_it_up():
    one = episode(([1, 2], [3, 3], True), ([4], [5], True))
    rows = episode_rows(one, 0)
    batch = rows_batch(rows, row_turns(rows, [one]), torch.tensor([0.5]), 3, pad_token_id=0)
    assert batch["prompt_ids"].tolist() == [[1, 2], [0, 4], [0, 0]]
    assert batch["completion_ids"].tolist() == [[3, 3], [5, 0], [0, 0]]
    assert batch["completion_mask"].tolist() == [[1, 1], [1, 0], [0, 0]]
    assert batch["advantages"].tolist() == [0.5, 0.5, 0.0]
    assert batch["row_turns"].tolist() == [[0, 0, 1], [0, 1, 1], [-1, -1, -1]]
    assert (batch["completion_mask"] * batch["tool_mask"]).sum() == 3
    assert batch["prompt_mask"].sum(1).min() == 1  # a row without anything to attend to would be NaN


def test_micro_batches_hold_every_row_once_those_of_like_length_together():
    episodes = [episode(([1], [2] * (n + 1), True)) for n in range(5)]
    rows = [row for one in episodes for row in episode_rows(one, 0)]
    batch = rows_batch(rows, row_turns(rows, episodes), torch.zeros(5), 6, pad_token_id=0)
    batch |= {"num_items_in_batch": torch.tensor(15), "row_weight": torch.tensor(6 / 5)}
    parts = micro_batches(batch, 4, "grpo")
    assert [part["row_turns"][:, 0].tolist() for part in parts] == [[-1, 0, 1], [2, 3, 4]]
    assert sum(part["num_items_in_batch"] for part in parts) == 15
    weights = torch.stack([part["loss_weight"] for part in micro_batches(batch, 4, "bnpo")])
    torch.testing.assert_close(weights, 2 * torch.tensor([3 / 15, 12 / 15]))


def test_what_is_found_at_a_token_goes_to_the_turn_that_sampled_it_and_stays():
    one = episode(([1, 2], [3], True), ([4], [5, 6], False), ([9], [7, 7], True))
    rows = episode_rows(one, 0)
    batch = rows_batch(rows, row_turns(rows, [one]), torch.zeros(1), 3, pad_token_id=0)
    batch["teacher_mask"] = torch.tensor([[1.0], [0.0], [0.0]])
    values = torch.arange(12.0).view(3, 4)
    order = [2, 1, 0]  # TRL shuffles
    shuffled = {name: value[order] for name, value in batch.items()}
    record_tokens([one], shuffled, {"entropies": values, "gaps": values, "gates": values})
    record_tokens([one], shuffled, {"entropies": values + 50, "gaps": values + 50, "gates": values + 50})
    assert [turn.entropies for turn in one.turns] == [[8.0], [10.0, 11.0], [4.0, 5.0]]
    assert [turn.gaps for turn in one.turns] == [[8.0], [10.0, 11.0], None]  # no teacher read the second row
