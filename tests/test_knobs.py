"""Options that descendants of the method found: each against a reference of its own."""

from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig
from steps import gradients, scored_batch
from toys import CountingEnv

from sdar_trl.anchors import episode_steps, step_advantages
from sdar_trl.batching import RowsGRPOTrainer
from sdar_trl.distillation import chosen_episodes
from sdar_trl.episodes import Episode, StopReason, Turn
from sdar_trl.losses import normalized_credit, rlsd_advantages, turn_means
from sdar_trl.rows import episode_rows, sampled_tokens
from sdar_trl.teacher import next_other


# Granularity


def means_by_turn(values, sampled):
    """Turn by turn, in plain Python."""
    found = [[0.0] * len(row) for row in values]
    for row, mask in enumerate(sampled):
        turn = []
        for place in range(len(mask) + 1):
            if place < len(mask) and mask[place]:
                turn.append(place)
            else:
                for one in turn:
                    found[row][one] = sum(values[row][other] for other in turn) / len(turn)
                turn = []
    return found


@pytest.mark.parametrize("seed", range(5))
def test_a_turns_mean_is_that_of_its_sampled_tokens(seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(6, 40, generator=generator, dtype=torch.float64)
    sampled = (torch.rand(6, 40, generator=generator) < 0.7).long()
    sampled[0], sampled[1] = 1, 0
    expected = torch.tensor(means_by_turn(values.tolist(), sampled.tolist()), dtype=torch.float64)
    torch.testing.assert_close(turn_means(values, sampled), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"history": "window", "history_window": 1}])
def test_with_granularity_turn_the_gate_is_that_of_the_turns_mean_gap(make_trainer, make_config, options):
    episodes = {}
    for granularity in ("token", "turn"):
        torch.manual_seed(0)
        trainer = make_trainer(make_config(sdar_coef=0.5, granularity=granularity, max_steps=1, **options))
        trainer.train()
        episodes[granularity] = trainer.episodes
    for by_token, by_turn in zip(*episodes.values(), strict=True):
        for token, turn in zip(by_token.turns, by_turn.turns, strict=True):
            assert token.response_ids == turn.response_ids and len(set(token.gaps)) > 1
            mean = torch.tensor(token.gaps, dtype=torch.float64).mean()
            torch.testing.assert_close(turn.gaps, [float(mean)] * len(turn.gaps), rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(turn.gates[0], float(torch.sigmoid(5 * mean)), rtol=1e-3, atol=1e-5)


def test_with_granularity_turn_advantages_move_by_the_turns_mean_gap(make_trainer, make_config):
    found = {}
    for granularity in ("token", "turn"):
        torch.manual_seed(0)
        trainer = make_trainer(make_config(method="rlsd", granularity=granularity))
        found[granularity] = inputs = scored_batch(trainer)
        own = inputs["advantages"]
    mask = sampled_tokens(inputs)
    old = trainer._student_logps(inputs)
    gap = means_by_turn((inputs["teacher_per_token_logps"] - old).double().tolist(), mask.tolist())
    assert not torch.equal(found["token"]["advantages"], own)
    advantages = own.new_tensor([e.episode_return for e in trainer.episodes])
    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-4)
    expected = rlsd_advantages(advantages, own.new_tensor(gap), 0.5, 0.2, inputs["teacher_mask"])
    torch.testing.assert_close(own * mask, expected.float() * mask, rtol=1e-3, atol=1e-5)


# Credit within the episode


def normalized_factors(episodes, clip):
    """By the formula, episode by episode, in float64. Of each episode: the signed gap of each sampled token."""
    found = []
    for signed in episodes:
        z = (np.array(signed) - np.mean(signed)) / (np.std(signed) + 1e-4)
        found.append(np.clip(1 + clip * z, 1 - clip, 1 + clip))
    return found


@pytest.mark.parametrize("granularity", ["token", "turn"])
@pytest.mark.parametrize("history", [{}, {"history": "window", "history_window": 1}])
def test_normalized_credit_is_dealt_out_within_each_episode(make_trainer, make_config, tasks, history, granularity):
    options = {"method": "rlsd", "granularity": granularity, "advantage_clip": 0.3, "sdar_coef": 0.8}
    torch.manual_seed(0)
    trainer = make_trainer(make_config(credit="normalized", **options, **history))
    inputs = scored_batch(trainer, rows=[dict(tasks[2])] * 4)  # of three turns
    plain = make_trainer(make_config(method="grpo", **history))
    own = scored_batch(plain, rows=[dict(tasks[2])] * 4)["advantages"]
    mask, places = sampled_tokens(inputs).bool(), inputs["row_turns"][:, 0]
    gaps = (inputs["teacher_per_token_logps"] - trainer._student_logps(inputs)).double()
    if granularity == "turn":
        gaps = torch.tensor(means_by_turn(gaps.tolist(), mask.tolist()), dtype=torch.float64)
    signed = torch.sign(own).unsqueeze(1) * gaps
    episodes = [signed[places == e][mask[places == e]].numpy() for e in range(len(trainer.episodes))]
    factors = normalized_factors(episodes, 0.3)
    for e, factor in enumerate(factors):
        advantage = own[places == e][0].item()
        found = inputs["advantages"][places == e][mask[places == e]]
        np.testing.assert_allclose(found, advantage * (0.2 + 0.8 * factor), rtol=2e-3, atol=1e-4)
        assert (torch.sign(found) == np.sign(advantage)).all()
    assert any(len(set(factor.round(3))) > 1 for factor in factors)


def test_the_same_gap_everywhere_moves_no_normalized_credit():
    tokens, episodes = torch.ones(3, 4), torch.tensor([0, 0, -1])
    assert torch.equal(normalized_credit(torch.full((3, 4), -1.5), 0.2, tokens, episodes), torch.ones(3, 4))


# Which episodes are distilled


class Paying(CountingEnv):
    """Pays by the task: the same for all of a group, or as it comes; and only some are won."""

    def reset(self, *, task_type, **task):
        self.same = task_type == "even"
        return super().reset(task_type=task_type, **task)

    def step(self, response):
        step = super().step(response)
        won = step.reward % 2 == 1
        info = {"success": won} if step.terminated else {}
        return type(step)(step.observation, 0.1 if self.same else step.reward, step.terminated, False, True, info)


@pytest.mark.parametrize("history", [{}, {"history": "window", "history_window": 1}])
@pytest.mark.parametrize("distill_on", ["failed", "no_signal"])
def test_only_the_chosen_episodes_are_distilled(make_trainer, make_config, distill_on, history):
    options = {"sdar_coef": 0.5, "per_device_train_batch_size": 8, **history}
    trainers = {}
    for choice in ("all", distill_on):
        torch.manual_seed(0)
        trainers[choice] = make_trainer(make_config(distill_on=choice, **options), environment_factory=Paying)
    every, some = (scored_batch(trainer, count=8) for trainer in trainers.values())
    episodes = trainers["all"].episodes
    chosen = {
        "failed": [not episode.success for episode in episodes],
        "no_signal": [episode.task["task_type"] == "even" for episode in episodes],
    }[distill_on]
    assert 0 < sum(chosen) < len(chosen)
    places = every["row_turns"][:, 0].tolist()
    wanted = every["teacher_mask"].new_tensor([[float(place >= 0 and chosen[place])] for place in places])
    torch.testing.assert_close(some["teacher_mask"], every["teacher_mask"] * wanted)
    expected = gradients(trainers["all"], {**every, "teacher_mask": wanted})
    found = gradients(trainers[distill_on], some)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    distilled = trainers[distill_on]._metrics["train"]["sdar/distilled"]
    assert sum(distilled) / len(distilled) == sum(chosen) / len(chosen)
    for episode, kept in zip(trainers[distill_on].episodes, chosen, strict=True):
        assert all((turn.gaps is not None) == kept for turn in episode.turns)


def test_a_group_of_which_an_environment_failed_is_told_by_the_others():
    episodes = [SimpleNamespace(error="" if place != 2 else "raised", success=False) for place in range(8)]
    advantages = torch.tensor([3e-5, 3e-5, 0.0, 3e-5, 0.5, -0.5, 0.0, 0.0])
    process = SimpleNamespace(gather=lambda values: values, process_index=0)
    found = chosen_episodes("no_signal", episodes, advantages, 4, process)
    assert found.tolist() == [1, 1, 1, 1, 0, 0, 0, 0, 0]


def test_groups_reach_over_processes():
    """Two processes of two episodes each, a group of four."""
    whole = torch.tensor([0.0, 0.0, 0.0, 1.0])
    for index in range(2):
        own = whole[2 * index : 2 * index + 2]
        process = SimpleNamespace(
            gather=lambda values: whole,
            process_index=index,
        )
        episodes = [SimpleNamespace(error="", success=True)] * 2
        assert chosen_episodes("no_signal", episodes, own, 4, process).tolist() == [0, 0, 0]
        assert chosen_episodes("no_signal", episodes, own, 2, process).tolist() == [1 - index] * 2 + [0]


@pytest.mark.parametrize(
    ("name", "values"),
    [("granularity", "token, turn"), ("distill_on", "all, failed, no_signal"), ("credit", "exp, normalized")],
)
def test_an_unknown_choice_is_told(make_config, name, values):
    with pytest.raises(ValueError, match=f"`{name}` must be one of {values}"):
        make_config(**{name: "x"})


# GiGPO


class Revisiting(CountingEnv):
    """Says again where one was after each third response, so that states are met again, also within an episode."""

    def reset(self, *, length, **task):
        self.place = 0
        return super().reset(length=4, **task)

    def step(self, response):
        step = super().step(response)
        self.place += len(response) % 2
        return type(step)(f"at {self.place}", len(response) / 10, step.terminated, False, len(response) % 3 > 0)


def gigpo_reference(trainer, group_size, discount, penalty, weight):
    """The advantage of each turn of each episode, by the paper's formulas, in float64."""
    found = []
    for start in range(0, len(trainer.episodes), group_size):
        group = trainer.episodes[start : start + group_size]
        rewards = [[turn.reward - penalty * (not turn.valid) for turn in episode.turns] for episode in group]
        totals = np.array([sum(of_episode) for of_episode in rewards])
        episode_advantages = (totals - totals.mean()) / (totals.std(ddof=1) + 1e-4)
        states = {}
        for episode, of_episode in zip(group, rewards, strict=True):
            for k, turn in enumerate(episode.turns):
                after = sum(discount**j * reward for j, reward in enumerate(of_episode[k:]))
                states.setdefault(turn.observation, []).append(after)
        for advantage, episode, of_episode in zip(episode_advantages, group, rewards, strict=True):
            of_turns = []
            for k, turn in enumerate(episode.turns):
                after = sum(discount**j * reward for j, reward in enumerate(of_episode[k:]))
                same = np.array(states[turn.observation])
                step = (after - same.mean()) / (same.std(ddof=1) + 1e-4) if len(same) > 1 else 0.0
                of_turns.append(advantage + weight * step)
            found.append(of_turns)
    return found


@pytest.mark.parametrize("history", [{}, {"history": "window", "history_window": 1}])
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_gigpo_gives_each_turn_the_advantage_of_its_state_too(make_trainer, make_config, history, weight):
    options = {"method": "gigpo", "step_coef": weight, "per_device_train_batch_size": 8, "step_discount": 0.9}
    trainer = make_trainer(make_config(**options, **history), environment_factory=Revisiting)
    inputs = scored_batch(trainer, count=8)
    expected = gigpo_reference(trainer, 4, 0.9, 0.1, weight)
    mask, rows = sampled_tokens(inputs), inputs["row_turns"].tolist()
    assert inputs["advantages"].shape == mask.shape and len(rows) == (24 if history else 8)
    steps = set()
    for (episode, first, count), sampled, advantages in zip(rows, mask, inputs["advantages"], strict=True):
        turns = range(first, first + count)
        lengths = [len(trainer.episodes[episode].turns[k].response_ids) for k in turns]
        wanted = [expected[episode][k] for k, length in zip(turns, lengths, strict=True) for _ in range(length)]
        torch.testing.assert_close(advantages[sampled.bool()].tolist(), wanted, rtol=1e-4, atol=1e-4)
        steps.update(wanted)
    assert len(steps) > 12  # more than one an episode
    anchored = trainer._metrics["train"]["gigpo/anchored_turns"]
    assert len(anchored) == 32 and 8 < sum(anchored) <= 32


@pytest.mark.parametrize("history", [{}, {"history": "window", "history_window": 1}])
def test_gigpo_trains_on_these_advantages_and_rlsd_moves_them(make_trainer, make_config, history):
    torch.manual_seed(0)
    trainer = make_trainer(make_config(method="gigpo", **history), environment_factory=Revisiting)
    inputs = scored_batch(trainer)
    plain = make_trainer(make_config(method="grpo", **history), environment_factory=Revisiting)
    scored = scored_batch(plain)["advantages"]
    found, others = gradients(trainer, inputs), gradients(plain, inputs)
    assert all(torch.equal(found[name], others[name]) for name in found)  # TRL's own loss, of token advantages
    assert scored.dim() == 1
    unmoved = gradients(plain, {**inputs, "advantages": scored})
    assert any(not torch.equal(found[name], unmoved[name]) for name in found)
    moved = make_trainer(make_config(method="rlsd", step_coef=1.0, **history), environment_factory=Revisiting)
    both = scored_batch(moved)
    gap = both["teacher_per_token_logps"] - moved._student_logps(both)
    expected = rlsd_advantages(inputs["advantages"], gap, 0.5, 0.2, both["teacher_mask"])
    torch.testing.assert_close(both["advantages"], expected)


def test_without_a_step_coefficient_gigpo_is_grpo_to_the_bit(make_trainer, make_config):
    found = []
    for options in ({"method": "gigpo", "step_coef": 0.0}, {"method": "grpo"}):
        trainer = make_trainer(make_config(**options), environment_factory=Revisiting)
        trainer.train()
        found.append({name: weights.detach().clone() for name, weights in trainer.model.named_parameters()})
    assert all(torch.equal(found[0][name], weights) for name, weights in found[1].items())


def test_anchors_reach_over_processes(monkeypatch):
    """A group of four, two episodes on each of two processes; one turn of two tokens an episode."""
    returns = [0.0, 1.0, 3.0, 8.0]
    episodes = [Episode({}, [], [Turn("a", [], [1, 2], "x", reward=one)], StopReason.LOST) for one in returns]
    steps = [episode_steps(episode, 0.9, 0.1) for episode in episodes]
    monkeypatch.setattr("sdar_trl.batching.gather_object", lambda own: steps)
    expected = (np.array(returns) - 3) / (np.std(returns, ddof=1) + 1e-4)
    for index in range(2):
        process = SimpleNamespace(
            args=SimpleNamespace(step_discount=0.9, invalid_action_penalty=0.1, step_coef=2.0, scale_rewards="group"),
            episodes=episodes[2 * index : 2 * index + 2],
            accelerator=SimpleNamespace(process_index=index),
            _group_size=4,
            _mode_metrics=defaultdict(list),
        )
        rows = torch.tensor([[0, 0, 1], [1, 0, 1]])
        output = {"advantages": torch.zeros(2), "row_turns": rows, "completion_mask": torch.ones(2, 2).long()}
        found = RowsGRPOTrainer._step_advantages(process, output)
        np.testing.assert_allclose(found[:, 0], 2 * expected[2 * index : 2 * index + 2], rtol=1e-5)
        assert torch.equal(found[:, 0], found[:, 1])


def test_an_anchor_is_of_one_task_and_a_step_alone_has_no_advantage():
    episodes = [[("a", 1.0), ("b", 5.0)], [("a", 3.0)], [("a", 7.0)], []]
    found, anchored = step_advantages(episodes, 2, scale=False)
    assert found == [[-1.0, 0.0], [1.0], [0.0], []]
    assert anchored == [[True, False], [True], [False], []]
    scaled, _ = step_advantages(episodes, 2, scale=True)
    assert scaled[1][0] == pytest.approx(1 / (2**0.5 + 1e-4))


def test_an_episode_whose_environment_failed_says_nothing_of_a_step():
    turns = [Turn("a", [], [1], "x", reward=1.0), Turn("b", [], [1], "x", reward=2.0, valid=False)]
    ended, failed = Episode({}, [], turns, StopReason.LOST), Episode({}, [], turns, StopReason.ENV_ERROR)
    assert episode_steps(ended, 0.5, 0.1) == [("a", 1.95), ("b", 1.9)]
    assert episode_steps(failed, 0.5, 0.1) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step_coef": -1.0}, "`step_coef` must not be negative"),
        ({"method": "gigpo", "policy_coef": 0.0}, "it needs `policy_coef` above 0"),
        ({"method": "gigpo", "step_discount": 1.5}, "a `step_discount` of at most 1"),
    ],
)
def test_step_advantages_that_make_no_sense_are_refused(make_config, options, message):
    with pytest.raises(ValueError, match=message):
        make_config(**options)


def test_trls_own_loops_have_no_steps_to_compare(make_trainer, make_config):
    with pytest.raises(ValueError, match="do not tell them apart"):
        make_trainer(
            make_config(method="gigpo"), environment_factory=None, reward_funcs=lambda completions, **_: [0.0]
        )


# Whose weights teach


def change_weights(trainer):
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.mark.parametrize("history", [{}, {"history": "window", "history_window": 1}])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_the_base_teaches_with_the_weights_from_before_training(make_trainer, make_config, lora, history):
    peft_config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"]) if lora else None
    options = {"sdar_coef": 0.5, "beta": 0.0 if lora else 1e-8, **history}
    found = {}
    for weights in ("live", "base"):
        torch.manual_seed(0)
        trainer = make_trainer(make_config(teacher_weights=weights, **options), peft_config=peft_config)
        change_weights(trainer)
        found[weights] = trainer, scored_batch(trainer)
    # the same episodes, of the changed policy, scored by an untouched one
    trainer, changed = found["base"]
    assert torch.equal(changed["completion_ids"], found["live"][1]["completion_ids"])
    torch.manual_seed(0)
    fresh = make_trainer(make_config(sdar_coef=0.5, **history))
    fresh.episodes = trainer.episodes
    rows = [row for episode in trainer.episodes for row in episode_rows(episode, 0)]
    ids, mask, _, _ = fresh.teacher.inputs(
        trainer.episodes, rows, changed["completion_ids"], changed["completion_mask"]
    )
    sampled = sampled_tokens(changed)
    expected = fresh._score(fresh.model, ids, mask, sampled).logps
    torch.testing.assert_close(changed["teacher_per_token_logps"] * sampled, expected * sampled, rtol=1e-3, atol=1e-4)
    live = found["live"][1]["teacher_per_token_logps"]
    assert not torch.allclose(live * sampled, expected * sampled, atol=1e-2)
    gradients(trainer, changed)  # and the loss takes them


def test_an_average_of_the_policy_teaches_where_trl_keeps_one(make_trainer, make_config):
    options = {"beta": 1e-8, "sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 0.25}
    trainer = make_trainer(make_config(sdar_coef=0.5, teacher_weights="ema", max_steps=1, **options))
    before = {name: weights.detach().clone() for name, weights in trainer.model.named_parameters()}
    trainer.train()
    moved = dict(trainer.model.named_parameters())
    average = dict(trainer.ref_model.named_parameters())
    for name, weights in before.items():
        torch.testing.assert_close(average[name], 0.75 * weights + 0.25 * moved[name])
    with torch.no_grad():
        for name, weights in moved.items():
            weights.copy_(average[name])  # a live teacher with the average's weights
    trainer.args.teacher_weights = "ema"
    averaged = scored_batch(trainer)
    trainer.args.teacher_weights = "live"
    live = scored_batch(trainer)
    torch.testing.assert_close(averaged["teacher_per_token_logps"], live["teacher_per_token_logps"])


def saved_policy(folder, make_trainer, make_config, **kwargs):
    """A policy, or an adapter, that has moved from where all begin."""
    trainer = make_trainer(make_config(sdar_coef=0.0), skills=None, **kwargs)
    torch.manual_seed(1)
    change_weights(trainer)
    trainer.save_model(folder)
    return trainer


@pytest.mark.parametrize("method", ["sdar", "rlsd"])
@pytest.mark.parametrize("policy", ["full", "lora"])
@pytest.mark.parametrize("other", ["full", "lora"])
def test_another_checkpoint_teaches(make_trainer, make_config, tmp_path, method, policy, other):
    def adapter(rank):
        return LoraConfig(r=rank, target_modules=["q_proj", "v_proj"])

    folder = str(tmp_path / "other")
    kwargs = {"peft_config": adapter(2)} if other == "lora" else {}
    moved = saved_policy(folder, make_trainer, make_config, **kwargs)
    kwargs = {"peft_config": adapter(4)} if policy == "lora" else {}
    config = make_config(method=method, sdar_coef=0.5, teacher_weights=folder)
    if (policy, other) == ("full", "lora"):
        with pytest.raises(ValueError, match="an adapter, and the policy is trained without one"):
            make_trainer(config, **kwargs)
        return
    trainer = make_trainer(config, **kwargs)
    taught = scored_batch(trainer)
    rows = [row for episode in trainer.episodes for row in episode_rows(episode, 0)]
    inputs = trainer.teacher.inputs(trainer.episodes, rows, taught["completion_ids"], taught["completion_mask"])[:2]
    sampled = sampled_tokens(taught)
    expected = moved._score(moved.model, *inputs, sampled).logps
    own = trainer._score(trainer.model, *inputs, sampled).logps
    found = trainer._teacher_score(*inputs, sampled).logps
    torch.testing.assert_close(found * sampled, expected * sampled, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(own * sampled, expected * sampled, atol=1e-2)
    if method == "sdar":
        torch.testing.assert_close(taught["teacher_per_token_logps"], found)
    # the policy is what is trained, and goes on being what it was
    fresh = make_trainer(make_config(sdar_coef=0.5), **kwargs)
    torch.testing.assert_close(own, fresh._score(fresh.model, *inputs, sampled).logps)
    trained = gradients(trainer, taught)
    assert trained and not any("teacher" in name for name in trained)


@pytest.mark.parametrize("policy", ["full", "lora"])
def test_a_run_with_another_teacher_resumes_exactly(make_trainer, make_config, tmp_path, policy):
    kwargs = {"peft_config": LoraConfig(r=2, target_modules=["q_proj", "v_proj"])} if policy == "lora" else {}
    saved_policy(str(tmp_path / "other"), make_trainer, make_config, **kwargs)
    options = {
        "sdar_coef": 0.5,
        "teacher_weights": str(tmp_path / "other"),
        "save_strategy": "steps",
        "save_steps": 1,
        "learning_rate": 1e-2,
    }
    weights = []
    for checkpoint in (None, str(tmp_path / "out" / "checkpoint-1")):
        trainer = make_trainer(make_config(output_dir=str(tmp_path / "out"), max_steps=2, **options), **kwargs)
        trainer.train(resume_from_checkpoint=checkpoint)
        weights.append({name: one.detach().clone() for name, one in trainer.model.named_parameters()})
    first, resumed = weights
    assert all(torch.equal(first[name], resumed[name]) for name in first)


def test_a_teacher_of_another_vocabulary_is_refused(make_trainer, make_config, tmp_path):
    moved = saved_policy(str(tmp_path / "small"), make_trainer, make_config)
    moved.model.resize_token_embeddings(64)
    moved.model.save_pretrained(tmp_path / "small")
    with pytest.raises(ValueError, match="a model of 64 tokens, and the policy's tokenizer has"):
        make_trainer(make_config(sdar_coef=0.5, teacher_weights=str(tmp_path / "small")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher_weights": "bsae"}, "a model's or adapter's name or path; got 'bsae'"),
        ({"teacher_weights": "base", "divergence": "reverse_kl"}, "has an output layer of its own"),
        ({"teacher_weights": "ema"}, "For an average, set `sync_ref_model=True`"),
        ({"teacher_weights": "base", "sync_ref_model": True, "beta": 0.1}, "'base'` as it was loaded"),
        ({"teacher_weights": "base"}, "which TRL loads only with `beta` above 0"),
    ],
)
def test_weights_that_nobody_keeps_cannot_teach(make_trainer, make_config, options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(make_config(**options))


# A contrast context


@pytest.mark.parametrize("history", [{}, {"history": "window", "history_window": 1}])
@pytest.mark.parametrize("method", ["sdar", "rlsd"])
def test_the_gap_of_a_wrong_context_is_subtracted(make_trainer, make_config, method, history):
    """Two tasks, of which each has the other's skills for its wrong context."""
    options = {"method": method, "sdar_coef": 0.5, "per_device_train_batch_size": 8, **history}
    found = {}
    for coefficient in (0.0, 0.7):
        torch.manual_seed(0)
        trainer = make_trainer(make_config(contrast_coef=coefficient, **options))
        found[coefficient] = trainer, scored_batch(trainer, count=8)
    trainer, inputs = found[0.7]
    texts = [episode.teacher_context for episode in trainer.episodes]
    assert len(set(texts)) == 2 and texts[0] == texts[3] != texts[4]

    # another trainer's teacher, which reads for each episode what the other task's read
    def swapped(episodes):
        return [texts[4] if episode.task["task_type"] == "even" else texts[0] for episode in episodes]

    torch.manual_seed(0)
    other = make_trainer(make_config(**options), skills=swapped)
    wrong = scored_batch(other, count=8)["teacher_per_token_logps"]
    mask = sampled_tokens(inputs)
    assert torch.equal(found[0.0][1]["completion_ids"], inputs["completion_ids"])
    student = trainer._student_logps(inputs)
    right = inputs["teacher_per_token_logps"]
    gap = ((right - student) - 0.7 * (wrong - student)).double()
    assert ((gap - (right - student)).abs() * mask).max() > 1e-2
    if method == "rlsd":
        own = scored_batch(make_trainer(make_config(**{**options, "method": "grpo", "sdar_coef": 0.0})), count=8)
        expected = rlsd_advantages(own["advantages"].double(), gap, 0.5, 0.2, inputs["teacher_mask"].double())
        torch.testing.assert_close((inputs["advantages"] * mask).double(), expected * mask, rtol=2e-3, atol=1e-4)
    else:
        gradients(trainer, inputs)
        rows = inputs["row_turns"].tolist()
        for (episode, first, count), row_gap, sampled in zip(rows, gap, mask, strict=True):
            turns = trainer.episodes[episode].turns[first : first + count]
            gates = torch.sigmoid(5 * row_gap[sampled.bool()])
            np.testing.assert_allclose(gates, [gate for turn in turns for gate in turn.gates], rtol=5e-3, atol=1e-3)
    assert set(trainer._metrics["train"]["sdar/contrasted"]) == {1.0}
    assert "contrast_per_token_logps" not in found[0.0][1]


def test_tasks_that_all_read_the_same_have_no_contrast(make_trainer, make_config):
    found = []
    for coefficient in (0.0, 0.7):
        torch.manual_seed(0)
        trainer = make_trainer(make_config(sdar_coef=0.5, contrast_coef=coefficient))
        found.append(gradients(trainer, scored_batch(trainer)))
    assert all(torch.equal(found[0][name], gradient) for name, gradient in found[1].items())
    assert set(trainer._metrics["train"]["sdar/contrasted"]) == {0.0}


def test_a_wrong_context_is_the_next_other_one():
    texts = ["a", "a", "", "b", "a"]
    assert [next_other(texts, place) for place in range(5)] == ["b", "b", "", "a", "b"]
    assert next_other(["a", "a"], 0) == ""
