"""Outliers are as frequent and as large as they say; Student's t is Student's t."""

import pytest
import torch
from scipy.stats import kstest, t

from noisyrl.noise.heavy_tail import HeavyTail
from noisyrl.spec import spec
from noisyrl.types import Range
from tests.frame import built
from tests.noise.bounds import CLEAN, ROLLOUT, assert_mean, assert_rate, observed, same_rows


def errors(noise):
    return observed(noise) - CLEAN


def test_outliers_lie_inside_exact_bounds():
    found = errors(built("noise", "noise=out5", "seed=1"))
    assert set(found.unique().tolist()) == {-5.0, 0.0}
    assert_rate(found[:, CLEAN == 1] == -5, 0.06)
    assert_rate(found[:, CLEAN == 0] == -5, 0.06)
    both = errors(built("noise", "noise=heavy_tail", "seed=1"))
    assert_rate(both != 0, 0.06)
    assert_rate(both[both != 0] > 0, 0.5)
    assert_mean(both, 0.0, 5 * 0.06**0.5)
    assert (errors(HeavyTail(rate=0.5, size=2.0, sign="positive")) >= 0).all()


@pytest.mark.parametrize("df", [1.0, 3.0, 30.0])
def test_students_t(df):
    found = errors(HeavyTail(rate=1.0, size=0.3, df=df, seed=2)).flatten() / 0.3
    assert kstest(found.numpy(), t(df).cdf).pvalue > 0.001
    one_way = errors(HeavyTail(rate=1.0, size=0.3, df=df, sign="negative", seed=2)).flatten() / 0.3
    assert kstest(-one_way.numpy(), lambda x: 2 * t(df).cdf(x) - 1).pvalue > 0.001


def test_the_largest_draw_is_finite():
    @spec
    class Largest(HeavyTail):
        def uniforms(self, name, rollout, step, *, draw=0):
            return torch.full((len(rollout.prompts),), 0.0 if draw == 0 else 1 - 2.0**-53, dtype=torch.float64)

    found = errors(Largest(rate=1.0, size=1.0, df=1.0))
    assert found.isfinite().all() and (found > 1e15).all()


def test_rows_and_persistence():
    noise = HeavyTail(rate=0.3, size=1.0, df=2.0)
    assert same_rows(noise)
    lasting = errors(HeavyTail(rate=0.3, size=1.0, persistence="persistent"))
    assert (lasting == lasting[0]).all() and lasting.any()
    assert not torch.equal(noise(CLEAN, ROLLOUT, 0), noise(CLEAN, ROLLOUT, 1))


def test_declared_range():
    assert built("noise", "noise=out5").observed_range(Range()) == Range(-5.0, 1.0)
    assert built("noise", "noise=heavy_tail").observed_range(Range()) == Range(-5.0, 6.0)
    student = built("noise", "noise=student3")
    reach = 0.3 * t(3).ppf(0.9772498680518208)
    assert student.observed_range(Range()).high == pytest.approx(1 + reach)
    outside = (errors(student) > reach) | (errors(student) < -reach)
    assert_rate(outside, 2 * (1 - 0.9772498680518208))


def test_a_mean_that_does_not_exist_is_announced():
    assert "WARNING" in HeavyTail(rate=0.1, size=1.0, df=1.0).describe()
    assert "variance infinite" in HeavyTail(rate=0.1, size=1.0, df=2.0).describe()
    assert "variance" not in built("noise", "noise=student3").describe()
