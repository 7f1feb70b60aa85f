"""GRPO: a response is as good as its reward stands out in its group; every token of it gets the same advantage.

Shao et al. 2024 (arXiv:2402.03300) sections 4.1.1 and 4.1.2, eq. 3 and 4.

Differs from the paper:
1. The paper does not say which standard deviation; here the unbiased one (ddof 1), as common implementations do.
2. The KL to the starting policy is off by default; with `kl_coef` it is the paper's k3 in the loss.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from noisyrl.algos.base import Algorithm
from noisyrl.critics.none import NoCritic
from noisyrl.ops.advantages import group_relative
from noisyrl.spec import InputError, Natural, Positive, spec
from noisyrl.types import Batch, Credit


@spec
class GRPO(Algorithm):
    """No critic; `Credit.target` is empty [B, 0]."""

    critic: NoCritic
    """Always `none`."""
    kl_in: Literal["loss"] = "loss"
    """The group baseline sees outcome rewards only, so the KL belongs in the loss."""
    standardise: bool = True
    """Divide by the group's standard deviation; false is the control that shows what the division does."""
    std_ddof: Natural = 1
    """Degrees of freedom taken off in the group's standard deviation."""
    std_eps: Positive = 1e-6
    """Added to the group's standard deviation."""

    def check(self, samples: int) -> None:
        if samples < 2:
            raise InputError(
                f"a group baseline compares the samples of a prompt: rollout.samples={samples} must be 2 or more"
            )

    @torch.no_grad()
    def credit(self, batch: Batch) -> Credit:
        advantage_B = group_relative(
            batch.reward_B, batch.group_B, standardise=self.standardise, ddof=self.std_ddof, eps=self.std_eps
        )
        return Credit(
            advantage_BT=advantage_B[:, None] * batch.mask_BT,
            target=advantage_B.new_zeros(len(advantage_B), 0),
        )

    def token_weights(self, mask_BT: Tensor) -> Tensor:
        """[B, T] float64, 1 / (own length * rows): every response counts the same, whatever its length."""
        length_B = mask_BT.sum(dim=1, keepdim=True)
        rows = (length_B > 0).sum().clamp(min=1)
        return mask_BT.double() / (length_B.clamp(min=1) * rows)
