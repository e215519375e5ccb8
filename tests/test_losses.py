"""The loss against the formula written out in float64 NumPy."""

import numpy as np
import pytest
import torch

from sdar_trl.losses import GATES, aggregate_loss, distillation_loss, teacher_student_gap


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
        distillation_loss(student, teacher, gate),
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


def test_gate_is_near_one_for_endorsed_tokens_half_at_no_gap_and_fades_for_rejected_ones():
    gap = torch.tensor([[2.0, 0.0, -2.0]])
    weights = GATES["gap"](gap, torch.zeros_like(gap), 5.0)
    np.testing.assert_allclose(weights.numpy(), [[sigmoid(10.0), 0.5, sigmoid(-10.0)]], rtol=1e-4)


def test_no_gradient_flows_through_gate_or_teacher(tensors):
    student, teacher, _ = tensors
    teacher.requires_grad_()
    gate = GATES["gap"](teacher - student, torch.zeros_like(student), 5.0)  # with a graph, on purpose
    distillation_loss(student, teacher, gate).sum().backward()
    assert teacher.grad is None
    np.testing.assert_allclose(student.grad.numpy(), -gate.detach().numpy(), rtol=1e-12)


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
