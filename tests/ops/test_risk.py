"""Tail, shift, curvature and consistency terms against hand-computed numbers and their invariances."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from noisyrl.ops.quantiles import midpoints
from noisyrl.ops.risk import (
    ascending,
    consistency_loss,
    curvature_loss,
    cvar_loss,
    falls,
    gain_loss,
    risk_weights,
    shape_loss,
    shift_loss,
    tail_weights,
    tails,
    with_consistency_loss,
)

pytestmark = pytest.mark.usefixtures("kernels_or_tensors")


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


THETA = f64(-1, -0.6, -0.2, 0, 0.1, 0.2, 0.3, 0.5, 0.8, 1.2)
Y = f64(-0.5, -0.3, -0.1, 0, 0.1, 0.2, 0.4, 0.6, 1, 1.6)
FIFTHS = dict(lower_mass=0.2, upper_mass=0.2)
TERMS = {
    "cvar": lambda x, y, **kw: cvar_loss(x, y, mass=0.3, **kw),
    "gain": lambda x, y, **kw: gain_loss(x, y, mass=0.3, **kw),
    "shift": lambda x, y, is_sorted=False: shift_loss(x, y),
    "shape": lambda x, y, **kw: shape_loss(x, y, lower_mass=0.3, upper_mass=0.2, **kw),
    "target": lambda x, y, **kw: curvature_loss(x, mode="target", target_K=y, lower_mass=0.3, upper_mass=0.2, **kw),
    "convex": lambda x, y, **kw: curvature_loss(x, lower_mass=0.3, upper_mass=0.2, **kw),
    "bell": lambda x, y, **kw: curvature_loss(x, mode="bell", lower_mass=0.3, upper_mass=0.2, **kw),
}
each_term = pytest.mark.parametrize("term", TERMS.values(), ids=TERMS.keys())


@pytest.mark.parametrize("masses", [(0.3, 0.2), (0.0, 0.5), (1.0, 0.05)])
def test_tails_are_moments_of_the_atoms_they_hold(masses):
    x = draw(0, 4, 3, 20)
    sorted_x = x.sort(dim=-1).values
    for tail, mass, upper in zip(tails(x, *masses), masses, (False, True), strict=True):
        if mass == 0:
            assert all(bool((part == 0).all()) for part in tail)
            continue
        weight = tail_weights(20, mass, upper=upper, dtype=torch.float64)
        mean = (weight * sorted_x).sum(dim=-1)
        assert_close(tail.mean, mean)
        assert_close(tail.variance, (weight * (sorted_x - mean[..., None]).square()).sum(dim=-1))
        places = min(max(2, round(mass * 20)), 19) - 1
        bends = sorted_x.diff(n=2, dim=-1)
        assert_close(tail.bend, (bends[..., -places:] if upper else bends[..., :places]).mean(dim=-1))


def test_tails_are_asked_for_as_often_as_one_likes():
    x, of_N = draw(0, 4, 20), torch.tensor([2, 0, 2, 3])
    assert_close(tails(x, 0.3, 0.2, of_N=of_N), tails(x[of_N], 0.3, 0.2))


@pytest.mark.parametrize("count", [1, 2, 3, 12])
def test_tails_have_the_gradient_of_their_definition(count):
    x = draw(0, 5, count).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: [part for tail in tails(x, 0.35, 0.2) for part in tail], x)


def test_consistency_adds_its_gradient_to_that_of_what_follows():
    x = draw(0, 4, 3, 5).requires_grad_()

    def of_both(x):
        same, loss = with_consistency_loss(x)
        assert torch.equal(same, x)
        return (same**3).sum() + (loss * torch.arange(4)).sum()

    found, expected = of_both(x), (x**3).sum() + (consistency_loss(x) * torch.arange(4)).sum()
    assert_close(found, expected)
    assert_close(torch.autograd.grad(found, x), torch.autograd.grad(expected, x))
    assert torch.autograd.gradcheck(of_both, x)


def test_tail_weights():
    assert_close(tail_weights(7, 0.2, dtype=torch.float64), f64(1 / 1.4, 0.4 / 1.4, 0, 0, 0, 0, 0), atol=1e-12, rtol=0)
    assert_close(tail_weights(10, 0.2), torch.tensor([0.5, 0.5] + [0.0] * 8))
    assert_close(tail_weights(10, 0.25, upper=True), torch.tensor([0.0] * 7 + [0.2, 0.4, 0.4]))
    assert tail_weights(3, 0.1).tolist() == [1, 0, 0]
    assert tail_weights(1, 1.0).tolist() == [1]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(2, 5), st.floats(1e-3, 1), st.booleans())
def test_tail_weights_do_not_depend_on_the_number_of_atoms(count, times, mass, upper):
    weight = tail_weights(count, mass, upper=upper, dtype=torch.float64)
    assert weight.sum().item() == pytest.approx(1)
    finer = tail_weights(count * times, mass, upper=upper, dtype=torch.float64)
    assert_close(finer.reshape(count, times).sum(-1), weight, atol=1e-12, rtol=0)


def test_risk_weights():
    """R1: a positive tilt favours the lower quantile; R2: none is 1."""
    tau = midpoints(2, dtype=torch.float64)
    assert_close(risk_weights(tau, 1.0), f64(1.244919, 0.755081), atol=1e-6, rtol=0)
    assert risk_weights(tau, 0.0).tolist() == [1, 1]
    assert risk_weights(midpoints(200), 500.0).mean().item() == pytest.approx(1)


@pytest.mark.parametrize(
    ("loss", "mass", "expected"),
    [(cvar_loss, 0.2, 0.16), (cvar_loss, 1.0, 0.0289), (gain_loss, 0.2, 0.09), (gain_loss, 0.25, 0.0676)],
)
def test_tail_means_golden(loss, mass, expected):
    """T1 and T2; with mass 1 the means .13 and .30 are compared."""
    assert loss(THETA, Y, mass=mass).item() == pytest.approx(expected, abs=1e-12)


def test_shift_golden():
    assert shift_loss(THETA, Y).item() == pytest.approx(0.17)
    assert shift_loss(Y, THETA).item() == 0
    assert shift_loss(f64(0.6), f64(1)).item() == pytest.approx(0.4)  # S1


def test_shape_golden():
    """T4. One atom per tail has variance 0, not NaN."""
    assert shape_loss(THETA, Y, **FIFTHS).item() == pytest.approx(0.08)
    assert shape_loss(Y, THETA, **FIFTHS).item() == 0
    assert shape_loss(THETA, Y, lower_mass=0.1, upper_mass=0.1).item() == 0


@pytest.mark.parametrize(("mode", "expected"), [("convex", 0.1), ("bell", 0.0), ("target", 0.15)])
def test_curvature_golden(mode, expected):
    loss = curvature_loss(THETA, lower_mass=0.3, upper_mass=0.3, mode=mode, target_K=Y)
    assert loss.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("mode", ["convex", "bell"])
def test_even_spacing_has_no_curvature(mode):
    assert curvature_loss(torch.arange(9.0), lower_mass=0.3, upper_mass=0.3, mode=mode).item() == 0


def test_curvature_of_a_finer_target_is_rescaled():
    """Quantile functions tau^2 at 10 and at 40 levels bend alike."""
    coarse, fine = (midpoints(count, dtype=torch.float64).square() for count in (10, 40))
    masses = dict(lower_mass=0.3, upper_mass=0.3, mode="target")
    assert curvature_loss(coarse, target_K=fine, **masses).item() == pytest.approx(0, abs=1e-12)
    assert curvature_loss(coarse, target_K=2 * fine, **masses).item() == pytest.approx(2 * 2 / 10**2)


def test_consistency_golden():
    assert consistency_loss(f64([0, 1], [0.2, 1], [0.1, 1.3])).item() == pytest.approx(0.04)  # T6
    assert consistency_loss(f64([0.4], [0.6], [0.8])).item() == pytest.approx(0.08)  # S1
    assert consistency_loss(f64([0.5, 1], [0.5, 1], [0.5, 1], [0.5, 1])).item() == 0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 6))
def test_consistency_is_the_mean_over_pairs(seed, heads, count):
    x = draw(seed, 2, heads, count)
    pairs = [(x[:, i] - x[:, k]).square().mean(-1) for i in range(heads) for k in range(i)]
    expected = sum(pairs) / max(len(pairs), 1) + torch.zeros(2, dtype=torch.float64)
    assert_close(consistency_loss(x), expected, atol=1e-12, rtol=0)


@each_term
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(1, 9), atoms=st.integers(1, 9))
def test_terms_are_finite_and_blind_to_order(term, seed, count, atoms):
    """Every M and K from 1, tails of less than one atom among them."""
    x, y = draw(seed, 4, count).requires_grad_(), draw(seed + 1, 4, atoms).requires_grad_()
    loss = term(x, y)
    assert loss.shape == (4,) and loss.isfinite().all() and (loss >= 0).all()
    grad, target_grad = torch.autograd.grad(loss.sum(), (x, y), allow_unused=True)
    assert grad.isfinite().all() and target_grad is None
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    assert_close(term(x[:, order], y.flip(-1)), loss, atol=1e-12, rtol=0)
    (moved_grad,) = torch.autograd.grad(term(x[:, order], y).sum(), x)
    assert_close(moved_grad, grad, atol=1e-12, rtol=0)
    assert_close(term(x.sort(-1).values, y.sort(-1).values, is_sorted=True), loss, atol=1e-12, rtol=0)
    assert_close(term(x + 3, y + 3), loss, atol=1e-12, rtol=0)


@each_term
def test_leading_axes_broadcast(term):
    x, y = draw(0, 2, 3, 4, 7), draw(1, 2, 3, 1, 6)
    assert_close(term(x, y), term(x, y.expand(2, 3, 4, 6)))
    assert term(x[:0], y[:0]).shape == (0, 3, 4)


@each_term
def test_gradient(term):
    assert torch.autograd.gradcheck(lambda x: term(x, draw(1, 3, 6)), draw(0, 3, 7).requires_grad_())


@pytest.mark.parametrize("name", ["cvar", "gain", "shift", "shape", "target"])
@pytest.mark.parametrize("count", [1, 2, 3, 10, 200])
def test_nothing_is_left_to_correct_at_the_target(name, count):
    x = draw(count, 5, count)
    assert (TERMS[name](x, x) == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("differentiable", [False, True])
def test_ascending_sorts_what_is_not_in_order(dtype, differentiable):
    x = draw(0, 3, 4, 9).to(dtype).requires_grad_(differentiable)
    found = ascending(x)
    assert torch.equal(found, x.sort(-1).values) and found.requires_grad == differentiable
    assert ascending(found) is found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_falls_are_steps_that_do_not_lead_upwards(dtype):
    nan, inf = float("nan"), float("inf")
    x = torch.tensor([[0, 1, 1, 2], [3, 2, 1, 0], [-inf, -inf, inf, inf], [0, nan, 1, 2]], dtype=dtype)
    assert falls(x).tolist() == [0, 3, 0, 2]
    assert falls(torch.tensor([1, 0], dtype=dtype).repeat(300)).item() == 300, "more than bf16 can count"
    assert falls(x[:, :1]).tolist() == [0] * 4


def test_curvature_of_two_quantiles_is_zero_with_a_gradient():
    x = draw(0, 3, 2).requires_grad_()
    loss = curvature_loss(x, **FIFTHS)
    loss.sum().backward()
    assert loss.tolist() == [0, 0, 0] and (x.grad == 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tail_weights(5, 0.0), "tail mass is 0.0: set a share above 0 and at most 1"),
        (lambda: tail_weights(5, 1.5), "at most 1"),
        (lambda: cvar_loss(THETA, Y, mass=-0.1), "above 0"),
        (lambda: gain_loss(THETA, Y, mass=1.1), "at most 1"),
        (lambda: shape_loss(THETA, Y, lower_mass=0.6, upper_mass=0.1), "tail mass is 0.6: .* at most 0.5"),
        (lambda: shape_loss(THETA, Y, lower_mass=0.1, upper_mass=0.6), "at most 0.5"),
        (lambda: curvature_loss(THETA, lower_mass=0.1, upper_mass=0.0), "above 0"),
        (lambda: curvature_loss(THETA, mode="concave", **FIFTHS), "set convex, bell or target"),
        (lambda: curvature_loss(THETA, mode="target", **FIFTHS), "set target_K"),
    ],
)
def test_settings_without_meaning(call, message):
    with pytest.raises(ValueError, match=message):
        call()
