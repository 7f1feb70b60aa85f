"""Advantage estimators: pure tensor maths, no gradient kept, no algorithm named."""

from __future__ import annotations

import torch
from torch import Tensor

from noisyrl.ops.masked import keep, last_index


@torch.no_grad()
def gae(reward_BT: Tensor, value_BT: Tensor, mask_BT: Tensor, *, gamma: float, lam: float) -> Tensor:
    """Advantage of each response token.

    reward_BT  [B, T] float   paid when token t is emitted
    value_BT   [B, T] float   estimate before token t
    mask_BT    [B, T] bool    policy tokens; holes are skipped, padding is last
    returns    [B, T] float   0 where mask_BT is False

    Schulman et al. 2016 (arXiv:1506.02438) eq. 16; the value after the last real token is 0. A hole (the user's turn)
    carries value and trace across, so the two policy tokens around it are neighbours; projects differ here.
    ValueError: a row has no real token.
    """
    last_index(mask_BT)
    reward_BT, value_BT = keep(reward_BT, mask_BT), keep(value_BT, mask_BT)
    advantage_BT = torch.zeros_like(value_BT)
    next_value_B = torch.zeros_like(value_BT[:, 0])
    trace_B = torch.zeros_like(next_value_B)
    for t in range(value_BT.shape[1] - 1, -1, -1):
        real_B = mask_BT[:, t]
        delta_B = reward_BT[:, t] + gamma * next_value_B - value_BT[:, t]
        trace_B = torch.where(real_B, delta_B + gamma * lam * trace_B, trace_B)
        next_value_B = torch.where(real_B, value_BT[:, t], next_value_B)
        advantage_BT[:, t] = torch.where(real_B, trace_B, 0.0)
    return advantage_BT


@torch.no_grad()
def group_relative(reward_B: Tensor, group_B: Tensor, *, standardise: bool, ddof: int = 1, eps: float = 1e-6) -> Tensor:
    """Advantage of each response against the other responses to its prompt.

    reward_B     [B] float
    group_B      [B] int64   rows with the same number answer the same prompt, in any order
    standardise  divide by the group's standard deviation (ddof as in torch.std) plus eps
    returns      [B] float   a group of one row gets 0; equal rewards get exactly 0

    Shao et al. 2024 (arXiv:2402.03300) section 4.1.2 with `standardise`, Liu et al. 2025 (arXiv:2503.20783) without.
    """
    _, member_B = torch.unique(group_B, return_inverse=True)
    groups = int(member_B.max()) + 1 if member_B.numel() else 0

    def total(x_B: Tensor) -> Tensor:
        return torch.zeros(groups, dtype=x_B.dtype, device=x_B.device).index_add(0, member_B, x_B)

    count_G = total(torch.ones_like(reward_B))
    # Rewards are shifted by the group's smallest first: equal rewards then centre to exactly 0.
    least_G = torch.zeros_like(count_G).scatter_reduce(0, member_B, reward_B, "amin", include_self=False)
    shifted_B = reward_B - least_G[member_B]
    centred_B = shifted_B - (total(shifted_B) / count_G)[member_B]
    if not standardise:
        return centred_B
    variance_G = total(centred_B.square()) / (count_G - ddof).clamp(min=1)
    return centred_B / (variance_G.sqrt()[member_B] + eps)
