"""Control: the step's rewards dealt out at random among its rows, so that they say nothing about any response.

What a method gains under this noise it did not learn from rewards. The deal covers the rows of one step and is keyed
by prompt and sample, so it does not depend on the order of rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from noisyrl import rng
from noisyrl.noise.base import Noise
from noisyrl.spec import spec
from noisyrl.types import Rollout


@spec
class Shuffle(Noise):
    """The negative control of every learning claim."""

    def __call__(self, reward_B: Tensor, rollout: Rollout, step: int) -> Tensor:
        names = [(prompt.uid, int(sample)) for prompt, sample in zip(rollout.prompts, rollout.sample_B, strict=True)]
        given = sorted(range(len(names)), key=names.__getitem__)
        dealt = sorted(given, key=lambda row: rng.hash64("noise-v1", "shuffle", self.seed, step, *names[row]))
        observed_B = reward_B.clone()
        to_B, from_B = (torch.tensor(x, dtype=torch.int64, device=reward_B.device) for x in (dealt, given))
        observed_B[to_B] = reward_B[from_B]
        return observed_B

    def describe(self) -> str:
        return "shuffle: the rewards of a step are dealt at random among its rows (negative control)"
