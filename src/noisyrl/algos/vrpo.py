"""VRPO: PPO whose value passes an information bottleneck and whose critic is held close to a language model.

The latent is noisy and pays for what it knows (a KL to the standard normal), so that it keeps what foretells the return
and drops what merely fits the noise; where tokens are most uncertain, a frozen LM head must still be able to read the
critic's states. The actor is PPO's.

VRPO (arXiv:2508.03058, ACL 2026 long.1103). Only its opening and a public digest could be read: the form of each term
follows the digest, and no coefficient, threshold or size was found.

Differs from the paper, or fills in what could not be read:
1. The entropy and perplexity terms are means over the most uncertain `top_frac` of tokens (`w_entropy`,
   `w_perplexity`), ranked when the rollout is annotated. Perplexity enters as its logarithm: it is unbounded itself.
2. `w_align` replaces them by the KL from the frozen starting policy's distribution on the same tokens
   (`algo=vrpo/lm_align`); unlike them it does not reward low entropy.
3. `c_entropy` and `c_perplexity` instead weigh the value error by the starting policy's uncertainty
   (`algo=vrpo/token_weight`).
4. Only the trained error sees noise. Values of the rollout, advantages and the middle of the clip range come from the
   value's exact mean over the noise. The value of the latent's mean, which is usual, was too low by half of the mean
   reward here, and the clip range around it kept the error from mending that (`critic.noiseless`). Each token keeps
   its noise over all epochs on a rollout.
5. All terms may be combined; each is off at weight 0. With all at 0 and `critic.deterministic` this is PPO.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from noisyrl.algos.ppo import PPO
from noisyrl.critics.bottleneck import BottleneckCritic
from noisyrl.critics.values import BottleneckValue
from noisyrl.ops.masked import keep, masked_mean, whiten
from noisyrl.spec import InputError, NonNegative, spec
from noisyrl.types import Batch, Credit, Loss, Value

_WEIGHTS = (0.1, 5.0)  # bounds of a token's weight before weights are scaled to mean 1


@spec
class VRPO(PPO):
    """`Credit.target` is the return [B, T]; `Credit.extra` says how much each token counts in each term."""

    critic: BottleneckCritic
    """A latent with noise, and the frozen LM head."""
    bottleneck_coef: NonNegative = 1e-3
    """Weight of the latent's KL to the standard normal, summed over the latent, nats per token."""
    w_entropy: NonNegative = 0.01
    """Weight of the frozen head's mean entropy at the critic's states, over the tokens where it is highest."""
    w_perplexity: NonNegative = 0.01
    """Weight of its mean surprise (log-perplexity) at what was said, over the tokens where that is highest."""
    w_align: NonNegative = 0.0
    """Weight of the mean KL from the starting policy's distribution to the head's, over both sets of tokens."""
    top_frac: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of a rollout's tokens in each set, ranked under the critic that annotated it; ties may enlarge it."""
    c_entropy: float = 0.0
    """A token's value error weighs 1 + c_entropy z(H) + c_perplexity z(NLL), held in [0.1, 5] and scaled to mean 1;
    z(H) = the starting policy's entropy there in standard deviations."""
    c_perplexity: float = 0.0
    """z(NLL) = likewise its surprise at what was said."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.critic.deterministic and self.bottleneck_coef > 0:
            raise InputError(
                f"critic.deterministic=true leaves no noise to price: set bottleneck_coef=0, got {self.bottleneck_coef}"
            )
        if self.w_align > 0 and self.critic.lm_head != "align":
            raise InputError(
                f"w_align={self.w_align} reads what critic.lm_head={self.critic.lm_head} does not compute: "
                "set critic.lm_head=align, or take algo=vrpo/lm_align"
            )
        if self.w_entropy + self.w_perplexity > 0 and self.critic.lm_head == "none":
            raise InputError(
                "w_entropy and w_perplexity read what critic.lm_head=none does not compute: "
                "set them to 0, or critic.lm_head=self"
            )

    @property
    def needs_reference(self) -> bool:
        return super().needs_reference or self.w_align > 0 or self._weighs_tokens

    @property
    def _weighs_tokens(self) -> bool:
        return self.c_entropy != 0 or self.c_perplexity != 0

    @torch.no_grad()
    def credit(self, batch: Batch) -> Credit:
        """PPO's, and for every token its share in the terms that are on.

        A share is a token's weight relative to the average policy token of the rollout, so that the mean over tokens is
        the mean over a set. Exact with one minibatch; a minibatch of several holds its sets' tokens only about evenly.
        """
        mask_BT, value = batch.mask_BT, batch.value
        assert isinstance(value, BottleneckValue), "that is what a BottleneckCritic estimates"
        entropy_BT = top_tokens(value.entropy_BT, mask_BT, self.top_frac)
        perplexity_BT = top_tokens(value.nll_BT, mask_BT, self.top_frac)
        shares = {
            "entropy_BT": share(entropy_BT, mask_BT),
            "perplexity_BT": share(perplexity_BT, mask_BT),
            "align_BT": share(entropy_BT | perplexity_BT, mask_BT),
        }
        if self._weighs_tokens:
            shares["error_BT"] = self._error_weights(batch)
        return replace(super().credit(batch), extra={name: x_BT.to(value.mean_BT) for name, x_BT in shares.items()})

    def _error_weights(self, batch: Batch) -> Tensor:
        assert batch.reference is not None, "needs_reference holds when tokens are weighed"
        return uncertainty_weights(
            batch.reference.entropy_BT,
            -batch.reference.logp_BT,
            batch.mask_BT,
            c_entropy=self.c_entropy,
            c_perplexity=self.c_perplexity,
        )

    def critic_loss(self, value: Value, batch: Batch, credit: Credit) -> Loss:
        """PPO's error of the noisy value, plus the terms that are on; each is logged unweighted, as 0 where it is off.

        The clip range is PPO's, around the old value without noise.
        """
        assert isinstance(value, BottleneckValue), "that is what a BottleneckCritic estimates"
        mask_BT, share_of = batch.mask_BT, credit.extra
        loss = super().critic_loss(replace(value, mean_BT=value.sampled_BT), batch, credit)
        total_BT, terms = loss.total_BT, dict(loss.terms)
        if "error_BT" in share_of:
            total_BT = total_BT * keep(share_of["error_BT"], mask_BT)
        for name, (weight, term_BT) in self._terms(value, share_of).items():
            terms[name] = torch.zeros_like(total_BT)
            if weight > 0:
                terms[name] = keep(term_BT, mask_BT)
                total_BT = total_BT + self.critic_coef * weight * terms[name]
        return Loss(total_BT=total_BT, terms={name: term_BT.detach() for name, term_BT in terms.items()})

    def _terms(self, value: BottleneckValue, share_of: Mapping[str, Tensor]) -> dict[str, tuple[float, Tensor]]:
        """Weight and values [B, T] of each term by its name in the log."""
        return {
            "bottleneck_kl_nats": (self.bottleneck_coef, value.kl_BT),
            "aux_entropy_nats": (self.w_entropy, share_of["entropy_BT"] * value.entropy_BT),
            "aux_nll_nats": (self.w_perplexity, share_of["perplexity_BT"] * value.nll_BT),
            "align_nats": (self.w_align, share_of["align_BT"] * value.align_BT),
        }


def top_tokens(x_BT: Tensor, mask_BT: Tensor, frac: float) -> Tensor:
    """[B, T] bool, the policy tokens at or above the (1 - frac) quantile of x over all of them.

    x_BT     [B, T] float   of the whole rollout; what lies outside the mask is never read
    mask_BT  [B, T] bool
    frac     in (0, 1]; floor(frac (N - 1)) + 1 of N tokens, ties besides
    """
    x_N = x_BT[mask_BT]
    if not len(x_N):
        return mask_BT
    # The smallest value above the interpolated quantile bounds the same set, without rounding.
    threshold = x_N.topk(int(frac * (len(x_N) - 1)) + 1).values[-1]
    return mask_BT & (x_BT >= threshold)


def share(set_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """[B, T] float64, policy tokens / tokens in the set, inside it; 0 outside. An empty set gives 0."""
    return set_BT.double() * (mask_BT.sum() / set_BT.sum().clamp(min=1))


def uncertainty_weights(
    entropy_BT: Tensor, nll_BT: Tensor, mask_BT: Tensor, *, c_entropy: float, c_perplexity: float
) -> Tensor:
    """[B, T] clip(1 + c_entropy z(entropy) + c_perplexity z(nll), 0.1, 5), scaled to mean 1 over policy tokens.

    z  standardised over all policy tokens of the rollout; equal values have z = 0
    """
    z_BT = c_entropy * whiten(entropy_BT, mask_BT) + c_perplexity * whiten(nll_BT, mask_BT)
    weight_BT = keep((1 + z_BT).clamp(*_WEIGHTS), mask_BT)
    return weight_BT / masked_mean(weight_BT, mask_BT)
