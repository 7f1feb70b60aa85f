"""DVPO's own maths: what its critic converges to, its targets, its knobs."""

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch.testing import assert_close

from noisyrl.critics import quantile
from noisyrl.critics.quantile import spread
from noisyrl.critics.values import QuantileValue
from noisyrl.ops.advantages import distributional_gae, gae
from noisyrl.ops.masked import place
from noisyrl.types import Batch, Range, Rollout
from tests.frame import batch_for, built, loop_for, made_up_rollout


def outcomes(reward_B, value, **fields):
    """A batch of one-token responses with these rewards."""
    rows = len(reward_B)
    rollout = made_up_rollout(prompts=rows, samples=1)
    rollout = Rollout(
        prompts=rollout.prompts, turns=rollout.turns, tokens_BL=torch.ones(rows, 2, dtype=torch.int64),
        attention_BL=torch.ones(rows, 2, dtype=torch.bool), mask_BT=torch.ones(rows, 1, dtype=torch.bool),
        logp_BT=torch.zeros(rows, 1, dtype=torch.float64), group_B=rollout.group_B, sample_B=rollout.sample_B,
        finished_B=rollout.finished_B,
    )  # fmt: skip
    return Batch(rollout=rollout, reward_B=reward_B, logp_BT=rollout.logp_BT, reference=None, value=value, **fields)


def as_value(quantiles_NHM, mask_BT):
    ensemble_NM = quantiles_NHM.mean(dim=1)
    mean_BT = place(ensemble_NM.mean(dim=-1), mask_BT)
    return QuantileValue(mean_BT, ensemble_NM, quantiles_NHM, of_N=torch.arange(len(quantiles_NHM)))


def fitted(algo, q, *, steps=300):
    """Quantiles [3, 200] that minimise the critic's loss where exactly a share q of the outcomes is 1, the others 0."""
    share = Fraction(str(q))
    rows = share.denominator
    reward_B = (torch.arange(rows) < share.numerator).double()
    mask_BT = torch.ones(rows, 1, dtype=torch.bool)
    quantiles_HM = (q + 0.2 * torch.linspace(-1, 1, 200, dtype=torch.float64)).repeat(3, 1).requires_grad_()
    optimizer = torch.optim.Adam([quantiles_HM], lr=0.02, betas=(0.9, 0.99))
    course = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=1e-5)
    memory = {}
    for _ in range(steps):
        value = as_value(quantiles_HM.expand(rows, *quantiles_HM.shape), mask_BT)
        with torch.no_grad():
            batch = outcomes(reward_B, value.kept(mask_BT), memory=memory)
        credit = algo.credit(batch)
        memory = credit.memory
        optimizer.zero_grad()
        algo.critic_loss(value, batch, credit).total_BT.mean().backward()
        optimizer.step()
        course.step()
    return quantiles_HM.detach()


@pytest.mark.parametrize("q", [0.05, 0.1, 0.2, 0.5, 0.8])
def test_the_mean_of_a_bernoulli_is_unbiased(q, capsys):
    """Within .01 for the calibrated default; that of the literal reading is printed beside it."""
    mean, paper = (
        float(fitted(built("algo", "algo=dvpo"), q).mean()),
        fitted(built("algo", "algo=dvpo_paper"), q).mean(),
    )
    with capsys.disabled():
        print(
            f"\nBernoulli({q:g}): dvpo {mean:.4f} ({mean - q:+.4f}), dvpo_paper {paper:.4f} ({paper - q:+.4f})", end=""
        )
    assert abs(mean - q) <= 0.01


def step_batch(algo, *, seed=0, **fields):
    loop = loop_for(algo)
    return replace(batch_for(loop, made_up_rollout(seed=seed)), **fields), loop


def critic_terms(algo, batch, loop):
    _, value = loop.collector.agent(batch.rollout)
    return algo.critic_loss(value, batch, algo.credit(batch))


def test_interval_weight_has_three_readings_and_zero_removes_risk_shaping_in_each():
    batch, loop = step_batch(built("algo", "algo=dvpo"))
    zero = {"w_risk": 0.0, "w_cvar": 0.0, "w_gain": 0.0, "w_shape": 0.0, "w_curv": 0.0}
    dvpo = built("algo", "algo=dvpo")
    with_weight = {
        role: critic_terms(replace(dvpo, interval_weight=0.2, interval_weight_role=role), batch, loop).total_BT
        for role in ("coef", "tilt", "tail")
    }
    assert torch.equal(with_weight["coef"], critic_terms(replace(dvpo, w_risk=0.2), batch, loop).total_BT)
    tails = replace(dvpo, w_risk=0.0, lower_mass=0.2, upper_mass=0.2)
    assert torch.equal(with_weight["tail"], critic_terms(tails, batch, loop).total_BT)
    tilted = critic_terms(replace(dvpo, interval_weight=0.2, interval_weight_role="tilt"), batch, loop)
    assert not torch.equal(tilted.terms["qr"], critic_terms(dvpo, batch, loop).terms["qr"])
    assert (tilted.terms["risk"] == 0).all()
    no_tails = replace(dvpo, interval_weight=0.0, interval_weight_role="tail")
    assert_close(
        critic_terms(no_tails, batch, loop).total_BT, critic_terms(replace(dvpo, **zero), batch, loop).total_BT
    )
    plain = critic_terms(replace(dvpo, w_risk=0.0), batch, loop).total_BT
    for role in ("coef", "tilt"):
        off = replace(dvpo, interval_weight=0.0, interval_weight_role=role)
        assert_close(critic_terms(off, batch, loop).total_BT, plain)


def test_a_tail_holds_at_most_half_of_the_mass():
    with pytest.raises(ValueError, match=r"interval_weight=0.6.*at most 0.5"):
        replace(built("algo", "algo=dvpo"), interval_weight=0.6, interval_weight_role="tail")


@pytest.mark.parametrize("law", ["comonotone", "mixture", "mc"])
def test_target_laws_have_the_mean_of_the_scalar_return(law):
    algo = built("algo", "algo=dvpo", f"algo.target_law={law}", "algo.lam_critic=0.9")
    batch, _ = step_batch(algo)
    lam = 1.0 if law == "mc" else 0.9
    scalar = gae(algo.token_rewards(batch), batch.value.mean_BT, batch.mask_BT, gamma=1.0, lam=lam)
    mask = batch.mask_BT
    expected = (scalar + batch.value.mean_BT)[mask]
    assert_close(algo.credit(batch).target.mean(-1)[mask], expected, atol=1e-12, rtol=0)


def test_the_actor_sees_the_mean_over_quantiles():
    algo = built("algo", "algo=dvpo", "algo.whiten_advantages=false")
    batch, _ = step_batch(algo)
    reward_BT = algo.token_rewards(batch)
    each = distributional_gae(reward_BT, batch.value.ensemble_BTM, batch.mask_BT, gamma=1.0, lam=0.95)
    assert_close(algo.credit(batch).advantage_BT, each.mean(-1), atol=1e-12, rtol=0)


def test_the_shift_compares_running_means():
    algo = built("algo", "algo=dvpo", "algo.shift_decay=0.5")
    batch, _ = step_batch(algo)
    first = algo.credit(batch)
    lucky = replace(batch, reward_B=batch.reward_B + 100, memory=first.memory)
    second = algo.credit(lucky)
    alone = algo.credit(replace(lucky, memory={}))
    gap = [float(c.extra["gap_B"][0]) for c in (first, second, alone)]
    # Weights .5 and .25 of the running means, newest first, made to sum to 1.
    assert gap[1] == pytest.approx((0.5 * gap[2] + 0.25 * gap[0]) / 0.75, rel=1e-9)
    assert second.memory["shift_weight"] == 0.75


def test_the_shift_lifts_and_never_lowers():
    """Its loss is the gap's positive part, and its gradient with respect to the mean value -1 or 0 in all."""
    dvpo = built("algo", "algo=dvpo", "algo.w_shift=1", "algo.shift_decay=0")
    zero = {f"w_{name}": 0.0 for name in ("qr", "risk", "cvar", "gain", "shape", "curv", "cons")}
    algo = replace(dvpo, **zero)
    for offset, slope in ((5.0, -1.0), (-5.0, 0.0)):
        batch, loop = step_batch(algo)
        batch = replace(batch, reward_B=batch.reward_B + offset)
        credit = algo.credit(batch)
        quantiles = loop.collector.agent(batch.rollout)[1].quantiles_UHM.detach().requires_grad_()
        value = as_value(quantiles, batch.mask_BT)
        loss = algo.critic_loss(value, batch, credit).total_BT[batch.mask_BT].mean()
        expected = max(0.0, float(credit.extra["gap_B"][0]))
        assert float(loss.detach()) == pytest.approx(expected, abs=1e-12)
        (gradient,) = torch.autograd.grad(loss, quantiles)
        assert float(gradient.sum()) == pytest.approx(slope, abs=1e-12)


def test_mirrored_tails_are_the_same_loss_on_negated_distributions():
    plain = built("algo", "algo=dvpo", "algo.lower_mass=0.2", "algo.upper_mass=0.3")
    mirrored = replace(plain, shape_contracts="upper", lower_mass=0.3, upper_mass=0.2)
    batch, loop = step_batch(plain)
    _, value = loop.collector.agent(batch.rollout)
    credit = plain.credit(batch)
    negated = as_value(-value.quantiles_UHM, batch.mask_BT)
    found = mirrored.critic_loss(negated, batch, replace(credit, target=-credit.target)).terms["shape"]
    expected = plain.critic_loss(value, batch, credit).terms["shape"]
    assert expected.max() > 0
    assert_close(found, expected)


def test_kappa_is_a_share_of_the_declared_range():
    algo = replace(built("algo", "algo=dvpo/qr"), divide_by_kappa=False)
    batch, loop = step_batch(algo)
    wide = critic_terms(algo, replace(batch, reward_range=Range(-1.0, 1.0)), loop).total_BT
    assert torch.equal(wide, critic_terms(replace(algo, kappa=2 * algo.kappa), batch, loop).total_BT)


def test_median_heads_shrug_off_a_stray_one():
    heads = torch.tensor([0.5, 0.52, 5.0], dtype=torch.float64)
    for reduce, expected in (("mean", 2.006667), ("median", 0.52)):
        spec = built("algo", "algo=dvpo", f"algo.critic.head_reduce={reduce}", "algo.critic.quantiles=1").critic
        head = spec.make(4).double()
        with torch.no_grad():
            head.stack.weight.zero_()
            head.stack.bias.view(3, -1)[:, 0] = heads
        assert head(torch.zeros(1, 1, 4)).mean_BT.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("count", [1, 2, 7, 200])
def test_monotone_quantiles_are_in_order_and_have_the_mean_they_are_given(count):
    spec = built("algo", "algo=dvpo", f"algo.critic.quantiles={count}", "algo.critic.init_sd=2").critic
    head = spec.make(8).double()
    torch.nn.init.normal_(head.stack.weight, generator=torch.Generator().manual_seed(0))
    value = head(torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(1)).double())
    assert value.quantiles_UHM.shape == (15, 3, count)
    assert (value.quantiles_UHM.diff(dim=-1) >= 0).all()
    assert_close(value.ensemble_UM.mean(-1), value.mean_BT.flatten())


def test_what_is_kept_of_quantiles_says_what_they_said():
    quantiles = torch.tensor([[[0.0, 1.0, 2.0], [0.5, 0.25, 3.0]], [[1.0, 1.0, 1.0], [3.0, 2.0, 1.0]]])
    mask = torch.tensor([[True, False], [False, True]])
    kept = as_value(quantiles, mask).kept(mask)
    assert_close(kept.ensemble_BTM[mask], quantiles.mean(dim=1))
    assert_close(kept.heads_BTH[mask], torch.tensor([[1.0, 1.25], [1.0, 2.0]]))
    assert_close(kept.crossed_BT, torch.tensor([[0.25, 0.0], [0.0, 0.5]]))
    assert not kept.ensemble_BTM[~mask].any()
    found = kept.diagnostics(torch.tensor([0.0, 1.0]), mask, 0.05)
    assert found["critic/crossing_frac"] == pytest.approx(0.375)
    assert found["critic/head_disagreement"] == pytest.approx((0.25 + 1.0) / 2 / 2**0.5)


@pytest.mark.parametrize("lead", [(), (0,), (2, 0, 3)])
def test_spread_takes_any_leading_axes(lead):
    raw = torch.zeros(*lead, 3, 5, requires_grad=True)
    found, average = spread(raw)
    assert found.shape == (*lead, 3, 4) and average.shape == (*lead, 4)
    assert torch.autograd.grad(found.sum() + average.sum(), raw)[0].shape == raw.shape


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_spread_has_the_gradient_of_its_definition(count, compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(quantile, "takes_kernels", lambda *_: False)
    raw = torch.randn(3, 4, count + 1, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
    raw.requires_grad_()
    gaps = torch.nn.functional.softplus(raw[..., 1:2]) * raw[..., 2:].softmax(dim=-1)
    above_lowest = torch.nn.functional.pad(gaps.cumsum(dim=-1), (1, 0))
    expected = raw[..., :1] + above_lowest - above_lowest.mean(dim=-1, keepdim=True)
    expected = expected, expected.mean(dim=-2)
    found = spread(raw)
    assert_close(found, expected, atol=1e-12, rtol=0)
    upstream = [torch.linspace(-1, 2, x.numel()).double().view_as(x) for x in expected]
    (gradient,) = torch.autograd.grad(found, raw, upstream)
    assert_close(gradient, torch.autograd.grad(expected, raw, upstream)[0], atol=1e-12, rtol=0)
