"""The dual of a total variation ball: closed form, grid search, and the threshold that attains it."""

import pytest
import torch
from torch.testing import assert_close

from noisyrl.ops.advantages import tv_bootstrap
from noisyrl.ops.worst_case import from_token_before, threshold_loss, worst_case


def f64(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def dual(values, threshold, rho, fail_value=0.0):
    """The dual's objective for a law of equally likely values, at one threshold."""
    return worst_case(values, torch.full_like(values, threshold), rho=rho, fail_value=fail_value).mean().item()


def grid_maximum(values, rho, fail_value=0.0):
    """A maximiser is one of the values, so the grid of all of them (and a finer one) is exact."""
    grid = [*values.tolist(), *torch.linspace(-3, 3, 601).tolist()]
    return max(dual(values, threshold, rho, fail_value) for threshold in grid)


def test_golden():
    assert grid_maximum(f64(0, 0.2, 0.5, 0.9, 1), 0.2) == pytest.approx(0.32, abs=1e-9)
    assert dual(f64(0, 0.2, 0.5, 0.9, 1), 0.9, 0.2) == pytest.approx(0.32, abs=1e-9)


def test_with_one_successor_it_is_a_discount():
    assert grid_maximum(f64(0.6), 0.2) == pytest.approx(0.48, abs=1e-9)
    assert dual(f64(0.6), 0.6, 0.2) == pytest.approx(0.8 * 0.6, abs=1e-12)


@pytest.mark.parametrize("rho", [0.01, 0.2, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("fail_value", [0.0, -1.0, -2.5])
def test_the_grid_search_finds_the_closed_form(rho, fail_value):
    values = torch.rand(23, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    closed = tv_bootstrap(values[None, None], rho=rho, fail_value=fail_value).item()
    assert grid_maximum(values, rho, fail_value) == pytest.approx(closed, abs=1e-9)


def test_it_is_the_textbook_expression():
    value, eta = torch.rand(2, 50, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    expected = (1 - 0.3) * eta - (eta - value).clamp(min=0) + 0.3 * -0.5
    assert_close(worst_case(value, eta, rho=0.3, fail_value=-0.5), expected)


def test_any_threshold_gives_a_lower_bound_that_falls_with_rho():
    values = torch.rand(40, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    best = [grid_maximum(values, rho) for rho in (0.01, 0.1, 0.3, 0.6, 1.0)]
    assert best == sorted(best, reverse=True) and best[0] < values.mean().item()
    assert best[-1] == pytest.approx(0.0)
    for threshold in (-1.0, 0.1, 0.5, 0.9, 4.0):
        assert dual(values, threshold, 0.3) <= grid_maximum(values, 0.3) + 1e-12


def test_rho_zero_is_the_value_bit_for_bit():
    value = torch.rand(50, generator=torch.Generator().manual_seed(6))
    for threshold in (float("nan"), -1e30, 0.3, float("inf")):
        assert torch.equal(worst_case(value, torch.full_like(value, threshold), rho=0.0, fail_value=0.0), value)


@pytest.mark.parametrize("rho", [0.1, 0.5])
def test_the_loss_is_least_at_the_quantile_and_there_it_is_minus_the_worst_case(rho):
    values = torch.rand(999, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    thresholds = torch.linspace(0, 1, 2001, dtype=torch.float64)
    loss = threshold_loss(thresholds[:, None], values, rho=rho).mean(dim=1)
    best = thresholds[loss.argmin()].item()
    assert best == pytest.approx(values.quantile(1 - rho).item(), abs=0.005)
    closed = tv_bootstrap(values[None, None], rho=rho, fail_value=0.0).item()
    assert -loss.min().item() == pytest.approx(closed, abs=1e-3)


def test_the_gradient_of_the_loss():
    threshold = f64(0.2, 0.8).requires_grad_()
    threshold_loss(threshold, f64(0.5, 0.5), rho=0.1).sum().backward()
    assert_close(threshold.grad, f64(-0.9, 0.1))


def test_from_token_before_skips_holes():
    mask = torch.tensor([[True, True, False, False, True, False], [False, True, True, True, False, False]])
    x = torch.arange(1.0, 7.0).repeat(2, 1).masked_fill(~mask, float("nan")).requires_grad_()
    before, there = from_token_before(x, mask)
    assert before.tolist() == [[0, 1, 0, 0, 2, 0], [0, 0, 2, 3, 0, 0]]
    assert there.tolist() == [[False, True, False, False, True, False], [False, False, True, True, False, False]]
    before.sum().backward()
    assert x.grad.tolist() == [[1, 1, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0]]
