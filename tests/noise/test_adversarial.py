"""The flips are the worst there are, and no more than the budget buys."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from noisyrl.noise.adversarial import Adversarial
from noisyrl.ops.advantages import group_relative
from noisyrl.spec import InputError
from noisyrl.types import Range, rows
from tests.frame import made_up_rollout
from tests.noise.bounds import CLEAN, ROLLOUT, group

ONE_GROUP = torch.zeros(4, dtype=torch.int64)


def alignment(reward, clean, group_B):
    return float(group_relative(reward.double(), group_B, standardise=False) @ clean.double())


def test_golden_alignment():
    """Golden N3: harms .75, .25, .25, .25; flipping the success takes all alignment, flipping a failure a third."""
    clean = torch.tensor([1.0, 0, 0, 0]).double()
    assert alignment(clean, clean, ONE_GROUP) == pytest.approx(0.75)
    found = Adversarial(budget=0.25)(clean, group(4), 0)
    assert found.tolist() == [0.0, 0, 0, 0] and alignment(found, clean, ONE_GROUP) == pytest.approx(0.0)
    assert alignment(torch.tensor([1.0, 1, 0, 0]).double(), clean, ONE_GROUP) == pytest.approx(0.5)


@pytest.mark.parametrize("budget", [1 / 6, 1 / 3, 1 / 2, 1.0])
@pytest.mark.parametrize("right", [1, 2, 3, 5])
def test_no_other_flips_are_worse(budget, right):
    clean = (torch.arange(6) < right).double()
    one = torch.zeros(6, dtype=torch.int64)
    found = Adversarial(budget=budget)(clean, group(6), 0)
    flips = round(budget * 6)
    assert int((found != clean).sum()) == flips
    others = [
        alignment(torch.tensor([1 - x if i in chosen else x for i, x in enumerate(clean.tolist())]), clean, one)
        for chosen in itertools.combinations(range(6), flips)
    ]
    assert alignment(found, clean, one) == pytest.approx(min(others))


def test_every_group_pays_its_own_budget_or_the_step_pays_together():
    by_group = Adversarial(budget=0.3)(CLEAN, ROLLOUT, 0) != CLEAN
    assert (by_group.view(50, 8).sum(dim=1) == 2).all()  # floor(.3 * 8)
    steep = torch.zeros(400).double()
    steep[:8] = 1 - (torch.arange(8) == 3).double()  # one failure among successes
    steep[8:11] = 1.0
    together = Adversarial(budget=0.01, scope="step")(steep, ROLLOUT, 0) != steep
    assert together.nonzero().flatten().tolist() == [3, 8, 9, 10]  # harms 7/8, 5/8, 5/8, 5/8
    assert int((Adversarial(budget=0.29, scope="step")(CLEAN[:100], rows(ROLLOUT, torch.arange(100)), 0)
                != CLEAN[:100]).sum()) == 29  # fmt: skip


@pytest.mark.parametrize("scope", ["group", "step"])
def test_ties_are_broken_by_step_and_seed_and_not_by_row(scope):
    clean = torch.zeros(400).double()
    noise = Adversarial(budget=0.25, scope=scope)
    order = torch.randperm(400, generator=torch.Generator().manual_seed(3))
    assert torch.equal(noise(clean[order], rows(ROLLOUT, order), 0), noise(clean, ROLLOUT, 0)[order])
    assert not torch.equal(noise(clean, ROLLOUT, 0), noise(clean, ROLLOUT, 1))
    assert not torch.equal(noise(clean, ROLLOUT, 0), replace(noise, seed=1)(clean, ROLLOUT, 0))


def test_groups_need_not_lie_side_by_side():
    rollout = made_up_rollout(prompts=2, samples=4)
    mixed = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])
    clean = torch.tensor([1.0, 0, 0, 0, 0, 1, 1, 1])
    found = Adversarial(budget=0.25)(clean[mixed], rows(rollout, mixed), 0)
    assert found[mixed.argsort()].tolist() == [0.0, 0, 0, 0, 1, 1, 1, 1]


def test_a_budget_that_buys_nothing_is_refused():
    setting = SimpleNamespace(sampler=SimpleNamespace(samples=8))
    with pytest.raises(InputError, match=r"noise.budget=0.1 buys no flip in a group of rollout.samples=8.*0.125"):
        Adversarial(budget=0.1).check(8, Range())
    for ready in (Adversarial(budget=0.125), Adversarial(budget=0.1, scope="step"), Adversarial(budget=0.0)):
        ready.check(8, Range())
        assert ready.prepare(setting) is ready


def test_half_a_group_is_announced():
    assert "WARNING" in Adversarial(budget=0.5).describe() and "WARNING" not in Adversarial(budget=0.4).describe()
    for right in range(9):
        clean = (torch.arange(8) < right).double()
        found = Adversarial(budget=0.5)(clean, group(8), 0)
        assert alignment(found, clean, torch.zeros(8, dtype=torch.int64)) <= 1e-9


def test_a_graded_reward_has_no_opposite():
    with pytest.raises(ValueError, match="noise=adversarial needs rewards 0 or 1"):
        Adversarial(budget=0.1)(torch.full((400,), 0.5), ROLLOUT, 0)
