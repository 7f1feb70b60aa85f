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
from noisyrl.ops.masked import keep, place_last, whiten
from noisyrl.ops.surrogate import kl_estimate
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
        reward_BT, value_BT = self.token_rewards(batch), batch.value.mean_BT
        advantage_BT = gae(reward_BT, value_BT, batch.mask_BT, gamma=self.gamma, lam=self.lam_actor)
        target_BT = gae(reward_BT, value_BT, batch.mask_BT, gamma=self.gamma, lam=self.lam_critic)
        return Credit(
            advantage_BT=whiten(advantage_BT, batch.mask_BT) if self.whiten_advantages else advantage_BT,
            target=target_BT + keep(value_BT, batch.mask_BT),
        )

    def token_rewards(self, batch: Batch) -> Tensor:
        """[B, T] the observed reward on the last token, minus the KL of each token where it acts in the reward."""
        reward_BT = place_last(batch.reward_B, batch.mask_BT)
        if self.kl_coef == 0 or self.kl_in == "loss":
            return reward_BT
        assert batch.reference is not None, "needs_reference holds when kl_coef is above 0"
        kl_BT = kl_estimate(batch.logp_BT, batch.reference.logp_BT, self.kl_estimator)
        return reward_BT - self.kl_coef * keep(kl_BT, batch.mask_BT)

    def critic_loss(self, value: Value, batch: Batch, credit: Credit) -> Loss:
        """Half the squared error to the return, the larger of clipped and unclipped."""
        mask_BT = batch.mask_BT
        value_BT, target_BT = keep(value.mean_BT, mask_BT), keep(credit.target, mask_BT)
        error_BT = (value_BT - target_BT).square()
        if self.value_clip is not None:
            old_BT = keep(batch.value.mean_BT, mask_BT)
            clipped_BT = old_BT + (value_BT - old_BT).clamp(-self.value_clip, self.value_clip)
            error_BT = torch.maximum(error_BT, (clipped_BT - target_BT).square())
        return Loss(total_BT=self.critic_coef * 0.5 * error_BT, terms={"value_error": 0.5 * error_BT.detach()})
