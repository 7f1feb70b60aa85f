"""Missing rewards are as frequent as they say, and each way of going on has the effect it declares."""

import math

import pytest
import torch

from noisyrl.noise.dropout import Dropout
from noisyrl.ops.advantages import group_relative
from tests.noise.bounds import CLEAN, ROLLOUT, assert_rate, every_case, group, observed, same_rows

ONE_GROUP = torch.zeros(4, dtype=torch.int64)
STEEP = torch.tensor([1.0, 0, 0, 0]).double()


def test_the_rate_lies_inside_exact_bounds_for_right_and_wrong():
    missing = observed(Dropout(rate=0.3, seed=1)).isnan()
    assert_rate(missing[:, CLEAN == 1], 0.3)
    assert_rate(missing[:, CLEAN == 0], 0.3)
    assert_rate(observed(Dropout(rate=0.3, seed=2, mode="zero"))[:, CLEAN == 1] == 0, 0.3)


def test_whole_groups_go_missing_at_one_step_or_for_ever():
    by_group = observed(Dropout(rate=0.3, unit="group")).isnan().view(-1, 50, 8)
    by_prompt = observed(Dropout(rate=0.3, unit="prompt")).isnan().view(-1, 50, 8)
    for missing in (by_group, by_prompt):
        assert (missing.all(dim=2) | ~missing.any(dim=2)).all() and missing.any() and not missing.all()
    assert (by_prompt == by_prompt[0]).all() and not (by_group == by_group[0]).all()


def test_a_row_goes_missing_in_any_company():
    assert same_rows(Dropout(rate=0.3, mode="zero"))


def forced(mode, clean, missing, monkeypatch):
    cases = every_case(Dropout(rate=0.5, mode=mode), clean, [float(x) for x in missing], monkeypatch)
    return next(reward for probability, reward in cases if probability == 1)


def test_a_missing_reward_is_imputed_from_its_group_then_from_the_step(monkeypatch):
    clean = torch.tensor([1.0, 0.0, 0.5, 0.0]).double()
    assert forced("impute", clean, [0, 0, 1, 0], monkeypatch).tolist() == [1.0, 0.0, 1 / 3, 0.0]
    assert forced("zero", clean, [1, 0, 1, 0], monkeypatch).tolist() == [0.0, 0.0, 0.0, 0.0]
    assert forced("mask", clean, [1, 0, 0, 0], monkeypatch).isnan().tolist() == [True, False, False, False]
    assert forced("impute", clean, [1, 1, 1, 1], monkeypatch).isnan().all()

    monkeypatch.undo()
    noise = Dropout(rate=0.5, unit="group", mode="impute")
    missing = Dropout(rate=0.5, unit="group")(CLEAN, ROLLOUT, 0).isnan()
    found = noise(CLEAN, ROLLOUT, 0)
    assert torch.equal(found[~missing], CLEAN[~missing])
    torch.testing.assert_close(found[missing], CLEAN[~missing].mean().expand(int(missing.sum())))


def test_each_group_is_imputed_on_its_own():
    clean = CLEAN.view(50, 8)
    found = Dropout(rate=0.4, mode="impute")(CLEAN, ROLLOUT, 0).view(50, 8)
    there = ~Dropout(rate=0.4)(CLEAN, ROLLOUT, 0).isnan().view(50, 8)
    for group_G, found_G, there_G in zip(clean, found, there, strict=True):
        mean = group_G[there_G].mean() if there_G.any() else clean[there].mean()
        torch.testing.assert_close(found_G, torch.where(there_G, group_G, mean), atol=1e-12, rtol=0)
    assert int((~there).all(dim=1).sum()) == 1  # one group has nothing but the step's mean


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.8])
def test_zero_scales_the_expected_centred_advantage_by_one_minus_the_rate(rate, monkeypatch):
    expected = sum(
        probability * group_relative(reward, ONE_GROUP, standardise=False)
        for probability, reward in every_case(Dropout(rate=rate, mode="zero"), STEEP, [rate] * 4, monkeypatch)
    )
    clean = group_relative(STEEP, ONE_GROUP, standardise=False)
    torch.testing.assert_close(expected, (1 - rate) * clean, atol=1e-7, rtol=0)


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.8])
def test_imputing_and_masking_keep_the_direction(rate, monkeypatch):
    """Both by enumeration: a masked sample has no advantage, an imputed one has that of the mean, 0."""
    factor = 4 / 3 * (1 - rate - (1 - rate**4) / 4)
    clean = group_relative(STEEP, ONE_GROUP, standardise=False)
    imputed, masked = torch.zeros(4).double(), torch.zeros(4).double()
    for probability, reward in every_case(Dropout(rate=rate, mode="impute"), STEEP, [rate] * 4, monkeypatch):
        if not reward.isnan().any():
            imputed += probability * group_relative(reward, ONE_GROUP, standardise=False)
    for probability, reward in every_case(Dropout(rate=rate, mode="mask"), STEEP, [rate] * 4, monkeypatch):
        there = ~reward.isnan()
        masked[there] += probability * group_relative(reward[there], ONE_GROUP[there], standardise=False)
    torch.testing.assert_close(imputed, factor * clean, atol=1e-7, rtol=0)
    torch.testing.assert_close(masked, factor * clean, atol=1e-7, rtol=0)


def test_imputing_comes_near_one_minus_the_rate_in_large_groups():
    rollout, rate = group(2000), 0.3
    clean = (torch.arange(2000) % 4 == 0).double()
    advantage = group_relative(clean, rollout.group_B, standardise=False)
    noisy = [Dropout(rate=rate, mode="impute", seed=seed)(clean, rollout, 0) for seed in range(10)]
    slopes = [
        float(group_relative(reward, rollout.group_B, standardise=False) @ advantage / (advantage @ advantage))
        for reward in noisy
    ]
    # Each slope is the present samples' share weighted by squared advantage (3/4 of the weight on 1/4 of the samples).
    sd = math.sqrt(rate * (1 - rate) * float((advantage**4).sum()) / float((advantage**2).sum()) ** 2)
    assert abs(sum(slopes) / 10 - 0.7) < 3.29 * sd / math.sqrt(10)


def test_the_line_says_what_is_left():
    assert "J = 1 - FPR - FNR = 0.7" in Dropout(rate=0.3, mode="zero").describe()
    for mode in ("zero", "mask", "impute"):
        assert "WARNING" in Dropout(rate=1.0, mode=mode).describe()
        assert "WARNING" not in Dropout(rate=0.9, mode=mode).describe()
