"""Divergences and their gradients on a toy policy of three tokens, where every expectation is a sum; and on models."""

import numpy as np
import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from trl.trainer.utils import add_fused_lm_head

from sdar_trl.losses import SAMPLED_DIVERGENCES, gap_gate, teacher_student_gap
from sdar_trl.vocabulary import (
    FULL_DIVERGENCES,
    Head,
    VocabularyDivergence,
    full_divergence,
    log_probs_of,
    top_k_divergence,
    top_k_log_probs,
)


STUDENT = np.array([0.4, -0.3, 1.1])  # logits
TEACHER = np.array([-0.5, 0.9, 0.6])


def softmax(z):
    return np.exp(z) / np.exp(z).sum()


def dense(name, student_logits, teacher_logits):
    """The divergence in float64 NumPy."""
    p, q = softmax(student_logits), softmax(teacher_logits)
    m = (p + q) / 2
    return {
        "reverse_kl": (p * np.log(p / q)).sum(),
        "forward_kl": (q * np.log(q / p)).sum(),
        "jsd": (p * np.log(p / m)).sum() / 2 + (q * np.log(q / m)).sum() / 2,
    }[name]


def finite_differences(function, x, eps=1e-6):
    return np.array([(function(x + eps * e) - function(x - eps * e)) / (2 * eps) for e in np.eye(len(x))])


def head(vocabulary=3, temperature=1.0):
    """Hidden states are the logits."""
    return Head(torch.eye(vocabulary), None, temperature, 1.0, None)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("name", FULL_DIVERGENCES)
def test_over_the_whole_vocabulary_value_and_gradient_are_exact(name, temperature):
    hidden = torch.tensor(STUDENT, dtype=torch.float32).view(1, 3).requires_grad_()
    teacher = torch.tensor(TEACHER, dtype=torch.float32).view(1, 3)
    value = full_divergence(name, hidden, teacher, head(temperature=temperature), torch.eye(3))
    value.sum().backward()

    def expected(z):
        return dense(name, z / temperature, TEACHER / temperature)

    np.testing.assert_allclose(value.item(), expected(STUDENT), rtol=1e-5)
    np.testing.assert_allclose(hidden.grad.flatten().numpy(), finite_differences(expected, STUDENT), atol=1e-6)


@pytest.mark.parametrize("name", FULL_DIVERGENCES)
def test_the_whole_vocabulary_in_several_tiles_equals_one_softmax(name, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    hidden, teacher = (torch.randn(6, 8, generator=generator) for _ in range(2))
    monkeypatch.setattr("sdar_trl.vocabulary.TOKEN_CHUNK", 4)
    weight = torch.randn(40_000, 8, generator=generator)  # more than one tile in both directions
    leaves = [hidden.clone().requires_grad_() for _ in range(2)]
    weights = [weight.clone().requires_grad_() for _ in range(2)]
    value = full_divergence(name, leaves[0], teacher, Head(weights[0], None, 1.0, 1.0, None), weight)
    value.sum().backward()

    log_p, log_q = (leaves[1] @ weights[1].T).log_softmax(-1), (teacher @ weight.T).log_softmax(-1)
    expected = top_k_divergence(name, log_p, log_q)  # all tokens; the bucket of the others is next to nothing
    expected.sum().backward()
    torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(weights[0].grad, weights[1].grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", FULL_DIVERGENCES)
def test_the_top_two_of_three_tokens_and_the_rest_are_the_whole_vocabulary(name):
    z = torch.tensor(STUDENT).log_softmax(-1).requires_grad_()
    teacher = torch.tensor(TEACHER).log_softmax(-1)
    ids = teacher.topk(2).indices
    value = top_k_divergence(name, z[ids].view(1, 2), teacher[ids].view(1, 2))
    np.testing.assert_allclose(value.item(), dense(name, STUDENT, TEACHER), rtol=1e-10)


@pytest.mark.parametrize("name", FULL_DIVERGENCES)
def test_fewer_tokens_never_give_more_divergence(name):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(4, 5, 50, generator=generator).log_softmax(-1) for _ in range(2))
    values = []
    for k in (1, 5, 20, 49):
        ids = teacher.topk(k).indices
        values.append(top_k_divergence(name, student.gather(-1, ids), teacher.gather(-1, ids)))
    for fewer, more in zip(values, values[1:], strict=False):
        assert (fewer <= more + 1e-5).all()


# expected gradients: sum over the tokens, each weighed by its probability


def expected_gradient(loss_of_logps):
    """E_y[grad loss(y)] by the student's logits, the tokens drawn from the student."""
    z = torch.tensor(STUDENT).requires_grad_()
    log_p = z.log_softmax(-1)
    loss = loss_of_logps(log_p, torch.tensor(TEACHER).log_softmax(-1), log_p.detach())
    (log_p.detach().exp() * loss).sum().backward()
    return z.grad.numpy()


def exact_gradient(name):
    return finite_differences(lambda z: dense(name, z, TEACHER), STUDENT)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sampled_reverse_kl", None),
        ("sampled_k3", "forward_kl"),
        ("sampled_k3_weighted", "reverse_kl"),
        ("sampled_score", "reverse_kl"),
    ],
)
def test_with_a_constant_gate_the_expected_gradient_is_what_the_docs_say(name, expected):
    gradient = expected_gradient(SAMPLED_DIVERGENCES[name])
    np.testing.assert_allclose(gradient, np.zeros(3) if expected is None else exact_gradient(expected), atol=1e-8)


def test_a_mean_over_many_samples_comes_to_the_expected_gradient():
    generator = torch.Generator().manual_seed(0)
    p = torch.tensor(STUDENT).softmax(-1)
    tokens = torch.multinomial(p, 200_000, replacement=True, generator=generator)
    for name, divergence in SAMPLED_DIVERGENCES.items():
        z = torch.tensor(STUDENT).requires_grad_()
        log_p, log_q = z.log_softmax(-1)[tokens], torch.tensor(TEACHER).log_softmax(-1)[tokens]
        divergence(log_p, log_q, log_p.detach()).mean().backward()
        np.testing.assert_allclose(z.grad.numpy(), expected_gradient(divergence), atol=6e-3, err_msg=name)


def gap_gated(beta):
    def loss(log_p, log_q, old):
        gap = teacher_student_gap(log_q, log_p)
        return gap_gate(gap, gap, beta) * SAMPLED_DIVERGENCES["sampled_reverse_kl"](log_p, log_q, old)

    return loss


def test_the_gap_gate_is_a_policy_gradient_whose_reward_is_the_gate():
    p, q = softmax(STUDENT), softmax(TEACHER)
    reward = 1 / (1 + np.exp(-5.0 * np.log(q / p)))
    ascent = p * (reward - (p * reward).sum())  # d/dz of sum_y softmax(z)_y reward_y
    np.testing.assert_allclose(expected_gradient(gap_gated(5.0)), -ascent, atol=1e-10)
    assert np.abs(ascent).max() > 0.05


def test_for_a_small_beta_the_gap_gate_is_a_quarter_beta_times_the_reverse_kl():
    gradient = expected_gradient(gap_gated(1e-4)) / (1e-4 / 4)
    np.testing.assert_allclose(gradient, exact_gradient("reverse_kl"), atol=1e-6)


# models

COMMON = {
    "vocab_size": 300,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
    "initializer_range": 0.5,
}
MODELS = {
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**COMMON, tie_word_embeddings=True)),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config(**COMMON, final_logit_softcapping=5.0)),
    "cohere": (CohereForCausalLM, CohereConfig(**COMMON, logit_scale=0.25)),
    "granite": (GraniteForCausalLM, GraniteConfig(**COMMON, logits_scaling=4.0)),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_head_gives_the_log_probs_that_trl_gives(name):
    model_class, config = MODELS[name]
    torch.manual_seed(0)
    model = model_class(config).eval()
    add_fused_lm_head(model, temperature=0.7)
    ids = torch.randint(1, 300, (2, 9))
    divergence = VocabularyDivergence("reverse_kl", 5, model, 0.7, keep_head=False)
    logps = model(input_ids=ids, labels=ids, fused_lm_head=True).log_probs.flatten()
    hidden = model.base_model(input_ids=ids).last_hidden_state[:, :-1].flatten(0, 1)
    model_head = Head.of(model, 0.7)
    tensors = divergence.teacher_tensors(hidden, torch.ones(2, 8, dtype=torch.long))
    all_logps = model_head.finish(hidden @ model_head.weight.T).log_softmax(-1)
    sampled_ids = ids[:, 1:].flatten()
    torch.testing.assert_close(all_logps.gather(-1, sampled_ids[:, None]).squeeze(-1), logps, rtol=1e-4, atol=1e-5)
    top = all_logps.topk(5)
    assert torch.equal(tensors["teacher_top_ids"].flatten(0, 1), top.indices)
    torch.testing.assert_close(tensors["teacher_top_logps"].flatten(0, 1), top.values)
    few = log_probs_of(top.indices, hidden, model_head, sampled_ids, logps)
    torch.testing.assert_close(few, top.values, rtol=1e-4, atol=1e-5)


def test_top_k_log_probs_have_the_gradient_of_a_softmax():
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(8, 6, generator=generator), torch.randn(30, 6, generator=generator)
    sampled = torch.randint(0, 30, (8,), generator=generator)
    ids = top_k_log_probs(hidden, Head(weight, None, 0.8, 1.0, None), 3)[1]
    results = []
    for through_softmax in (True, False):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        log_p = (h @ w.T / 0.8).log_softmax(-1)
        if through_softmax:
            few = log_p.gather(-1, ids)
        else:
            sampled_logps = log_p.gather(-1, sampled.unsqueeze(-1)).squeeze(-1)
            few = log_probs_of(ids, h, Head(w, None, 0.8, 1.0, None), sampled, sampled_logps)
        (few * torch.arange(3)).sum().backward()
        results.append((few.detach(), h.grad, w.grad))
    for left, right in zip(*results, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FULL_DIVERGENCES)
def test_nothing_is_nan_or_infinite_where_the_two_disagree_wholly(name, dtype):
    student = torch.tensor([[1e3, 0.0, -1e3], [0.0, 0.0, 0.0]], dtype=dtype).requires_grad_()
    teacher = torch.tensor([[-1e3, 0.0, 1e3], [0.0, 1e-3, 0.0]], dtype=dtype)
    value = full_divergence(name, student, teacher, head(), torch.eye(3))
    value.sum().backward()
    assert torch.isfinite(value).all() and torch.isfinite(student.grad).all()
    log_probs = student.detach().float().log_softmax(-1).requires_grad_()
    value = top_k_divergence(name, log_probs[..., :2], teacher.float().log_softmax(-1)[..., :2])
    value.sum().backward()
    assert torch.isfinite(value).all() and torch.isfinite(log_probs.grad).all()
