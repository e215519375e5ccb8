"""The loss against the formula written out in float64 NumPy."""

import numpy as np
import pytest
import torch

from sdar_trl.losses import (
    GATES,
    SAMPLED_DIVERGENCES,
    SCHEDULES,
    aggregate_loss,
    rlsd_advantages,
    sampled_reverse_kl,
    teacher_student_gap,
)


B, T = 4, 7


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    student = -3 * torch.rand(B, T, generator=generator, dtype=torch.float64)
    teacher = -3 * torch.rand(B, T, generator=generator, dtype=torch.float64)
    mask = torch.rand(B, T, generator=generator) > 0.4
    mask[:, 0] = True
    return student.requires_grad_(), teacher, mask.to(torch.float64)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_loss_and_gradient_equal_the_formula(tensors):
    student, teacher, mask = tensors
    gap = teacher_student_gap(teacher, student)
    gate = GATES["gap"](gap, torch.zeros_like(gap), 5.0)
    loss = aggregate_loss(
        gate * sampled_reverse_kl(student, teacher, student.detach()),
        mask,
        "dapo",
        accumulation_steps=1,
        max_completion_length=T,
        window_tokens=mask.sum(),
    )
    loss.backward()

    s, t, m = student.detach().numpy(), teacher.numpy(), mask.numpy()
    g = sigmoid(5.0 * (t - s))
    np.testing.assert_allclose(loss.item(), (m * g * (t - s)).sum() / m.sum(), rtol=1e-12)
    np.testing.assert_allclose(student.grad.numpy(), -m * g / m.sum(), rtol=1e-12)


@pytest.fixture
def gap_and_entropy(tensors):
    student, teacher, _ = tensors
    generator = torch.Generator().manual_seed(1)
    return teacher_student_gap(teacher, student), 2 * torch.rand(B, T, generator=generator, dtype=torch.float64)


GATE_FORMULAS = {
    "gap": lambda d, h, beta: sigmoid(beta * d),
    "entropy": lambda d, h, beta: sigmoid(beta * h),
    "soft_or": lambda d, h, beta: sigmoid(beta * (1 - (1 - h) * (1 - d))),
    "uniform": lambda d, h, beta: np.full_like(d, 0.5),
    "none": lambda d, h, beta: np.ones_like(d),
}


@pytest.mark.parametrize("name", GATES)
def test_each_gate_equals_its_formula(name, gap_and_entropy):
    gap, entropy = gap_and_entropy
    expected = GATE_FORMULAS[name](gap.numpy(), entropy.numpy(), 5.0)
    np.testing.assert_allclose(GATES[name](gap, entropy, 5.0).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("name", ["gap", "entropy", "soft_or"])
def test_at_beta_zero_every_sigmoid_gate_is_the_uniform_one(name, gap_and_entropy):
    assert torch.equal(GATES[name](*gap_and_entropy, 0.0), GATES["uniform"](*gap_and_entropy, 0.0))


def test_at_large_beta_the_gap_gate_is_the_indicator_of_a_positive_gap(gap_and_entropy):
    gap, entropy = gap_and_entropy
    np.testing.assert_allclose(GATES["gap"](gap, entropy, 1e6).numpy(), (gap > 0).double().numpy(), atol=1e-12)


def test_gate_is_near_one_for_endorsed_tokens_half_at_no_gap_and_fades_for_rejected_ones():
    gap = torch.tensor([[2.0, 0.0, -2.0]])
    weights = GATES["gap"](gap, torch.zeros_like(gap), 5.0)
    np.testing.assert_allclose(weights.numpy(), [[sigmoid(10.0), 0.5, sigmoid(-10.0)]], rtol=1e-4)


# name -> value and gradient by the student's log-prob, of s, t, o (student, teacher, old)
SAMPLED_FORMULAS = {
    "sampled_reverse_kl": (lambda s, t, o: t - s, lambda s, t, o: -np.ones_like(s)),
    "sampled_k3": (lambda s, t, o: np.exp(t - s) - 1 + s - t, lambda s, t, o: 1 - np.exp(t - s)),
    "sampled_k3_weighted": (
        lambda s, t, o: np.exp(s - o) * (np.exp(t - s) - 1 + s - t),
        lambda s, t, o: np.exp(s - o) * (np.exp(t - s) - 1 + s - t + 1 - np.exp(t - s)),
    ),
    "sampled_score": (lambda s, t, o: (s - t) * s, lambda s, t, o: s - t),
}


@pytest.mark.parametrize("name", SAMPLED_DIVERGENCES)
def test_each_sampled_divergence_and_its_gradient_equal_the_formula(name, tensors):
    student, teacher, _ = tensors
    old = (student + 0.3 * torch.sin(teacher)).detach()
    value = SAMPLED_DIVERGENCES[name](student, teacher, old)
    value.sum().backward()
    formula, gradient = SAMPLED_FORMULAS[name]
    arrays = student.detach().numpy(), teacher.numpy(), old.numpy()
    np.testing.assert_allclose(value.detach().numpy(), formula(*arrays), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(student.grad.numpy(), gradient(*arrays), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["sampled_k3", "sampled_k3_weighted"])
def test_the_exponents_of_k3_are_capped(name):
    student = torch.tensor([[-80.0, -0.1]], dtype=torch.float64)
    teacher = torch.tensor([[-0.5, -0.2]], dtype=torch.float64)
    old = torch.tensor([[-80.0, -40.0]], dtype=torch.float64)
    value = SAMPLED_DIVERGENCES[name](student, teacher, old).numpy()
    ratio = np.exp([[0.0, 10.0]]) if name == "sampled_k3_weighted" else 1.0
    k3 = np.array([[np.exp(20.0) - 1 - 79.5, np.exp(-0.1) - 1 + 0.1]])
    np.testing.assert_allclose(value, ratio * k3, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_is_nan_or_infinite_at_extreme_log_probs(dtype):
    values = torch.tensor([0.0, -1e-8, -1.0, -30.0, -1e4], dtype=dtype)
    student, teacher = (grid.flatten().unsqueeze(0) for grid in torch.meshgrid(values, values, indexing="ij"))
    for old in (student.detach(), student.detach().flip(1)):
        for entropy in (torch.zeros_like(student), torch.full_like(student, 12.0)):
            gap = teacher_student_gap(teacher, student)
            for gate in GATES.values():
                weights = gate(gap, entropy, 5.0)
                for divergence in SAMPLED_DIVERGENCES.values():
                    leaf = student.clone().requires_grad_()
                    loss = weights * divergence(leaf, teacher, old)
                    loss.sum().backward()
                    assert torch.isfinite(loss).all() and torch.isfinite(leaf.grad).all()
    advantages = rlsd_advantages(torch.tensor([2.0], dtype=dtype), gap, 0.5, 0.2, torch.ones_like(gap))
    assert torch.isfinite(advantages).all()


def test_rlsd_moves_each_tokens_advantage_by_the_formula(gap_and_entropy):
    gap, _ = gap_and_entropy
    advantages = torch.tensor([1.5, -0.7, 0.0, 2.0], dtype=torch.float64)
    mask = torch.tensor([[1.0], [1.0], [1.0], [0.0]], dtype=torch.float64)
    moved = rlsd_advantages(advantages, gap, 0.5, 0.2, mask).numpy()
    a, d = advantages.numpy()[:, None], gap.numpy()
    expected = a * (0.5 + 0.5 * np.clip(np.exp(np.sign(a) * d), 0.8, 1.2))
    np.testing.assert_allclose(moved[:3], expected[:3], rtol=1e-12)
    np.testing.assert_array_equal(moved[3], np.full(T, 2.0))  # no teacher


def test_rlsd_at_weight_zero_leaves_the_advantages(gap_and_entropy):
    gap, _ = gap_and_entropy
    advantages = torch.tensor([1.5, -0.7, 0.0, 2.0], dtype=torch.float64)
    moved = rlsd_advantages(advantages, gap, 0.0, 0.2, torch.ones_like(gap))
    assert torch.equal(moved, advantages.unsqueeze(1).expand(B, T))


def test_schedules_begin_and_end_where_they_say():
    for name, values in {
        "constant": [1, 1, 1],
        "linear": [1, 0.5, 0],
        "cosine": [1, 0.5, 0],
        "warmup": [0, 0.5, 1],
    }.items():
        np.testing.assert_allclose([SCHEDULES[name](progress) for progress in (0.0, 0.5, 1.0)], values, atol=1e-12)
    np.testing.assert_allclose(SCHEDULES["cosine"](0.25), (1 + np.cos(np.pi / 4)) / 2)


@pytest.mark.parametrize(
    ("loss_type", "expected"),
    [
        ("grpo", lambda x, m: ((x * m).sum(1) / m.sum(1)).mean() / 2),
        ("sapo", lambda x, m: ((x * m).sum(1) / m.sum(1)).mean() / 2),
        ("bnpo", lambda x, m: (x * m).sum() / m.sum() / 2),
        ("dr_grpo", lambda x, m: (x * m).sum() / (B * 100) / 2),
        ("dapo", lambda x, m: (x * m).sum() / 50),
        ("cispo", lambda x, m: (x * m).sum() / 50),
        ("vespo", lambda x, m: (x * m).sum() / 50),
        ("luspo", lambda x, m: (x * m).sum(1).mean() / 2),
    ],
)
def test_each_loss_type_is_normalised_as_trl_normalises_its_policy_loss(loss_type, expected, tensors):
    x, _, mask = tensors
    value = aggregate_loss(
        x, mask, loss_type, accumulation_steps=2, max_completion_length=100, window_tokens=torch.tensor(50.0)
    )
    np.testing.assert_allclose(value.item(), expected(x.detach().numpy(), mask.numpy()), rtol=1e-12)


def test_a_row_without_a_single_token_counts_as_zero(tensors):
    x, _, mask = tensors
    for loss_type in ("grpo", "bnpo", "luspo"):
        value = aggregate_loss(
            x,
            torch.zeros_like(mask),
            loss_type,
            accumulation_steps=1,
            max_completion_length=T,
            window_tokens=torch.tensor(1.0),
        )
        assert value.item() == 0.0


def test_an_unknown_loss_type_is_named_in_the_error(tensors):
    x, _, mask = tensors
    with pytest.raises(ValueError, match="'ppo'"):
        aggregate_loss(x, mask, "ppo", accumulation_steps=1, max_completion_length=T, window_tokens=torch.tensor(1.0))
