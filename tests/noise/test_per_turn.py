"""Each turn has an error of its own, and it is paid where the turn ends."""

from dataclasses import replace

import pytest
import torch

from noisyrl import rng
from noisyrl.experience import Grades
from noisyrl.noise.per_turn import PerTurn
from noisyrl.ops.masked import last_index, turn_ends
from noisyrl.types import rows
from tests.frame import built, loop_for, made_up_rollout
from tests.noise.bounds import CLEAN, ROLLOUT, assert_mean, assert_normal_sd, observed, same_rows

TURNS = turn_ends(ROLLOUT.mask_BT).sum(dim=1)


def test_every_turn_has_its_own_normal_error():
    found = observed(PerTurn(sd=0.7, seed=1)) - CLEAN
    assert set(TURNS.tolist()) == {1, 2}
    for turns in (1, 2):
        assert_mean(found[:, turns == TURNS], 0.0, 0.7 * turns**0.5)
        assert_normal_sd(found[:, turns == TURNS], 0.7 * turns**0.5)


def test_the_number_of_the_draw_is_that_of_the_turn():
    row = int((TURNS == 2).nonzero()[0])
    key = ("noise-v1", "per_turn", 5, 3, ROLLOUT.prompts[row].uid, int(ROLLOUT.sample_B[row]))
    first, second = rng.normal(*key, 0), rng.normal(*key, 1)
    noise = PerTurn(sd=0.7, seed=5)
    assert float(noise(CLEAN, ROLLOUT, 3)[row] - CLEAN[row]) == pytest.approx(0.7 * (first + second))
    early = noise.early_rewards(ROLLOUT, 3)[row]
    assert early.nonzero().flatten().tolist() == [1]  # the user's turn is tokens 2 and 3
    assert float(early[1]) == pytest.approx(0.7 * first)


def test_rows_and_persistence():
    noise = PerTurn(sd=0.7)
    assert same_rows(noise)
    some = torch.tensor([30, 3, 12])
    assert torch.equal(noise.early_rewards(rows(ROLLOUT, some), 7), noise.early_rewards(ROLLOUT, 7)[some])
    lasting = replace(noise, persistence="persistent")
    assert torch.equal(lasting(CLEAN, ROLLOUT, 0), lasting(CLEAN, ROLLOUT, 9))
    assert torch.equal(lasting.early_rewards(ROLLOUT, 0), lasting.early_rewards(ROLLOUT, 9))


@pytest.mark.parametrize("noise", ["noise=per_turn", "noise=chain"])
def test_an_algorithm_is_paid_at_the_ends_of_turns(noise):
    """From grades to the token rewards of an algorithm, alone and as the last of a chain."""
    slots = ["noise@noise.first=flip0.3", "noise@noise.second=per_turn"] if noise == "noise=chain" else []
    loop = loop_for(built("algo", "algo=ppo"))
    collector = replace(loop.collector, noise=built("noise", noise, *slots, "seed=2"))
    rollout = made_up_rollout(prompts=4, samples=4)
    clean = (torch.arange(16) % 2).double()
    batch = collector.annotate(rollout, Grades(clean), 6).batch
    reward = loop.algo.token_rewards(batch)
    ends = turn_ends(rollout.mask_BT)
    assert (ends.sum(dim=1) == 2).any()
    torch.testing.assert_close(reward.sum(dim=1), batch.reward_B, atol=1e-12, rtol=0)
    assert torch.equal(reward != 0, ends)
    error = PerTurn(sd=1.0, seed=2)
    paid_last = reward.gather(1, last_index(rollout.mask_BT)[:, None])[:, 0]
    before = error.early_rewards(rollout, 6).sum(dim=1)
    torch.testing.assert_close(paid_last + before, batch.reward_B, atol=1e-12, rtol=0)
    flipped = torch.zeros_like(clean) if noise == "noise=per_turn" else built("noise", "noise=flip0.3", "seed=2")(
        clean, rollout, 6) - clean  # fmt: skip
    torch.testing.assert_close(batch.reward_B, error(clean, rollout, 6) + flipped, atol=1e-12, rtol=0)
