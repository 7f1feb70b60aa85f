"""Dr. GRPO: GRPO without its two divisions, by the group's standard deviation and by the response's own length.

Liu et al. 2025 (arXiv:2503.20783) section 3.2. The advantage is RLOO's up to the constant G / (G - 1).

Differs from the paper: nothing. The constant length is `max_tokens`, as in the authors' code.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from noisyrl.algos.base import Algorithm
from noisyrl.critics.none import NoCritic
from noisyrl.ops.advantages import group_relative
from noisyrl.spec import Count, InputError, spec
from noisyrl.types import Batch, Credit


@spec
class DrGRPO(Algorithm):
    """No critic; `Credit.target` is empty [B, 0]."""

    critic: NoCritic
    """Always `none`."""
    kl_in: Literal["loss"] = "loss"
    """The group baseline sees outcome rewards only, so the KL belongs in the loss."""
    max_tokens: Count
    """The constant length every response is divided by: the longest that may be sampled."""

    def check(self, samples: int) -> None:
        if samples < 2:
            raise InputError(
                f"a group baseline compares the samples of a prompt: rollout.samples={samples} must be 2 or more"
            )

    @torch.no_grad()
    def credit(self, batch: Batch) -> Credit:
        advantage_B = group_relative(batch.reward_B, batch.group_B, standardise=False)
        return Credit(
            advantage_BT=advantage_B[:, None] * batch.mask_BT,
            target=advantage_B.new_zeros(len(advantage_B), 0),
        )

    def token_weights(self, mask_BT: Tensor) -> Tensor:
        """[B, T] float64, 1 / (max_tokens * rows): a constant, so a long response counts more than a short one."""
        rows = mask_BT.any(dim=1).sum().clamp(min=1)
        return mask_BT.double() / (self.max_tokens * rows)
