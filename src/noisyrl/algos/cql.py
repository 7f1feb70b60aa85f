"""Conservative Q-learning as a critic: values of single tokens, pushed down wherever the data do not hold them up.

The critic's Q(s, y) is fitted to lambda-returns, and a penalty lowers a soft maximum of Q over the whole vocabulary
against the token that was said; the actor is PPO's, with V^c(s) = E_pi[Q(s, .)] as its baseline and bootstrap.
Kumar et al. 2020 (arXiv:2006.04779), CQL(H): alpha * (log sum exp Q - Q(taken)) + half the squared error.

Differs from the paper:
1. Offline there, on-policy here: data and policy agree, so no value is overestimated for want of data. In a table the
   penalty adds alpha * (1 - softmax(Q)(a) / pi(a)) to Q(s, a): nothing on average under pi, up to alpha for likely
   tokens, and arbitrarily much less for tokens the policy almost never says. A baseline, not a recommendation.
2. The soft maximum over the vocabulary is estimated from K tokens of the policy alone, weighted by 1 / pi; the paper's
   code takes 10 of the policy, 10 of the policy at the next state and 10 uniform ones. Where the policy is sure of its
   token the estimate is far too low and hardly pushes: a token is pushed down when it is drawn, rarely but then hard.
   On the testbed after 12 steps: .2 in place of 5.9. Other tokens still sink, .6 below V^c in the median.
3. At another temperature than 1 only Q is divided by it, which keeps the estimate consistent; the paper's code divides
   log pi too.
4. Candidates come from the policy as it is at each gradient step, by the same draws throughout a rollout.
5. lambda-returns of V^c in place of one-step targets from a target network, and one critic instead of two.
6. alpha is fixed; the paper may set it by a Lagrange multiplier. 0.1, not 1 or 5: rewards are in [0, 1], and value gaps
   are about 0.1.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from noisyrl.algos.ppo import PPO
from noisyrl.critics.cql import CQLCritic
from noisyrl.critics.values import ActionValue
from noisyrl.ops.conservative import conservative_penalty
from noisyrl.ops.masked import keep
from noisyrl.spec import NonNegative, Positive, spec
from noisyrl.types import Batch, Credit, Loss, Value


@spec
class CQL(PPO):
    """`Credit.target` is the return [B, T] of the token that was said, as PPO's."""

    critic: CQLCritic
    """Values of tokens."""
    conservative_coef: NonNegative = 0.1
    """alpha, weight of the penalty; 0 = a plain fit of Q to lambda-returns."""
    temperature: Positive = 1.0
    """Of the soft maximum in the penalty, in units of the reward."""

    def critic_loss(self, value: Value, batch: Batch, credit: Credit) -> Loss:
        """PPO's value error of the token that was said, plus the conservative penalty."""
        old, mask_BT = batch.value, batch.mask_BT
        assert isinstance(value, ActionValue) and isinstance(old, ActionValue), (type(value), type(old))
        of_taken = replace(batch, value=Value(mean_BT=old.taken_BT))
        fit = super().critic_loss(Value(mean_BT=value.taken_BT), of_taken, credit)
        penalty_BT = torch.zeros_like(fit.total_BT)
        if self.conservative_coef > 0:
            penalty_BT = conservative_penalty(
                keep(value.candidates_BTK, mask_BT[..., None]),
                keep(value.candidate_logp_BTK, mask_BT[..., None]),
                keep(value.taken_BT, mask_BT),
                temperature=self.temperature,
            )
        return Loss(
            total_BT=fit.total_BT + self.critic_coef * self.conservative_coef * penalty_BT,
            terms={**fit.terms, "conservative": penalty_BT.detach()},
        )
