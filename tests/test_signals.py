"""What is logged of the teacher's signal, against sums over episodes and over gradients."""

import dataclasses

import numpy as np
import pytest
import torch
from steps import gradients, scored_batch
from toys import CountingEnv


def step_values(trainer, names, mode="train"):
    return {name: trainer._metrics[mode][name][-1] for name in names}


GRADIENTS = ("sdar/grad_share", "sdar/grad_cosine")


@pytest.mark.parametrize("options", [{}, {"divergence": "reverse_kl"}, {"history": "window", "history_window": 1}])
def test_the_share_of_the_gradient_is_that_of_the_two_losses_taken_apart(make_trainer, make_config, options):
    trainer = make_trainer(make_config(sdar_coef=0.5, beta=0.04, log_grad_share=True, **options))
    inputs = scored_batch(trainer)
    total = gradients(trainer, inputs)
    trainer.gradient_share.on_pre_optimizer_step(trainer.args, trainer.state, trainer.control)
    found = step_values(trainer, GRADIENTS)

    def alone(**coefs):
        for name, value in coefs.items():
            setattr(trainer.args, name, value)
        return gradients(trainer, inputs)

    distilled, policy = alone(policy_coef=0.0), alone(policy_coef=1.0, sdar_coef=0.0)
    flat = [torch.cat([one.flatten().double() for one in found.values()]) for found in (policy, distilled, total)]
    torch.testing.assert_close(flat[0] + flat[1], flat[2], rtol=1e-3, atol=1e-6)
    norms = [float(vector.norm()) for vector in flat]
    assert found["sdar/grad_share"] == pytest.approx(norms[1] / (norms[0] + norms[1]), rel=1e-3)
    assert found["sdar/grad_cosine"] == pytest.approx(
        float(flat[0] @ flat[1]) / norms[0] / norms[1], rel=1e-3, abs=1e-5
    )
    assert 1e-3 < found["sdar/grad_share"] < 0.99


def test_looking_at_the_gradients_does_not_touch_the_training(make_trainer, make_config):
    weights = []
    for looks in (False, True):
        torch.manual_seed(0)
        trainer = make_trainer(make_config(sdar_coef=0.5, log_grad_share=looks))
        trainer.train()
        weights.append(trainer.model.state_dict())
        logged = [log for log in trainer.state.log_history if "loss" in log]
        assert len(logged) == 2 and all(("sdar/grad_share" in log) == looks for log in logged)
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_gradients_of_micro_batches_are_summed_before_they_are_measured(make_trainer, make_config):
    found = []
    for size, steps in ((4, 1), (2, 2)):
        torch.manual_seed(0)
        config = make_config(
            **{"sdar_coef": 0.5, "log_grad_share": True, "max_steps": 1, "num_generations": 2},
            **{"per_device_train_batch_size": size, "gradient_accumulation_steps": steps},
        )
        trainer = make_trainer(config)
        trainer.train()
        found.append(trainer.state.log_history[0])
    assert found[0]["reward"] == found[1]["reward"]  # the same episodes
    for name in GRADIENTS:
        assert found[0][name] == pytest.approx(found[1][name], rel=1e-3, abs=1e-5)


def test_a_distillation_alone_has_all_of_the_gradient(make_trainer, make_config):
    trainer = make_trainer(make_config(method="opsd", log_grad_share=True, max_steps=1))
    trainer.train()
    assert trainer.state.log_history[0]["sdar/grad_share"] == 1.0


def test_advantages_have_no_loss_to_compare(make_config):
    with pytest.raises(ValueError, match="`log_grad_share` compares two losses"):
        make_config(method="rlsd", log_grad_share=True)


@pytest.mark.parametrize("options", [{}, {"history": "window", "history_window": 1}])
def test_tokens_are_told_by_the_size_of_their_gap_and_the_end_of_their_episode(make_trainer, make_config, options):
    class Odd(CountingEnv):
        def step(self, response):
            step = super().step(response)
            return dataclasses.replace(step, info={"success": step.reward % 2 == 1} if step.terminated else {})

    config = make_config(sdar_coef=0.5, per_device_train_batch_size=8, max_steps=1, **options)
    trainer = make_trainer(config, environment_factory=Odd)
    trainer.train()
    log = trainer.state.log_history[0]
    tokens = [
        (gap, gate, episode.success)
        for episode in trainer.episodes
        for turn in episode.turns
        for gap, gate in zip(turn.gaps, turn.gates, strict=True)
    ]
    gap, gate, won = (np.array(column, dtype=float) for column in zip(*tokens, strict=True))
    assert 0 < won.mean() < 1
    large = np.abs(gap) > 0.1
    expected = {
        "sdar/gap_mean": gap.mean(),
        "sdar/large_gap": large.mean(),
        "sdar/tokens_won": won.mean(),
        "sdar/tokens_lost": 1 - won.mean(),
        "sdar/gap_won": gap[won == 1].mean(),
        "sdar/gap_lost": gap[won == 0].mean(),
    }
    for name, value in expected.items():
        assert log[name] == pytest.approx(value, rel=1e-3, abs=1e-6), name
    if large.any():
        assert log["sdar/gate_large_gap"] == pytest.approx(gate[large].mean(), rel=1e-3)
    else:
        assert "sdar/gate_large_gap" not in log


def test_the_gate_over_large_gaps_is_a_mean_over_them_alone(make_trainer, make_config, monkeypatch):
    monkeypatch.setattr("sdar_trl.distillation.LARGE_GAP", 0.015)
    trainer = make_trainer(make_config(sdar_coef=0.5, max_steps=1))
    trainer.train()
    pairs = [pair for e in trainer.episodes for turn in e.turns for pair in zip(turn.gaps, turn.gates, strict=True)]
    large = [gate for gap, gate in pairs if abs(gap) > 0.015]
    log = trainer.state.log_history[0]
    assert 0 < len(large) < len(pairs)
    assert log["sdar/large_gap"] == pytest.approx(len(large) / len(pairs), rel=1e-3)
    assert log["sdar/gate_large_gap"] == pytest.approx(sum(large) / len(large), rel=1e-3)
