"""A verifier that errs: with probability `rate` right becomes wrong and wrong becomes right.

Published "flip 0.3" setups differ in whether each sample or a whole prompt group is flipped, and the difference
changes the gradient's signal-to-noise ratio severalfold (most for hard prompts); here the unit is a field.
"""

from __future__ import annotations

import torch
from torch import Tensor

from noisyrl.noise.base import KeyedNoise, binary, signal_line
from noisyrl.spec import Fraction, spec
from noisyrl.types import Rollout


@spec
class Flip(KeyedNoise):
    """Symmetric flips of a binary reward: E[observed] = (1 - 2 rate) clean + rate."""

    needs_binary = True

    rate: Fraction
    """Probability that a unit is flipped. At .5 no signal is left; above it the signal points the wrong way."""

    def __call__(self, reward_B: Tensor, rollout: Rollout, step: int) -> Tensor:
        """ValueError: a reward other than 0 and 1, which has no opposite."""
        u_B = self.uniforms(self.stream, rollout, step)
        return torch.where(u_B.to(reward_B.device) < self.rate, 1 - binary(reward_B, "flip"), reward_B)

    @property
    def error_rates(self) -> tuple[float, float]:
        return self.rate, self.rate

    def describe(self) -> str:
        return f"flip: each {self.units} is flipped with probability {self.rate:g}; {signal_line(1 - 2 * self.rate)}"
