"""PPO's own maths."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from noisyrl.types import Credit, Scores, Value
from tests.frame import batch_for, built, loop_for, made_up_rollout


def one_row(batch, *, reward, value, logp, reference=None):
    row = torch.tensor([0])
    width = len(value)
    rollout = made_up_rollout(prompts=1, samples=1)
    rollout = replace(
        rollout,
        tokens_BL=torch.ones(1, width + 1, dtype=torch.int64),
        attention_BL=torch.ones(1, width + 1, dtype=torch.bool),
        mask_BT=torch.ones(1, width, dtype=torch.bool),
        logp_BT=torch.tensor([logp], dtype=torch.float64),
    )
    scores = None
    if reference is not None:
        ref = torch.tensor([reference], dtype=torch.float64)
        scores = Scores(logp_BT=ref, entropy_BT=0 * ref, hidden_BTD=ref.new_zeros(1, width, 0))
    return replace(
        batch,
        rollout=rollout,
        reward_B=torch.tensor([reward], dtype=torch.float64)[row],
        logp_BT=rollout.logp_BT,
        value=Value(mean_BT=torch.tensor([value], dtype=torch.float64)),
        reference=scores,
    )


@pytest.fixture
def batch():
    return batch_for(loop_for(built("algo", "algo=grpo")), made_up_rollout())


def test_credit_golden(batch):
    algo = built("algo", "algo=ppo", "algo.lam_critic=0.95")
    credit = algo.credit(one_row(batch, reward=1.0, value=[0.5, 0.6, 0.8], logp=[-1, -1, -1]))
    expected = torch.tensor([[0.842364, 0.262789, -1.105153]], dtype=torch.float64)
    assert_close(credit.advantage_BT, expected, atol=1e-6, rtol=0)
    assert_close(credit.target, torch.tensor([[0.9705, 0.99, 1.0]], dtype=torch.float64), atol=1e-9, rtol=0)


def test_separate_lambdas(batch):
    row = one_row(batch, reward=1.0, value=[0.5, 0.6, 0.8], logp=[-1, -1, -1])
    credit = built("algo", "algo=ppo", "algo.whiten_advantages=false").credit(row)
    assert_close(credit.advantage_BT, torch.tensor([[0.4705, 0.39, 0.2]], dtype=torch.float64))
    assert_close(credit.target, torch.ones(1, 3, dtype=torch.float64))


def test_kl_in_reward_golden(batch):
    algo = built("algo", "algo=ppo", "algo.kl_coef=0.1")
    row = one_row(batch, reward=1.0, value=[0, 0, 0], logp=[-1, -0.5, -2], reference=[-1.2, -0.4, -1])
    assert_close(algo.token_rewards(row), torch.tensor([[-0.02, 0.01, 1.1]], dtype=torch.float64))
    in_loss = built("algo", "algo=ppo", "algo.kl_coef=0.1", "algo.kl_in=loss", "algo.kl_estimator=k3")
    assert_close(in_loss.token_rewards(row), torch.tensor([[0, 0, 1.0]], dtype=torch.float64))


def test_kl_in_loss_adds_its_estimate(batch):
    row = one_row(batch, reward=1.0, value=[0, 0], logp=[-1, -2], reference=[-1.2, -1])
    scores = Scores(logp_BT=row.logp_BT, entropy_BT=0 * row.logp_BT, hidden_BTD=row.logp_BT.new_zeros(1, 2, 0))
    credit = Credit(advantage_BT=torch.zeros(1, 2).double(), target=torch.zeros(1, 2).double())
    loss = built("algo", "algo=grpo", "algo.kl_coef=0.5").policy_loss(scores, row, credit)
    assert_close(
        loss.total_BT, 0.5 * torch.tensor([[0.018730753, 0.718281828]], dtype=torch.float64), atol=1e-8, rtol=0
    )


def test_value_clip_golden(batch):
    row = one_row(batch, reward=1.0, value=[0.5], logp=[-1])
    credit = Credit(advantage_BT=torch.zeros(1, 1).double(), target=torch.ones(1, 1).double())
    value = Value(mean_BT=torch.tensor([[0.9]], dtype=torch.float64))
    assert built("algo", "algo=ppo").critic_loss(value, row, credit).total_BT.item() == pytest.approx(0.045)
    off = built("algo", "algo=ppo", "algo.value_clip=null").critic_loss(value, row, credit)
    assert off.total_BT.item() == pytest.approx(0.005)


def test_entropy_bonus_lowers_the_loss(batch):
    row = one_row(batch, reward=1.0, value=[0.0], logp=[-1])
    scores = Scores(row.logp_BT, torch.tensor([[0.7]]).double(), row.logp_BT.new_zeros(1, 1, 0))
    credit = Credit(advantage_BT=torch.zeros(1, 1).double(), target=torch.zeros(1, 1).double())
    loss = built("algo", "algo=ppo", "algo.entropy_coef=0.1").policy_loss(scores, row, credit)
    assert loss.total_BT.item() == pytest.approx(-0.07)


def test_grpo_weights_give_every_response_the_same_say():
    mask = torch.tensor([[True, True, False, False], [True, True, True, True]])
    loss = torch.tensor([[1.0, 1.0, 9.0, 9.0], [0.5, 0.5, 0.5, 0.5]])
    grpo, ppo = (built("algo", f"algo={name}").token_weights(mask) for name in ("grpo", "ppo"))
    assert (grpo * loss).sum().item() == pytest.approx(0.75)
    assert (ppo * loss).sum().item() == pytest.approx(2 / 3)
