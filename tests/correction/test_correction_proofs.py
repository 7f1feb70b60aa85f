"""What the corrections promise, by enumeration of every outcome of the verifier's coins, in float64."""

from dataclasses import replace
from functools import cache
from itertools import product

import pytest
import torch

from noisyrl.correction.abstain import Abstain
from noisyrl.correction.backward import Backward
from noisyrl.correction.forward import Forward
from noisyrl.types import Credit
from tests.frame import batch_for, loop_for, made_up_rollout
from tests.frame import built as build

built = cache(build)
RATES = [(0.3, 0.3), (0.05, 0.4), (0.25, 0.0), (0.0, 0.0)]
GROUP = made_up_rollout(prompts=1, samples=4)
CLEAN = torch.tensor([1.0, 0, 0, 1]).double()


def outcomes(clean, positive, negative):
    """(probability, observed rewards) of every outcome."""
    for coins in product((False, True), repeat=len(clean)):
        flipped = torch.tensor(coins)
        rate = clean * negative + (1 - clean) * positive
        chance = torch.where(flipped, rate, 1 - rate).prod()
        if chance > 0:
            yield float(chance), torch.where(flipped, 1 - clean, clean)


def expected(function, clean, positive, negative):
    return sum(chance * function(observed) for chance, observed in outcomes(clean, positive, negative))


def same(found, wanted):
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("positive", "negative"), RATES)
def test_backward_rewards_are_unbiased_and_vary_by_one_over_j_squared(positive, negative):
    correction = Backward(false_positive=positive, false_negative=negative)
    same(expected(lambda x: correction(x, GROUP, {}), CLEAN, positive, negative), CLEAN)
    plain = expected(lambda x: x, CLEAN, positive, negative)
    spread = expected(lambda x: (x - plain).square(), CLEAN, positive, negative)
    corrected = expected(lambda x: (correction(x, GROUP, {}) - CLEAN).square(), CLEAN, positive, negative)
    same(corrected, spread / (1 - positive - negative) ** 2)


@pytest.mark.parametrize(("positive", "negative"), RATES)
@pytest.mark.parametrize(
    "words", [("algo=dr_grpo",), ("algo=grpo_no_std",), ("algo=ppo", "algo.whiten_advantages=false")]
)
def test_expected_advantages_are_the_clean_ones(words, positive, negative):
    """Over all 16 outcomes of a group of four: group means and, for fixed values, generalised advantages."""
    algo = built("algo", *words)
    correction = Backward(false_positive=positive, false_negative=negative)
    batch = batch_for(loop_for(algo), GROUP)

    def advantages(reward):
        return algo.advantages(replace(batch, reward_B=reward))

    clean = advantages(CLEAN)
    assert clean.abs().max() > 0.1
    same(expected(lambda x: advantages(correction(x, GROUP, {})), CLEAN, positive, negative), clean)
    if positive + negative > 0 and "ppo" not in words[0]:  # uncorrected: J times the clean ones
        same(expected(advantages, CLEAN, positive, negative), (1 - positive - negative) * clean)


@pytest.mark.parametrize("algo", ["grpo", "reinforce_pp"])
def test_a_standard_deviation_takes_backward_correction_away_again(algo):
    """The documented limit: the map is affine, so standardised advantages do not know of it."""
    correction = Backward(false_positive=0.05, false_negative=0.4)
    algo = built("algo", f"algo={algo}")
    batch = batch_for(loop_for(algo), GROUP)
    observed = torch.tensor([1.0, 0, 0, 0]).double()
    once = algo.advantages(replace(batch, reward_B=observed))
    again = algo.advantages(replace(batch, reward_B=correction(observed, GROUP, {})))
    torch.testing.assert_close(again, once, atol=1e-5, rtol=0)


def test_wrong_rates_give_the_predicted_bias():
    correction = Backward(false_positive=0.2, false_negative=0.2)  # J' = .6
    found = expected(lambda x: correction(x, GROUP, {}), CLEAN, 0.1, 0.3)  # J = .6
    same(found, CLEAN - 0.1 / 0.6)  # the gap is right, both are (FPR - FPR') / J' too low
    found = expected(lambda x: correction(x, GROUP, {}), CLEAN, 0.3, 0.3)
    same(found, (0.1 + 0.4 * CLEAN) / 0.6)


# A softmax bandit: four answers, two of them right. Rows are all pairs of answer and observed reward.
LOGITS = torch.tensor([0.3, -1.0, 0.8, 0.1]).double()
RIGHT = torch.tensor([1.0, 0, 0, 1]).double()
SCORES = torch.eye(4).double() - LOGITS.softmax(dim=0)  # row a: gradient of log pi(a)
ANSWERS = torch.arange(8) // 2
OBSERVED = (torch.arange(8) % 2).double()


def bandit_update(advantage, positive, negative):
    """The expected update, given the advantage of each pair."""
    paid = (RIGHT * (1 - negative) + (1 - RIGHT) * positive)[ANSWERS]
    chance = LOGITS.softmax(dim=0)[ANSWERS] * torch.where(OBSERVED == 1, paid, 1 - paid)
    return (chance * advantage) @ SCORES[ANSWERS]


def forward_advantage(correction):
    batch = replace(batch_for(loop_for(built("algo", "algo=ppo")), EIGHT), reward_B=OBSERVED)
    own = torch.full(batch.mask_BT.shape, 7.0).double()
    credit = correction.credit(Credit(advantage_BT=own, target=own), batch, {})
    assert torch.equal(credit.target, own) and (credit.advantage_BT[~batch.mask_BT] == 0).all()
    first = credit.advantage_BT[:, :1]
    assert ((credit.advantage_BT == first) | ~batch.mask_BT).all()
    return first.flatten()


EIGHT = made_up_rollout(prompts=2, samples=4)
CLEAN_UPDATE = (LOGITS.softmax(dim=0) * RIGHT) @ SCORES


@pytest.mark.parametrize(("positive", "negative"), RATES)
def test_the_forward_update_is_parallel_to_the_clean_one(positive, negative):
    found = forward_advantage(Forward(false_negative=negative))
    same(bandit_update(found, positive, negative), (1 - positive - negative) / (1 - negative) * CLEAN_UPDATE)
    paid = RIGHT * (1 - negative) + (1 - RIGHT) * positive
    weight = found.view(4, 2)  # by answer and observed reward
    mean = (1 - paid) * weight[:, 0] + paid * weight[:, 1]
    same(mean * (1 - negative), -(1 - positive - negative) * (1 - RIGHT))  # 0 where right, -J where wrong


def test_a_wrong_rate_changes_the_length_of_the_forward_update_alone():
    found = bandit_update(forward_advantage(Forward(false_negative=0.1)), 0.2, 0.3)
    same(found, 0.5 / 0.9 * CLEAN_UPDATE)
    assert CLEAN_UPDATE.norm() > 0.1


def test_forward_leaves_rewards_and_what_the_critic_learns():
    algo = built("algo", "algo=dvpo")
    loop = loop_for(algo)
    batch = batch_for(loop, EIGHT)
    correction = Forward(false_negative=0.3)
    assert torch.equal(correction(batch.reward_B, EIGHT, {}), batch.reward_B)
    own = algo.credit(batch)
    found = correction.credit(own, batch, {})
    assert found.target is own.target and found.extra is own.extra and found.memory is own.memory
    assert sorted(set(found.advantage_BT[batch.mask_BT].tolist())) == pytest.approx([-1.0, 3 / 7])


def posterior_by_enumeration(positive, negative, pass_rate):
    """P(clean = observed | observed) for observed 0 and 1."""
    joint = {
        (clean, seen): (pass_rate if clean else 1 - pass_rate)
        * ((1 - negative, negative) if clean else (positive, 1 - positive))[1 - seen]
        for clean in (0, 1)
        for seen in (0, 1)
    }
    return [joint[seen, seen] / (joint[0, seen] + joint[1, seen]) for seen in (0, 1)]


@pytest.mark.parametrize(("positive", "negative"), [(0.3, 0.3), (0.02, 0.4), (0.0, 0.2), (0.0, 0.0)])
def test_the_probability_of_being_right_is_bayes(positive, negative):
    correction = Abstain(false_positive=positive, false_negative=negative)
    rollout = made_up_rollout(prompts=9, samples=8)
    observed = torch.cat([torch.tensor([1.0] * paid + [0.0] * (8 - paid)) for paid in range(9)]).double()
    found = correction.probability_right(observed, rollout.group_B, {}).view(9, 8)
    for paid in range(9):
        corrected = min(max((paid / 8 - positive) / (1 - positive - negative), 0), 1)
        wanted = posterior_by_enumeration(positive, negative, (8 * corrected + 1) / 10)
        same(found[paid], torch.tensor([wanted[1]] * paid + [wanted[0]] * (8 - paid), dtype=torch.float64))


def test_rewards_against_the_majority_are_left_out():
    rollout = made_up_rollout(prompts=9, samples=8)
    observed = torch.cat([torch.tensor([1.0] * paid + [0.0] * (8 - paid)) for paid in range(9)])

    def kept(**fields):
        return Abstain(false_positive=0.3, false_negative=0.3, **fields)(observed, rollout, {}).view(9, 8).isfinite()

    counts = kept().sum(dim=1).tolist()
    # Pass rates .1 .1 .1 .3 (paid 3 of 8: .15) .5 ...: errors are left out up to 3 and from 5 of 8 paid on.
    assert counts == [8, 7, 6, 5, 8, 5, 6, 7, 8]
    assert kept(confidence=0.0).all()
    assert kept(confidence=0.7 - 1e-9).view(9, 8)[4].all()  # up to 1 - e a group can keep both
    assert not any(row.any() and row.all() for row in kept(confidence=0.71)[1:8])


def test_reliable_verdicts_stay_where_only_the_others_err():
    """FPR 0: a paid response is right for certain; an unpaid one of an easy prompt is not."""
    rollout = made_up_rollout(prompts=2, samples=8)
    observed = torch.tensor([1.0] * 5 + [0.0] * 3 + [1.0] + [0.0] * 7)
    found = Abstain(false_positive=0.0, false_negative=0.4)(observed, rollout, {})
    assert torch.equal(found.isfinite(), torch.tensor([True] * 5 + [False] * 3 + [True] * 8))
    assert torch.equal(found[found.isfinite()], observed[found.isfinite()])


def test_what_becomes_of_small_groups():
    """One response left: no advantage from a group baseline, the usual one from a critic. None left: no batch."""
    from noisyrl.experience import Grades
    from noisyrl.noise.none import NoNoise

    clean = torch.tensor([1.0, 0, 0, 0] + [1.0, 1, 0, 0]).double()
    rollout = made_up_rollout(prompts=2, samples=4)
    for name, alone in (("dr_grpo", False), ("ppo", True)):
        loop = loop_for(built("algo", f"algo={name}"))
        loop.collector = replace(loop.collector, noise=NoNoise(), correction=_KeepsPaid())
        batch = loop.collector.annotate(rollout, Grades(clean), 0).batch
        assert batch.group_B.tolist() == [0, 1, 1] and batch.reward_B.tolist() == [1, 1, 1]
        assert bool(loop.algo.advantages(batch)[0].abs().sum() > 0) == alone
    loop.collector = replace(loop.collector, correction=Abstain(false_positive=0.3, false_negative=0.3, confidence=1.0))
    nothing = loop.collector.annotate(rollout, Grades(clean), 0)
    assert len(nothing.batch.reward_B) == 0 and nothing.ledger.metrics()["noise/left_out_frac"] == 1


class _KeepsPaid(Abstain):
    """Leaves out whatever was not paid."""

    def __call__(self, observed_B, rollout, memory):
        return torch.where(observed_B == 1, observed_B, torch.nan)
