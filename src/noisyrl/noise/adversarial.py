"""The worst flips a budget can buy: whoever made them knew the clean rewards.

Flipping sample i lowers the alignment sum(observed advantage * clean reward) of mean-centred advantages by its harm
|R_i - mean of its group|, whatever else is flipped; so taking the largest harms first is optimal for these methods,
and a heuristic where the group's standard deviation divides. It takes the rare successes of hard prompts first.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Literal

from torch import Tensor

from noisyrl import rng
from noisyrl.noise.base import Noise, binary
from noisyrl.spec import Fraction, InputError, spec
from noisyrl.types import Range, Rollout


@spec
class Adversarial(Noise):
    """The floor(budget * samples) samples of largest harm are flipped, equal harms in an order hashed for the step.

    In a group with fewer of one outcome than the budget buys, the alignment falls to 0 or below.
    """

    needs_binary = True

    budget: Fraction
    """Share of the samples that are flipped."""
    scope: Literal["group", "step"] = "group"
    """What the share is of: every group on its own, or all samples of the step, of which the worst are taken."""

    def __call__(self, reward_B: Tensor, rollout: Rollout, step: int) -> Tensor:
        """ValueError: a reward other than 0 and 1, which has no opposite."""
        reward = binary(reward_B, self.name).tolist()
        of_group = defaultdict(list)
        for row, group in enumerate(rollout.group_B.tolist()):
            of_group[group].append(row)
        harm = [0.0] * len(reward)
        for rows in of_group.values():
            mean = math.fsum(reward[row] for row in rows) / len(rows)
            for row in rows:
                harm[row] = abs(reward[row] - mean)

        def hashed(row: int) -> int:
            key = (rollout.prompts[row].uid, int(rollout.sample_B[row]))
            return rng.hash64("noise-v1", self.stream, self.seed, step, *key)

        observed_B = reward_B.clone()
        for rows in of_group.values() if self.scope == "group" else [list(range(len(reward)))]:
            worst = sorted(rows, key=lambda row: (-harm[row], hashed(row)))
            for row in worst[: self._flips(len(rows))]:
                observed_B[row] = 1 - observed_B[row]
        return observed_B

    def check(self, samples: int, given: Range) -> None:
        """InputError: the budget buys no flip at all, or rewards are not 0 or 1."""
        super().check(samples, given)
        if self.scope == "group" and self.budget > 0 and self._flips(samples) == 0:
            raise InputError(
                f"noise.budget={self.budget:g} buys no flip in a group of rollout.samples={samples}: set it to "
                f"{1 / samples:g} or more, or set noise.scope=step"
            )

    def describe(self) -> str:
        line = (
            f"{self.name}: the share {self.budget:.3g} of the samples of each {self.scope} that hurts most is flipped, "
            "afresh at every step; the alignment with the clean reward falls by |R - group mean| for each"
        )
        if self.budget < 0.5:
            return line
        return f"{line}. WARNING: half of a group is enough to leave no signal, no method can learn from this reward"

    def _flips(self, samples: int) -> int:
        return math.floor(self.budget * samples + 1e-9)  # 0.29 * 100 is 28.999999999999996
