"""Abstention: a reward is used only if it is probably right.

How probable that is follows from the error rates and from how often the group's other responses are right (Bayes): a
reward of 1 for a prompt that is hardly ever solved is most likely an error, and so is a 0 for an easy one.

This is biased, unlike `backward`, and on purpose: it trades signal for fewer errors, and believes a group's majority.
Rare successes on hard prompts go first, and with them what could be learned there. The rewards that stay in a very
easy or very hard group are all equal, which a group baseline turns into no gradient; a critic sees easy prompts as
easier and hard ones as harder than they are. A group of which one response stays gets advantage 0 from a group
baseline and the usual one from a critic; one of which none stays leaves the step. `noise/left_out_frac` counts.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from noisyrl.correction.base import binary
from noisyrl.correction.rates import KnowsErrors
from noisyrl.spec import Fraction, spec
from noisyrl.types import Rollout


@spec
class Abstain(KnowsErrors):
    """Rewards as observed where P(clean = observed | observed, group) >= confidence; the others are left out."""

    confidence: Fraction = 0.5
    """Smallest probability of being right with which a reward is used; 0 = all are. Above 1 - e, for equal error rates
    e, no group keeps both 0 and 1."""

    def __call__(self, observed_B: Tensor, rollout: Rollout, memory: Mapping[str, float]) -> Tensor:
        """InputError: an observed reward other than 0 and 1."""
        right_B = self.probability_right(binary(observed_B, self.name), rollout.group_B, memory)
        return torch.where(right_B >= self.confidence, observed_B, torch.nan)

    def probability_right(self, observed_B: Tensor, group_B: Tensor, memory: Mapping[str, float]) -> Tensor:
        """[B] float64, the posterior probability that an observed reward is the clean one; NaN where none was given.

        The prior is the group's pass rate: the mean of its backward corrected rewards, clipped to [0, 1] and drawn
        towards 1/2 by one right and one wrong response (Laplace).
        """
        positive, negative, youden = self.rates(memory)
        given_B = observed_B.isfinite()
        paid_B = torch.where(given_B, observed_B, 0).double()
        names_G, member_B = torch.unique(group_B, return_inverse=True)
        count_G = paid_B.new_zeros(len(names_G)).index_add(0, member_B, given_B.double())
        paid_G = torch.zeros_like(count_G).index_add(0, member_B, paid_B)
        rate_G = ((paid_G / count_G.clamp(min=1) - positive) / youden).clamp(0, 1)
        pass_B = ((count_G * rate_G + 1) / (count_G + 2))[member_B]
        as_right_B = (paid_B * (1 - negative) + (1 - paid_B) * negative) * pass_B
        as_wrong_B = (paid_B * positive + (1 - paid_B) * (1 - positive)) * (1 - pass_B)
        agreeing_B = torch.where(paid_B == 1, as_right_B, as_wrong_B)
        return torch.where(given_B, agreeing_B / (as_right_B + as_wrong_B), torch.nan)

    def describe(self) -> str:
        return (
            f"abstain: rewards that are right with a probability below {self.confidence:g}, given their group, are "
            f"left out; {self.source}"
        )
