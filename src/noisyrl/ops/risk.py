"""Terms that shape a predicted distribution: tails, shift, curvature and agreement of heads.

Every term is one number per leading index (token), at least 0, and the same for any order of the quantiles: they are
sorted inside, or not again with `is_sorted=True`. No gradient reaches a target. M and K may differ.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from noisyrl.processor import each_row, takes_kernels


def ascending(x_M: Tensor) -> Tensor:
    """x in ascending order along its last axis, differentiable; x itself where it is in order already."""
    step_M = x_M.detach().diff()  # a third of the time of comparing neighbours into bools
    if not step_M.numel() or bool(step_M.amin() >= 0):
        return x_M
    if takes_kernels(x_M) and not x_M.requires_grad:
        return torch.from_numpy(np.sort(x_M.numpy(), axis=-1))  # 10 to 20 times as fast on short rows
    return x_M.sort(-1).values


def tail_weights(
    count: int,
    mass: float,
    *,
    upper: bool = False,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Weights [M], sum 1, that average the lowest (or uppermost) share `mass` of M sorted atoms; the last one in part.

    ValueError: mass outside (0, 1].
    """
    _check_mass(mass, 1.0)
    atoms = mass * count
    weight_M = (atoms - torch.arange(count, dtype=dtype or torch.get_default_dtype(), device=device)).clamp(0, 1)
    return (weight_M.flip(0) if upper else weight_M) / atoms


def risk_weights(tau_M: Tensor, tilt: float) -> Tensor:
    """Weights [M], mean 1, proportional to exp(-tilt * tau): a positive tilt stresses the lower tail.

    tau_M  [M] float   level of each quantile
    """
    return torch.softmax(-tilt * tau_M, dim=-1) * tau_M.shape[-1]


def cvar_loss(quantiles_M: Tensor, target_K: Tensor, *, mass: float, is_sorted: bool = False) -> Tensor:
    """Squared error of the mean of the lower tail, [...].

    quantiles_M  [..., M] float
    target_K     [..., K] float   leading axes broadcast
    mass         share of the tail, in (0, 1]; 1 compares the means
    is_sorted    both are ascending already

    The CVaR of Rockafellar and Uryasev 2000, for atoms of equal mass. ValueError: mass outside (0, 1].
    """
    return _tail_error(quantiles_M, target_K, mass, False, is_sorted)


def gain_loss(quantiles_M: Tensor, target_K: Tensor, *, mass: float, is_sorted: bool = False) -> Tensor:
    """Squared error of the mean of the upper tail, [...]. Arguments as in `cvar_loss`."""
    return _tail_error(quantiles_M, target_K, mass, True, is_sorted)


def shift_loss(quantiles_M: Tensor, target_K: Tensor) -> Tensor:
    """How far the mean lies below the target's, [...]; 0 if above.

    quantiles_M  [..., M] float
    target_K     [..., K] float   leading axes broadcast

    Per token it rewards optimism under noise (algorithms.md 9.4): pass means over a batch as [1] and [1] to avoid that.
    """
    return (target_K.detach().mean(-1) - quantiles_M.mean(-1)).relu()


def shape_loss(
    quantiles_M: Tensor, target_K: Tensor, *, lower_mass: float, upper_mass: float, is_sorted: bool = False
) -> Tensor:
    """Variance of the lower tail above the target's, plus variance of the upper tail below the target's, [...].

    quantiles_M  [..., M] float
    target_K     [..., K] float   leading axes broadcast
    masses       shares of the tails, in (0, .5]
    is_sorted    both are ascending already

    Population variances: a tail of one atom has variance 0. ValueError: a mass outside (0, .5].
    """
    for mass in (lower_mass, upper_mass):
        _check_mass(mass, 0.5)
    quantiles_M, target_K = _ascending(quantiles_M, is_sorted), _ascending(target_K.detach(), is_sorted)
    excess = _tail_variance(quantiles_M, lower_mass, False) - _tail_variance(target_K, lower_mass, False)
    lack = _tail_variance(target_K, upper_mass, True) - _tail_variance(quantiles_M, upper_mass, True)
    return excess.relu() + lack.relu()


def curvature_loss(
    quantiles_M: Tensor,
    *,
    lower_mass: float,
    upper_mass: float,
    mode: str = "convex",
    target_K: Tensor | None = None,
    is_sorted: bool = False,
) -> Tensor:
    """Wrong bend of the quantile function in its tails, [...]; 0 with fewer than three quantiles.

    quantiles_M  [..., M] float
    masses       shares of the tails, in (0, .5]
    mode         convex  both tails should bend upwards: the lower flat then rising, the upper stretched
                 bell    the lower should bend downwards, the upper upwards, as for a bell-shaped density
                 target  neither should bend upwards less than the target's
    target_K     [..., K] float   read by mode target only; leading axes broadcast
    is_sorted    both are ascending already

    The bend is the mean second difference over max(1, k - 1) places, k = max(2, round(mass * M)).
    It shrinks as 1 / M^2, so a target of K atoms is rescaled by (K / M)^2.
    ValueError: a mass outside (0, .5], another mode, or mode target without a target.
    """
    for mass in (lower_mass, upper_mass):
        _check_mass(mass, 0.5)
    lower, upper = _bends(_ascending(quantiles_M, is_sorted), lower_mass, upper_mass)
    if mode == "convex":
        return (-lower).relu() + (-upper).relu()
    if mode == "bell":
        return lower.relu() + (-upper).relu()
    if mode != "target":
        raise ValueError(f"curvature mode {mode!r} is unknown: set convex, bell or target")
    if target_K is None:
        raise ValueError("curvature mode 'target' compares with a target: set target_K, or mode convex or bell")
    scale = (target_K.shape[-1] / quantiles_M.shape[-1]) ** 2
    wanted_lower, wanted_upper = _bends(_ascending(target_K.detach(), is_sorted), lower_mass, upper_mass)
    return (scale * wanted_lower - lower).relu() + (scale * wanted_upper - upper).relu()


def consistency_loss(quantiles_HM: Tensor) -> Tensor:
    """Squared difference between two heads, [...]: the mean over pairs of heads and over quantiles; 0 for one head.

    quantiles_HM  [..., H, M] float

    Found as twice the unbiased variance across heads.
    """
    if takes_kernels(quantiles_HM):
        return _Consistency.apply(quantiles_HM)
    heads = quantiles_HM.shape[-2]
    centred_HM = quantiles_HM - quantiles_HM.mean(-2, keepdim=True)
    return 2 * centred_HM.square().sum(-2).mean(-1) / max(heads - 1, 1)


class _Consistency(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_HM: Tensor) -> Tensor:
        from noisyrl.ops import kernels  # .2 s, which runs that never come here need not pay

        x_RHM = x_HM.reshape(-1, *x_HM.shape[-2:]).contiguous()
        loss_R, slope_RHM = x_RHM.new_empty(len(x_RHM)), torch.empty_like(x_RHM)
        each_row(kernels.consistency, len(x_RHM), x_RHM, loss_R, slope_RHM)
        ctx.save_for_backward(slope_RHM.view(x_HM.shape))
        return loss_R.view(x_HM.shape[:-2])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (slope_HM,) = ctx.saved_tensors
        return slope_HM * grad[..., None, None]


def _check_mass(mass: float, most: float) -> None:
    if not 0 < mass <= most:
        raise ValueError(f"tail mass is {mass}: set a share above 0 and at most {most:g}")


def _ascending(x_M: Tensor, is_sorted: bool) -> Tensor:
    return x_M if is_sorted else ascending(x_M)


def _tail(sorted_M: Tensor, mass: float, upper: bool) -> tuple[Tensor, Tensor]:
    """The atoms of a tail and their weights; those of weight 0 are left out, nine in ten where the mass is .1."""
    count = sorted_M.shape[-1]
    atoms = min(math.ceil(mass * count), count)
    part = slice(count - atoms, count) if upper else slice(atoms)
    weight_M = tail_weights(count, mass, upper=upper, dtype=sorted_M.dtype, device=sorted_M.device)
    return sorted_M[..., part], weight_M[part]


def _tail_mean(sorted_M: Tensor, mass: float, upper: bool) -> Tensor:
    tail_A, weight_A = _tail(sorted_M, mass, upper)
    return (weight_A * tail_A).sum(-1)


def _tail_variance(sorted_M: Tensor, mass: float, upper: bool) -> Tensor:
    tail_A, weight_A = _tail(sorted_M, mass, upper)
    mean = (weight_A * tail_A).sum(-1, keepdim=True)
    return (weight_A * (tail_A - mean).square()).sum(-1)


def _tail_error(quantiles_M: Tensor, target_K: Tensor, mass: float, upper: bool, is_sorted: bool) -> Tensor:
    found = _tail_mean(_ascending(quantiles_M, is_sorted), mass, upper)
    return (found - _tail_mean(_ascending(target_K.detach(), is_sorted), mass, upper)).square()


def _bends(sorted_M: Tensor, lower_mass: float, upper_mass: float) -> tuple[Tensor, Tensor]:
    """Mean second difference of the lower and the upper tail, [...] each; 0 with fewer than three atoms."""
    count = sorted_M.shape[-1]
    if count < 3:
        zero = sorted_M[..., :0].sum(-1)
        return zero, zero
    lower, upper = (max(2, round(mass * count)) for mass in (lower_mass, upper_mass))
    return _bend(sorted_M[..., : lower + 1]), _bend(sorted_M[..., count - upper - 1 :])


def _bend(stretch_A: Tensor) -> Tensor:
    return stretch_A.diff(n=2).mean(-1)
