"""RFQI's own maths: the robust backup, what trains the threshold, and PPO at rho 0."""

from dataclasses import replace

import pytest
import torch
from hydra.utils import get_class
from omegaconf import OmegaConf
from torch.testing import assert_close

from noisyrl.critics.values import FloorValue
from noisyrl.launch import build
from noisyrl.ops.advantages import tv_bootstrap
from noisyrl.spec import InputError
from noisyrl.types import Credit, Range
from tests.algos.test_ppo import one_row
from tests.frame import batch_for, built, composed, gradients, loop_for, made_up_rollout

PLAIN = ("algo.whiten_advantages=false", "algo.lam_actor=0.95", "algo.lam_critic=0.95", "algo.value_clip=null")
TOKEN = (*PLAIN, "algo.rho=0.2", "algo.rho_unit=token")


@pytest.fixture(scope="module")
def batch():
    return batch_for(loop_for(built("algo", "algo=grpo")), made_up_rollout())


def row(batch, *, value, threshold, reward=1.0, **changes):
    found = one_row(batch, reward=reward, value=value, logp=[-1.0] * len(value))
    floor = FloorValue(mean_BT=found.value.mean_BT, threshold_BT=torch.tensor([threshold], dtype=torch.float64))
    return replace(found, value=floor, **changes)


def test_credit_golden(batch):
    """States 2 and 3 are worth min(.7, .6) - .14 = .46 and min(.5, .8) - .1 = .4 to the tokens before them."""
    algo = built("algo", "algo=rfqi", *TOKEN)
    credit = algo.credit(row(batch, value=[0.5, 0.6, 0.8], threshold=[0.7, 0.5, 0.9]))
    last = 1 - 0.8
    middle = 0.4 - 0.6 + 0.95 * 0.8 * last
    first = 0.46 - 0.5 + 0.95 * 0.8 * middle
    expected = torch.tensor([[first, middle, last]], dtype=torch.float64)
    assert_close(credit.advantage_BT, expected)
    assert_close(credit.target, expected + torch.tensor([[0.5, 0.6, 0.8]]).double())


def test_the_threshold_used_is_that_of_the_policy_token_before(batch):
    """A user's turn in between changes nothing, and what is written there or after the end is never read."""
    algo, nan = built("algo", "algo=rfqi", *TOKEN), float("nan")
    plain = row(batch, value=[0.5, 0.6, 0.8], threshold=[0.7, 0.5, 0.9])
    holes = row(batch, value=[0.5, 0.6, nan, nan, 0.8, nan], threshold=[0.7, 0.5, nan, nan, 0.9, nan])
    mask = torch.tensor([[True, True, False, False, True, False]])
    holes = replace(holes, rollout=replace(holes.rollout, mask_BT=mask))
    expected, found = algo.credit(plain), algo.credit(holes)
    assert_close(found.advantage_BT[mask], expected.advantage_BT[0])
    assert_close(found.target[mask], expected.target[0])
    for name, term in algo.critic_loss(holes.value, holes, found).terms.items():
        assert_close(term[mask], algo.critic_loss(plain.value, plain, expected).terms[name][0])
        assert (term[~mask] == 0).all()


def test_thresholds_stay_in_the_range_of_rewards_and_the_fail_state_is_its_floor(batch):
    algo = built("algo", "algo=rfqi", *TOKEN)
    wild = row(batch, value=[0.5, 0.6, 0.8], threshold=[7.0, -7.0, 0.0], reward_range=Range(-1.0, 1.0))
    tame = row(batch, value=[0.5, 0.6, 0.8], threshold=[1.0, -1.0, 0.0], reward_range=Range(-1.0, 1.0))
    found = algo.credit(wild)
    assert torch.equal(found.advantage_BT, algo.credit(tame).advantage_BT)
    # State 2: min(1, .6) - .2 * (1 - -1); state 3: min(-1, .8) - .2 * (-1 - -1); the trace is .95 * .8.
    last = 1 - 0.8
    middle = -1 - 0.6 + 0.95 * 0.8 * last
    first = 0.2 - 0.5 + 0.95 * 0.8 * middle
    assert_close(found.advantage_BT, torch.tensor([[first, middle, last]], dtype=torch.float64))


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
def test_a_certain_next_state_makes_it_a_discount(batch, lam):
    """The best threshold is then the next value, and the credit is PPO's at gamma = 1 - rho."""
    lams = ("algo.whiten_advantages=false", f"algo.lam_actor={lam}", f"algo.lam_critic={lam}")
    value = [0.5, 0.6, 0.8]
    certain = row(batch, value=value, threshold=[0.6, 0.8, 0.3])
    found = built("algo", "algo=rfqi", *TOKEN, *lams).credit(certain)
    expected = built("algo", "algo=ppo", *lams, "algo.gamma=0.8").credit(certain)
    assert_close(found.advantage_BT, expected.advantage_BT)
    assert_close(found.target, expected.target)


@pytest.mark.parametrize("unit", ["sequence", "token"])
def test_rho_zero_is_ppo_bit_for_bit(unit):
    """Same weights at the start, same credit, same gradients, and a threshold that nothing moves."""
    algo = built("algo", "algo=rfqi", "algo.rho=0", f"algo.rho_unit={unit}")
    ppo = built("algo", "algo=ppo", "algo.lam_critic=0.95")
    rollout = made_up_rollout()
    ours, theirs = batch_for(loop_for(algo), rollout), batch_for(loop_for(ppo), rollout)
    assert torch.equal(ours.value.mean_BT, theirs.value.mean_BT)
    # Values above every threshold, thresholds anywhere: at rho 0 neither is capped by the other.
    ours = replace(ours, value=replace(ours.value, threshold_BT=torch.full_like(ours.value.threshold_BT, -3.0)))
    found, expected = algo.credit(ours), ppo.credit(theirs)
    assert torch.equal(found.advantage_BT, expected.advantage_BT)
    assert torch.equal(found.target, expected.target)
    found, expected = gradients(loop_for(algo), ours), gradients(loop_for(ppo), theirs)
    offset = {name for name in found if "offset" in name}
    assert offset and all((found[name] == 0).all() for name in offset)
    assert found.keys() - offset == expected.keys()
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient), name


def test_rho_zero_computes_no_threshold_loss(batch):
    one = row(batch, value=[0.5, 0.6], threshold=[0.7, 0.5])
    algo = built("algo", "algo=rfqi", "algo.rho=0")
    assert (algo.critic_loss(one.value, one, algo.credit(one)).terms["threshold_loss"] == 0).all()


def test_critic_loss_golden(batch):
    """Each threshold meets the old value of the next state; the last token trains none, and none meets the first."""
    algo = built("algo", "algo=rfqi", *TOKEN, "algo.critic_coef=2")
    one = row(batch, value=[-0.5, 0.6, 0.8], threshold=[0.7, 0.5, 0.9])
    credit = Credit(advantage_BT=torch.zeros(1, 3).double(), target=torch.tensor([[0.4, 0.4, 1.0]]).double())
    new = FloorValue(
        mean_BT=torch.tensor([[0.4, 0.4, 0.6]]).double(),
        threshold_BT=torch.tensor([[0.7, 0.5, 0.9]]).double().requires_grad_(),
    )
    loss = algo.critic_loss(new, one, credit)
    expected = torch.tensor([[0.0, (0.7 - 0.6) - 0.8 * 0.7, -0.8 * 0.5]]).double()
    assert_close(loss.terms["threshold_loss"], expected)
    assert_close(loss.total_BT, 2 * (expected + torch.tensor([[0, 0, 0.5 * 0.4**2]]).double()))
    loss.total_BT.sum().backward()
    assert_close(new.threshold_BT.grad, 2 * torch.tensor([[1 - 0.8, -0.8, 0.0]]).double())


@pytest.mark.parametrize("rho", [0.1, 0.5])
def test_a_trained_threshold_makes_the_mean_backup_the_worst_case(batch, rho):
    """2000 two-token rows from one first state: fitted by the loss, the threshold is right, and so is the backup."""
    algo = built("algo", "algo=rfqi", *PLAIN, f"algo.rho={rho}", "algo.rho_unit=token", "algo.lam_critic=0")
    count = 2000
    next_B = torch.rand(count, generator=torch.Generator().manual_seed(2), dtype=torch.float64).square()
    rollout = made_up_rollout(prompts=1, samples=1)
    rollout = replace(
        rollout,
        prompts=list(rollout.prompts) * count,
        turns=list(rollout.turns) * count,
        tokens_BL=torch.ones(count, 3, dtype=torch.int64),
        attention_BL=torch.ones(count, 3, dtype=torch.bool),
        mask_BT=torch.ones(count, 2, dtype=torch.bool),
        logp_BT=torch.zeros(count, 2, dtype=torch.float64),
        group_B=torch.zeros(count, dtype=torch.int64),
        sample_B=torch.arange(count),
        finished_B=torch.ones(count, dtype=torch.bool),
    )
    mean_BT = torch.stack([torch.full_like(next_B, 0.3), next_B], dim=1)
    threshold = torch.zeros((), dtype=torch.float64, requires_grad=True)
    many = replace(
        batch,
        rollout=rollout,
        reward_B=torch.zeros(count, dtype=torch.float64),
        logp_BT=rollout.logp_BT,
        value=FloorValue(mean_BT=mean_BT, threshold_BT=torch.zeros_like(mean_BT)),
    )
    credit = algo.credit(many)
    optimizer = torch.optim.SGD([threshold], lr=0.05)
    for _ in range(500):
        value = FloorValue(mean_BT=mean_BT, threshold_BT=threshold.expand_as(mean_BT))
        loss = algo.critic_loss(value, many, credit).total_BT[:, 1].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert threshold.item() == pytest.approx(next_B.quantile(1 - rho).item(), abs=0.02)
    fitted = replace(many, value=replace(many.value, threshold_BT=threshold.detach().expand_as(mean_BT)))
    found = algo.credit(fitted).target[:, 0].mean().item()
    expected = tv_bootstrap(next_B[None, None], rho=rho, fail_value=0.0).item()
    assert found == pytest.approx(expected, abs=1e-3)
    assert expected < next_B.mean().item() - 0.02


def test_more_rho_is_never_worth_more(batch):
    one = row(batch, value=[0.5, 0.6, 0.8], threshold=[0.9, 0.9, 0.9], reward=1.0)
    targets = [
        built("algo", "algo=rfqi", *PLAIN, f"algo.rho={rho}", "algo.rho_unit=token").credit(one).target[0, 0].item()
        for rho in (0, 0.01, 0.1, 0.5, 1)
    ]
    assert targets == sorted(targets, reverse=True) and targets[0] > targets[-1]


def test_rho_of_a_sequence_is_spread_over_its_tokens():
    algo = built("algo", "algo=rfqi", "algo.rho=0.1", "algo.max_tokens=1000")
    assert algo.token_rho == pytest.approx(1.053550e-4, abs=1e-9)
    assert built("algo", "algo=rfqi", "rollout.max_tokens=7").max_tokens == 7
    assert built("algo", "algo=rfqi", "algo.rho=0.1", "algo.rho_unit=token").token_rho == 0.1


def test_the_threshold_follows_the_value_and_shapes_nothing():
    """An offset to the value, with gradient to the offset alone."""
    spec = built("algo", "algo=rfqi").critic
    head = spec.make(16, seed=0).double()
    hidden = torch.randn(2, 3, 16, dtype=torch.float64, requires_grad=True)
    value = head(hidden)
    assert_close(value.threshold_BT, value.mean_BT + head.offset(hidden).squeeze(-1))
    assert (value.threshold_BT - value.mean_BT).mean().item() == pytest.approx(spec.init_offset, abs=0.1)
    value.threshold_BT.sum().backward()
    assert hidden.grad is None and head.head.weight.grad is None
    assert head.offset.weight.grad.abs().sum() > 0


def test_diagnostics_count_next_values_below_the_threshold(batch):
    one = row(batch, value=[0.5, 0.6, 0.8], threshold=[0.7, 0.5, 0.9])
    found = one.value.diagnostics(one.reward_B, one.mask_BT, 0.05)
    assert found == pytest.approx({"critic/threshold_mean": 0.7, "critic/threshold_above_frac": 0.5})


def test_another_critic_is_refused():
    config = OmegaConf.to_container(composed("algo=rfqi", "critic@algo.critic=scalar"), resolve=True) | {"name": "x"}
    with pytest.raises(InputError, match="algo.critic"):
        build(config)
    assert get_class(composed("algo=rfqi").algo.critic._target_).__name__ == "RFQICritic"
