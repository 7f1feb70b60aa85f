"""Means, whitening and reward placement under a mask. True = counts; what lies under False is never read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def keep(x: Tensor, mask: Tensor) -> Tensor:
    """x where the mask is True, 0 elsewhere; unlike x * mask it also stops NaN and infinity, and their gradients."""
    return torch.where(mask, x, torch.zeros((), dtype=x.dtype, device=x.device))


def select(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """The entries where the mask is True, row by row, [N, ...]: x[mask], in a third of its time where entries are long.

    x_BT     [B, T, ...]
    mask_BT  [B, T] bool
    """
    return _Select.apply(x_BT, mask_BT.flatten().nonzero().squeeze(1))


def place(x_N: Tensor, mask_BT: Tensor) -> Tensor:
    """[N, ...] at the places where the mask is True, row by row, [B, T, ...]; 0 elsewhere. What `select` took out."""
    out = x_N.new_zeros(mask_BT.numel(), *x_N.shape[1:])
    out.index_copy_(0, mask_BT.flatten().nonzero().squeeze(1), x_N)
    return out.unflatten(0, mask_BT.shape)


class _Select(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BT: Tensor, place_N: Tensor) -> Tensor:
        ctx.save_for_backward(place_N)
        ctx.shape = x_BT.shape
        return x_BT.flatten(0, 1).index_select(0, place_N)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor, None]:
        (place_N,) = ctx.saved_tensors
        out_BT = grad_N.new_zeros(ctx.shape)
        out_BT.flatten(0, 1).index_copy_(0, place_N, grad_N)
        return out_BT, None


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x where the mask is True, a scalar; 0 where nothing counts.

    x     any shape   float
    mask  same shape  bool
    """
    return keep(x, mask).sum() / mask.sum().clamp(min=1)


def whiten(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """x with mean 0 and unbiased variance 1 over the True entries, 0 elsewhere.

    x_BT     [B, T] float  whiten the global batch, never a micro-batch
    mask_BT  [B, T] bool
    returns  [B, T] float  unchanged (but masked) if fewer than two entries count
    """
    count = mask_BT.sum()
    if count < 2:
        return keep(x_BT, mask_BT)
    centred = keep(x_BT - masked_mean(x_BT, mask_BT), mask_BT)
    variance = centred.square().sum() / (count - 1)
    return centred * torch.rsqrt(variance + 1e-8)


def place_last(reward_B: Tensor, mask_BT: Tensor) -> Tensor:
    """The outcome reward on the last True token of each row, 0 elsewhere.

    reward_B  [B]    float
    mask_BT   [B, T] bool
    returns   [B, T] float
    ValueError: a row has no real token.
    """
    last_B = last_index(mask_BT)
    out = torch.zeros(mask_BT.shape, dtype=reward_B.dtype, device=reward_B.device)
    return out.scatter(1, last_B[:, None], reward_B[:, None])


def last_index(mask_BT: Tensor) -> Tensor:
    """[B] int64, position of the last True token of each row. ValueError: a row has no real token."""
    if not bool(mask_BT.any(dim=1).all()):
        bad = (~mask_BT.any(dim=1)).nonzero().flatten().tolist()
        raise ValueError(f"rows {bad} have no real token: drop them before computing credit")
    steps_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    return torch.where(mask_BT, steps_T, -1).amax(dim=1)


def turn_ends(mask_BT: Tensor) -> Tensor:
    """[B, T] bool, the last token of each of the policy's turns, between which others speak."""
    following_BT = torch.cat([mask_BT[:, 1:], torch.zeros_like(mask_BT[:, :1])], dim=1)
    return mask_BT & ~following_BT


def explained_variance(target_BT: Tensor, value_BT: Tensor, mask_BT: Tensor) -> float:
    """1 - Var(target - value) / Var(target) over the True entries; NaN if the target is constant there."""
    target_N = target_BT[mask_BT].double()
    spread = target_N.var()
    if target_N.numel() < 2 or spread == 0:
        return float("nan")
    return float(1 - (target_N - value_BT[mask_BT].double()).var() / spread)


def correlation(x_N: Tensor, y_N: Tensor) -> float:
    """Pearson's correlation of two [N] tensors; 0 if either is constant."""
    x_N, y_N = x_N - x_N.mean(), y_N - y_N.mean()
    scale = x_N.norm() * y_N.norm()
    return float(x_N @ y_N / scale) if scale > 0 else 0.0
