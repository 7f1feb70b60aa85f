"""A distribution per position: H independent heads of M quantiles each.

The quantiles of a head start in order: their weights are equal and their biases are a ramp. With independent weights,
even small ones, nearly half of all neighbours would be crossed at the start.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad, softplus

from noisyrl.critics import kernels
from noisyrl.critics.base import CriticSpec, Head, Sight, States, policy_tokens
from noisyrl.critics.heads import HeadStack
from noisyrl.critics.values import QuantileValue
from noisyrl.ops.masked import place, select
from noisyrl.ops.quantiles import midpoints
from noisyrl.processor import each_row, takes_kernels
from noisyrl.spec import Count, Natural, NonNegative, Positive, spec


@spec
class QuantileCritic(CriticSpec):
    """The critic of DVPO (arXiv:2512.03847 eq. 1)."""

    heads: Count = 3
    """H."""
    quantiles: Count = 200
    """M, at the levels of `DVPO.tau_grid`."""
    hidden: Natural = 0
    """Units of each head's hidden layer (GELU); 0 = linear heads."""
    init_sd: Positive = 0.01
    """Standard deviation of the last layer's initial weights, the same for all quantiles of a head."""
    init_center: float = 0.5
    """Mean of the distribution at the start, in units of the reward."""
    init_width: NonNegative = 1.0
    """Distance between the lowest and the highest quantile at the start, in units of the reward."""
    monotone: bool = False
    """Mean, width and a softmax over the M - 1 gaps, so that quantiles cannot cross; false = M free outputs."""
    head_reduce: Literal["mean", "median"] = "mean"
    """How the heads make one distribution, quantile by quantile; the median shrugs off one stray head."""

    def make(self, hidden_size: int, *, seed: int = 0, lm: object = None) -> Head:
        outputs = self.quantiles + 1 if self.monotone else self.quantiles
        stack = HeadStack(
            hidden_size, heads=self.heads, outputs=outputs, hidden=self.hidden, init_sd=self.init_sd, seed=seed,
            alike=True,
        )  # fmt: skip
        if self.monotone:
            start = torch.zeros(outputs)
            start[0], start[1] = self.init_center, _softplus_inverse(max(self.init_width, 1e-3))
        else:
            start = self.init_center + self.init_width * (midpoints(self.quantiles) - 0.5)
        with torch.no_grad():
            stack.bias.copy_(start.repeat(self.heads))
        return _Quantiles(stack, monotone=self.monotone, median=self.head_reduce == "median")


class _Quantiles(Head):
    def __init__(self, stack: HeadStack, *, monotone: bool, median: bool) -> None:
        super().__init__()
        self.stack = stack
        self.monotone = monotone
        self.median = median

    def forward(self, hidden_BTD: Tensor, sight: Sight | None = None) -> QuantileValue:
        mask_BT = policy_tokens(hidden_BTD, sight)
        return self._value(States.all_different(select(hidden_BTD, mask_BT)), mask_BT)

    def of_states(self, states: States, sight: Sight) -> QuantileValue:
        return self._value(states, sight.rollout.mask_BT)

    def _value(self, states: States, mask_BT: Tensor) -> QuantileValue:
        quantiles_UHM, ensemble_UM = self.stack(states.hidden_UD), None
        if self.monotone:
            quantiles_UHM, ensemble_UM = spread(quantiles_UHM)
        if self.median:
            ensemble_UM = quantiles_UHM.quantile(0.5, dim=1)
        elif ensemble_UM is None:
            ensemble_UM = quantiles_UHM.mean(dim=1)
        mean_BT = place(ensemble_UM.mean(dim=-1).index_select(0, states.of_N), mask_BT)
        return QuantileValue(mean_BT, ensemble_UM, quantiles_UHM, states.of_N)


def spread(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Quantiles in order [..., H, M], and their mean over heads [..., M].

    raw  [..., H, M + 1]   for each head its mean, its width (before softplus) and the logits of its gaps

    A head's quantiles are mean + width * (c - average of c), where c is 0 and the running sums of the gaps.
    """
    if takes_kernels(raw):
        return _Spread.apply(raw)
    c = pad(raw[..., 2:].softmax(dim=-1).cumsum(dim=-1), (1, 0))
    quantiles = raw[..., :1] + softplus(raw[..., 1:2]) * (c - c.mean(dim=-1, keepdim=True))
    return quantiles, quantiles.mean(dim=-2)


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, raw: Tensor) -> tuple[Tensor, Tensor]:
        raw_RHO = raw.reshape(-1, *raw.shape[-2:])
        before_RH = raw_RHO[:, :, 1].contiguous()
        width_RH = softplus(before_RH)
        rows, heads, count = len(raw_RHO), raw_RHO.shape[1], raw_RHO.shape[2] - 1
        # Not `softmax`, which first copies what is not contiguous, and divides in a pass of its own.
        gap_RHG = raw_RHO.new_empty(rows, heads, count - 1)
        each_row(kernels.below_largest, rows, raw_RHO, gap_RHG)
        gap_RHG.exp_()
        out_RHM, average_RM = gap_RHG.new_empty(rows, heads, count), gap_RHG.new_empty(rows, count)
        each_row(kernels.spread, rows, raw_RHO[:, :, 0], width_RH, gap_RHG, out_RHM, average_RM)
        ctx.save_for_backward(before_RH, width_RH, gap_RHG)
        lead = raw.shape[:-2]
        return out_RHM.view(*lead, heads, count), average_RM.view(*lead, count)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_HM: Tensor, grad_M: Tensor) -> Tensor:
        before_RH, width_RH, gap_RHG = ctx.saved_tensors
        heads, count = grad_HM.shape[-2:]
        out_RHO = gap_RHG.new_empty(len(gap_RHG), heads, count + 1)
        grads = grad_HM.reshape(-1, heads, count), grad_M.reshape(-1, count)
        each_row(kernels.spread_back, len(out_RHO), *(x.contiguous() for x in grads), width_RH, gap_RHG, out_RHO)
        out_RHO[:, :, 1].mul_(before_RH.sigmoid())
        return out_RHO.view(*grad_HM.shape[:-1], count + 1)


def _softplus_inverse(x: float) -> float:
    return x + math.log(-math.expm1(-x))
