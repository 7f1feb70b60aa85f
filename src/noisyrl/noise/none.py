"""Rewards as graded."""

from __future__ import annotations

from torch import Tensor

from noisyrl.noise.base import Noise
from noisyrl.spec import spec
from noisyrl.types import Rollout


@spec
class NoNoise(Noise):
    """The clean reference."""

    def __call__(self, reward_B: Tensor, rollout: Rollout, step: int) -> Tensor:
        return reward_B.clone()

    def describe(self) -> str:
        return "none: rewards are as graded"
