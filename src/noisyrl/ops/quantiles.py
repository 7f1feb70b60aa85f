"""Quantile regression in O((M + K) log K) per token."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from noisyrl.ops.risk import ascending, falls
from noisyrl.processor import each_row, takes_kernels

_BLOCK = 2**22  # numbers worked on at once by tensor operations, which make a score of temporaries


def midpoints(count: int, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Tensor:
    """Levels (2j - 1) / (2M) of M quantiles, [M]: where M atoms approximate a law best in W1.

    Dabney et al. 2018 (arXiv:1710.10044) lemma 2. The grid j / M overstates the mean; its last level never moves down.
    """
    return (torch.arange(count, dtype=dtype or torch.get_default_dtype(), device=device) + 0.5) / count


def quantile_huber(
    quantiles_M: Tensor,
    target_K: Tensor,
    tau_M: Tensor,
    *,
    kappa: float,
    divide_by_kappa: bool,
    weight_M: Tensor | None = None,
) -> Tensor:
    """Quantile regression loss, the mean over all pairs of a quantile and a target atom.

    quantiles_M      [..., M] float   in any order
    target_K         [..., K] float   in any order; leading axes broadcast, each distinct row is sorted once
    tau_M            [M] float        level of each quantile
    kappa            half-width of the quadratic zone, in units of value: 0 = pinball (then divide), math.inf = squared
    divide_by_kappa  True: slopes stay near 1 whatever kappa (IQN); False: they shrink with it (QR-DQN)
    weight_M         [M] float, or what broadcasts with [..., M]: weight of each quantile; None = 1
    returns          [...] float      mean_ik weight_i |tau_i - 1[u < 0]| Hub(u), u = target_k - quantile_i

    Dabney et al. 2018 (arXiv:1710.10044) eq. 10, with the mean in place of their sum over i. No gradient to the target.
    ValueError: see `quantile_huber_each`.
    """
    weight_M = torch.ones_like(tau_M) if weight_M is None else weight_M
    if weight_M.shape == tau_M.shape and not weight_M.requires_grad:
        arguments = quantiles_M, target_K, tau_M, weight_M[None]
        return quantile_huber_terms(*arguments, kappa=kappa, divide_by_kappa=divide_by_kappa).squeeze(-1)
    loss_M = quantile_huber_each(quantiles_M, target_K, tau_M, kappa=kappa, divide_by_kappa=divide_by_kappa)
    _broadcast(loss_M.shape, weight_M.shape, "the loss per quantile and weight_M")
    return (loss_M * weight_M).mean(-1)


def quantile_huber_terms(  # noqa: PLR0913 - `quantile_huber`, and which meets which
    quantiles_M: Tensor,
    target_K: Tensor,
    tau_M: Tensor,
    weight_TM: Tensor,
    *,
    kappa: float,
    divide_by_kappa: bool,
    of_N: Tensor | None = None,
) -> Tensor:
    """`quantile_huber` under T weightings at once, [..., T]: no loss of a single quantile is kept.

    weight_TM  [T, M] float, gets no gradient; other arguments as in `quantile_huber`
    of_N       [N] int64: quantiles_M[of_N] is meant, without a copy of it; where many targets meet the same quantiles
    ValueError: see `quantile_huber_each`; weights that do not match.
    """
    if weight_TM.shape[1:] != tau_M.shape:
        raise ValueError(f"weights {tuple(weight_TM.shape)} for {len(tau_M)} quantiles: give one for each")
    rows = _Rows.of(quantiles_M, target_K, tau_M, kappa, divide_by_kappa, of_N)
    weight_TM = weight_TM.detach().to(quantiles_M)
    return rows.back(_Terms.apply(*rows[:4], weight_TM, kappa, divide_by_kappa), len(weight_TM))


def quantile_huber_each(
    quantiles_M: Tensor, target_K: Tensor, tau_M: Tensor, *, kappa: float, divide_by_kappa: bool
) -> Tensor:
    """Loss of each quantile, [..., M]: the mean over target atoms. Arguments as in `quantile_huber`.

    ValueError: a kappa without meaning, no atoms, levels that do not match, leading axes that do not broadcast.
    """
    rows = _Rows.of(quantiles_M, target_K, tau_M, kappa, divide_by_kappa)
    alone_11 = quantiles_M.new_ones(1, 1)  # each quantile is a stretch of its own
    return rows.back(_Terms.apply(*rows[:4], alone_11, kappa, divide_by_kappa), len(tau_M))


class _Rows(NamedTuple):
    """Each row holds all quantiles that meet the same atoms: S stretches of M, where the target is repeated S times."""

    quantiles_UQ: Tensor
    of_R: Tensor  # int64, which quantiles each row of the target meets
    target_RK: Tensor  # ascending
    tau_Q: Tensor  # float64
    lead: tuple[int, ...]  # axes of the result but the last
    order: list[int]  # in which the rows have these axes

    @classmethod
    def of(  # noqa: PLR0913 - what the loss is given
        cls,
        quantiles_M: Tensor,
        target_K: Tensor,
        tau_M: Tensor,
        kappa: float,
        divide_by_kappa: bool,
        of_N: Tensor | None = None,
    ) -> _Rows:
        _check_kappa(kappa, divide_by_kappa)
        count, atoms = quantiles_M.shape[-1], target_K.shape[-1]
        if not count or not atoms or tau_M.shape != (count,):
            raise ValueError(
                f"{count} quantiles, {atoms} target atoms, levels of shape {tuple(tau_M.shape)}:"
                " give at least one quantile, one atom, and one level for each quantile"
            )
        own = quantiles_M.shape[:-1] if of_N is None else (len(of_N), *quantiles_M.shape[1:-1])
        lead = _broadcast(own, target_K.shape[:-1], "leading axes of quantiles and target")
        target_K = target_K.detach().reshape((1,) * (len(lead) + 1 - target_K.ndim) + target_K.shape)
        # Axes along which the target is repeated go last.
        order = sorted(range(len(lead)), key=lambda axis: target_K.shape[axis] == 1)
        rows = math.prod(target_K.shape[:-1])
        repeats = math.prod(size for size, own in zip(lead, target_K.shape, strict=False) if own == 1)
        if of_N is None or lead != own or rows != len(of_N):  # the target has other axes than that of of_N
            quantiles_M = quantiles_M if of_N is None else quantiles_M[of_N]
            quantiles_M = quantiles_M.expand(*lead, count).permute(*order, len(lead)).reshape(rows, repeats, count)
            of_N = torch.arange(rows, device=quantiles_M.device)
        return cls(
            quantiles_M.flatten(1).contiguous(),
            of_N,
            ascending(target_K.reshape(rows, atoms)).contiguous(),
            tau_M.double().repeat(repeats),
            lead,
            order,
        )

    def back(self, found: Tensor, last: int) -> Tensor:
        """What was found for the rows, with the axes of the result and a last one of any size."""
        moved_X = found.reshape(*(self.lead[axis] for axis in self.order), last)
        return moved_X.permute(*sorted(range(len(self.order)), key=self.order.__getitem__), len(self.order))


class _Terms(torch.autograd.Function):
    """Weighted means [R, S, T], over stretches of M, of the losses of quantiles [U, S M] against target [R, K].

    of_R says which quantiles each row of the target meets. Forward finds the slope of each loss too, so that backward
    only multiplies and adds.
    """

    @staticmethod
    def forward(  # noqa: PLR0913
        ctx: Any,
        quantiles_UQ: Tensor,
        of_R: Tensor,
        target_RK: Tensor,
        tau_Q: Tensor,
        weight_TM: Tensor,
        kappa: float,
        divide_by_kappa: bool,
    ) -> Tensor:
        arguments = target_RK, tau_Q, *_zones(kappa, divide_by_kappa)
        (terms, count), rows = weight_TM.shape, len(of_R)
        stretches = len(tau_Q) // count
        if takes_kernels(quantiles_UQ, target_RK):
            from noisyrl.ops import kernels  # .2 s, which runs that never come here need not pay

            slope_RQ = quantiles_UQ.new_empty(rows, len(tau_Q))
            loss_RST = quantiles_UQ.new_empty(rows, stretches, terms)
            inputs = quantiles_UQ, of_R, *_orders(quantiles_UQ), *arguments, weight_TM
            each_row(kernels.quantile_huber, rows, *inputs, loss_RST, slope_RQ)
        else:
            loss_RQ, slope_RQ = _in_blocks(quantiles_UQ[of_R], *arguments)
            loss_RST = loss_RQ.view(rows, stretches, count) @ weight_TM.T / count
        ctx.save_for_backward(slope_RQ, weight_TM, of_R)
        ctx.count = len(quantiles_UQ)
        return loss_RST

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RST: Tensor) -> tuple[Tensor | None, ...]:
        slope_RQ, weight_TM, of_R = ctx.saved_tensors
        out_UQ = slope_RQ.new_zeros(ctx.count, slope_RQ.shape[1])
        if takes_kernels(slope_RQ):
            from noisyrl.ops import kernels

            sorted_R, order_R = of_R.sort(stable=True)
            first_U = torch.searchsorted(sorted_R, torch.arange(len(out_UQ) + 1))
            arrays = grad_RST.contiguous(), weight_TM, slope_RQ, out_UQ
            each_row(kernels.quantile_huber_back, len(out_UQ), first_U, order_R, *arrays)
        else:
            out_UQ.index_add_(0, of_R, slope_RQ * (grad_RST @ weight_TM / weight_TM.shape[1]).flatten(1))
        return out_UQ, None, None, None, None, None, None


def _orders(x_UQ: Tensor) -> tuple[Tensor, Tensor]:
    """Ascending orders [V, Q] of the rows that are far from one, and the number [U] of each row's; -1 = it has none."""
    falls_U = falls(x_UQ)
    far_U = falls_U > x_UQ.shape[1] // 32  # else in order, up to falls from head to head
    which_U = torch.where(far_U, far_U.cumsum(0) - 1, -1)
    return torch.from_numpy(np.argsort(x_UQ[far_U].numpy(), axis=-1)), which_U


def _zones(kappa: float, divide_by_kappa: bool) -> tuple[float, float, float]:
    """kappa, and what the linear and the quadratic zone of the loss are multiplied by."""
    # So that 0 times an infinite kappa, or over a vanishing one, is still 0. No atom is as far as the largest.
    kappa = min(kappa, 1e300) if kappa > 1e-300 else 0.0
    far, near = (1.0, 1 / (kappa or 1.0)) if divide_by_kappa else (kappa, 1.0)
    return kappa, far, near


def _in_blocks(
    quantiles_RQ: Tensor, target_RK: Tensor, tau_Q: Tensor, kappa: float, far: float, near: float
) -> tuple[Tensor, Tensor]:
    """`_loss_and_slope` by tensor operations, both [R, Q]."""
    loss_RQ, slope_RQ = torch.empty_like(quantiles_RQ), torch.empty_like(quantiles_RQ)
    rows = max(1, _BLOCK // (quantiles_RQ.shape[1] + target_RK.shape[1]))
    blocks = (x.split(rows) for x in (quantiles_RQ, target_RK, loss_RQ, slope_RQ))
    for quantiles, target, loss, slope in zip(*blocks, strict=True):
        for start in range(0, tau_Q.numel(), _BLOCK):
            part = slice(start, start + _BLOCK)
            loss[:, part], slope[:, part] = _loss_and_slope(quantiles[:, part], target, tau_Q[part], kappa, far, near)
    return loss_RQ, slope_RQ


def _loss_and_slope(
    quantiles_RQ: Tensor, target_RK: Tensor, tau_Q: Tensor, kappa: float, far: float, near: float
) -> tuple[Tensor, Tensor]:
    """Mean loss over the sorted atoms y and its derivative by the quantile x, both [R, Q] float64.

    far, near  what the linear and the quadratic zone of the loss are multiplied by

    Edges a, b, c at x - kappa, x, x + kappa part a sorted row into a far and a near zone on either side of x. How many
    atoms precede each edge, with prefix sums of y and y^2, gives sum(x - y) and sum((x - y)^2) over every zone.
    """
    atoms = target_RK.shape[1]
    y_RK = target_RK.double()
    middle_R1 = y_RK[:, atoms // 2, None].clone()
    y_RK, x_RQ = y_RK - middle_R1, quantiles_RQ.double() - middle_R1
    sum_RN, square_RN = _prefix_sums(y_RK), _prefix_sums(y_RK.square())

    def before(edge_RQ: Tensor, or_at: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of the atoms before (or at) an edge: how many; and up to constants sum(y), sum(x - y), sum((x - y)^2)."""
        index_RQ = torch.searchsorted(y_RK, edge_RQ, right=or_at)
        count, sum_y = index_RQ.double(), sum_RN.gather(-1, index_RQ)
        first = count * x_RQ - sum_y
        return count, sum_y, first, square_RN.gather(-1, index_RQ) + (first - sum_y) * x_RQ

    def near_zone(count: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and slope, bounded as distances in [0, kappa] are: a tiny kappa would magnify rounding errors."""
        slope = first.clamp(min=0).minimum(count * kappa)
        return near / 2 * second.clamp(min=0).minimum(slope * kappa), near * slope

    count_a, sum_a, first_a, second_a = before(x_RQ - kappa)
    count_b, _, first_b, second_b = before(x_RQ)
    count_c, sum_c, first_c, second_c = before(x_RQ + kappa, or_at=True)
    loss_low, slope_low = near_zone(count_b - count_a, first_b - first_a, second_b - second_a)
    loss_high, slope_high = near_zone(count_c - count_b, first_b - first_c, second_c - second_b)
    loss_low = loss_low + far * (count_a * (x_RQ - kappa / 2) + sum_RN[:, :1] - sum_a)
    loss_high = loss_high + far * (sum_RN[:, -1:] - sum_c - (atoms - count_c) * (x_RQ + kappa / 2))
    slope_low, slope_high = slope_low + far * count_a, -slope_high - far * (atoms - count_c)
    # lerp weighs what lies below x by 1 - tau and what lies above by tau.
    return loss_low.lerp(loss_high, tau_Q).clamp(min=0) / atoms, slope_low.lerp(slope_high, tau_Q) / atoms


def _prefix_sums(x_RK: Tensor) -> Tensor:
    """[R, K + 1]: their differences are sums of neighbours. Counted from the middle, so an outlier stays at its end."""
    middle = x_RK.shape[1] // 2
    down = x_RK[:, :middle].flip(-1).cumsum(-1).flip(-1).neg_()
    return torch.cat([down, x_RK.new_zeros(len(x_RK), 1), x_RK[:, middle:].cumsum(-1)], -1)


def _check_kappa(kappa: float, divide_by_kappa: bool) -> None:
    if not kappa >= 0:
        raise ValueError(f"kappa is {kappa}: set a number >= 0, or math.inf")
    if kappa == 0 and not divide_by_kappa:
        raise ValueError("kappa 0 makes the loss 0 everywhere: set divide_by_kappa=True (pinball) or a kappa above 0")
    if math.isinf(kappa) and divide_by_kappa:
        raise ValueError("an infinite kappa cannot divide: set divide_by_kappa=False (squared) or a finite kappa")


def _broadcast(one: tuple[int, ...], other: tuple[int, ...], what: str) -> tuple[int, ...]:
    try:
        return tuple(torch.broadcast_shapes(one, other))
    except RuntimeError:
        raise ValueError(
            f"{what} have shapes {tuple(one)} and {tuple(other)}, which do not broadcast:"
            " make each pair of sizes equal, or one of them 1 (target [B, T, 1, K] for quantiles [B, T, H, M])"
        ) from None
