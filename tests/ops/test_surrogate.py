"""The clipped surrogate and the KL estimators, values and gradients."""

import math

import pytest
import torch
from torch.testing import assert_close

from noisyrl.ops.surrogate import clipped_surrogate, kl_estimate


def loss(ratio, advantage, **options):
    logp = torch.tensor([[math.log(ratio)]], dtype=torch.float64)
    return clipped_surrogate(
        logp, torch.zeros_like(logp), torch.full_like(logp, advantage), clip_low=0.2, clip_high=0.2, **options
    ).item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"), [(1.5, 2, -2.4), (1.5, -2, 3.0), (0.5, 2, -1.0), (0.5, -2, 1.6)]
)
def test_clip_golden(ratio, advantage, expected):
    assert loss(ratio, advantage) == pytest.approx(expected, abs=1e-9)


def test_dual_clip_bounds_bad_actions_only():
    assert loss(5, -1, dual_clip=3.0) == pytest.approx(3.0)
    assert loss(5, -1) == pytest.approx(5.0)
    assert loss(5, 1, dual_clip=3.0) == pytest.approx(-1.2)


def test_asymmetric_clip():
    logp = torch.tensor([[math.log(1.5)]])
    one = torch.ones(1, 1)
    found = clipped_surrogate(logp, 0 * logp, one, clip_low=0.2, clip_high=0.4)
    assert found.item() == pytest.approx(-1.4)


def test_at_ratio_one_the_loss_is_minus_the_advantage_with_gradient():
    logp = torch.full((1, 3), -1.3, requires_grad=True)
    advantage = torch.tensor([[2.0, -1.0, 0.0]])
    total = clipped_surrogate(logp, logp.detach(), advantage, clip_low=0.2, clip_high=0.2)
    assert_close(total, -advantage)
    total.sum().backward()
    assert_close(logp.grad, -advantage)


def test_extreme_ratios_stay_finite():
    assert math.isfinite(
        clipped_surrogate(
            torch.zeros(1, 1), torch.full((1, 1), -1e4), -torch.ones(1, 1), clip_low=0.2, clip_high=0.2
        ).item()
    )


@pytest.mark.parametrize(
    ("logp", "ref", "k1", "k2", "k3"), [(-1, -1.2, 0.2, 0.02, 0.018730753), (-2, -1, -1, 0.5, 0.718281828)]
)
def test_kl_golden(logp, ref, k1, k2, k3):
    pair = torch.tensor([logp], dtype=torch.float64), torch.tensor([ref], dtype=torch.float64)
    found = [kl_estimate(*pair, name).item() for name in ("k1", "k2", "k3", "k3+")]
    assert found == pytest.approx([k1, k2, k3, k3], abs=1e-9)


def expected_gradient(name):
    """Gradient of E_policy[estimate] with the samples held fixed, by enumeration of a three-token policy."""
    logits = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64, requires_grad=True)
    ref = torch.log_softmax(torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log(), 0)
    logp = torch.log_softmax(logits, 0)
    (logp.detach().exp() * kl_estimate(logp, ref, name)).sum().backward()
    return logits.grad


def test_kl_gradients_as_losses():
    kl_policy_ref = torch.tensor([0.230323, -0.214500, -0.015823], dtype=torch.float64)
    kl_ref_policy = torch.tensor([0.212327, -0.249911, 0.037585], dtype=torch.float64)
    assert_close(expected_gradient("k1"), torch.zeros(3).double(), atol=1e-12, rtol=0)
    assert_close(expected_gradient("k2"), kl_policy_ref, atol=1e-6, rtol=0)
    assert_close(expected_gradient("k3+"), kl_policy_ref, atol=1e-6, rtol=0)
    assert_close(expected_gradient("k3"), kl_ref_policy, atol=1e-6, rtol=0)


def test_kl_expectations():
    policy, ref = torch.tensor([0.5, 0.5]).double(), torch.tensor([0.25, 0.75]).double()
    mean = {n: (policy * kl_estimate(policy.log(), ref.log(), n)).sum().item() for n in ("k1", "k2", "k3")}
    assert mean == pytest.approx({"k1": 0.143841036, "k2": 0.161214, "k3": 0.143841036}, abs=1e-6)


def test_unknown_estimator_is_refused():
    with pytest.raises(ValueError, match="k1, k2, k3 or"):
        kl_estimate(torch.zeros(1), torch.zeros(1), "k4")
