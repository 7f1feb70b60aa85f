"""PPO with a worst-case backup: the value of the next state is replaced by a pessimistic one.

Three readings of "worst case" (`mode`), because the published baseline says only that it aggregates by the minimum:
ensemble_min     towards the lowest of several scalar heads
r_contamination  with probability rho the next state is the worst there is (Wang and Zou 2021, arXiv:2109.14523)
tv               total variation ball around the critic's own return distribution (Panaganti et al. 2022,
                 arXiv:2208.05129): (1 - rho) times its lower tail's mean, plus rho times `worst`

Differs from the papers:
1. They act on a transition model; here token transitions are certain, so the critic's own spread stands in for it.
2. rho is per sequence where `rho_unit` says so: a rho per token shrinks the outcome's weight by (1 - rho)^length.
3. With `trace: consistent` the lambda trace shrinks with the backup, which keeps the exact robust value a fixed point.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from noisyrl import rng
from noisyrl.algos.ppo import PPO
from noisyrl.algos.scalar_heads import head_errors
from noisyrl.critics.heads import HeadsCritic
from noisyrl.critics.quantile import QuantileCritic
from noisyrl.critics.values import DistributionValue, EnsembleValue, QuantileValue
from noisyrl.ops.advantages import contamination_bootstrap, gae_with_bootstrap, token_rho, tv_bootstrap
from noisyrl.ops.masked import keep, place, whiten
from noisyrl.ops.quantiles import midpoints, quantile_huber_terms
from noisyrl.spec import Count, Fraction, InputError, Positive, spec
from noisyrl.types import Batch, Credit, Loss, Value


@spec
class RobustBellman(PPO):
    """`Credit.target` is the robust return [B, T], shared by all heads."""

    critic: HeadsCritic | QuantileCritic
    """Scalar heads, or quantiles for mode=tv."""
    mode: Literal["ensemble_min", "r_contamination", "tv"] = "ensemble_min"
    """What the worst case is; see the head of this file."""
    rho: Fraction = 0.5
    """How much of the worst case: 0 = PPO's backup, 1 = the worst case alone."""
    rho_unit: Literal["sequence", "token"] = "token"
    """sequence = rho is spread over `max_tokens` tokens, 1 - (1 - rho)^(1 / max_tokens) each; token = as it stands."""
    max_tokens: Count
    """Longest response, for rho_unit=sequence."""
    trace: Literal["consistent", "naive"] = "consistent"
    """consistent = lambda (1 - rho) in mode=r_contamination; naive = lambda, whatever the backup."""
    worst: float | None = None
    """Value of the worst state; null = the lowest reward the noise declares."""
    bootstrap_frac: Fraction = 0.8
    """Share of the sequences each of several heads is trained on, drawn by key; 1 = all, and the heads converge."""
    kappa: Positive = 0.05
    """Huber threshold of the quantile regression of mode=tv, as a share of the reward range; it divides the loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        wanted = QuantileCritic if self.mode == "tv" else HeadsCritic
        if not isinstance(self.critic, wanted):
            option = "quantile" if self.mode == "tv" else "heads"
            raise InputError(f"algo.mode={self.mode} needs the critic {option}: set critic@algo.critic={option}")

    @property
    def token_rho(self) -> float:
        """rho of one token."""
        return token_rho(self.rho, self.max_tokens) if self.rho_unit == "sequence" else self.rho

    @torch.no_grad()
    def credit(self, batch: Batch) -> Credit:
        target = self._errors(batch, self.lam_critic) + keep(batch.value.mean_BT, batch.mask_BT)
        return Credit(advantage_BT=self.advantages(batch), target=target)

    @torch.no_grad()
    def advantages(self, batch: Batch) -> Tensor:
        advantage_BT = self._errors(batch, self.lam_actor)
        return whiten(advantage_BT, batch.mask_BT) if self.whiten_advantages else advantage_BT

    def _errors(self, batch: Batch, lam: float) -> Tensor:
        """[B, T] worst-case advantages."""
        shrink = 1 - self.token_rho if self.mode == "r_contamination" and self.trace == "consistent" else 1.0
        return gae_with_bootstrap(
            self.token_rewards(batch), batch.value.mean_BT, self.bootstrap(batch), batch.mask_BT,
            gamma=self.gamma, lam=lam * shrink,
        )  # fmt: skip

    def bootstrap(self, batch: Batch) -> Tensor:
        """[B, T] pessimistic value of the state before each token, never above the value itself."""
        value, rho = batch.value, self.token_rho
        worst = batch.reward_range.low if self.worst is None else self.worst
        if self.mode == "ensemble_min":
            assert isinstance(value, EnsembleValue)
            return contamination_bootstrap(value.mean_BT, rho=rho, worst=value.heads_BTH.amin(dim=-1))
        if self.mode == "r_contamination":
            return contamination_bootstrap(value.mean_BT, rho=rho, worst=worst)
        assert isinstance(value, DistributionValue)
        return tv_bootstrap(value.ensemble_BTM, rho=rho, fail_value=worst)

    def critic_loss(self, value: Value, batch: Batch, credit: Credit) -> Loss:
        """Each head's half squared error on its share of the sequences; quantile regression for mode=tv."""
        if self.mode == "tv":
            return self._quantile_loss(value, batch, credit)
        assert isinstance(value, EnsembleValue)
        error_BTH = head_errors(value, batch, credit, clip=self.value_clip)
        if error_BTH.shape[-1] > 1 and self.bootstrap_frac < 1:
            error_BTH = error_BTH * self._shares(batch, error_BTH)
        error_BT = error_BTH.mean(dim=-1)
        return Loss(total_BT=self.critic_coef * error_BT, terms={"value_error": error_BT.detach()})

    def _shares(self, batch: Batch, like_BTH: Tensor) -> Tensor:
        """[B, 1, H] 1 / bootstrap_frac where a head is trained on the row, else 0."""
        keys_B = np.array([rng.hash64("bootstrap", key) for key in batch.rollout.keys], np.uint64)
        heads = range(like_BTH.shape[-1])
        chosen_BH = np.stack([rng.counter_uniforms(keys_B, head) < self.bootstrap_frac for head in heads], axis=1)
        return torch.from_numpy(chosen_BH).to(like_BTH)[:, None] / max(self.bootstrap_frac, 1e-9)

    def _quantile_loss(self, value: Value, batch: Batch, credit: Credit) -> Loss:
        assert isinstance(value, QuantileValue)
        mask_BT = batch.mask_BT
        tau_M = midpoints(value.quantiles_UHM.shape[-1]).to(value.quantiles_UHM)
        loss_NH1 = len(tau_M) * quantile_huber_terms(
            value.quantiles_UHM,
            credit.target[mask_BT][:, None, None],
            tau_M,
            torch.ones_like(tau_M)[None],
            kappa=self.kappa * batch.reward_range.width,
            divide_by_kappa=True,
            of_N=value.of_N,
        )
        loss_BT = place(loss_NH1.mean(dim=(1, 2)), mask_BT)
        return Loss(total_BT=self.critic_coef * loss_BT, terms={"qr": loss_BT.detach()})
