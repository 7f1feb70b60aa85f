"""The least mean within a ball of total variation, by its dual: a threshold, and what each sampled state adds."""

from __future__ import annotations

import torch
from torch import Tensor


def worst_case(value: Tensor, threshold: Tensor, *, rho: float, fail_value: float) -> Tensor:
    """What one sampled next state contributes to the least mean of the next value within total variation rho.

    value       any shape   value of the sampled state
    threshold   same shape  eta, chosen before the state was drawn
    rho         in [0, 1]; 0 = the value itself, bit for bit: every threshold above all values is optimal then
    fail_value  what the state is worth into which the adversary moves mass, at most any value
    returns     same shape  min(threshold, value) - rho * (threshold - fail_value)

    The same as (1 - rho) * eta - (eta - value)+ + rho * fail_value. Its expectation is a lower bound of the least mean
    for any threshold, and equals it where the threshold is the (1 - rho)-quantile of the values: Panaganti et al. 2022
    (arXiv:2208.05129), whose fail value is 0.
    """
    if rho == 0:
        return value
    return torch.minimum(threshold, value) - rho * (threshold - fail_value)


def threshold_loss(threshold: Tensor, value: Tensor, *, rho: float) -> Tensor:
    """Minus the dual's objective at one sampled next state, for a fail value of 0; gradient to both arguments.

    returns  same shape  (threshold - value)+ - (1 - rho) * threshold

    Up to the constant (1 - rho) * value it is the pinball loss at level 1 - rho.
    """
    return (threshold - value).clamp(min=0) - (1 - rho) * threshold


def from_token_before(x_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
    """(x at the policy token before each policy token [B, T], whether there is one [B, T] bool); 0 where there is none.

    x_BT     [B, T] float
    mask_BT  [B, T] bool   policy tokens; holes are skipped
    """
    steps_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    last_BT = torch.where(mask_BT, steps_T, -1).cummax(dim=1).values
    before_BT = torch.cat([torch.full_like(last_BT[:, :1], -1), last_BT[:, :-1]], dim=1)
    there_BT = mask_BT & (before_BT >= 0)
    zero = torch.zeros((), dtype=x_BT.dtype, device=x_BT.device)
    return torch.where(there_BT, x_BT.gather(1, before_BT.clamp(min=0)), zero), there_BT
