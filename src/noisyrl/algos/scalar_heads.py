"""PPO with several scalar value heads, a one-sided shift term and a term that keeps the heads together.

The control that separates DVPO's distributions from its ensemble and its optimism (design of the ablation: DVPO,
arXiv:2512.03847, with one quantile per head). With one head, `w_shift` alone is PPO with constant optimism; with all
weights 0 it is PPO, bit for bit.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from noisyrl.algos.ppo import PPO
from noisyrl.algos.shift import running_gap, shift_term
from noisyrl.critics.heads import HeadsCritic
from noisyrl.critics.values import EnsembleValue
from noisyrl.ops.masked import keep
from noisyrl.ops.risk import consistency_loss
from noisyrl.ops.surrogate import value_error
from noisyrl.spec import NonNegative, spec
from noisyrl.types import Batch, Credit, Loss, Value


@spec
class ScalarHeads(PPO):
    """`Credit.target` is the return [B, T], shared by all heads."""

    critic: HeadsCritic
    """Scalar heads."""
    w_shift: NonNegative = 0.0
    """Weight of the mean return's excess over the mean value."""
    w_cons: NonNegative = 0.0
    """Weight of the squared distance between heads."""
    shift_decay: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of the running means that the shift compares; 0 = this batch alone."""

    @torch.no_grad()
    def credit(self, batch: Batch) -> Credit:
        credit = super().credit(batch)
        gap_B, memory = running_gap(batch, credit.target, decay=self.shift_decay)
        return replace(credit, extra={"gap_B": gap_B}, memory=memory)

    def critic_loss(self, value: Value, batch: Batch, credit: Credit) -> Loss:
        assert isinstance(value, EnsembleValue)
        mask_BT = batch.mask_BT
        error_BT = head_errors(value, batch, credit, clip=self.value_clip).mean(dim=-1)
        terms = {name: torch.zeros_like(error_BT) for name in ("shift", "cons")}
        if self.w_shift > 0:
            terms["shift"] = shift_term(value, batch, credit.extra["gap_B"])
        if self.w_cons > 0:
            terms["cons"] = keep(consistency_loss(value.heads_BTH[..., None]), mask_BT)
        total_BT = error_BT + self.w_shift * terms["shift"] + self.w_cons * terms["cons"]
        terms["value_error"] = error_BT
        return Loss(total_BT=self.critic_coef * total_BT, terms={name: term.detach() for name, term in terms.items()})


def head_errors(value: EnsembleValue, batch: Batch, credit: Credit, *, clip: float | None) -> Tensor:
    """[B, T, H] half squared error of each head to the return, with PPO's clipping; 0 outside the mask."""
    assert isinstance(batch.value, EnsembleValue)
    mask_BTH = batch.mask_BT[..., None]
    return value_error(
        keep(value.heads_BTH, mask_BTH),
        keep(batch.value.heads_BTH, mask_BTH),
        keep(credit.target, batch.mask_BT)[..., None],
        clip=clip,
    )
