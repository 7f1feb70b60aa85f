"""Forward correction: weights for the score function that need to know only how often right responses are misjudged.

Cai et al. 2025 (arXiv:2510.00915) section 3.3, Algorithm 2, appendix B.3. The weight is 0 in the mean for right
responses and -J for wrong ones, so the expected update is J times the clean gradient: wrong is pushed down, right gets
what is set free.

As a reward the weight would be a constant shift, which any baseline takes away. It therefore takes the place of the
advantage: no baseline, no group, no whitening. The critic learns what is observed, and the policy no longer reads it.

Differs from the paper: nothing in B.3; the scale is 1 - FNR, one of the paper's choices. The paper's Algorithm 3
centres FNR * observed in the group instead, which, as the paper says, is the plain noisy advantage, rescaled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from noisyrl.algos.base import Algorithm
from noisyrl.correction.base import binary
from noisyrl.correction.rates import KnowsMisses
from noisyrl.spec import InputError, spec
from noisyrl.types import Batch, Credit, Rollout


@spec
class Forward(KnowsMisses):
    """Every policy token's advantage is observed / (1 - FNR) - 1, in units of the reward: -1, or FNR / (1 - FNR).

    The expected update is J / (1 - FNR) times the clean gradient, whatever the algorithm's own advantage is. A wrong
    FNR changes its length and its variance, not its direction: without clipping, a constant in the advantage has no
    mean effect.
    """

    def __call__(self, observed_B: Tensor, rollout: Rollout, memory: Mapping[str, float]) -> Tensor:
        """As observed. InputError: an observed reward other than 0 and 1."""
        return binary(observed_B, self.name)

    def credit(self, credit: Credit, batch: Batch, memory: Mapping[str, float]) -> Credit:
        weight_B = batch.reward_B / (1 - self.miss_rate(memory)) - 1
        return replace(credit, advantage_BT=weight_B.to(credit.advantage_BT)[:, None] * batch.mask_BT)

    def check(self, algo: Algorithm) -> None:
        """InputError: a KL in the reward, which would vanish with the advantage."""
        if algo.kl_coef > 0 and algo.kl_in == "reward":
            raise InputError(
                "correction=forward replaces the advantage, and a KL in the reward with it: "
                "set algo.kl_in=loss algo.kl_estimator=k3"
            )

    def describe(self) -> str:
        return f"forward: advantages become observed / (1 - FNR) - 1; {self.source}"
