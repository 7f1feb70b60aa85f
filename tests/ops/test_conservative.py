"""The conservative penalty: exact over a whole vocabulary, sampled, and what it does to a table of values."""

import math

import pytest
import torch
from torch.testing import assert_close

from noisyrl.ops.conservative import conservative_penalty


def f64(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def whole_vocabulary(q_V, taken, *, temperature=1.0):
    """Every action once, as if drawn uniformly: the exact penalty."""
    logp_V = torch.full_like(q_V, -math.log(q_V.shape[-1]))
    return conservative_penalty(q_V, logp_V, q_V[..., taken], temperature=temperature)


def random_policy(seed=0, count=40, sharpness=1.0):
    g = torch.Generator().manual_seed(seed)
    q = torch.rand(count, generator=g, dtype=torch.float64)
    return g, q, torch.log_softmax(sharpness * torch.randn(count, generator=g, dtype=torch.float64), dim=0)


def test_golden():
    q = f64(1, 2, 3).requires_grad_()
    penalty = whole_vocabulary(q, 1)
    penalty.backward()
    assert penalty.item() + 2 == pytest.approx(3.407606, abs=1e-6)
    assert penalty.item() == pytest.approx(1.407606, abs=1e-6)
    assert_close(q.grad, f64(0.090031, -0.755272, 0.665241), atol=1e-6, rtol=0)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 3.0])
def test_the_gradient_is_softmax_minus_the_action_taken(temperature):
    _, q, _ = random_policy()
    q.requires_grad_()
    whole_vocabulary(q, 7, temperature=temperature).backward()
    expected = torch.softmax(q.detach() / temperature, dim=0)
    expected[7] -= 1
    assert_close(q.grad, expected)


def test_a_constant_changes_nothing():
    g, q, logp = random_policy()
    drawn = torch.multinomial(logp.exp(), 16, replacement=True, generator=g)
    found = [
        conservative_penalty(q[drawn] + c, logp[drawn], q[3] + c, temperature=0.5).item() for c in (-100.0, 0.0, 7.0)
    ]
    assert found == pytest.approx([found[1]] * 3, abs=1e-12)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_over_a_whole_vocabulary_it_is_a_cross_entropy_and_never_negative(temperature):
    q = 3 * torch.randn(200, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = whole_vocabulary(q, 5, temperature=temperature)
    expected = torch.nn.functional.cross_entropy(q / temperature, torch.full((200,), 5), reduction="none")
    assert_close(found, temperature * expected)
    assert (found >= 0).all()


def test_towards_temperature_zero_it_is_the_maximum():
    _, q, _ = random_policy()
    assert whole_vocabulary(q, 5, temperature=1e-4).item() == pytest.approx((q.max() - q[5]).item(), abs=1e-3)


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_sampled_from_a_policy_it_converges_to_the_exact_one(temperature):
    """Over 40 tokens: too low on average for few candidates (Jensen), right for many."""
    g, q, logp = random_policy(sharpness=1.5)
    exact = whole_vocabulary(q, 5, temperature=temperature).item()

    def sampled(count, repeats):
        drawn = torch.multinomial(logp.exp(), count * repeats, replacement=True, generator=g).view(repeats, count)
        return conservative_penalty(q[drawn], logp[drawn], q[5].expand(repeats), temperature=temperature)

    few, many = sampled(4, 4000), sampled(200_000, 8)
    assert few.mean().item() < exact - 0.1 * temperature
    assert many.mean().item() == pytest.approx(exact, abs=0.02 * temperature)
    assert (many - exact).abs().max().item() < 0.1 * temperature


def test_one_likely_candidate_worth_less_than_the_action_taken_makes_it_negative():
    assert conservative_penalty(f64(0.2), f64(-0.01), f64(0.9)[0], temperature=1.0).item() == pytest.approx(-0.69)


def test_what_it_does_to_a_table_of_values_on_policy():
    """The fixed point of half the squared error plus alpha times the penalty: alpha * (1 - softmax / pi) is added."""
    _, truth, logp = random_policy(count=5)
    pi, alpha = logp.exp(), 0.1
    q = truth.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([q], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-15)

    def loss():
        optimizer.zero_grad()
        value = (pi * (0.5 * (q - truth).square() + alpha * (torch.logsumexp(q, 0) - q))).sum()
        value.backward()
        return value

    optimizer.step(loss)
    q = q.detach()
    assert_close(q, truth + alpha * (1 - torch.softmax(q, 0) / pi), atol=1e-6, rtol=0)
    assert ((pi * q).sum() - (pi * truth).sum()).abs() < 1e-6
    assert q[pi.argmin()] < truth[pi.argmin()] and q[pi.argmax()] > truth[pi.argmax()]
