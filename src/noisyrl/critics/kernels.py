"""Loops of the monotone quantile head, compiled for a processor; `quantile.spread` has tensor twins of them."""

from __future__ import annotations

import numpy as np
from numba import njit

from noisyrl.ops.kernels import Floats


@njit(cache=True, nogil=True, error_model="numpy")
def below_largest(begin: int, end: int, raw_RHO: Floats, out_RHG: Floats) -> None:
    """The logits of the gaps, which follow two other numbers, less the largest of them."""
    for row in range(begin, end):
        for h in range(raw_RHO.shape[1]):
            logit_G = raw_RHO[row, h, 2:]
            largest = raw_RHO.dtype.type(-np.inf)
            for m in range(len(logit_G)):
                largest = logit_G[m] if logit_G[m] > largest else largest
            for m in range(len(logit_G)):
                out_RHG[row, h, m] = logit_G[m] - largest


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc"})
def spread(  # noqa: PLR0913
    begin: int,
    end: int,
    mean_RH: Floats,
    width_RH: Floats,
    gap_RHG: Floats,
    out_RHM: Floats,
    average_RM: Floats,
) -> None:
    """Quantiles in order, mean + width * (c - average of c), c = 0 and the running sums of the gaps; their average.

    Gaps may have any sum: of the softmax, only the division is left to do.
    """
    heads, count = out_RHM.shape[1:]
    part = out_RHM.dtype.type(1 / heads)
    c_M = np.zeros(count)
    for row in range(begin, end):
        average_RM[row] = 0.0
        for h in range(heads):
            _running_sums(gap_RHG[row, h], c_M[1:])
            width = width_RH[row, h] / c_M[-1] if count > 1 else 0.0
            low = mean_RH[row, h] - width * c_M.sum() / count
            for m in range(count):
                out_RHM[row, h, m] = low + width * c_M[m]
            for m in range(count):
                average_RM[row, m] += part * out_RHM[row, h, m]


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc"})
def spread_back(  # noqa: PLR0913
    begin: int,
    end: int,
    grad_RHM: Floats,
    grad_RM: Floats,
    width_RH: Floats,
    gap_RHG: Floats,
    out_RHO: Floats,
) -> None:
    """Gradient of `spread` by mean and width, and by the logits of which the gaps are the softmax: [R, H, 2 + G]."""
    heads, count = grad_RHM.shape[1:]
    grad_M, gap_G, c_G, fall_G = np.empty(count), np.empty(count - 1), np.empty(count - 1), np.empty(count - 1)
    for row in range(begin, end):
        for h in range(heads):
            total = share = 0.0
            for m in range(count - 1):
                total += gap_RHG[row, h, m]
            for m in range(count - 1):
                gap_G[m] = gap_RHG[row, h, m] / total
            for m in range(count):
                grad_M[m] = grad_RHM[row, h, m] + grad_RM[row, m] / heads
                share += grad_M[m]
            share /= count
            for m in range(count):
                grad_M[m] -= share
            # A gap lifts the quantiles above it by `width` and, with their average, lowers all of them: the sum over
            # those above of the gradient less its average, which is minus that over those below.
            _running_sums(gap_G, c_G)
            _running_sums(grad_M[:-1], fall_G)
            widen = own = 0.0
            for m in range(count - 1):
                widen += grad_M[m + 1] * c_G[m]
                own += fall_G[m] * gap_G[m]
            out_RHO[row, h, 0], out_RHO[row, h, 1] = share * count, widen
            for m in range(count - 1):
                out_RHO[row, h, 2 + m] = width_RH[row, h] * gap_G[m] * (own - fall_G[m])


@njit(cache=True, nogil=True, error_model="numpy")
def _running_sums(x_G: Floats, out_G: Floats) -> None:
    """Four at a time, since each addition waits for the one before it. Of numbers of one sign they never fall."""
    c = 0.0
    whole = len(x_G) // 4 * 4
    for m in range(0, whole, 4):
        one = np.float64(x_G[m])
        two = one + x_G[m + 1]
        four = two + (np.float64(x_G[m + 2]) + x_G[m + 3])
        out_G[m], out_G[m + 1], out_G[m + 2], out_G[m + 3] = c + one, c + two, c + (two + x_G[m + 2]), c + four
        c += four
    for m in range(whole, len(x_G)):
        c += x_G[m]
        out_G[m] = c
