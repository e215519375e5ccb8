"""Episodes that do not wait for each other, against the same played turn by turn. (vLLM itself: tests/with_vllm.)"""

import time
from contextlib import nullcontext

import pytest
import torch
from toys import PROCESS_FAULTS, CountingEnv, FaultyProcessEnv, OneByOne, ProcessEnv, ThreadEnv
from transformers import AutoModelForCausalLM, GenerationConfig

from sdar_trl.chat import Chat
from sdar_trl.generation import CachedGenerator
from sdar_trl.rollout import Rollout


LENGTHS = (6, 1, 4, 2, 3, 1)


@pytest.fixture(scope="module")
def greedy(random_model_folder, tokenizer):
    """A model that decodes greedily, some responses shorter than others."""
    model = AutoModelForCausalLM.from_pretrained(random_model_folder)
    stop = list(range(0, len(tokenizer), 7))
    config = GenerationConfig(
        max_new_tokens=8, eos_token_id=[tokenizer.eos_token_id, *stop], pad_token_id=0, do_sample=False
    )
    return CachedGenerator(lambda: nullcontext(model), config, reuse_cache=False)


def one(generator):
    """A response to a single row, for [`OneByOne`]."""
    return lambda ids, seed: (generator.generate([ids])[0][0], [-0.5])


@pytest.fixture
def make(tokenizer):
    rollouts = []

    def make(backend, factory=CountingEnv, **options):
        options = {"max_turns": 5, "max_response_length": 8, "max_completion_length": 70, **options}
        rollouts.append(Rollout(factory, Chat(tokenizer), backend, **options))
        return rollouts[-1]

    yield make
    for rollout in rollouts:
        rollout.close()


def played(rollout, tasks, **changes):
    return rollout.play([{**tasks[0], "length": length, **changes} for length in LENGTHS])


def told(episodes):
    """All of an episode but its times and log-probs."""
    return [
        (
            e.stop_reason,
            e.episode_return,
            e.success,
            e.error,
            [(t.observation, t.new_ids, t.response_ids) for t in e.turns],
        )
        for e in episodes
    ]


@pytest.mark.parametrize("history", ["growing", "window"])
@pytest.mark.parametrize("factory", [CountingEnv, ProcessEnv])
@pytest.mark.parametrize("order", [0, 1])
def test_greedy_episodes_are_those_of_the_loop_that_plays_turn_by_turn(greedy, make, tasks, history, factory, order):
    options = {"factory": factory, "history": history, "history_window": 1}
    by_turn = played(make(greedy, **options), tasks)
    freely = played(make(OneByOne(one(greedy), order), **options), tasks)
    assert {e.stop_reason.value for e in by_turn} >= {"max_turns" if history == "window" else "length"}
    assert len({len(e.turns) for e in by_turn}) > 2  # they end at different times
    assert told(freely) == told(by_turn)


@pytest.mark.parametrize("fails_at", [0, 1, 2])
def test_an_environment_that_fails_costs_its_own_episode(greedy, make, tasks, fails_at, caplog):
    rows = [{**tasks[0], "length": n, "fails_at": fails_at if place == 2 else None} for place, n in enumerate(LENGTHS)]
    by_turn, freely = make(greedy).play(rows), make(OneByOne(one(greedy))).play(rows)
    assert [e.stop_reason.value for e in freely].count("env_error") == 1
    assert told(freely) == told(by_turn)


@pytest.mark.parametrize("fault", PROCESS_FAULTS)
def test_whatever_a_process_does_ends_its_own_episode_alone(tokenizer, make, tasks, fault, caplog):
    response = tokenizer("e<|im_end|>", add_special_tokens=False)["input_ids"]
    rollout = make(OneByOne(lambda ids, seed: (response, None)), FaultyProcessEnv, max_completion_length=150)
    rows = [{**tasks[0], "length": 3, "fault": fault if place == 1 else None} for place in range(3)]
    episodes = [e for _ in range(2) for e in rollout.play(rows)]
    assert [e.stop_reason.value == "env_error" for e in episodes] == [False, True, False] * 2
    assert all(len(e.turns) == 3 for e in episodes if not e.error)


def test_an_episode_goes_on_while_the_environment_of_another_is_slow(tokenizer, make, tasks):
    response = tokenizer("e<|im_end|>", add_special_tokens=False)["input_ids"]
    answered = []

    class Slow(CountingEnv):
        parallel = "thread"

        def reset(self, *, seconds=0.0, **task):
            self.seconds = seconds
            return super().reset(**task)

        def step(self, text):
            time.sleep(self.seconds)
            answered.append(self.seconds)
            return super().step(text)

    rows = [{**tasks[0], "length": 4, "seconds": seconds} for seconds in (1.0, 0.01)]
    rollout = make(OneByOne(lambda ids, seed: (response, None)), Slow)
    slow, quick = rollout.play(rows)
    assert answered[:4] == [0.01] * 4  # all four turns, before the other's first
    assert slow.success and quick.success
    assert slow.turns[0].environment_seconds >= 1.0 > quick.turns[0].environment_seconds
    assert rollout.seconds["environment"] >= 3.0 > rollout.seconds["generation"]


def test_environments_wait_side_by_side(tokenizer, make, tasks):
    response = tokenizer("e<|im_end|>", add_special_tokens=False)["input_ids"]
    rollout = make(OneByOne(lambda ids, seed: (response, None)), ThreadEnv)
    began = time.perf_counter()
    rollout.play([{**tasks[0], "length": 2}] * 8)  # sixteen turns of 0.3 seconds
    assert time.perf_counter() - began < 8 * 2 * 0.3 / 2


def test_each_response_has_a_seed_that_no_order_changes(tokenizer, make, tasks):
    def sampled(ids, seed):
        torch.manual_seed(hash(seed) % 2**31)
        return [*torch.randint(10, 100, (3,)).tolist(), tokenizer.eos_token_id], None

    def play(order, seed):
        torch.manual_seed(seed)
        backend = OneByOne(sampled, order)
        return told(played(make(backend), tasks)), backend.log[1:-1]

    (first, seeds), (second, others) = play(0, 5), play(1, 5)
    assert first == second and seeds != others and sorted(seeds) == sorted(others)
    assert len(set(seeds)) == len(seeds)
    assert play(0, 6)[0] != first


def test_given_seeds_are_the_episodes_own(tokenizer, make, tasks):
    response = tokenizer("e<|im_end|>", add_special_tokens=False)["input_ids"]
    backend = OneByOne(lambda ids, seed: (response, None))
    make(backend).play([{**tasks[0], "length": 2}] * 2, seeds=[7, 8])
    assert sorted(backend.log[1:-1]) == [(7, 0), (7, 1), (8, 0), (8, 1)]


def test_logprobs_stay_with_their_tokens(make, tasks):
    backend = OneByOne(lambda ids, seed: ([len(ids)], [-float(len(ids))]))
    for episode in played(make(backend), tasks):
        assert all(turn.logprobs == [-float(n) for n in turn.response_ids] for turn in episode.turns)


def test_the_backend_begins_and_ends_once_even_when_nothing_can_be_played(make, tasks, caplog):
    backend = OneByOne(lambda ids, seed: ([1], None))
    rollout = make(backend)
    played(rollout, tasks)
    assert backend.log[0] == "begin" and backend.log[-1] == "end" and backend.log.count("begin") == 1
    backend.log.clear()
    episodes = played(rollout, tasks, fails_at=0)
    assert backend.log == ["begin", "end"] and all(e.stop_reason.value == "env_error" for e in episodes)


def test_an_exception_of_the_backend_leaves_nothing_asked(make, tasks):
    def broken(ids, seed):
        raise RuntimeError("out of memory")

    backend = OneByOne(broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        played(make(backend), tasks)
    assert backend.asked == [] and backend.log[-1] == "end"
