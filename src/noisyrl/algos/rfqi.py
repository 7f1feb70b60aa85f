"""Robust fitted Q-iteration as a critic: the next value is replaced by its worst case within total variation rho.

The worst case is computed by its dual: a second head learns a threshold eta(s), the (1 - rho)-quantile of the next
value, and a next state then counts as min(eta, V') - rho * (eta - fail value); the actor is PPO's.
Panaganti et al. 2022 (arXiv:2208.05129): dual of the robust Bellman operator under a fail state, threshold loss
(eta - V')+ - (1 - rho) * eta, target r + gamma * ((1 - rho) * eta - (eta - V')+).

Differs from the paper:
1. Offline Q-learning over actions there, a state value learned on-policy here: eta depends on the state before the
   token is drawn, so the ball is around the policy's own next-state law. With eta(s, a) a token leads to one certain
   state, the best eta is V' and the worst case is (1 - rho) * V': a discount, `robust_bellman` in mode r_contamination.
2. The last token has no next state: nothing is bootstrapped there and no threshold is trained. The paper's code makes
   no such exception.
3. Where it is used, eta is kept inside the declared range of the observed rewards; the paper's upper bound,
   1 / (rho * (1 - gamma)), is infinite at gamma 1.
4. The fail state is worth the lowest declared reward; in the paper it is worth 0, as its lowest reward.
5. rho is per sequence where `rho_unit` says so: a rho per token shrinks the outcome's weight by (1 - rho)^length.
   The paper's code takes 0.5 per step.
6. lambda-returns in place of one step; the trace shrinks by 1 - rho, as the backup does, or targets would leave the
   range of rewards. Robust errors have mean 0 at the robust value, so the fixed point is the same for any lambda.
7. The paper's code fits a new threshold network at every step; here a second head learns along, as an offset to the
   value, without shaping the value or its features. It trains against the values that made the targets.
8. No target network and no soft minimum over two critics: the data are on-policy.

A threshold off by x lowers a target by up to x at every token it is off: the critic is as good as its thresholds.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from noisyrl.algos.ppo import PPO
from noisyrl.critics.rfqi import RFQICritic
from noisyrl.critics.values import FloorValue
from noisyrl.ops.advantages import gae_with_bootstrap, token_rho
from noisyrl.ops.masked import keep, whiten
from noisyrl.ops.worst_case import from_token_before, threshold_loss, worst_case
from noisyrl.spec import Count, Fraction, spec
from noisyrl.types import Batch, Credit, Loss, Value


@spec
class RFQI(PPO):
    """`Credit.target` is the robust return [B, T]. rho=0 is PPO, bit for bit."""

    critic: RFQICritic
    """A value with a threshold."""
    rho: Fraction = 0.1
    """Share of the probability that the adversary may move; 0 = PPO, 1 = the worst case alone."""
    rho_unit: Literal["sequence", "token"] = "sequence"
    """sequence = rho is spread over `max_tokens` tokens, 1 - (1 - rho)^(1 / max_tokens) each; token = as it stands."""
    max_tokens: Count
    """Longest response, for rho_unit=sequence."""

    @property
    def token_rho(self) -> float:
        """rho of one token."""
        return token_rho(self.rho, self.max_tokens) if self.rho_unit == "sequence" else self.rho

    @torch.no_grad()
    def credit(self, batch: Batch) -> Credit:
        target_BT = self._errors(batch, self.lam_critic) + keep(batch.value.mean_BT, batch.mask_BT)
        return Credit(advantage_BT=self.advantages(batch), target=target_BT)

    @torch.no_grad()
    def advantages(self, batch: Batch) -> Tensor:
        advantage_BT = self._errors(batch, self.lam_actor)
        return whiten(advantage_BT, batch.mask_BT) if self.whiten_advantages else advantage_BT

    def _errors(self, batch: Batch, lam: float) -> Tensor:
        """[B, T] sum of robust errors ahead; the bootstrap of a state is what the token before it thinks it worth."""
        value, bounds = batch.value, batch.reward_range
        assert isinstance(value, FloorValue), type(value)
        threshold_BT, _ = from_token_before(value.threshold_BT.clamp(bounds.low, bounds.high), batch.mask_BT)
        bootstrap_BT = worst_case(value.mean_BT, threshold_BT, rho=self.token_rho, fail_value=bounds.low)
        reward_BT, trace = self.token_rewards(batch), lam * (1 - self.token_rho)
        return gae_with_bootstrap(reward_BT, value.mean_BT, bootstrap_BT, batch.mask_BT, gamma=self.gamma, lam=trace)

    def critic_loss(self, value: Value, batch: Batch, credit: Credit) -> Loss:
        """PPO's value error, plus the dual's loss of the threshold before each token but the first."""
        assert isinstance(value, FloorValue), type(value)
        fit = super().critic_loss(value, batch, credit)
        loss_BT = torch.zeros_like(fit.total_BT)
        if self.token_rho > 0:  # at 0 every threshold above all values is as good
            threshold_BT, there_BT = from_token_before(value.threshold_BT, batch.mask_BT)
            next_BT = keep(batch.value.mean_BT, there_BT)
            loss_BT = keep(threshold_loss(threshold_BT, next_BT, rho=self.token_rho), there_BT)
        return Loss(
            total_BT=fit.total_BT + self.critic_coef * loss_BT,
            terms={**fit.terms, "threshold_loss": loss_BT.detach()},
        )
