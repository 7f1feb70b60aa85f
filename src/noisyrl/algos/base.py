"""What the trainer asks of an algorithm: credit, token weights, policy loss, critic loss. Nothing else.

Algorithms differ in `credit` and `token_weights`; the clipped surrogate with its KL and entropy terms is shared.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

from noisyrl.critics.base import CriticSpec
from noisyrl.ops.masked import keep, place_last
from noisyrl.ops.surrogate import clipped_surrogate, kl_estimate, log_ratio
from noisyrl.spec import Fraction, NonNegative, Positive, spec
from noisyrl.types import Batch, Credit, Loss, Scores, Value


@spec
class Algorithm(ABC):
    """What `algo=` configures: the fields are the hyperparameters, the methods are the maths."""

    critic: CriticSpec
    """The value network; `none` for methods whose baseline is the group."""
    lr: Positive = 3.5e-4
    """Peak learning rate of the policy."""
    clip_low: Fraction = 0.2
    """The probability ratio is not pushed below 1 - clip_low."""
    clip_high: Positive = 0.2
    """The probability ratio is not pushed above 1 + clip_high."""
    dual_clip: float | None = None
    """Bound c > 1 on the loss of bad actions, in units of the advantage; null = off (Ye et al. 2020)."""
    kl_coef: NonNegative = 0.0
    """Weight of the KL to the starting policy; 0 = the reference is not loaded."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Where the KL acts. In one place only, so it cannot be counted twice."""
    kl_estimator: Literal["k1", "k2", "k3", "k3+"] = "k3"
    """k1 belongs in the reward (as a loss its gradient is 0); k2 or k3 in the loss."""
    entropy_coef: NonNegative = 0.0
    """Weight of the entropy bonus."""

    def __post_init__(self) -> None:
        if self.dual_clip is not None and self.dual_clip <= 1:
            raise ValueError(f"dual_clip must be above 1 or null, got {self.dual_clip}")
        if self.kl_coef > 0 and self.kl_in == "loss" and self.kl_estimator == "k1":
            raise ValueError("kl_estimator=k1 has no gradient as a loss: set kl_estimator=k3, or kl_in=reward")
        if self.kl_in == "reward" and self.kl_estimator != "k1":
            raise ValueError(f"kl_in=reward takes the unbiased kl_estimator=k1, got {self.kl_estimator}")

    @property
    def needs_reference(self) -> bool:
        """Whether `Batch.reference` is read."""
        return self.kl_coef > 0

    def check(self, samples: int) -> None:  # noqa: B027 - most methods have nothing to refuse
        """InputError: the method cannot work with `samples` responses per prompt."""

    @abstractmethod
    def credit(self, batch: Batch) -> Credit:
        """Advantages and critic targets of a whole rollout, without gradient."""

    def token_rewards(self, batch: Batch) -> Tensor:
        """[B, T] the observed reward on the last token, or where it is paid, minus each token's KL if it is there."""
        reward_BT = place_last(batch.reward_B, batch.mask_BT)
        if batch.early_BT is not None:
            early_BT = keep(batch.early_BT, batch.mask_BT)
            reward_BT = place_last(batch.reward_B - early_BT.sum(dim=1), batch.mask_BT) + early_BT
        if self.kl_coef == 0 or self.kl_in == "loss":
            return reward_BT
        assert batch.reference is not None, "needs_reference holds when kl_coef is above 0"
        kl_BT = kl_estimate(batch.logp_BT, batch.reference.logp_BT, self.kl_estimator)
        return reward_BT - self.kl_coef * keep(kl_BT, batch.mask_BT)

    def advantages(self, batch: Batch) -> Tensor:
        """[B, T] what the actor sees."""
        return self.credit(batch).advantage_BT

    def token_weights(self, mask_BT: Tensor) -> Tensor:
        """[B, T] float64, weight of each token in the minibatch's loss; here all count the same, 1 / tokens."""
        return mask_BT.double() / mask_BT.sum().clamp(min=1)

    def policy_loss(self, scores: Scores, batch: Batch, credit: Credit) -> Loss:
        """The clipped surrogate plus reference KL minus entropy, per token.

        Differentiable in `scores`; what lies outside the mask is never read.
        """
        mask_BT = batch.mask_BT
        logp_BT, old_BT = keep(scores.logp_BT, mask_BT), keep(batch.logp_BT, mask_BT)
        entropy_BT = keep(scores.entropy_BT, mask_BT)
        total_BT = clipped_surrogate(
            logp_BT,
            old_BT,
            keep(credit.advantage_BT, mask_BT),
            clip_low=self.clip_low,
            clip_high=self.clip_high,
            dual_clip=self.dual_clip,
        )
        terms = {"surrogate": total_BT, "entropy_nats": entropy_BT, **self._ratio_terms(logp_BT, old_BT)}
        if self.entropy_coef > 0:
            total_BT = total_BT - self.entropy_coef * entropy_BT
        if batch.reference is not None:
            reference_BT = keep(batch.reference.logp_BT, mask_BT)
            terms["kl_reference_nats"] = kl_estimate(logp_BT, reference_BT, "k3")
            if self.kl_in == "loss" and self.kl_coef > 0:
                total_BT = total_BT + self.kl_coef * kl_estimate(logp_BT, reference_BT, self.kl_estimator)
        return Loss(total_BT=total_BT, terms={name: term.detach() for name, term in terms.items()})

    def critic_loss(self, value: Value, batch: Batch, credit: Credit) -> Loss:
        """Loss of the critic per token; here there is nothing to learn."""
        return Loss(total_BT=torch.zeros_like(batch.logp_BT), terms={})

    def _ratio_terms(self, logp_BT: Tensor, old_BT: Tensor) -> dict[str, Tensor]:
        difference_BT = log_ratio(logp_BT, old_BT).detach()
        ratio_BT = difference_BT.exp()
        outside_BT = (ratio_BT < 1 - self.clip_low) | (ratio_BT > 1 + self.clip_high)
        return {"clip_frac": outside_BT.to(ratio_BT.dtype), "kl_old_nats": torch.expm1(difference_BT) - difference_BT}
