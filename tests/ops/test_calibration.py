"""Diagnostics of quantiles on laws whose quantiles are known."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from noisyrl.ops.calibration import coverage_error, crossing_rate, pit_histogram
from noisyrl.ops.quantiles import midpoints

pytestmark = pytest.mark.usefixtures("kernels_or_tensors")


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_crossing_rate():
    quantiles = torch.tensor([[0.0, 1.0, 1.0, 2.0], [3.0, 2.0, 1.0, 0.0], [0.0, 2.0, 1.0, 3.0]])
    assert_close(crossing_rate(quantiles), torch.tensor([0.0, 1.0, 1 / 3]))
    assert crossing_rate(torch.zeros(2, 1)).tolist() == [0.0, 0.0]
    quantiles[0, 1] = float("nan")
    assert_close(crossing_rate(quantiles), torch.tensor([2 / 3, 1.0, 1 / 3]))


BERNOULLI = f64(1, 1, 1, *[0] * 7)


def test_coverage_error():
    tau = midpoints(10, dtype=torch.float64)
    right = f64(*[0] * 7, 1, 1, 1).repeat(10, 1)
    assert coverage_error(right, BERNOULLI, tau).item() == 0
    assert coverage_error(right + 1e-4, BERNOULLI, tau).item() > 0.1  # nothing lies above 1: levels .75 to .95 read 1
    assert coverage_error(right + 1e-4, BERNOULLI, tau, tolerance=1e-3).item() == 0
    between = torch.full_like(right, 0.5)  # every quantile covers .7
    assert coverage_error(between, BERNOULLI, tau).item() == pytest.approx((tau - 0.7).abs().mean().item())
    zero = torch.zeros_like(right)  # right up to level .7
    assert coverage_error(zero, BERNOULLI, tau).item() == pytest.approx(0.1 * (0.05 + 0.15 + 0.25))
    assert coverage_error(right.float(), BERNOULLI, tau.float()).item() == 0


def test_pit_histogram_is_flat_for_exact_quantiles():
    flat = torch.full((10,), 0.1, dtype=torch.float64)
    right = f64(*[1] * 3, *[0] * 7).repeat(10, 1)
    assert_close(pit_histogram(right, BERNOULLI), flat, atol=1e-12, rtol=0)
    assert_close(pit_histogram(right + 1e-4, BERNOULLI, tolerance=1e-3), flat, atol=1e-12, rtol=0)
    outcome = midpoints(1000, dtype=torch.float64)  # uniform law
    for count in (10, 20, 200):
        uniform = midpoints(count, dtype=torch.float64).repeat(1000, 1)
        assert_close(pit_histogram(uniform, outcome), flat, atol=1e-12, rtol=0)


def test_pit_histogram_places_points():
    quantiles = f64(3, 1, 2, 4)
    for outcome, expected in [
        (0.0, [1, 0, 0, 0]),
        (1.5, [0.5, 0.5, 0, 0]),
        (2.0, [0, 1, 0, 0]),
        (2.5, [0, 0.5, 0.5, 0]),
        (9.0, [0, 0, 0, 1]),
    ]:
        assert pit_histogram(quantiles[None], f64(outcome), bins=4).tolist() == expected
    assert pit_histogram(quantiles[None], f64(1.5), bins=3).tolist() == [1, 0, 0]
    narrow = pit_histogram(torch.full((1000, 20), 0.5), midpoints(1000))
    assert narrow[0] > 0.4 and narrow[-1] > 0.4


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 12), st.sampled_from([0.0, 0.3]))
def test_pit_histogram_sums_to_one(seed, count, bins, tolerance):
    quantiles, outcome = draw(seed, 7, count).round(decimals=1), draw(seed + 1, 7).round(decimals=1)
    found = pit_histogram(quantiles, outcome, bins=bins, tolerance=tolerance)
    assert found.shape == (bins,) and (found >= 0).all() and found.sum().item() == pytest.approx(1)
    assert_close(pit_histogram(quantiles.flip(-1), outcome, bins=bins, tolerance=tolerance), found)


def test_calibration_needs_an_outcome_for_each_row():
    with pytest.raises(ValueError, match="one outcome for each row"):
        coverage_error(draw(0, 3, 4), draw(0, 2), midpoints(4))
    with pytest.raises(ValueError, match="at least one"):
        pit_histogram(draw(0, 0, 4), draw(0, 0))
