"""Quantile regression on bootstrapped targets, run to its end on a chain whose return laws are known.

Ten tokens; two fair moves, at tokens 4 and 7, decide the chance of the final reward, 0 or 1. From every state the
return is thus Bernoulli, with the chance of the state. Each step sees all eight trajectories with their probabilities:
what is left of error is the method's own.
"""

import pytest
import torch

from noisyrl.ops.advantages import distributional_gae, mixture_target
from noisyrl.ops.quantiles import midpoints, quantile_huber

TOKENS, COUNT, LAM, KAPPA = 10, 80, 0.95, 0.02
CHANCE = torch.tensor([0.5, 0.3, 0.7, 0.1, 0.5, 0.9])  # before any move; after one; after both

MOVES = torch.tensor([[a, b] for a in (0, 1) for b in (0, 1)]).repeat_interleave(2, dim=0)
STATE = torch.stack([torch.zeros(8).long(), 1 + MOVES[:, 0], 3 + MOVES.sum(1)], 1)[:, [0] * 4 + [1] * 3 + [2] * 3]
REWARD = torch.zeros(8, TOKENS)
REWARD[1::2, -1] = 1
WEIGHT = torch.where(REWARD[:, -1] > 0, CHANCE[STATE[:, -1]], 1 - CHANCE[STATE[:, -1]]) / 4
MASK = torch.ones(8, TOKENS, dtype=torch.bool)
TIME = torch.arange(TOKENS)
TRUE_STD = (CHANCE * (1 - CHANCE)).sqrt()[STATE]


def comonotone(quantiles):
    return quantiles + distributional_gae(REWARD, quantiles, MASK, gamma=1.0, lam=LAM)


def mixture(quantiles):
    return mixture_target(REWARD, quantiles, MASK, gamma=1.0, lam=LAM)


@pytest.fixture(scope="module")
def learned():
    """Quantiles along the eight trajectories [2, 8, T, M]: trained on mixture targets, and on comonotone ones."""
    tau = midpoints(COUNT)
    table = tau.repeat(2, TOKENS, len(CHANCE), 1).requires_grad_()
    steps = 1000
    adam = torch.optim.Adam([table], lr=0.03)
    decay = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 1 - step / steps)
    for _ in range(steps):
        quantiles = table[:, TIME, STATE]
        now = quantiles.detach()
        target = torch.stack([mixture(now[0]), comonotone(now[1])])
        error = quantile_huber(quantiles, target, tau, kappa=KAPPA, divide_by_kappa=True)
        adam.zero_grad()
        (WEIGHT[:, None] * error).sum().backward()
        adam.step()
        decay.step()
    return table.detach()[:, TIME, STATE]


def predicted_std(target):
    """[8, T] of the laws quantile regression converges to, found token by token from the end."""
    table = torch.zeros(TOKENS, len(CHANCE), COUNT)
    edges = torch.arange(COUNT + 1) / COUNT
    for t in reversed(range(TOKENS)):
        atoms = target(table[TIME, STATE])[:, t]
        for state in STATE[:, t].unique():
            rows = STATE[:, t] == state
            x, order = atoms[rows].flatten().sort()
            mass = WEIGHT[rows].repeat_interleave(COUNT)[order] / (COUNT * WEIGHT[rows].sum())
            covered = (edges - (mass.cumsum(0) - mass)[:, None]).clamp(min=0).minimum(mass[:, None])
            table[t, state] = (covered * x[:, None]).sum(0).diff() * COUNT
    return table.std(-1, correction=0)[TIME, STATE]


def test_mixture_targets_recover_mean_and_spread(learned):
    assert (learned[0].mean(-1) - CHANCE[STATE]).abs().max() < 0.01
    assert (learned[0].std(-1, correction=0) - TRUE_STD).abs().max() < 0.02


def test_comonotone_targets_recover_the_mean_and_lose_the_predicted_spread(learned):
    assert (learned[1].mean(-1) - CHANCE[STATE]).abs().max() < 0.01
    std, predicted = learned[1].std(-1, correction=0), predicted_std(comonotone)
    assert (std - predicted).abs().max() < 0.01
    assert (predicted[:, -1] - TRUE_STD[:, -1]).abs().max() < 0.002  # nothing is bootstrapped at the last token
    lost = TRUE_STD - std
    assert (lost[:, 0] > 0.12).all()
    assert (lost[:, :3].diff(dim=1) < -0.01).all()  # more with every token of the first four, whose truth is the same
