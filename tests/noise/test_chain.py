"""A chain is its members one after another, each as it would be alone; its slots compose from the command line."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from noisyrl.launch import build
from noisyrl.noise.adversarial import Adversarial
from noisyrl.noise.base import Noise
from noisyrl.noise.bias import Bias
from noisyrl.noise.chain import Chain
from noisyrl.noise.dropout import Dropout
from noisyrl.noise.flip import Flip
from noisyrl.noise.flip_asym import FlipAsym
from noisyrl.noise.gaussian import Gaussian
from noisyrl.noise.heteroscedastic import Heteroscedastic
from noisyrl.noise.length import Length
from noisyrl.noise.none import NoNoise
from noisyrl.noise.per_turn import PerTurn
from noisyrl.noise.shuffle import Shuffle
from noisyrl.records import config_hash
from noisyrl.spec import InputError, spec
from noisyrl.types import Range
from tests.frame import built, composed
from tests.noise.bounds import CLEAN, ROLLOUT, assert_rate, observed, same_rows


def test_members_work_one_after_another_as_they_would_alone():
    flip, gaussian, bias = Flip(rate=0.2, seed=4), Gaussian(sd=0.3, seed=4), Bias(scale=2.0)
    chain = Chain(first=flip, second=gaussian, third=bias)
    expected = bias(gaussian(flip(CLEAN, ROLLOUT, 3), ROLLOUT, 3), ROLLOUT, 3)
    assert torch.equal(chain(CLEAN, ROLLOUT, 3), expected)
    other = Chain(first=flip, second=bias, third=gaussian)
    torch.testing.assert_close(other(CLEAN, ROLLOUT, 3), gaussian(2 * flip(CLEAN, ROLLOUT, 3), ROLLOUT, 3))
    assert same_rows(chain)
    assert torch.equal(Chain(first=NoNoise(), third=flip)(CLEAN, ROLLOUT, 3), flip(CLEAN, ROLLOUT, 3))


def test_members_of_one_kind_do_not_share_draws():
    one, two = Flip(rate=0.3, seed=1), Flip(rate=0.3, seed=1)
    chain = Chain(first=one, second=two)
    twice = observed(chain) != CLEAN
    assert_rate(twice, 2 * 0.3 * 0.7)  # with shared draws it would be 0
    first, second = chain.noises.values()
    assert first == one and second.seed != two.seed
    assert torch.equal(chain(CLEAN, ROLLOUT, 0), second(one(CLEAN, ROLLOUT, 0), ROLLOUT, 0))
    third = Chain(first=one, second=one, third=one).noises["third"]
    assert third.seed not in (first.seed, second.seed)
    assert [noise.seed for noise in Chain(first=one, second=replace(one, seed=2)).noises.values()] == [1, 2]


def test_gaussian_and_heteroscedastic_do_not_share_draws():
    chain = Chain(first=Gaussian(sd=1.0, seed=1), second=Heteroscedastic(sd=1.0, frac=1.0, seed=1))
    errors = observed(chain) - CLEAN
    assert abs(float(errors.var()) - 2) < 3.29 * 2 * math.sqrt(2 / errors.numel())  # with shared draws it would be 4


def test_causes_name_all_who_changed_a_reward():
    flip, asym = Flip(rate=0.5, seed=1), FlipAsym(false_positive=0.5, false_negative=0.0, seed=1)
    drop = Dropout(rate=0.3, seed=1)
    reward, causes = Chain(first=flip, second=asym, third=drop).causes(CLEAN, ROLLOUT, 0)
    flipped = flip(CLEAN, ROLLOUT, 0)
    raised = asym(flipped, ROLLOUT, 0)
    dropped = drop(raised, ROLLOUT, 0).isnan()
    for row, cause in enumerate(causes):
        hit = {"flip": flipped[row] != CLEAN[row], "flip_asym": raised[row] != flipped[row], "dropout": dropped[row]}
        assert cause == "+".join(name for name, is_hit in hit.items() if is_hit)
    assert {"", "flip+flip_asym+dropout"} <= set(causes) and torch.equal(reward.isnan(), dropped)


def test_what_has_no_reward_any_more_is_not_shown_to_later_members():
    chain = Chain(first=Dropout(rate=0.3), second=Shuffle(), third=Gaussian(sd=0.1))
    reward, causes = chain.causes(CLEAN, ROLLOUT, 0)
    assert reward.isnan().sum() == Dropout(rate=0.3)(CLEAN, ROLLOUT, 0).isnan().sum()
    assert all(cause == "dropout" for cause, gone in zip(causes, reward.isnan().tolist(), strict=True) if gone)
    assert Chain(first=Dropout(rate=1.0), second=Shuffle())(CLEAN, ROLLOUT, 0).isnan().all()


def test_the_range_and_the_line_are_composed():
    chain = Chain(first=Flip(rate=0.1), second=Gaussian(sd=0.5), third=Bias(scale=2.0), fourth=Length(coef=-1.0))
    assert chain.observed_range(Range()) == Range(-3.0, 4.0)
    line = chain.describe()
    assert line.startswith("chain: flip: each") and line.count("; then ") == 3 and "\n" not in line
    assert "WARNING" in line and "WARNING" not in Chain(first=Flip(rate=0.1)).describe()


def test_preparation_reaches_every_member():
    @spec
    class Prepared(Noise):
        def __call__(self, reward_B, rollout, step):
            return reward_B + 100

    @spec
    class Raw(Noise):
        needs_setting = True

        def __call__(self, reward_B, rollout, step):
            raise AssertionError("not prepared")

        def prepare(self, setting):
            return Prepared(seed=setting.seed)

    chain = Chain(first=Flip(rate=0.3), second=Flip(rate=0.3), third=Raw())
    assert chain.needs_setting and not Chain(first=Flip(rate=0.3)).needs_setting
    ready = chain.prepare(SimpleNamespace(seed=7))
    twice = Chain(first=Flip(rate=0.3), second=Flip(rate=0.3))
    assert not ready.needs_setting and torch.equal(ready(CLEAN, ROLLOUT, 0), twice(CLEAN, ROLLOUT, 0) + 100)
    with pytest.raises(InputError, match="buys no flip"):
        Chain(first=Adversarial(budget=0.01)).check(8, Range())


def test_only_the_last_pays_early():
    last = PerTurn(sd=0.5)
    chain = Chain(first=Flip(rate=0.1), third=last)
    assert torch.equal(chain.early_rewards(ROLLOUT, 2), last.early_rewards(ROLLOUT, 2))
    assert Chain(first=Flip(rate=0.1)).early_rewards(ROLLOUT, 2) is None
    with pytest.raises(ValueError, match="slot second: per_turn pays before the last token"):
        Chain(first=Flip(rate=0.1), second=last, third=Bias(scale=2.0))


def test_what_cannot_work_is_refused():
    with pytest.raises(ValueError, match="slot first: a chain in a chain"):
        Chain(first=Chain(first=Flip(rate=0.1)))
    with pytest.raises(ValueError, match="set first.seed"):
        Chain(first=Flip(rate=0.1), seed=3)
    with pytest.raises(InputError, match="slot second: noise=flip needs rewards 0 or 1.*or give it an earlier slot"):
        Chain(first=Gaussian(sd=1.0), second=Flip(rate=0.1))(CLEAN, ROLLOUT, 0)
    with pytest.raises(InputError, match="slot second: noise=flip needs rewards 0 or 1.*or give it an earlier slot"):
        Chain(first=Gaussian(sd=1.0), second=Flip(rate=0.1)).check(8, Range())
    Chain(first=Flip(rate=0.1), second=Gaussian(sd=1.0)).check(8, Range())


def test_slots_are_set_from_the_command_line():
    chain = built(
        "noise", "noise=chain", "noise@noise.first=flip0.3", "noise@noise.second=length", "noise.second.coef=0.7",
        "noise@noise.fourth=dropout", "noise.fourth.mode=zero", "seed=5",
    )  # fmt: skip
    assert chain == Chain(
        first=Flip(rate=0.3, seed=5),
        second=Length(coef=0.7, seed=5),
        third=NoNoise(seed=5),
        fourth=Dropout(rate=0.3, mode="zero", seed=5),
    )
    default = built("noise", "noise=chain", "seed=5")
    assert list(default.noises.values()) == [Flip(rate=0.1, seed=5), Gaussian(sd=0.3, seed=5)]
    assert list(built("noise", "noise=chain", "noise@noise.second=none").noises) == ["first"]


def test_a_wrong_key_of_a_member_is_named():
    config = OmegaConf.to_container(composed("noise=chain", "+noise.second.sdd=1"), resolve=True) | {"name": "x"}
    with pytest.raises(InputError, match="config key noise.second.sdd does not exist; did you mean sd"):
        build(config)


def test_runs_that_differ_in_the_seed_only_share_a_cell():
    def cell(*overrides):
        return config_hash(OmegaConf.to_container(composed("noise=chain", *overrides), resolve=True))

    assert cell("seed=1") == cell("seed=2") != cell("seed=1", "noise.second.sd=0.4")
    assert cell("seed=1", "noise.second.seed=9") != cell("seed=1")
