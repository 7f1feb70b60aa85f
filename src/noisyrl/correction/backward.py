"""Backward correction: the reward whose mean, over the verifier's errors, is the clean one.

Natarajan et al. 2013; for rewards Wang et al. 2020 (arXiv:1810.01032) and Cai et al. 2025 (arXiv:2510.00915, eq. 3).

With the noise's own rates it is the oracle correction, the upper reference of a noisy cell:

    python src/train.py algo=dr_grpo noise=flip0.3 correction=backward \\
        correction.false_positive=0.3 correction.false_negative=0.3

and `correction=none,backward0.3` in a sweep over noise=flip0.3.

What it cannot do: it is an affine map, the same for all samples of a step, so a group's or a batch's standard deviation
divides it out again. The advantages of grpo and reinforce_pp stay what they were, and whitened ones once the critic has
followed; dr_grpo and unwhitened advantages get the clean scale back, a KL term its clean weight, values their clean
meaning. Nothing is learned from fewer samples: the variance grows by 1 / J^2.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from noisyrl.correction.base import binary
from noisyrl.correction.rates import KnowsErrors
from noisyrl.spec import spec
from noisyrl.types import Range, Rollout


@spec
class Backward(KnowsErrors):
    """(observed - FPR) / J: unbiased where the rates are exact, beyond [0, 1] on both sides.

    With wrong rates a right response gets (FPR - FPR' + J) / J' and a wrong one (FPR - FPR') / J' in the mean: the gap
    is off by J / J', its order never.
    """

    def __call__(self, observed_B: Tensor, rollout: Rollout, memory: Mapping[str, float]) -> Tensor:
        """InputError: an observed reward other than 0 and 1."""
        positive, _, youden = self.rates(memory)
        return (binary(observed_B, self.name) - positive) / youden

    def corrected_range(self, observed: Range) -> Range:
        """By the rates given; for estimated ones by their prior."""
        positive, _, youden = self.rates({})
        return Range((observed.low - positive) / youden, (observed.high - positive) / youden)

    def describe(self) -> str:
        line = f"backward: rewards become (observed - FPR) / J, J = 1 - FPR - FNR; {self.source}"
        if self.unknown:
            return line
        _, _, youden = self.rates({})
        return f"{line}: J = {youden:g}, {1 / youden**2:g} times the variance"
