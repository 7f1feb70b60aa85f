"""Advantages, targets and robust bootstraps against hand-computed numbers and a slow, obvious second version."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from noisyrl.ops.advantages import (
    contamination_bootstrap,
    distributional_gae,
    gae,
    gae_with_bootstrap,
    group_relative,
    mixture_target,
    robust_gae,
    token_rho,
    tv_bootstrap,
)
from noisyrl.ops.masked import place_last

pytestmark = pytest.mark.usefixtures("kernels_or_tensors")


def f64(*rows):
    return torch.tensor(rows, dtype=torch.float64)


ALL = torch.ones(1, 3, dtype=torch.bool)
REWARD, VALUE = f64([0, 0, 1]), f64([0.5, 0.6, 0.8])


def test_gae_golden():
    assert_close(gae(REWARD, VALUE, ALL, gamma=1.0, lam=0.95), f64([0.4705, 0.39, 0.2]), atol=1e-9, rtol=0)
    assert_close(gae(REWARD, VALUE, ALL, gamma=1.0, lam=1.0), f64([0.5, 0.4, 0.2]), atol=1e-9, rtol=0)
    assert_close(gae(REWARD, VALUE, ALL, gamma=1.0, lam=0.0), f64([0.1, 0.2, 0.2]), atol=1e-9, rtol=0)


@pytest.mark.parametrize(("lam", "first", "second"), [(1.0, 0.5, 0.5), (0.95, 0.45125, 0.475), (0.5, 0.125, 0.25)])
def test_gae_carries_value_and_trace_across_a_users_turn(lam, first, second):
    """Final reward 1, value .5 everywhere, two user tokens inside; .451 / .475 at lambda .95 and not .361 / .380."""
    mask = torch.tensor([[True, True, False, False, True]])
    value = f64([0.5, 0.5, 1e9, float("nan"), 0.5])
    reward = f64([0, 0, 7, 7, 1])
    found = gae(reward, value, mask, gamma=1.0, lam=lam)[0]
    assert found.tolist() == pytest.approx([first, second, 0.0, 0.0, 0.5])


def slow_gae(reward, value, mask, gamma, lam):
    out = torch.zeros_like(value)
    for b in range(len(value)):
        real = [t for t in range(value.shape[1]) if mask[b, t]]
        for i, t in enumerate(real):
            for k, s in enumerate(real[i:]):
                after = value[b, real[i + k + 1]] if i + k + 1 < len(real) else 0.0
                out[b, t] += (gamma * lam) ** k * (reward[b, s] + gamma * after - value[b, s])
    return out


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 1), st.floats(0, 1))
def test_gae_equals_the_sum_of_discounted_errors(seed, gamma, lam):
    g = torch.Generator().manual_seed(seed)
    mask = torch.rand(4, 7, generator=g) < 0.6
    mask[:, 2] = True
    reward, value = (torch.randn(4, 7, generator=g, dtype=torch.float64) for _ in range(2))
    found = gae(reward, value, mask, gamma=gamma, lam=lam)
    assert_close(found, slow_gae(reward, value, mask, gamma, lam), atol=1e-10, rtol=0)
    assert (found[~mask] == 0).all()


def test_monte_carlo_limit():
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    value = torch.randn(2, 4, dtype=torch.float64)
    reward = place_last(f64([0.7, -0.3])[0], mask)
    returns = gae(reward, value, mask, gamma=1.0, lam=1.0) + value
    assert returns[mask].tolist() == pytest.approx([0.7, 0.7, 0.7, -0.3])


def test_gae_refuses_an_empty_row():
    with pytest.raises(ValueError, match="no real token"):
        gae(REWARD, VALUE, torch.zeros(1, 3, dtype=torch.bool), gamma=1.0, lam=1.0)


@pytest.mark.parametrize(
    ("rewards", "standardise", "ddof", "eps", "expected"),
    [
        ([1, 0, 0, 0], True, 1, 1e-6, [1.499997, -0.499999, -0.499999, -0.499999]),
        ([1, 0, 0, 0], True, 0, 0.0, [1.732051, -0.577350, -0.577350, -0.577350]),
        ([0.2, 0.5, 0.8], True, 1, 0.0, [-1, 0, 1]),
        ([1, 1, 0, 0], True, 1, 1e-6, [0.866024, 0.866024, -0.866024, -0.866024]),
        ([1, 1, 1, 1], True, 1, 1e-6, [0, 0, 0, 0]),
        ([0.1, 0.1, 0.1], True, 1, 1e-12, [0, 0, 0]),
        ([1, 0, 0, 0], False, 1, 1e-6, [0.75, -0.25, -0.25, -0.25]),
        ([0.2, 0.5, 0.8], False, 1, 1e-6, [-0.3, 0, 0.3]),
        ([5.0], True, 1, 1e-6, [0]),
    ],
)
def test_group_relative_golden(rewards, standardise, ddof, eps, expected):
    reward = torch.tensor(rewards, dtype=torch.float64)
    group = torch.full((len(rewards),), 3)
    found = group_relative(reward, group, standardise=standardise, ddof=ddof, eps=eps)
    assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)


def test_group_relative_is_permutation_equivariant_and_affine_invariant():
    g = torch.Generator().manual_seed(1)
    reward, group = torch.rand(24, generator=g, dtype=torch.float64), torch.arange(24) // 4 * 7
    order = torch.randperm(24, generator=g)
    whole = group_relative(reward, group, standardise=True)
    assert_close(group_relative(reward[order], group[order], standardise=True), whole[order], atol=1e-12, rtol=0)
    scaled = group_relative(3 * reward + 5, group, standardise=True, eps=0.0)
    assert_close(scaled, group_relative(reward, group, standardise=True, eps=0.0))
    assert_close(torch.zeros(6).double().index_add(0, group // 7, whole), torch.zeros(6).double(), atol=1e-12, rtol=0)


# Quantiles, one per column. QUANTILES has the means VALUE.

QUANTILES = f64([[0.3, 0.7], [0.4, 0.8], [0.7, 0.9]]).reshape(1, 3, 2)
SEED, UNIT = st.integers(0, 2**31), st.floats(0, 1)


def draw(seed, *axes, rows=4, tokens=7, dtype=torch.float64):
    """Reward, estimates of every width in `axes`, and a mask with holes, padding and one full row."""
    g = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, tokens, generator=g) < 0.6
    mask[:, 2] = True
    mask[0] = True
    estimates = [torch.randn(rows, tokens, width, generator=g, dtype=dtype) for width in axes]
    return torch.randn(rows, tokens, generator=g, dtype=dtype), *estimates, mask


def comonotone_target(reward, quantiles, mask, *, gamma, lam):
    return quantiles + distributional_gae(reward, quantiles, mask, gamma=gamma, lam=lam)


def test_distributional_gae_golden():
    found = distributional_gae(REWARD, QUANTILES, ALL, gamma=1.0, lam=0.95)
    assert_close(found, f64([[0.65575, 0.28525], [0.585, 0.195], [0.3, 0.1]]).reshape(1, 3, 2), atol=1e-9, rtol=0)
    assert_close(found.mean(-1), f64([0.4705, 0.39, 0.2]), atol=1e-9, rtol=0)
    expected = f64([[0.95575, 0.98525], [0.985, 0.995], [1, 1]]).reshape(1, 3, 2)
    assert_close(QUANTILES + found, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("target", [comonotone_target, mixture_target])
def test_at_lambda_one_every_atom_is_the_return(target):
    found = target(REWARD, QUANTILES, ALL, gamma=1.0, lam=1.0)
    assert_close(found, torch.ones(1, 3, 2).double(), atol=1e-12, rtol=0)
    assert_close(target(REWARD, QUANTILES, ALL, gamma=0.5, lam=1.0)[0, 0], f64(0.25, 0.25), atol=1e-12, rtol=0)


@settings(max_examples=60, deadline=None)
@given(SEED, UNIT, UNIT, st.integers(1, 9))
def test_the_mean_over_quantiles_is_gae_of_the_mean(seed, gamma, lam, count):
    reward, quantiles, mask = draw(seed, count)
    scalar = gae(reward, quantiles.mean(-1), mask, gamma=gamma, lam=lam)
    found = distributional_gae(reward, quantiles, mask, gamma=gamma, lam=lam)
    assert_close(found.mean(-1), scalar, atol=1e-12, rtol=0)
    assert (found[~mask] == 0).all()
    tripled = distributional_gae(3 * reward, 3 * quantiles, mask, gamma=gamma, lam=lam)
    assert_close(tripled, 3 * found, atol=1e-12, rtol=0)
    target = mixture_target(reward, quantiles, mask, gamma=gamma, lam=lam)
    assert_close(target.mean(-1), torch.where(mask, quantiles.mean(-1) + scalar, 0), atol=1e-12, rtol=0)
    assert (target.diff(dim=-1) >= 0).all()
    assert (target[~mask] == 0).all()


def test_each_quantile_is_a_scalar_critic_of_its_own():
    reward, quantiles, mask = draw(5, 3)
    found = distributional_gae(reward, quantiles, mask, gamma=0.9, lam=0.8)
    for j in range(3):
        assert torch.equal(found[..., j], gae(reward, quantiles[..., j], mask, gamma=0.9, lam=0.8))


def bin_averages(atoms, count):
    """Mean of the quantile function of weighted atoms over each of `count` equal bins, in exact fractions."""
    bins = [Fraction(0)] * count
    at = Fraction(0)
    for value, weight in sorted(atoms):
        for j in range(count):
            overlap = min(at + weight, Fraction(j + 1, count)) - max(at, Fraction(j, count))
            bins[j] += max(overlap, Fraction(0)) * count * value
        at += weight
    assert at == 1
    return bins


def slow_mixture(reward, quantiles, mask, gamma, lam):
    count, out = quantiles.shape[-1], torch.zeros_like(quantiles)
    gamma, lam = Fraction(gamma), Fraction(lam)
    for b in range(len(reward)):
        value = target = [Fraction(0)] * count
        for t in reversed(range(reward.shape[1])):
            if mask[b, t]:
                atoms = [(v, (1 - lam) / count) for v in value] + [(y, lam / count) for y in target]
                paid = Fraction(reward[b, t].item())
                target = [paid + gamma * average for average in bin_averages(atoms, count)]
                value = [Fraction(v) for v in quantiles[b, t].tolist()]
                out[b, t] = f64(*map(float, target))
    return out


@settings(max_examples=40, deadline=None)
@given(SEED, UNIT, UNIT, st.integers(1, 6), st.booleans())
def test_mixture_equals_the_union_of_atoms_in_fractions(seed, gamma, lam, count, ties):
    reward, quantiles, mask = draw(seed, count, rows=2, tokens=5)
    if ties:
        reward, quantiles = reward.round(), quantiles.round()
    found = mixture_target(reward, quantiles, mask, gamma=gamma, lam=lam)
    assert_close(found, slow_mixture(reward, quantiles, mask, gamma, lam), atol=1e-12, rtol=0)


def test_mixture_by_hand():
    """Two atoms, lambda 1/4: at the first token 3/8 of the mass at 0, 3/8 at 1 and 1/4 at the return, 2."""
    quantiles = f64([[9, 9], [1, 0]]).reshape(1, 2, 2)
    found = mixture_target(f64([0, 2]), quantiles, ALL[:, :2], gamma=1.0, lam=0.25)
    assert_close(found[0], f64([0.25, 1.5], [2, 2]), atol=1e-12, rtol=0)


def test_mixture_shows_a_critic_that_diverged():
    """A token without a number spoils the targets before it, not those after it or of other rows."""
    quantiles = f64([0.1, 0.2], [float("nan"), 0.4], [0.3, 0.9])[None].repeat(2, 1, 1)
    quantiles[1] = quantiles[1].nan_to_num(0.3)
    target = mixture_target(f64([0, 0, 1]).repeat(2, 1), quantiles, ALL.repeat(2, 1), gamma=1.0, lam=0.9)
    assert target[0, 0].isnan().any() and target[0, 1:].isfinite().all() and target[1].isfinite().all()


def test_mixture_limits():
    reward, quantiles, mask = draw(3, 5)
    mask[:] = True
    following = torch.cat([quantiles[:, 1:], torch.zeros(4, 1, 5).double()], 1).sort(-1).values
    found = mixture_target(reward, quantiles, mask, gamma=0.9, lam=0.0)
    assert_close(found, reward[..., None] + 0.9 * following, atol=1e-12, rtol=0)
    assert_close(mixture_target(reward, quantiles, mask, gamma=0.9, lam=1e-300), found, atol=1e-12, rtol=0)
    returns = mixture_target(reward, quantiles, mask, gamma=0.9, lam=1.0)
    assert torch.equal(returns.amin(-1), returns.amax(-1))
    nearly_one = mixture_target(reward, quantiles, mask, gamma=0.9, lam=1 - 2**-53)
    assert_close(nearly_one, returns, atol=1e-12, rtol=0)
    assert torch.equal(found, mixture_target(reward, quantiles.flip(-1), mask, gamma=0.9, lam=0.0))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_mixture_keeps_the_mean_over_two_hundred_tokens(dtype, tolerance):
    reward, quantiles, mask = draw(7, 200, rows=8, tokens=200, dtype=dtype)
    reward = place_last((reward[:, 0] > 0).to(dtype), mask)
    found = mixture_target(reward, quantiles, mask, gamma=1.0, lam=0.95)
    assert found.dtype == dtype
    assert (found.diff(dim=-1) >= 0).all()
    mean = quantiles.double().mean(-1)
    returns = gae(reward.double(), mean, mask, gamma=1.0, lam=0.95) + mean
    assert_close(found.double().mean(-1)[mask], returns[mask], atol=tolerance, rtol=0)


def coin_law(target, lam, tokens, count=100):
    """What quantile regression on `target` converges to when the reward is a fair coin thrown after the last token.

    Both outcomes are equally likely, so the law learned at a token is the even mixture of their targets, which need the
    laws of later tokens only: filled in from the end. returns [T, M], entry k for k tokens before the last.
    """
    reward = torch.zeros(2, tokens).double()
    reward[1, -1] = 1
    mask = torch.ones(2, tokens, dtype=torch.bool)
    law = torch.zeros(tokens, count).double()
    for n in range(1, tokens + 1):
        atoms = target(reward[:, -n:], law[-n:].expand(2, -1, -1), mask[:, -n:], gamma=1.0, lam=lam)[:, 0]
        law[-n] = atoms.flatten().sort().values.reshape(count, 2).mean(-1)
    return law.flip(0)


@pytest.mark.parametrize(
    ("lam", "expected"), [(0.95, [0.476, 0.340, 0.248, 0.246]), (0.99, [0.495, 0.454, 0.341, 0.248])]
)
def test_comonotone_targets_lose_spread_with_distance(lam, expected):
    """The documented bias, 1, 10, 50 and 199 tokens before the end of a fair coin (std .5); the mean is right."""
    law = coin_law(comonotone_target, lam, 200)
    assert_close(law.mean(-1), torch.full((200,), 0.5).double(), atol=1e-9, rtol=0)
    assert law.std(-1, correction=0)[[1, 10, 50, 199]].tolist() == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 0.99])
@pytest.mark.parametrize("count", [50, 200])
def test_mixture_targets_keep_the_spread(lam, count):
    """Up to the blur of the projection, which falls as 1 / M; 200 quantiles: .500, .496, .492 at 0, 10, 50 tokens."""
    law = coin_law(mixture_target, lam, 52, count)
    assert_close(law.mean(-1), torch.full((52,), 0.5).double(), atol=1e-9, rtol=0)
    assert_close(law.std(-1, correction=0), torch.full((52,), 0.5).double(), atol=2 / count, rtol=0)


@pytest.mark.parametrize(("lam", "factor"), [(0.5, 0.5), (0.95, 0.905)])
def test_comonotone_two_step_variance(lam, factor):
    law = coin_law(comonotone_target, lam, 2)
    assert law.var(-1, correction=0).tolist() == pytest.approx([0.25, 0.25 * factor])


# Robust bootstraps.

HEADS = f64([[0.1, 0.1, 0.1], [0.4, 0.6, 0.8]]).reshape(1, 2, 3)


@pytest.mark.parametrize(("rho", "target"), [(0.0, 0.7), (0.5, 0.6), (1.0, 0.5)])
def test_robust_gae_golden(rho, target):
    found = robust_gae(f64([0.1, 0]), HEADS, ALL[:, :2], gamma=1.0, lam=0.0, rho=rho)
    assert (found + HEADS.mean(-1))[0, 0].item() == pytest.approx(target)
    assert found[0, 1].item() == pytest.approx(-0.6)


@settings(max_examples=40, deadline=None)
@given(SEED, UNIT, UNIT, UNIT)
def test_robust_gae_reduces_to_gae_bit_for_bit(seed, gamma, lam, rho):
    for dtype in (torch.float32, torch.float64):
        reward, heads, one_head, mask = draw(seed, 3, 1, dtype=dtype)
        scalar = gae(reward, heads.mean(-1), mask, gamma=gamma, lam=lam)
        assert torch.equal(robust_gae(reward, heads, mask, gamma=gamma, lam=lam, rho=0.0), scalar)
        scalar = gae(reward, one_head.mean(-1), mask, gamma=gamma, lam=lam)
        assert torch.equal(robust_gae(reward, one_head, mask, gamma=gamma, lam=lam, rho=rho), scalar)
        value = heads.mean(-1)
        scalar = gae(reward, value, mask, gamma=gamma, lam=lam)
        assert torch.equal(gae_with_bootstrap(reward, value, value, mask, gamma=gamma, lam=lam), scalar)
        unmoved = contamination_bootstrap(value, rho=rho, worst=value)
        assert torch.equal(unmoved, value)


def test_robust_gae_never_rises_with_rho():
    reward, heads, mask = draw(11, 4)
    found = torch.stack([robust_gae(reward, heads, mask, gamma=1.0, lam=0.9, rho=r / 10) for r in range(11)])
    assert (found.diff(dim=0) <= 1e-12).all()
    assert (found[0] - found[-1])[mask].max() > 0.5


def slow_with_bootstrap(reward, value, bootstrap, mask, gamma, lam):
    out = torch.zeros_like(value)
    for b in range(len(value)):
        real = [t for t in range(value.shape[1]) if mask[b, t]]
        for i, t in enumerate(real):
            for k, s in enumerate(real[i:]):
                after = bootstrap[b, real[i + k + 1]] if i + k + 1 < len(real) else 0.0
                out[b, t] += (gamma * lam) ** k * (reward[b, s] + gamma * after - value[b, s])
    return out


@settings(max_examples=30, deadline=None)
@given(SEED, UNIT, UNIT, UNIT)
def test_a_bootstrap_of_its_own(seed, gamma, lam, rho):
    reward, pair, mask = draw(seed, 2)
    value, bootstrap = pair.unbind(-1)
    found = gae_with_bootstrap(reward, value, bootstrap, mask, gamma=gamma, lam=lam)
    assert_close(found, slow_with_bootstrap(reward, value, bootstrap, mask, gamma, lam), atol=1e-10, rtol=0)
    # Contamination is a smaller discount and a bonus on every token but the last: the reason for the consistent trace.
    worst = -0.7
    robust = contamination_bootstrap(value, rho=rho, worst=worst)
    found = gae_with_bootstrap(reward, value, robust, mask, gamma=gamma, lam=lam * (1 - rho))
    bonus = gamma * rho * worst * (1 - place_last(torch.ones(4).double(), mask))
    discounted = gae(reward + bonus, value, mask, gamma=gamma * (1 - rho), lam=lam)
    assert_close(found, discounted, atol=1e-10, rtol=0)


def test_at_its_fixed_point_contamination_leaves_no_error():
    value = f64([0, 0, 0, 1])
    for t in (2, 1, 0):
        value[0, t] = 0.99 * (0.9 * value[0, t + 1] + 0.1 * -1)
    robust = contamination_bootstrap(value, rho=0.1, worst=-1.0)
    mask = torch.ones(1, 4, dtype=torch.bool)
    found = gae_with_bootstrap(f64([0, 0, 0, 1]), value, robust, mask, gamma=0.99, lam=0.5)
    assert_close(found, torch.zeros(1, 4).double(), atol=1e-12, rtol=0)


def test_a_rho_per_token_is_a_discount():
    value = f64([1.0])
    for _ in range(1000):
        value = contamination_bootstrap(value, rho=0.01, worst=0.0)
    assert value.item() == pytest.approx(4.317e-5, rel=1e-4)


def test_tv_bootstrap_golden():
    atoms = f64([1, 0, 0.5, 0.2, 0.9])
    assert tv_bootstrap(atoms, rho=0.2, fail_value=0.0).item() == pytest.approx(0.32)
    assert tv_bootstrap(f64([0.6]), rho=0.2, fail_value=0.0).item() == pytest.approx(0.48)
    assert tv_bootstrap(atoms, rho=0.3, fail_value=0.0).item() == pytest.approx((0 + 0.2 + 0.5 + 0.5 * 0.9) / 5)
    assert tv_bootstrap(atoms, rho=0.2, fail_value=-1.0).item() == pytest.approx(0.12)
    assert tv_bootstrap(atoms, rho=0.2, fail_value=atoms.amin(-1)).item() == pytest.approx(0.32)


@settings(max_examples=30, deadline=None)
@given(SEED, UNIT, st.integers(1, 8), st.floats(-1, 0))
def test_tv_bootstrap_is_the_best_of_its_dual(seed, rho, count, fail):
    """The dual is concave and piecewise linear in eta, with kinks at the atoms only: they are the whole grid."""
    atoms = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    gain = atoms - fail
    dual = [(1 - rho) * eta - (eta - gain).clamp(min=0).mean().item() for eta in [0.0, *gain.tolist()]]
    found = tv_bootstrap(atoms, rho=rho, fail_value=fail).item()
    assert found == pytest.approx(fail + max(dual), abs=1e-12)
    kept = sum(max(0.0, min(1.0, (1 - rho) * count - j)) * x for j, x in enumerate(sorted(atoms.tolist())))
    assert found == pytest.approx(kept / count + rho * fail, abs=1e-12)


def test_tv_bootstrap_runs_from_the_mean_to_the_fail_state():
    atoms = torch.rand(3, 4, 50)
    assert torch.equal(tv_bootstrap(atoms, rho=0.0, fail_value=-5.0), atoms.mean(-1))
    assert_close(tv_bootstrap(atoms, rho=1.0, fail_value=-5.0), torch.full((3, 4), -5.0))
    found = torch.stack([tv_bootstrap(atoms, rho=r / 20, fail_value=0.0) for r in range(21)])
    assert (found.diff(dim=0) < 0).all()
    # A rho of one token is tiny, and its effect, rho * (best atom - fail), must not drown.
    moved = atoms.double().mean(-1) - tv_bootstrap(atoms.double(), rho=1e-6, fail_value=0.0)
    assert_close(moved, 1e-6 * atoms.double().amax(-1), atol=0, rtol=1e-6)


def test_token_rho():
    assert token_rho(0.1, 1000) == pytest.approx(1.053550e-4, abs=1e-10)
    assert (1 - token_rho(0.1, 1000)) ** 1000 == pytest.approx(0.9, rel=1e-12)
    assert token_rho(0.3, 1) == pytest.approx(0.3, rel=1e-15)
    assert token_rho(1e-18, 10) == pytest.approx(1e-19, rel=1e-12, abs=0)
    assert (token_rho(0.0, 7), token_rho(1.0, 7)) == (0.0, 1.0)


# What holds for all of them.


def robust_of_quantiles(reward, quantiles, mask, *, gamma, lam):
    bootstrap = tv_bootstrap(quantiles, rho=0.1, fail_value=0.0)
    return gae_with_bootstrap(reward, quantiles.mean(-1), bootstrap, mask, gamma=gamma, lam=lam)


def robust_of_heads(reward, quantiles, mask, *, gamma, lam):
    return robust_gae(reward, quantiles, mask, gamma=gamma, lam=lam, rho=0.3)


WIDE = [distributional_gae, mixture_target, robust_of_heads, robust_of_quantiles]


@pytest.mark.parametrize("estimate", WIDE)
@pytest.mark.parametrize("poison", [1e9, float("nan"), float("inf"), -float("inf")])
def test_what_lies_outside_the_mask_is_never_read(estimate, poison):
    reward, quantiles, mask = draw(13, 6)
    expected = estimate(reward, quantiles, mask, gamma=0.99, lam=0.9)
    poisoned = torch.where(mask, reward, poison), torch.where(mask[..., None], quantiles, poison)
    found = estimate(*poisoned, mask, gamma=0.99, lam=0.9)
    assert torch.equal(found, expected)
    assert (found[~mask] == 0).all()


@pytest.mark.parametrize("estimate", WIDE)
def test_a_row_with_holes_equals_the_row_without_them(estimate):
    reward, quantiles, mask = draw(17, 6)
    whole = estimate(reward, quantiles, mask, gamma=0.99, lam=0.9)
    for b in range(len(mask)):
        real = mask[b]
        tokens = torch.ones(1, int(real.sum()), dtype=torch.bool)
        alone = estimate(reward[b : b + 1, real], quantiles[b : b + 1, real], tokens, gamma=0.99, lam=0.9)
        assert torch.equal(whole[b, real], alone[0])


@pytest.mark.parametrize("estimate", WIDE)
def test_no_gradient_is_kept_and_no_argument_written(estimate):
    reward, quantiles, mask = draw(19, 6)
    before = quantiles.clone()
    assert not estimate(reward, quantiles.requires_grad_(), mask, gamma=1.0, lam=0.9).requires_grad
    assert torch.equal(quantiles, before)


@pytest.mark.parametrize("estimate", WIDE)
def test_bad_input_is_refused(estimate):
    reward, quantiles, mask = draw(23, 6)
    with pytest.raises(ValueError, match="reward has shape"):
        estimate(reward[:, :1], quantiles, mask, gamma=1.0, lam=0.9)
    with pytest.raises(ValueError, match="B and T must agree"):
        estimate(reward, quantiles[:1], mask, gamma=1.0, lam=0.9)
    mask[1] = False
    with pytest.raises(ValueError, match=r"rows \[1\] have no real token"):
        estimate(reward, quantiles, mask, gamma=1.0, lam=0.9)


def test_shares_and_lengths_outside_their_range_are_refused():
    with pytest.raises(ValueError, match="lam is 1.5"):
        mixture_target(REWARD, QUANTILES, ALL, gamma=1.0, lam=1.5)
    with pytest.raises(ValueError, match="rho is -0.1"):
        tv_bootstrap(QUANTILES, rho=-0.1, fail_value=0.0)
    for rho, tokens in ((1.1, 10), (-0.1, 10), (0.1, 0)):
        with pytest.raises(ValueError, match="rho_sequence"):
            token_rho(rho, tokens)
