"""REINFORCE++: the return of each token, standardised over the whole batch, under PPO's clipped surrogate.

Hu 2025 (arXiv:2501.03262). No critic and no group: the batch is the baseline.

Differs from the paper: the KL to the starting policy, part of the reward there, is off by default (`kl_coef`).
"""

from __future__ import annotations

from typing import Literal

import torch

from noisyrl.algos.base import Algorithm
from noisyrl.critics.none import NoCritic
from noisyrl.ops.advantages import gae
from noisyrl.ops.masked import whiten
from noisyrl.spec import Fraction, spec
from noisyrl.types import Batch, Credit


@spec
class ReinforcePP(Algorithm):
    """No critic; `Credit.target` is empty [B, 0]."""

    critic: NoCritic
    """Always `none`."""
    kl_in: Literal["loss", "reward"] = "reward"
    """Where the KL acts; the paper has it in the reward."""
    kl_estimator: Literal["k1", "k2", "k3", "k3+"] = "k1"
    """k1 belongs in the reward; k2 or k3 in the loss."""
    gamma: Fraction = 1.0
    """Discount per token."""

    @torch.no_grad()
    def credit(self, batch: Batch) -> Credit:
        reward_BT = self.token_rewards(batch)
        return_BT = gae(reward_BT, torch.zeros_like(reward_BT), batch.mask_BT, gamma=self.gamma, lam=1.0)
        return Credit(
            advantage_BT=whiten(return_BT, batch.mask_BT),
            target=return_BT.new_zeros(len(return_BT), 0),
        )
