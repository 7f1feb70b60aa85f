"""Flips are as frequent as they say, and belong to the unit they name."""

import pytest
import torch
from scipy.stats import binomtest

from noisyrl.noise.flip import Flip
from noisyrl.noise.shuffle import Shuffle
from noisyrl.ops.advantages import group_relative
from noisyrl.types import rows
from tests.frame import made_up_rollout

ROLLOUT = made_up_rollout(prompts=50, samples=8)
CLEAN = (torch.arange(400) % 3 == 0).double()


def flips(noise, steps):
    return torch.stack([(noise(CLEAN, ROLLOUT, step) != CLEAN) for step in range(steps)])


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.7])
def test_rates_lie_inside_exact_bounds_for_right_and_wrong(rate):
    flipped = flips(Flip(rate=rate, seed=1), 50)  # 20 000 draws
    for kind in (CLEAN == 1, CLEAN == 0):
        count = int(flipped[:, kind].sum())
        assert binomtest(count, int(flipped[:, kind].numel()), rate).pvalue > 0.001


def test_zero_and_one_are_exact():
    assert torch.equal(Flip(rate=0.0)(CLEAN, ROLLOUT, 0), CLEAN)
    assert torch.equal(Flip(rate=1.0)(CLEAN, ROLLOUT, 0), 1 - CLEAN)


def test_units():
    by_prompt = flips(Flip(rate=0.3, unit="prompt"), 20).view(20, 50, 8)
    assert (by_prompt.all(dim=2) | ~by_prompt.any(dim=2)).all() and by_prompt.any()
    by_sample = flips(Flip(rate=0.3, unit="sample"), 20).view(20, 50, 8)
    assert not (by_sample.all(dim=2) | ~by_sample.any(dim=2)).all()


def test_the_same_text_meets_the_same_error():
    from dataclasses import replace

    twice = replace(rows(ROLLOUT, torch.arange(8)), turns=[["a"], ["b"]] * 4)
    found = torch.stack([Flip(rate=0.5, unit="response")(CLEAN[:8], twice, s) != CLEAN[:8] for s in range(30)])
    assert (found[:, ::2] == found[:, :1]).all() and (found[:, 1::2] == found[:, 1:2]).all()
    assert (found[:, 0] != found[:, 1]).any()


def test_persistence():
    persistent = flips(Flip(rate=0.3, persistence="persistent"), 5)
    assert (persistent == persistent[0]).all()
    assert not (flips(Flip(rate=0.3), 5) == flips(Flip(rate=0.3), 5)[0]).all()


def test_expected_advantage_is_scaled_by_one_minus_two_p():
    """Golden N1, by enumeration of the 16 outcomes of four coins."""
    clean, group = torch.tensor([1.0, 0, 0, 0]).double(), torch.zeros(4, dtype=torch.int64)
    expected = torch.zeros(4).double()
    standardised = torch.zeros(4).double()
    for outcome in range(16):
        coins = torch.tensor([outcome >> i & 1 for i in range(4)]).double()
        probability = 0.3 ** coins.sum() * 0.7 ** (4 - coins.sum())
        observed = torch.where(coins > 0, 1 - clean, clean)
        expected += probability * group_relative(observed, group, standardise=False)
        standardised += probability * group_relative(observed, group, standardise=True)
    torch.testing.assert_close(expected, torch.tensor([0.3, -0.1, -0.1, -0.1]).double(), atol=1e-7, rtol=0)
    golden = torch.tensor([0.566237, -0.188746, -0.188746, -0.188746]).double()
    torch.testing.assert_close(standardised, golden, atol=1e-6, rtol=0)


def test_a_graded_reward_has_no_opposite():
    with pytest.raises(ValueError, match="needs rewards 0 or 1, got 0.5"):
        Flip(rate=0.1)(torch.full((400,), 0.5), ROLLOUT, 0)


def test_no_signal_is_announced():
    assert "WARNING" in Flip(rate=0.5).describe() and "WARNING" not in Flip(rate=0.4).describe()


def test_shuffle_deals_the_same_cards_to_others():
    observed = torch.stack([Shuffle()(CLEAN, ROLLOUT, step) for step in range(40)])
    assert (observed.sum(dim=1) == CLEAN.sum()).all()
    right = observed[:, CLEAN == 1].mean().item()
    assert abs(right - CLEAN.mean().item()) < 0.03  # a right answer is paid no more often than any other
