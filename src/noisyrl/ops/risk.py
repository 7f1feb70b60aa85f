"""Terms that shape a predicted distribution: tails, shift, curvature and agreement of heads.

Every term is one number per leading index (token), at least 0, and the same for any order of the quantiles: they are
sorted inside, or not again with `is_sorted=True`. No gradient reaches a target. M and K may differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from noisyrl.processor import each_row, takes_kernels


def ascending(x_M: Tensor) -> Tensor:
    """x in ascending order along its last axis, differentiable; x itself where it is in order already."""
    if not x_M.numel() or not falls(x_M.detach()).any():
        return x_M
    if takes_kernels(x_M) and not x_M.requires_grad:
        return torch.from_numpy(np.sort(x_M.numpy(), axis=-1))  # 10 to 20 times as fast on short rows
    return x_M.sort(-1).values


def falls(x_M: Tensor) -> Tensor:
    """[...] int64, how many of M - 1 steps lead neither upwards nor on, those from and to NaN among them; M > 0."""
    if not takes_kernels(x_M):
        return (x_M[..., 1:] >= x_M[..., :-1]).logical_not_().sum(-1)
    from noisyrl.ops import kernels  # .2 s, which runs that never come here need not pay

    falls_R = torch.empty(x_M.shape[:-1].numel(), dtype=torch.int64)
    each_row(kernels.falls, len(falls_R), x_M.reshape(len(falls_R), x_M.shape[-1]), falls_R)
    return falls_R.view(x_M.shape[:-1])


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


class Tail(NamedTuple):
    """What losses read of one tail of a distribution, [...] each; zeros for a tail of no mass."""

    mean: Tensor
    variance: Tensor  # of the population: that of one atom is 0
    bend: Tensor  # mean second difference over max(1, k - 1) places, k = max(2, round(mass * M)) < M; 0 for M < 3


class Tails(NamedTuple):
    """Both tails of a distribution."""

    lower: Tail
    upper: Tail


def tails(
    quantiles_M: Tensor,
    lower_mass: float,
    upper_mass: float,
    *,
    is_sorted: bool = False,
    of_N: Tensor | None = None,
) -> Tails:
    """Both tails of distributions [..., M] of atoms of equal mass, differentiable.

    masses     shares of the tails, in [0, 1]; 0 = that tail is not asked for
    is_sorted  they are ascending already
    of_N       [N] int64: quantiles_M[of_N] is meant, each worked on once
    ValueError: a mass outside [0, 1].
    """
    sorted_M = quantiles_M if is_sorted else ascending(quantiles_M)
    count = sorted_M.shape[-1]
    masses = lower_mass, upper_mass
    weights = (torch.tensor(_weights(count, mass, side), dtype=torch.float64) for side, mass in enumerate(masses))
    spans = (min(max(2, round(mass * count)), count - 1) if mass and count > 2 else 0 for mass in masses)
    found_23 = _Tails.apply(sorted_M, *weights, *spans)
    found_23 = found_23 if of_N is None else found_23.index_select(0, of_N)
    return Tails(*(Tail(*side_3.unbind(dim=-1)) for side_3 in found_23.unbind(dim=-2)))


@cache
def _weights(count: int, mass: float, upper: int) -> list[float]:
    """`tail_weights` above 0; numbers, since a tensor kept from one call may be of a kind that another cannot take."""
    weight_M = tail_weights(count, mass, upper=bool(upper), dtype=torch.float64) if mass else torch.zeros(0)
    return weight_M[weight_M > 0].tolist()


def tail_error(found: Tail, goal: Tail) -> Tensor:
    """Squared error of a tail's mean, [...]."""
    return (found.mean - goal.mean.detach()).square()


def shape_error(found: Tails, goal: Tails) -> Tensor:
    """Variance of the lower tail above the goal's, plus variance of the upper tail below the goal's, [...]."""
    excess = found.lower.variance - goal.lower.variance.detach()
    lack = goal.upper.variance.detach() - found.upper.variance
    return excess.relu() + lack.relu()


def bend_error(found: Tails, mode: str, goal: Tails | None = None, scale: float = 1.0) -> Tensor:
    """Wrong bend of the tails, [...]; modes as in `curvature_loss`. scale: what the goal's bend is multiplied by."""
    lower, upper = found.lower.bend, found.upper.bend
    if mode == "convex":
        return (-lower).relu() + (-upper).relu()
    if mode == "bell":
        return lower.relu() + (-upper).relu()
    if mode != "target":
        raise ValueError(f"curvature mode {mode!r} is unknown: set convex, bell or target")
    if goal is None:
        raise ValueError("curvature mode 'target' compares with a target: set target_K, or mode convex or bell")
    return (scale * goal.lower.bend.detach() - lower).relu() + (scale * goal.upper.bend.detach() - upper).relu()


def cvar_loss(quantiles_M: Tensor, target_K: Tensor, *, mass: float, is_sorted: bool = False) -> Tensor:
    """Squared error of the mean of the lower tail, [...].

    quantiles_M  [..., M] float
    target_K     [..., K] float   leading axes broadcast
    mass         share of the tail, in (0, 1]; 1 compares the means
    is_sorted    both are ascending already

    The CVaR of Rockafellar and Uryasev 2000, for atoms of equal mass. ValueError: mass outside (0, 1].
    """
    _check_mass(mass, 1.0)
    found, goal = (tails(x_M, mass, 0.0, is_sorted=is_sorted) for x_M in (quantiles_M, target_K))
    return tail_error(found.lower, goal.lower)


def gain_loss(quantiles_M: Tensor, target_K: Tensor, *, mass: float, is_sorted: bool = False) -> Tensor:
    """Squared error of the mean of the upper tail, [...]. Arguments as in `cvar_loss`."""
    _check_mass(mass, 1.0)
    found, goal = (tails(x_M, 0.0, mass, is_sorted=is_sorted) for x_M in (quantiles_M, target_K))
    return tail_error(found.upper, goal.upper)


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
    return shape_error(*(tails(x_M, lower_mass, upper_mass, is_sorted=is_sorted) for x_M in (quantiles_M, target_K)))


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

    The bend (`Tail.bend`) shrinks as 1 / M^2, so a target of K atoms is rescaled by (K / M)^2.
    ValueError: a mass outside (0, .5], another mode, or mode target without a target.
    """
    for mass in (lower_mass, upper_mass):
        _check_mass(mass, 0.5)
    masses = lower_mass, upper_mass
    goal = None if target_K is None else tails(target_K, *masses, is_sorted=is_sorted)
    scale = 1.0 if target_K is None else (target_K.shape[-1] / quantiles_M.shape[-1]) ** 2
    return bend_error(tails(quantiles_M, *masses, is_sorted=is_sorted), mode, goal, scale)


def consistency_loss(quantiles_HM: Tensor) -> Tensor:
    """Squared difference between two heads, [...]: the mean over pairs of heads and over quantiles; 0 for one head.

    quantiles_HM  [..., H, M] float

    Found as twice the unbiased variance across heads.
    """
    return with_consistency_loss(quantiles_HM)[1]


def with_consistency_loss(quantiles_HM: Tensor) -> tuple[Tensor, Tensor]:
    """The same quantiles, to be used from here on, and their `consistency_loss`.

    What follows sends its gradient back through here, where it is added in the same pass over memory.
    """
    if takes_kernels(quantiles_HM):
        return _Consistency.apply(quantiles_HM)
    heads = quantiles_HM.shape[-2]
    centred_HM = quantiles_HM - quantiles_HM.mean(-2, keepdim=True)
    return quantiles_HM, 2 * centred_HM.square().sum(-2).mean(-1) / max(heads - 1, 1)


class _Consistency(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_HM: Tensor) -> tuple[Tensor, Tensor]:
        from noisyrl.ops import kernels

        x_RHM = x_HM.reshape(-1, *x_HM.shape[-2:]).contiguous()
        loss_R = x_RHM.new_empty(len(x_RHM))
        each_row(kernels.consistency, len(x_RHM), x_RHM, loss_R)
        ctx.save_for_backward(x_RHM)
        return x_HM, loss_R.view(x_HM.shape[:-2])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_HM: Tensor, grad: Tensor) -> Tensor:
        from noisyrl.ops import kernels

        (x_RHM,) = ctx.saved_tensors
        out_RHM = torch.empty_like(x_RHM)
        arrays = x_RHM, grad_HM.reshape(x_RHM.shape).contiguous(), grad.reshape(-1), out_RHM
        each_row(kernels.consistency_back, len(x_RHM), *arrays)
        return out_RHM.view(grad_HM.shape)


class _Tails(torch.autograd.Function):
    """Mean, variance and bend of the lower and the upper tail, [..., 2, 3], of sorted atoms [..., M].

    weights [A] float64 of the atoms of each tail, of which there may be none; spans k of the bends, 0 = there is none
    """

    @staticmethod
    def forward(
        ctx: Any, sorted_M: Tensor, lower_A: Tensor, upper_A: Tensor, lower_span: int, upper_span: int
    ) -> Tensor:
        sorted_RM = sorted_M.reshape(-1, sorted_M.shape[-1]).contiguous()
        ctx.arguments = lower_A, upper_A, lower_span, upper_span
        if takes_kernels(sorted_RM):
            from noisyrl.ops import kernels

            found_R23 = sorted_RM.new_empty(len(sorted_RM), 2, 3)
            each_row(kernels.tails, len(sorted_RM), sorted_RM, *ctx.arguments, found_R23)
        else:
            sides = [_side(*part) for part in _sides(sorted_RM, *ctx.arguments)]
            found_R23 = torch.stack([torch.stack(side, dim=-1) for side in sides], dim=-2)
        ctx.save_for_backward(sorted_RM, found_R23)
        return found_R23.view(*sorted_M.shape[:-1], 2, 3)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_23: Tensor) -> tuple[Tensor | None, ...]:
        sorted_RM, found_R23 = ctx.saved_tensors
        grad_R23 = grad_23.reshape(-1, 2, 3).contiguous()
        if takes_kernels(sorted_RM):
            from noisyrl.ops import kernels

            out_RM = torch.empty_like(sorted_RM)
            each_row(kernels.tails_back, len(out_RM), sorted_RM, *ctx.arguments, found_R23, grad_R23, out_RM)
        else:
            out_RM = torch.zeros_like(sorted_RM)
            parts = _sides(sorted_RM, *ctx.arguments), _sides(out_RM, *ctx.arguments)
            for side, ((tail_RA, weight_A, stretch_RA), (out_RA, _, bent_RA)) in enumerate(zip(*parts, strict=True)):
                mean_R1, _, _ = found_R23[:, side].split(1, dim=-1)
                of_mean_R1, of_variance_R1, of_bend_R1 = grad_R23[:, side].split(1, dim=-1)
                out_RA += weight_A * (of_mean_R1 + 2 * of_variance_R1 * (tail_RA - mean_R1))
                share_R = of_bend_R1.squeeze(-1) / max(stretch_RA.shape[-1] - 2, 1)
                for place, sign in ((0, 1), (1, -1), (-2, -1), (-1, 1)) if stretch_RA.shape[-1] else ():
                    bent_RA[:, place] += sign * share_R
        return out_RM.view(*grad_23.shape[:-2], out_RM.shape[-1]), None, None, None, None


def _sides(
    x_RM: Tensor, lower_A: Tensor, upper_A: Tensor, lower_span: int, upper_span: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Atoms of each tail, their weights, and the stretch whose bend is asked for, which has none for span 0."""
    count = x_RM.shape[-1]
    lower, upper = (span + 1 if span else 0 for span in (lower_span, upper_span))
    yield x_RM[:, : len(lower_A)], lower_A.to(x_RM), x_RM[:, :lower]
    yield x_RM[:, count - len(upper_A) :], upper_A.to(x_RM), x_RM[:, count - upper :]


def _side(tail_RA: Tensor, weight_A: Tensor, stretch_RA: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mean_R = tail_RA @ weight_A
    variance_R = (tail_RA - mean_R[:, None]).square() @ weight_A
    bend_R = stretch_RA.diff(n=2).mean(-1) if stretch_RA.shape[-1] else torch.zeros_like(mean_R)
    return mean_R, variance_R, bend_R


def _check_mass(mass: float, most: float) -> None:
    if not 0 < mass <= most:
        raise ValueError(f"tail mass is {mass}: set a share above 0 and at most {most:g}")
