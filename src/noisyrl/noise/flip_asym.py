"""A verifier whose two kinds of error have their own rates: wrong answers accepted, right answers refused.

Rule-based graders mostly refuse right answers, learned ones mostly accept wrong ones. With equal rates this is the
law of `flip`; its draws are its own, because the bytes of runs made with `flip` are kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from noisyrl.noise.base import KeyedNoise, binary, signal_line
from noisyrl.spec import Fraction, spec
from noisyrl.types import Rollout


@spec
class FlipAsym(KeyedNoise):
    """Flips of a binary reward: E[observed] = FPR + J clean, J = 1 - FPR - FNR.

    The expected mean-centred advantage is J times the clean one, for every group size.
    """

    needs_binary = True

    false_positive: Fraction
    """FPR, probability that a wrong response is paid 1."""
    false_negative: Fraction
    """FNR, probability that a right response is paid 0."""

    def __call__(self, reward_B: Tensor, rollout: Rollout, step: int) -> Tensor:
        """ValueError: a reward other than 0 and 1, which has no opposite."""
        right_B = binary(reward_B, self.name) == 1
        u_B = self.uniforms(self.stream, rollout, step).to(reward_B.device)
        flipped_B = torch.where(right_B, u_B < self.false_negative, u_B < self.false_positive)
        return torch.where(flipped_B, 1 - reward_B, reward_B)

    @property
    def error_rates(self) -> tuple[float, float]:
        return self.false_positive, self.false_negative

    def describe(self) -> str:
        j = 1 - self.false_positive - self.false_negative
        return (
            f"{self.name}: each {self.units} is paid 1 with probability {self.false_positive:g} if wrong and 0 with "
            f"probability {self.false_negative:g} if right; {signal_line(j)}"
        )
