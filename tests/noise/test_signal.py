"""What declared signals mean for the three ways of making advantages, and golden draws through the noise classes."""

import math
from dataclasses import replace

import pytest
import torch

from noisyrl.noise.dropout import Dropout
from noisyrl.noise.flip import Flip
from noisyrl.noise.flip_asym import FlipAsym
from noisyrl.noise.gaussian import Gaussian
from noisyrl.ops.advantages import group_relative
from noisyrl.ops.masked import whiten
from tests.frame import made_up_rollout
from tests.noise.bounds import group, observed

COUNT = 20_000
ONE = torch.zeros(COUNT, dtype=torch.int64)


def slope(noisy, clean):
    """Regression of noisy on clean advantages."""
    clean = clean - clean.mean()
    return float((noisy * clean).sum() / (clean * clean).sum())


def attenuation(q, false_positive, false_negative):
    j = 1 - false_positive - false_negative
    noisy = false_positive + j * q
    return j * math.sqrt(q * (1 - q) / (noisy * (1 - noisy)))


@pytest.mark.parametrize(("q", "expected"), [(0.5, 0.400), (0.25, 0.354), (0.1, 0.253), (0.02, 0.121)])
def test_flips_attenuate_the_standardised_advantage_of_hard_prompts_most(q, expected):
    """The table of algorithms.md section 11, large groups; exact shares of the outcomes, then draws."""
    assert attenuation(q, 0.3, 0.3) == pytest.approx(expected, abs=5e-4)
    clean = (torch.arange(COUNT) < q * COUNT).double()
    exact = clean.clone()
    for kind in (0, 1):
        among = (clean == kind).nonzero().flatten()
        exact[among[: round(0.3 * len(among))]] = 1 - kind
    drawn = Flip(rate=0.3, seed=1)(clean, group(COUNT), 0)
    standardised = group_relative(clean, ONE, standardise=True)
    assert slope(group_relative(exact, ONE, standardise=True), standardised) == pytest.approx(expected, abs=5e-4)
    found = slope(group_relative(drawn, ONE, standardise=True), standardised)
    assert abs(found - expected) < 3.29 / math.sqrt(COUNT)  # both have variance 1


@pytest.mark.parametrize(
    ("noise", "rates"),
    [
        (FlipAsym(false_positive=0.1, false_negative=0.3, seed=1), (0.1, 0.3)),
        (FlipAsym(false_positive=0.3, false_negative=0.0, seed=1), (0.3, 0.0)),
        (Flip(rate=0.7, seed=1), (0.7, 0.7)),
        (Dropout(rate=0.3, mode="zero", seed=1), (0.0, 0.3)),
    ],
)
@pytest.mark.parametrize("q", [0.5, 0.1])
def test_centred_standardised_and_whitened_advantages_keep_the_declared_signal(noise, rates, q):
    """Dr.GRPO keeps J, GRPO and whitened PPO (with a constant value) J times the ratio of standard deviations."""
    clean = (torch.arange(COUNT) < q * COUNT).double()
    drawn = noise(clean, group(COUNT), 0)
    centred = slope(group_relative(drawn, ONE, standardise=False), group_relative(clean, ONE, standardise=False))
    j, small = 1 - sum(rates), 3.29 / math.sqrt(COUNT)
    assert abs(centred - j) < small * 0.5 / math.sqrt(q * (1 - q))
    mask = torch.ones(COUNT, 1, dtype=torch.bool)
    whitened = slope(whiten(drawn[:, None] - 0.4, mask), whiten(clean[:, None] - 0.4, mask))
    standardised = slope(group_relative(drawn, ONE, standardise=True), group_relative(clean, ONE, standardise=True))
    for found in (whitened, standardised):
        assert abs(found - attenuation(q, *rates)) < small


def test_gaussian_noise_keeps_the_centred_advantage_and_adds_its_variance():
    """Var(advantage) grows by sd^2 (1 - 1 / G)."""
    rollout = made_up_rollout(prompts=50, samples=4)
    clean = (torch.arange(200) % 4 == 0).double()
    noisy = observed(Gaussian(sd=0.5, seed=1), clean, rollout)
    base = group_relative(clean, rollout.group_B, standardise=False)
    errors = torch.stack([group_relative(row, rollout.group_B, standardise=False) - base for row in noisy])
    sd = 0.5 * math.sqrt(3 / 4)
    assert abs(float(errors[:, ::4].mean())) < 3.29 * sd / math.sqrt(errors[:, ::4].numel())
    # 50 * 50 groups of three free errors each.
    assert abs(float(errors.var()) / sd**2 - 1) < 3.29 * math.sqrt(2 / (2500 * 3))


@pytest.mark.parametrize(
    ("noise", "sample", "step", "expected"),
    [
        (Flip(rate=0.5), 0, 0, 0.896743971121875),
        (Flip(rate=0.5), 1, 0, 0.698834065563500),
        (Flip(rate=0.5), 0, 1, 0.962518715256269),
        (Flip(rate=0.5, seed=1), 0, 0, 0.289181382824732),
        (Flip(rate=0.5, persistence="persistent"), 0, 17, 0.915328981407356),
    ],
)
def test_golden_draws_of_flip(noise, sample, step, expected):
    """Golden N7: the draw decides, at a rate on either side of it."""
    reward = torch.zeros(4).double()
    assert float(noise.uniforms(noise.stream, group(4), step)[sample]) == pytest.approx(expected, abs=1e-15)
    for side, flipped in ((1e-9, 1.0), (-1e-9, 0.0)):
        assert replace(noise, rate=expected + side)(reward, group(4), step)[sample] == flipped


def test_golden_draw_of_gaussian():
    assert float(Gaussian(sd=1.0)(torch.zeros(1).double(), group(1), 0)) == pytest.approx(0.9633267677, abs=1e-9)
