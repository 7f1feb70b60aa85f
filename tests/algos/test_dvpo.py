"""DVPO's own maths: what its critic converges to, its targets, its knobs."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from noisyrl.ops.advantages import distributional_gae, gae
from noisyrl.types import Batch, QuantileValue, Range, Rollout
from tests.frame import batch_for, built, loop_for, made_up_rollout

ONE = {"prompts": 20, "samples": 1}


def outcomes(reward_B, value, **fields):
    """A batch of one-token responses with these rewards."""
    rows = len(reward_B)
    rollout = made_up_rollout(**ONE)
    rollout = Rollout(
        prompts=rollout.prompts, turns=rollout.turns, tokens_BL=torch.ones(rows, 2, dtype=torch.int64),
        attention_BL=torch.ones(rows, 2, dtype=torch.bool), mask_BT=torch.ones(rows, 1, dtype=torch.bool),
        logp_BT=torch.zeros(rows, 1, dtype=torch.float64), group_B=rollout.group_B, sample_B=rollout.sample_B,
        finished_B=rollout.finished_B,
    )  # fmt: skip
    return Batch(rollout=rollout, reward_B=reward_B, logp_BT=rollout.logp_BT, reference=None, value=value, **fields)


def as_value(quantiles_HM, rows):
    quantiles_BTHM = quantiles_HM.expand(rows, 1, *quantiles_HM.shape)
    ensemble_BTM = quantiles_BTHM.mean(dim=2)
    return QuantileValue(mean_BT=ensemble_BTM.mean(-1), ensemble_BTM=ensemble_BTM, quantiles_BTHM=quantiles_BTHM)


def fitted(algo, q, *, steps=1500):
    """Quantiles [3, 200] that minimise the critic's loss where 20 q of 20 outcomes are 1 and the others 0."""
    reward_B = (torch.arange(20) < round(20 * q)).double()
    quantiles_HM = torch.linspace(0, 1, 200, dtype=torch.float64).repeat(3, 1).requires_grad_()
    optimizer = torch.optim.Adam([quantiles_HM], lr=0.02, betas=(0.9, 0.99))
    course = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=1e-5)
    memory = {}
    for _ in range(steps):
        value = as_value(quantiles_HM, 20)
        batch = outcomes(reward_B, as_value(quantiles_HM.detach(), 20), memory=memory)
        credit = algo.credit(batch)
        memory = credit.memory
        optimizer.zero_grad()
        algo.critic_loss(value, batch, credit).total_BT.mean().backward()
        optimizer.step()
        course.step()
    return quantiles_HM.detach()


@pytest.mark.parametrize("q", [0.05, 0.1, 0.2, 0.5, 0.8])
def test_the_mean_of_a_bernoulli_is_unbiased(q, capsys):
    """Within .01 for the calibrated default; the literal reading is biased towards the middle."""
    mean, paper = float(fitted(built("algo", "algo=dvpo"), q).mean()), fitted(built("algo", "algo=dvpo_paper"), q).mean()
    with capsys.disabled():
        print(f"\nBernoulli({q:g}): dvpo {mean:.4f} ({mean - q:+.4f}), dvpo_paper {paper:.4f} ({paper - q:+.4f})", end="")
    assert abs(mean - q) <= 0.01
    assert abs(paper - q) > abs(mean - q)
