"""Algorithms reduce to each other where the equations say so: byte for byte over three training steps."""

import dataclasses
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from noisyrl.critics.values import EnsembleValue, QuantileValue
from noisyrl.types import Value
from tests.frame import batch_for, built, loop_for, made_up_rollout

MATCHED = ("algo.lam_critic=0.95",)


def trained(*overrides, steps=3):
    """Weights of policy and critic trunk after three updates on three made-up rollouts."""
    loop = loop_for(built("algo", *overrides))
    for step in range(steps):
        loop.learn(batch_for(loop, made_up_rollout(seed=step)), step, step=step)
    agent = loop.collector.agent
    return {name: p.detach().clone() for name, p in agent.named_parameters() if ".head." not in f".{name}"} | {
        f"critic.head.{i}": p.detach().flatten() for i, p in enumerate(agent.critic.head.parameters())
    }


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


ONE_HEAD = "algo.critic.heads=1"
SAME_RATE = ("algo.critic.lr=1e-3",)
ONE_QUANTILE = (
    "algo=dvpo/qr", "algo.critic.quantiles=1", ONE_HEAD, "algo.critic.init_center=0", "algo.kappa=null",
    "algo.divide_by_kappa=false", "algo.critic.monotone=false", *SAME_RATE,
)  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "reference"),
    [
        (("algo=robust_bellman", ONE_HEAD, "algo.rho=0"), ("algo=ppo", *MATCHED)),
        (("algo=robust_bellman", ONE_HEAD, "algo.rho=0.7"), ("algo=ppo", *MATCHED)),
        (("algo=robust_bellman/r_contamination", ONE_HEAD, "algo.rho=0"), ("algo=ppo", *MATCHED)),
        (
            ("algo=robust_bellman", "algo.rho=0", "algo.bootstrap_frac=1"),
            ("algo=scalar_heads", "algo.w_shift=0", "algo.w_cons=0", "algo.critic.hidden=0"),
        ),
        (
            ("algo=scalar_heads", ONE_HEAD, "algo.critic.hidden=0", "algo.w_shift=0", "algo.w_cons=0"),
            ("algo=ppo", *MATCHED),
        ),
        (("algo=ppo_optimism", "algo.w_shift=0"), ("algo=ppo", *MATCHED)),
        (("algo=ppo_matched",), ("algo=ppo", *MATCHED)),
    ],
    ids=lambda words: " ".join(words),
)
def test_identical_over_three_steps(overrides, reference):
    same(trained(*overrides), trained(*reference))


def test_a_step_moves_something():
    assert any(
        not torch.equal(a, b)
        for a, b in zip(trained("algo=ppo").values(), trained("algo=ppo", steps=0).values(), strict=True)
    )


def test_one_squared_quantile_is_half_of_ppo():
    """M = N = 1, tau = 1/2, kappa = infinity: the critic's loss is half of PPO's, the actor's is the same."""
    found = trained(*ONE_QUANTILE)
    expected = trained("algo=ppo", *MATCHED, *SAME_RATE, "algo.critic_coef=0.5", "algo.value_clip=null")
    for name, tensor in expected.items():
        assert_close(found[name], tensor, atol=1e-6, rtol=0)


def test_the_right_grid_does_not_reduce():
    found = trained(*ONE_QUANTILE, "algo.tau_grid=right")
    expected = trained("algo=ppo", *MATCHED, *SAME_RATE, "algo.critic_coef=0.5", "algo.value_clip=null")
    assert any((found[name] - tensor).abs().max() > 1e-6 for name, tensor in expected.items())


def test_dr_grpo_is_grpo_without_its_divisions():
    grpo, dr = built("algo", "algo=grpo", "algo.standardise=false"), built("algo", "algo=dr_grpo")
    batch = batch_for(loop_for(dr), made_up_rollout())
    assert torch.equal(grpo.credit(batch).advantage_BT, dr.credit(batch).advantage_BT)
    weights_BT = dr.token_weights(batch.mask_BT)
    assert torch.equal(weights_BT[batch.mask_BT].unique(), torch.tensor([1 / (64 * 16)], dtype=torch.float64))
    longer = torch.nn.functional.pad(batch.mask_BT, (0, 7))
    assert torch.equal(dr.token_weights(longer)[:, :9], weights_BT)


def test_dr_grpo_scales_with_rewards_and_grpo_does_not():
    batch = batch_for(loop_for(built("algo", "algo=dr_grpo")), made_up_rollout())
    double = replace(batch, reward_B=2 * batch.reward_B + 3)
    dr, grpo = built("algo", "algo=dr_grpo"), built("algo", "algo=grpo")
    assert_close(dr.credit(double).advantage_BT, 2 * dr.credit(batch).advantage_BT)
    assert_close(grpo.credit(double).advantage_BT, grpo.credit(batch).advantage_BT, atol=1e-5, rtol=0)


def test_reinforce_pp_is_ppo_without_a_critic():
    plain = built("algo", "algo=reinforce_pp")
    batch = batch_for(loop_for(plain), made_up_rollout())
    ppo = built("algo", "algo=ppo", "algo.lam_actor=1")
    assert torch.equal(plain.credit(batch).advantage_BT, ppo.credit(batch).advantage_BT)


@pytest.mark.parametrize("name", ["robust_bellman", "vrpo", "dvpo", "scalar_heads"])
def test_equal_values_give_bit_identical_actor_losses(name):
    """Methods with a critic differ in how values are learned, not in what the actor does with them."""
    ppo = built("algo", "algo=ppo")
    loop = loop_for(ppo)
    batch = batch_for(loop, made_up_rollout())
    scores, _ = loop.collector.agent(batch.rollout)
    other = built("algo", f"algo={name}", *(["algo.rho=0"] if name == "robust_bellman" else []))
    kind = type(batch_for(loop_for(other), made_up_rollout()).value)
    mean_BT = batch.value.mean_BT
    wide = {"heads_BTH": mean_BT[..., None], "ensemble_BTM": mean_BT[..., None]}
    fields = {f.name: wide.get(f.name, mean_BT) for f in dataclasses.fields(kind)}
    twin = replace(batch, value=kind(**fields))
    expected = ppo.policy_loss(scores, batch, ppo.credit(batch))
    found = other.policy_loss(scores, twin, other.credit(twin))
    assert torch.equal(found.total_BT, expected.total_BT)


def test_value_types_are_what_they_say():
    _, value = loop_for(built("algo", "algo=dvpo")).collector.agent(made_up_rollout())
    assert isinstance(value, QuantileValue) and value.quantiles_UHM.shape[1:] == (3, 200)
    assert_close(value.mean_BT[made_up_rollout().mask_BT], value.quantiles_UHM.mean(dim=(1, 2)))
    _, heads = loop_for(built("algo", "algo=robust_bellman")).collector.agent(made_up_rollout())
    assert isinstance(heads, EnsembleValue) and isinstance(heads, Value) and heads.heads_BTH.shape[2] == 3


def test_quantiles_start_sorted():
    """Crossing is exactly 0 before the first update, whatever the states."""
    _, value = loop_for(built("algo", "algo=dvpo")).collector.agent(made_up_rollout())
    assert bool((value.quantiles_UHM.diff(dim=-1) > 0).all())
