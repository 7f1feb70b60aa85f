"""Masks, means and reward placement."""

import math

import pytest
import torch
from torch.testing import assert_close

from noisyrl.ops.masked import explained_variance, keep, masked_mean, place, place_last, select, whiten

NAN = float("nan")


def test_masked_mean_reads_only_what_counts():
    x = torch.tensor([[1.0, 2.0, NAN], [4.0, 1e9, math.inf]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert masked_mean(x, mask).item() == pytest.approx(7 / 3)
    assert masked_mean(x, torch.zeros_like(mask)).item() == 0


def test_select_takes_out_and_place_puts_back():
    x = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    mask = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]]).bool()
    chosen = select(x, mask)
    assert torch.equal(chosen, x[mask])
    back = place(chosen, mask)
    assert torch.equal(back, keep(x, mask[..., None]))
    (gradient,) = torch.autograd.grad((back * x.detach()).sum(), x)
    assert torch.equal(gradient, keep(x.detach(), mask[..., None]))
    assert place(torch.ones(4), mask).shape == mask.shape


def test_keep_stops_the_gradient_of_what_it_drops():
    x = torch.tensor([2.0, NAN, 3.0], requires_grad=True)
    keep(x, torch.tensor([True, False, True])).square().sum().backward()
    assert x.grad.tolist() == [4.0, 0.0, 6.0]


def test_whiten_golden_and_unbiased():
    x = torch.tensor([[0.4705, 0.39, 0.2, NAN]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True, False]])
    expected = torch.tensor([[0.842364, 0.262789, -1.105153, 0.0]], dtype=torch.float64)
    assert_close(whiten(x, mask), expected, atol=1e-6, rtol=0)


def test_whiten_leaves_a_single_entry_alone():
    assert whiten(torch.tensor([[3.0, 5.0]]), torch.tensor([[True, False]])).tolist() == [[3.0, 0.0]]


def test_reward_lands_on_the_last_policy_token():
    mask = torch.tensor([[True, True, False, False], [True, False, False, True], [False, True, False, False]])
    placed = place_last(torch.tensor([1.0, 2.0, 3.0]), mask)
    assert placed.tolist() == [[0, 1, 0, 0], [0, 0, 0, 2], [0, 3, 0, 0]]


def test_a_row_without_tokens_is_named():
    with pytest.raises(ValueError, match=r"rows \[1\] have no real token"):
        place_last(torch.ones(2), torch.tensor([[True], [False]]))


def test_explained_variance_limits():
    mask = torch.tensor([[True, True, True, False]])
    target = torch.tensor([[0.0, 1.0, 2.0, NAN]])
    assert explained_variance(target, target, mask) == 1.0
    assert explained_variance(target, torch.zeros_like(target), mask) == 0.0
    assert explained_variance(target, -target, mask) == pytest.approx(-3.0)
    assert math.isnan(explained_variance(torch.ones(1, 4), target, mask))
