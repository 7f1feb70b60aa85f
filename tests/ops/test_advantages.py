"""Advantage estimators against hand-computed numbers and a slow, obvious second version."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from noisyrl.ops.advantages import gae, group_relative
from noisyrl.ops.masked import place_last


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
