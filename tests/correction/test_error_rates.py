"""Where error rates come from: given, or counted on trusted samples, and what is refused."""

from dataclasses import replace

import pytest
import torch
from scipy.stats import binomtest

from noisyrl import rng
from noisyrl.correction.abstain import Abstain
from noisyrl.correction.backward import Backward
from noisyrl.correction.forward import Forward
from noisyrl.correction.rates import trusted
from noisyrl.launch import build
from noisyrl.spec import InputError
from tests.frame import built, composed, made_up_rollout

ROLLOUT = made_up_rollout(prompts=50, samples=8)
CLEAN = (torch.arange(400) % 3 == 0).double()


def at(step):
    """The rollout with the keys it would have at a step."""
    keys = [rng.hash64("t", step, row) - 2**63 for row in range(400)]
    return replace(ROLLOUT, key_B=torch.tensor(keys, dtype=torch.int64))


def misjudged(step, positive, negative):
    u = torch.tensor([rng.uniform("misjudged", step, row) for row in range(400)])
    return torch.where(u < torch.where(CLEAN == 1, negative, positive), 1 - CLEAN, CLEAN)


@pytest.mark.parametrize(("positive", "negative"), [(0.3, 0.3), (0.05, 0.4), (0.0, 0.2)])
def test_estimates_reach_the_truth(positive, negative):
    """Counts inside exact binomial bounds, the estimate inside the exact interval of the rate."""
    correction, memory, errors = Backward(trusted_frac=0.2), {}, []
    for step in range(40):
        memory = correction.remember(CLEAN, misjudged(step, positive, negative), at(step), memory)
        fp, fn, _ = correction.rates(memory)
        errors.append(abs(fp - positive) + abs(fn - negative))
    samples = memory["right"] + memory["wrong"]
    assert binomtest(int(samples), 16000, 0.2).pvalue > 0.001
    for count, total, rate, found in (
        ("wrong_raised", "wrong", positive, fp),
        ("right_lowered", "right", negative, fn),
    ):
        test = binomtest(int(memory[count]), int(memory[total]), rate)
        assert test.pvalue > 0.001
        interval = test.proportion_ci(0.999, method="exact")
        # The prior moves the mean by less than half a percentage point after 1000 samples.
        assert interval.low - 0.005 <= found <= interval.high and interval.low <= rate <= interval.high
    assert correction.metrics(memory)["correction/trusted"] == samples
    assert errors[-1] < errors[0] / 2


def test_before_the_first_trusted_sample_the_prior_speaks():
    positive, negative, youden = Backward().rates({})
    assert (positive, negative, youden) == pytest.approx((0.1, 0.1, 0.8))
    one_bad = {"right": 1.0, "right_lowered": 1.0, "wrong": 1.0, "wrong_raised": 1.0}
    assert Backward().rates(one_bad) == pytest.approx((0.25, 0.25, 0.5))


def test_trusted_samples_are_others_at_every_step_and_a_smaller_share_is_part_of_a_larger():
    small, large, later = trusted(at(0), 0.1), trusted(at(0), 0.4), trusted(at(1), 0.1)
    assert small.any() and (large | ~small).all() and not torch.equal(small, later)
    assert not trusted(at(0), 0.0).any() and trusted(at(0), 1.0).all()


def test_given_rates_need_no_clean_score():
    correction = Abstain(false_positive=0.1, false_negative=0.2, trusted_frac=1.0)
    assert correction.remember(torch.full((400,), 0.37), CLEAN, ROLLOUT, {}) == {}
    assert correction.rates({"right": 9.0, "right_lowered": 9.0}) == pytest.approx((0.1, 0.2, 0.7))
    assert "correction/trusted" not in correction.metrics({})


def test_one_rate_may_be_given_and_the_other_estimated():
    correction = Backward(false_positive=0.0, trusted_frac=1.0)
    memory = correction.remember(CLEAN, torch.zeros(400), ROLLOUT, {})
    assert memory == {"right": 134.0, "right_lowered": 134.0, "wrong": 266.0, "wrong_raised": 0.0}
    assert correction.rates(memory)[:2] == pytest.approx((0.0, 134.5 / 139))
    assert "FPR 0 as given, FNR estimated from trusted samples (100 %)" in correction.describe()


def test_a_missing_reward_is_not_counted():
    observed = CLEAN.clone()
    observed[:100] = torch.nan
    memory = Forward(trusted_frac=1.0).remember(CLEAN, observed, ROLLOUT, {})
    assert memory["right"] + memory["wrong"] == 300 and memory["right_lowered"] == 0


def test_estimates_never_divide_by_nothing():
    """A reward that always errs: J is kept at the floor and the metric shows it."""
    correction = Backward(trusted_frac=1.0, youden_floor=0.1)
    memory = correction.remember(CLEAN, 1 - CLEAN, ROLLOUT, {})
    assert correction.rates(memory)[2] == 0.1 and correction.metrics(memory)["correction/youden"] == 0.1
    assert correction(1 - CLEAN, ROLLOUT, memory).abs().max() <= 10
    assert Forward(trusted_frac=1.0).miss_rate(memory) < 1


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (["correction=backward", "correction.trusted_frac=0"],
         ["correction.false_positive=... correction.false_negative=...", "correction.trusted_frac=0.05"]),
        (["correction=forward", "correction.trusted_frac=0"], ["correction.false_negative=...,"]),
        (["correction=abstain", "correction.trusted_frac=0", "correction.false_positive=0.1"],
         ["correction.false_negative=...,"]),
        (["correction=backward", "correction.false_positive=0.6", "correction.false_negative=0.4"],
         ["J = 1 - FPR - FNR = 0, too little", "at most 0.95"]),
        (["correction=abstain", "correction.false_positive=0.7", "correction.false_negative=0.7"], ["= -0.4,"]),
        (["correction=forward", "correction.false_negative=1"], ["set it below 1"]),
        (["correction=forward", "+correction.false_positive=0.1"], ["correction.false_positive does not exist"]),
        (["correction=backward", "correction.false_negative=1.2"], ["false_negative: Input should be less than"]),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_with_the_remedy(words, messages):
    with pytest.raises(InputError) as error:
        build({"name": "x"} | dict(_plain(*words)))
    assert all(message in str(error.value) for message in messages), str(error.value)


def _plain(*words):
    from omegaconf import OmegaConf

    return {**OmegaConf.to_container(composed(*words), resolve=True), "name": "x"}


def test_forward_refuses_a_kl_it_would_lose():
    lost = built("algo", "algo=ppo", "algo.kl_coef=0.1", "algo.kl_in=reward", "algo.kl_estimator=k1")
    with pytest.raises(InputError, match="algo.kl_in=loss algo.kl_estimator=k3"):
        Forward().check(lost)
    Forward().check(built("algo", "algo=ppo", "algo.kl_coef=0.1", "algo.kl_in=loss", "algo.kl_estimator=k3"))
    Forward().check(built("algo", "algo=reinforce_pp"))  # its KL in the reward is off
    Backward().check(lost)
