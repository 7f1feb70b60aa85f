"""Quantile regression against its definition over all pairs, hand-computed numbers and its invariances."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from noisyrl.ops import quantiles
from noisyrl.ops.quantiles import (
    midpoints,
    quantile_huber,
    quantile_huber_each,
    quantile_huber_terms,
)
from noisyrl.ops.risk import ascending

pytestmark = pytest.mark.usefixtures("kernels_or_tensors")
INF = math.inf
KAPPAS = [
    (0.0, True),
    (1e-3, True),
    (0.05, True),
    (0.05, False),
    (1.0, True),
    (1.0, False),
    (30.0, False),
    (INF, False),
]


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pairwise(quantiles, target, tau, kappa, divide, weight=None):
    """The definition, one entry per pair."""
    u = target[..., None, :] - quantiles[..., :, None]
    if kappa == 0:
        hub = u.abs()
    elif kappa == INF:
        hub = u.square() / 2
    else:
        hub = torch.where(u.abs() <= kappa, u.square() / 2, kappa * (u.abs() - kappa / 2))
        hub = hub / kappa if divide else hub
    loss = (tau[:, None] - (u < 0).to(u.dtype)).abs() * hub
    return (loss if weight is None else loss * weight[..., None]).mean((-2, -1))


def value_and_grad(loss, quantiles, *args, **kwargs):
    x = quantiles.detach().clone().requires_grad_()
    out = loss(x, *args, **kwargs)
    upstream = torch.linspace(1, 2, out.numel(), dtype=out.dtype).reshape(out.shape)
    return out.detach(), torch.autograd.grad(out, x, upstream)[0]


def ours(quantiles, target, tau, kappa, divide, weight=None):
    return quantile_huber(quantiles, target, tau, kappa=kappa, divide_by_kappa=divide, weight_M=weight)


def agree(quantiles, target, tau, kappa, divide, weight=None, **tolerance):
    found = value_and_grad(ours, quantiles, target, tau, kappa, divide, weight)
    wanted = value_and_grad(pairwise, quantiles, target, tau, kappa, divide, weight)
    for x, y in zip(found, wanted, strict=True):
        assert_close(x, y, **(tolerance or dict(atol=1e-9, rtol=1e-9)))


def test_midpoints():
    assert_close(midpoints(4), torch.tensor([0.125, 0.375, 0.625, 0.875]))
    assert midpoints(1).tolist() == [0.5]
    assert midpoints(3, dtype=torch.float64).dtype == torch.float64


@pytest.mark.parametrize(
    ("quantiles", "target", "tau", "kappa", "expected"),
    [
        ([0.2, 0.8], [0, 1], [0.25, 0.75], 1.0, 0.0475),  # Q1
        ([0], [3], [0.5], 1.0, 1.25),  # Q2
        ([0], [-3], [0.1], 1.0, 2.25),
        ([0.6], [1], [0.5], INF, 0.04),  # Q3
        ([2], [0], [1], 1.0, 0.0),  # Q4
    ],
)
def test_golden(quantiles, target, tau, kappa, expected):
    loss = ours(f64(*quantiles), f64(*target), f64(*tau), kappa, False)
    assert loss.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("lead", [((5, 3), (5, 1)), ((4,), (4,)), ((2, 3), (1, 3)), ((0, 3), (0, 1))])
def test_weighted_terms_are_the_weighted_losses(lead):
    quantiles, target = draw(0, *lead[0], 7).requires_grad_(), draw(1, *lead[1], 9)
    tau, weight = midpoints(7, dtype=torch.float64), torch.rand(2, 7, dtype=torch.float64)
    how = dict(kappa=0.3, divide_by_kappa=True)
    found = quantile_huber_terms(quantiles, target, tau, weight, **how)
    expected = quantile_huber_each(quantiles, target, tau, **how) @ weight.T / 7
    assert_close(found, expected, atol=1e-12, rtol=0)
    upstream = draw(2, *found.shape)
    gradients = (torch.autograd.grad(x, quantiles, upstream)[0] for x in (found, expected))
    assert_close(*gradients, atol=1e-12, rtol=0)


@pytest.mark.parametrize("target", [(6, 9), (6, 1, 9), (1, 1, 9), (6, 3, 9), (3, 9), (2, 6, 1, 9)])
def test_many_targets_may_meet_the_same_quantiles(target):
    """Targets of their own for each meeting, for all, for each head; quantiles 1 meet none."""
    quantiles, target, of_N = draw(0, 4, 3, 7).requires_grad_(), draw(1, *target), torch.tensor([2, 0, 2, 3, 0, 2])
    if target.dim() == 2 and len(target) == 6:
        quantiles = quantiles[:, 0]
    how = dict(
        tau_M=midpoints(7, dtype=torch.float64), weight_TM=torch.rand(2, 7, dtype=torch.float64), kappa=0.3,
        divide_by_kappa=True,
    )  # fmt: skip
    found = quantile_huber_terms(quantiles, target, **how, of_N=of_N)
    expected = quantile_huber_terms(quantiles[of_N], target, **how)
    assert_close(found, expected, atol=1e-12, rtol=0)
    upstream = draw(2, *found.shape)
    gradients = [torch.autograd.grad(x, quantiles, upstream)[0] for x in (found, expected)]
    assert_close(*gradients, atol=1e-12, rtol=0)
    assert not gradients[0][1].any() and gradients[0][2].any()


def test_rows_in_any_order_may_stand_beside_rows_in_order():
    """In order, but for one fall, reversed, and in no order: a quantile's loss does not depend on the others'."""
    quantiles, target = draw(0, 5, 100), draw(1, 5, 30)
    quantiles[:3] = quantiles[:3].sort(-1).values
    quantiles[1, 40:] = quantiles[1, 40:].roll(20)
    quantiles[2] = quantiles[2].flip(0)
    tau = torch.rand(100, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    how = dict(kappa=0.3, divide_by_kappa=True)
    expected = [
        quantile_huber_each(quantiles[:, q, None], target, tau[q, None], **how).squeeze(-1) for q in range(len(tau))
    ]
    assert_close(quantile_huber_each(quantiles, target, tau, **how), torch.stack(expected, -1), atol=1e-12, rtol=0)


def test_weights_are_one_for_each_quantile():
    with pytest.raises(ValueError, match="give one for each"):
        quantile_huber_terms(
            draw(0, 2, 4), draw(1, 2, 4), midpoints(4), torch.ones(1, 3), kappa=1.0, divide_by_kappa=True
        )


def test_a_quantile_that_is_no_number_spoils_its_own_loss_alone():
    quantiles, target = draw(0, 3, 40).sort(-1).values, draw(1, 3, 50)
    how = dict(tau_M=midpoints(40, dtype=torch.float64), kappa=0.3, divide_by_kappa=True)
    expected = quantile_huber_each(quantiles, target, **how)
    quantiles[1, 20], expected[1, 20] = float("nan"), float("nan")
    assert_close(quantile_huber_each(quantiles, target, **how), expected, equal_nan=True)


def test_level_one_never_moves_down():
    loss, grad = value_and_grad(ours, f64(2), f64(0), f64(1), 1.0, False)
    assert (loss.item(), grad.item()) == (0.0, 0.0)


def test_weights_share_the_pass_of_the_plain_mean():
    """R1, R2: the same losses per quantile, .0525 and .0625, under two weightings."""
    quantiles, target, tau = f64(0.1, 0.5), f64(0, 1), midpoints(2, dtype=torch.float64)
    each = quantile_huber_each(quantiles, target, tau, kappa=1.0, divide_by_kappa=False)
    assert_close(each, f64(0.0525, 0.0625), atol=1e-12, rtol=0)
    assert ours(quantiles, target, tau, 1.0, False).item() == pytest.approx(0.0575)
    lower, upper = f64(1.2449186624, 0.7550813376), f64(0.7550813376, 1.2449186624)
    assert ours(quantiles, target, tau, 1.0, False, lower).item() == pytest.approx(0.056275, abs=1e-6)
    assert ours(quantiles, target, tau, 1.0, False, upper).item() == pytest.approx(0.058725, abs=1e-6)


@pytest.mark.parametrize(("kappa", "mean"), [(1.0, 0.183), (0.1, 0.1107), (0.01, 0.1011), (0.0, 0.1)])
def test_bernoulli_minimiser(kappa, mean):
    """T9: the minimiser for Bernoulli(.1), by bisection on the gradient, which rises along each quantile."""
    tau, target = midpoints(20, dtype=torch.float64), f64(1, *[0] * 9)
    low, high = torch.full_like(tau, -0.5), torch.full_like(tau, 1.5)
    for _ in range(60):
        middle = (low + high) / 2
        _, grad = value_and_grad(ours, middle, target, tau, kappa, True)
        low, high = torch.where(grad < 0, middle, low), torch.where(grad < 0, high, middle)
    assert high.mean().item() == pytest.approx(mean, abs=5e-4)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    sizes=st.tuples(st.lists(st.integers(1, 3), max_size=2), st.integers(1, 9), st.integers(1, 9)),
    kappa=st.sampled_from(KAPPAS),
    decimals=st.sampled_from([0, 1, 12]),
    weighted=st.booleans(),
)
def test_equals_the_sum_over_pairs(seed, sizes, kappa, decimals, weighted):
    """Rounded values tie with each other, and atoms tie with quantiles."""
    lead, count, atoms = sizes
    quantiles, target = draw(seed, *lead, count).round(decimals=decimals), draw(seed + 1, *lead, atoms)
    tau, weight = draw(seed + 2, count).sigmoid(), draw(seed + 3, *lead, count).exp()
    agree(quantiles, target.round(decimals=decimals), tau, *kappa, weight if weighted else None)


@pytest.mark.parametrize("kappa", KAPPAS)
def test_gradcheck(kappa):
    quantiles, target, tau = draw(0, 2, 3, 4).requires_grad_(), draw(1, 2, 1, 5), midpoints(4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: ours(x, target, tau, *kappa), quantiles)


@pytest.mark.parametrize("kappa", [1e-6, 1e-9, 1e-15, 1e-200, 5e-324])
def test_small_kappa_tends_to_the_pinball_loss(kappa):
    """Ties included: there the slope of the pinball loss jumps, and ours stays within the jump."""
    target, tau = draw(0, 5, 40), midpoints(40, dtype=torch.float64)
    loss, grad = value_and_grad(ours, draw(1, 5, 40), target, tau, kappa, True)
    wanted, wanted_grad = value_and_grad(pairwise, draw(1, 5, 40), target, tau, 0.0, True)
    assert_close(loss, wanted, atol=1e-8 + kappa, rtol=0)
    assert_close(grad, wanted_grad, atol=1e-9, rtol=0)
    each = quantile_huber_each(target.requires_grad_(), target, tau, kappa=kappa, divide_by_kappa=True)
    each.sum().backward()
    assert (target.grad.abs() <= 1).all()


@pytest.mark.parametrize("kappa", KAPPAS[::3])
def test_large_sizes_cross_the_blocks(kappa):
    agree(draw(0, 100, 130), draw(1, 100, 257), midpoints(130, dtype=torch.float64), *kappa)
    agree(draw(2, 300, 130), draw(3, 7), midpoints(130, dtype=torch.float64), *kappa)


@pytest.mark.parametrize(
    ("quantiles", "target"),
    [
        ((2, 3, 4, 5), (2, 3, 1, 6)),
        ((2, 3, 4, 5), (6,)),
        ((2, 3, 4, 5), (1, 3, 1, 6)),
        ((2, 3, 4, 5), (3, 1, 6)),
        ((2, 3, 4, 5), (1, 1, 4, 6)),
        ((4, 5), (2, 1, 6)),
        ((5,), (7, 6)),
        ((1, 5), (7, 6)),
        ((5,), (6,)),
    ],
)
def test_broadcasting_equals_a_loop(quantiles, target):
    x, y, tau = draw(0, *quantiles), draw(1, *target), midpoints(5, dtype=torch.float64)
    lead = torch.broadcast_shapes(quantiles[:-1], target[:-1])
    agree(x, y, tau, 0.3, True)
    found = quantile_huber_each(x, y, tau, kappa=0.3, divide_by_kappa=True)
    rows = zip(x.expand(*lead, 5).reshape(-1, 5), y.expand(*lead, 6).reshape(-1, 6), strict=True)
    each = torch.stack([quantile_huber_each(*row, tau, kappa=0.3, divide_by_kappa=True) for row in rows])
    assert_close(found, each.reshape(*lead, 5), atol=1e-12, rtol=0)


def test_each_distinct_target_row_is_sorted_once(monkeypatch):
    sizes = []
    monkeypatch.setattr(quantiles, "ascending", lambda x: sizes.append(x.shape) or ascending(x))
    ours(draw(0, 2, 3, 8, 5), draw(1, 2, 3, 1, 7), midpoints(5), 1.0, True)
    ours(draw(0, 2, 3, 8, 5), draw(1, 7), midpoints(5), 1.0, True)
    assert sizes == [(6, 7), (1, 7)]


@pytest.mark.parametrize("lead", [(0,), (2, 0), (0, 3)])
def test_no_tokens(lead):
    loss, grad = value_and_grad(ours, draw(0, *lead, 5), draw(1, *lead, 6), midpoints(5), 1.0, True)
    assert loss.shape == lead and grad.shape == (*lead, 5)
    assert ours(draw(0, *lead, 5), draw(1, 6), midpoints(5), 1.0, True).shape == lead


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(KAPPAS), st.floats(0.01, 100), st.floats(-100, 100))
def test_scale_shift_and_order(seed, kappa, scale, shift):
    quantiles, target, tau = draw(seed, 3, 6), draw(seed + 1, 3, 5), midpoints(6, dtype=torch.float64)
    width, divide = kappa
    loss = ours(quantiles, target, tau, width, divide)
    power = scale if divide else scale**2
    assert_close(
        ours(scale * quantiles, scale * target, tau, scale * width, divide), power * loss, atol=1e-9, rtol=1e-9
    )
    assert_close(ours(quantiles + shift, target + shift, tau, width, divide), loss, atol=1e-9, rtol=1e-9)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    assert_close(ours(quantiles, target[:, order], tau, width, divide), loss, atol=0, rtol=0)


def in_float64(quantiles, target, tau, kappa):
    """The definition in float64, of float32 input."""
    return value_and_grad(pairwise, quantiles.double(), target.double(), tau.double(), *kappa)


@pytest.mark.parametrize("kappa", KAPPAS)
@pytest.mark.parametrize("outlier", [None, 1e4, -1e4, 1e8, -1e8, 1e15, -1e15])
def test_float32_is_stable(kappa, outlier):
    """Values around 1e4 with spread 1, or one far atom: as the definition in float64 of the same float32 input."""
    quantiles, target = draw(0, 8, 50).float(), draw(1, 8, 60).float()
    if outlier is None:
        quantiles, target = quantiles + 1e4, target + 1e4
    else:
        target[:, 7] = outlier
    tau = midpoints(50)
    loss, grad = value_and_grad(ours, quantiles, target, tau, *kappa)
    wanted, wanted_grad = in_float64(quantiles, target, tau, kappa)
    assert loss.dtype == grad.dtype == torch.float32
    assert_close(loss.double(), wanted, atol=1e-9, rtol=1e-5)
    assert_close(grad.double(), wanted_grad, atol=1e-9 if outlier else 1e-7, rtol=1e-5)


@pytest.mark.parametrize("kappa", [(0.02, True), (0.08, True), (0.08, False), (1.0, False), (30.0, True)])
@pytest.mark.parametrize("offset", [0.0, 1e3, -1e3])
def test_float32_is_near_float64(kappa, offset):
    """Within 1e-5 of the largest loss and slope: with ties, atoms on the edges of the zones, and laws far from 0."""
    outcome = torch.tensor([0.0, 1.0, 1.0, 1.0]).repeat(6, 25)
    target = torch.cat([outcome, draw(0, 6, 100).mul(0.3).add(0.5).clamp(-0.5, 1.5).float()], -1) + offset
    law = draw(1, 6, 3, 196).mul(0.3).add(0.5).clamp(-0.5, 1.5).float() + offset
    edges = torch.stack([target[:, [0, 1]] + shift for shift in (-kappa[0], kappa[0])], -1).flatten(-2)
    x = torch.cat([law, edges[:, None].expand(-1, 3, -1).clamp(offset - 0.5, offset + 1.5)], -1)
    target, tau = target[:, None], midpoints(200)
    found = value_and_grad(quantile_huber_each, x, target, tau, kappa=kappa[0], divide_by_kappa=kappa[1])

    def each(x):
        pairs = zip(x.split(1, -1), tau.double().split(1), strict=True)
        return torch.stack([pairwise(x_1, target.double(), tau_1, *kappa) for x_1, tau_1 in pairs], -1)

    for ours_each, wanted in zip(found, value_and_grad(each, x.double()), strict=True):
        assert ours_each.dtype == torch.float32
        assert_close(ours_each.double(), wanted, atol=1e-5 * wanted.abs().max().item(), rtol=0)


def test_no_gradient_reaches_the_target():
    target = draw(1, 3, 5).requires_grad_()
    loss = ours(draw(0, 3, 4).requires_grad_(), target, midpoints(4), 1.0, True)
    assert torch.autograd.grad(loss.sum(), target, allow_unused=True) == (None,)


def test_squared_limit_is_half_the_value_loss():
    """S1: three scalar heads .4, .6, .8 against 1; the scalar value loss .0933333 is twice ours."""
    loss = ours(f64([0.4], [0.6], [0.8]), f64(1), f64(0.5), INF, False)
    assert 2 * loss.mean().item() == pytest.approx(0.0933333, abs=1e-6)
    assert 2 * ours(f64([0.6], [0.6], [0.6]), f64(1), f64(0.5), INF, False).mean().item() == pytest.approx(0.08)


@pytest.mark.parametrize(
    ("kappa", "divide", "message"),
    [
        (-1.0, True, "kappa is -1.0: set a number >= 0"),
        (math.nan, True, "kappa is nan"),
        (0.0, False, "set divide_by_kappa=True"),
        (INF, True, "set divide_by_kappa=False"),
    ],
)
def test_kappa_without_meaning(kappa, divide, message):
    with pytest.raises(ValueError, match=message):
        ours(draw(0, 4), draw(1, 5), midpoints(4), kappa, divide)


@pytest.mark.parametrize(
    ("quantiles", "target", "levels", "weight"),
    [
        ((2, 3, 4), (2, 5), 4, (4,)),
        ((3, 4), (2, 5), 4, (4,)),
        ((3, 4), (3, 5), 3, (4,)),
        ((3, 0), (3, 5), 0, (1,)),
        ((3, 4), (3, 0), 4, (4,)),
        ((3, 4), (3, 5), 4, (3,)),
    ],
)
def test_shapes_that_do_not_fit(quantiles, target, levels, weight):
    with pytest.raises(ValueError, match="give at least one|do not broadcast"):
        ours(draw(0, *quantiles), draw(1, *target), torch.rand(levels), 1.0, True, torch.ones(weight))
