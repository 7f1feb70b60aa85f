"""PPO: generalised advantages from a learned scalar value, a clipped surrogate, a clipped value error.

Schulman et al. 2017 (arXiv:1707.06347) eq. 7; Schulman et al. 2016 (arXiv:1506.02438) eq. 16.

Differs from the paper:
1. Advantages and returns may use different lambdas (VC-PPO, arXiv:2503.01491).
2. Advantages are whitened over all policy tokens of the rollout.
3. The KL to the starting policy is in the reward (k1, Ziegler et al. 2019) or in the loss, never in both.
"""

from __future__ import annotations

import torch
from torch import Tensor

from noisyrl.algos.base import Algorithm
from noisyrl.ops.advantages import gae
from noisyrl.ops.masked import keep, whiten
from noisyrl.ops.surrogate import value_error
from noisyrl.spec import Fraction, NonNegative, spec
from noisyrl.types import Batch, Credit, Loss, Value


@spec
class PPO(Algorithm):
    """`Credit.target` is the return [B, T]."""

    gamma: Fraction = 1.0
    """Discount per token."""
    lam_actor: Fraction = 0.95
    """GAE lambda of the advantages."""
    lam_critic: Fraction = 1.0
    """GAE lambda of the value targets; 1 = Monte Carlo returns."""
    whiten_advantages: bool = True
    """Advantages get mean 0 and variance 1 over the rollout's policy tokens."""
    value_clip: NonNegative | None = 0.2
    """A value moves at most this far from its old estimate before the error stops shrinking; null = off."""
    critic_coef: NonNegative = 1.0
    """Weight of the critic's loss; matters only where the trunk is shared."""

    @torch.no_grad()
    def credit(self, batch: Batch) -> Credit:
        value_BT, mask_BT = batch.value.mean_BT, batch.mask_BT
        error_BT = gae(self.token_rewards(batch), value_BT, mask_BT, gamma=self.gamma, lam=self.lam_critic)
        return Credit(advantage_BT=self.advantages(batch), target=error_BT + keep(value_BT, mask_BT))

    @torch.no_grad()
    def advantages(self, batch: Batch) -> Tensor:
        reward_BT, mask_BT = self.token_rewards(batch), batch.mask_BT
        advantage_BT = gae(reward_BT, batch.value.mean_BT, mask_BT, gamma=self.gamma, lam=self.lam_actor)
        return whiten(advantage_BT, mask_BT) if self.whiten_advantages else advantage_BT

    def critic_loss(self, value: Value, batch: Batch, credit: Credit) -> Loss:
        """Half the squared error to the return, the larger of clipped and unclipped."""
        mask_BT = batch.mask_BT
        error_BT = value_error(
            keep(value.mean_BT, mask_BT),
            keep(batch.value.mean_BT, mask_BT),
            keep(credit.target, mask_BT),
            clip=self.value_clip,
        )
        return Loss(total_BT=self.critic_coef * error_BT, terms={"value_error": error_BT.detach()})
