"""Loops over quantiles that tensor operations write as many passes over memory, compiled for a processor.

Each has a twin of tensor operations where it is called, which other devices take; tests hold one against the other.
Every row is worked on alone, so threads (`processor.each_row`) change no bit. numba compiles a kernel when a type first
meets it, which takes a second or two, and keeps it on disk. Importing this module takes .2 s: modules that every run
imports do so where they call it.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.floating]


@njit(cache=True, nogil=True, error_model="numpy")
def quantile_huber(  # noqa: PLR0913 - a kernel takes arrays one by one
    begin: int,
    end: int,
    x_RQ: Floats,
    y_RK: Floats,
    tau_Q: Floats,
    kappa: float,
    far: float,
    near: float,
    loss_RQ: Floats,
    slope_RQ: Floats,
) -> None:
    """Mean loss over the sorted atoms y, and its derivative by the quantile x, as `quantiles._loss_and_slope`."""
    quantiles, atoms = x_RQ.shape[1], y_RK.shape[1]
    sum_N, square_N = np.zeros(atoms + 1), np.zeros(atoms + 1)
    middle = atoms // 2
    for row in range(begin, end):
        y_K, x_Q = y_RK[row], x_RQ[row]
        # Counted from the middle, so that an outlier stays at its end.
        for k in range(middle, atoms):
            y = y_K[k] - np.float64(y_K[middle])
            sum_N[k + 1], square_N[k + 1] = sum_N[k] + y, square_N[k] + y * y
        for k in range(middle - 1, -1, -1):
            y = y_K[k] - np.float64(y_K[middle])
            sum_N[k], square_N[k] = sum_N[k + 1] - y, square_N[k + 1] - y * y
        falls = 0
        for q in range(1, quantiles):
            falls += x_Q[q] < x_Q[q - 1]
        if falls <= quantiles // 32:  # in order, up to falls from head to head
            _huber_of_row(x_Q, y_K, tau_Q, sum_N, square_N, kappa, far, near, loss_RQ[row], slope_RQ[row])
        else:
            order_Q = np.argsort(x_Q)
            loss_Q, slope_Q = np.empty_like(x_Q), np.empty_like(x_Q)
            _huber_of_row(x_Q[order_Q], y_K, tau_Q[order_Q], sum_N, square_N, kappa, far, near, loss_Q, slope_Q)
            loss_RQ[row][order_Q], slope_RQ[row][order_Q] = loss_Q, slope_Q


@njit(cache=True, nogil=True, error_model="numpy")
def _huber_of_row(  # noqa: PLR0913
    x_Q: Floats,
    y_K: Floats,
    tau_Q: Floats,
    sum_N: Floats,
    square_N: Floats,
    kappa: float,
    far: float,
    near: float,
    loss_Q: Floats,
    slope_Q: Floats,
) -> None:
    """Each quantile finds its edges a few steps past those of the one before it; where it falls, it begins anew."""
    atoms = len(y_K)
    middle = np.float64(y_K[atoms // 2])
    a = b = c = 0
    for q in range(len(x_Q)):
        if q and x_Q[q] < x_Q[q - 1]:
            a = b = c = 0
        while a < atoms and y_K[a] < x_Q[q] - kappa:
            a += 1
        while b < atoms and y_K[b] < x_Q[q]:
            b += 1
        while c < atoms and y_K[c] <= x_Q[q] + kappa:
            c += 1
        x = x_Q[q] - middle
        low_sum, high_sum = sum_N[b] - sum_N[a], sum_N[c] - sum_N[b]
        low_slope, high_slope = (b - a) * x - low_sum, high_sum - (c - b) * x
        low = (low_slope - low_sum) * x + square_N[b] - square_N[a]
        high = square_N[c] - square_N[b] - (high_slope + high_sum) * x
        # Bounded as distances in [0, kappa] are: a tiny kappa would magnify rounding errors.
        low_slope = min(max(low_slope, 0.0), (b - a) * kappa)
        high_slope = min(max(high_slope, 0.0), (c - b) * kappa)
        low, high = min(max(low, 0.0), low_slope * kappa), min(max(high, 0.0), high_slope * kappa)
        low = near / 2 * low + far * (a * (x - kappa / 2) + sum_N[0] - sum_N[a])
        high = near / 2 * high + far * (sum_N[atoms] - sum_N[c] - (atoms - c) * (x + kappa / 2))
        low_slope, high_slope = near * low_slope + far * a, near * high_slope + far * (atoms - c)
        loss_Q[q] = max((low + tau_Q[q] * (high - low)) / atoms, 0.0)
        slope_Q[q] = (low_slope - tau_Q[q] * (low_slope + high_slope)) / atoms


@njit(cache=True, nogil=True, error_model="numpy")
def mixture_target(  # noqa: PLR0913
    begin: int,
    end: int,
    reward_BT: Floats,
    sorted_BTM: Floats,
    mask_BT: NDArray[np.bool_],
    gamma: float,
    lam: float,
    out_BTM: Floats,
) -> None:
    """`advantages.mixture_target` of quantiles in order; what lies outside the mask is left as it is.

    Atoms of two laws, each of the next quantiles 1 - lam of a bin long and each of the next target lam, are laid end to
    end in order. They fill M bins, whose averages are the new target.
    """
    length, count = sorted_BTM.shape[1], sorted_BTM.shape[2]
    first_M, second_M = np.empty(count), np.empty(count)
    target_M = np.empty(count)
    for row in range(begin, end):
        first_M[:] = 0.0
        second_M[:] = 0.0
        for t in range(length - 1, -1, -1):
            if not mask_BT[row, t]:
                continue
            i = j = 0
            atom = size = 0.0  # of the atom at hand, what is left of it
            for m in range(count):
                space, total = 1.0, 0.0
                while size < space and i + j < 2 * count:
                    total += size * atom
                    space -= size
                    if j == count or (i < count and first_M[i] <= second_M[j]):
                        atom, size, i = first_M[i], 1.0 - lam, i + 1
                    else:
                        atom, size, j = second_M[j], lam, j + 1
                target_M[m] = total + space * atom
                size -= space
            least = -np.inf
            for m in range(count):
                atom = reward_BT[row, t] + gamma * target_M[m]
                if not atom < least:  # rounding may have swapped equal atoms; NaN stays
                    least = atom
                second_M[m] = out_BTM[row, t, m] = least
                first_M[m] = sorted_BTM[row, t, m]


@njit(cache=True, nogil=True, error_model="numpy")
def spread(begin: int, end: int, mean_R: Floats, width_R: Floats, gap_RG: Floats, out_RM: Floats) -> None:
    """Quantiles in order: mean + width * (c - average of c), c = 0 and the running sums of the gaps."""
    count = out_RM.shape[1]
    for row in range(begin, end):
        c = total = 0.0
        out_RM[row, 0] = 0.0
        for m in range(1, count):
            c += gap_RG[row, m - 1]
            total += c
            out_RM[row, m] = c
        low = mean_R[row] - width_R[row] * total / count
        for m in range(count):
            out_RM[row, m] = low + width_R[row] * out_RM[row, m]


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc"})
def spread_slope(begin: int, end: int, grad_RM: Floats, width_R: Floats, gap_RG: Floats, out_RO: Floats) -> None:
    """Gradient of `spread` by mean and width, and by the logits of which the gaps are the softmax: [R, 2 + G]."""
    count = grad_RM.shape[1]
    lift_G = np.empty(count - 1)
    for row in range(begin, end):
        share = 0.0
        for m in range(count):
            share += grad_RM[row, m]
        share /= count
        # A gap lifts the quantiles above it by `width` and, with their average, lowers all of them: the sum over those
        # above of the gradient less its average, which is minus that over those below.
        c = lift = widen = own = 0.0
        for m in range(count - 1):
            lift -= grad_RM[row, m] - share
            c += gap_RG[row, m]
            widen += (grad_RM[row, m + 1] - share) * c
            lift_G[m] = lift
        for m in range(count - 1):
            own += lift_G[m] * gap_RG[row, m]
        out_RO[row, 0], out_RO[row, 1] = share * count, widen
        for m in range(count - 1):
            out_RO[row, 2 + m] = width_R[row] * gap_RG[row, m] * (lift_G[m] - own)


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc"})
def consistency(begin: int, end: int, x_RHM: Floats, loss_R: Floats, slope_RHM: Floats) -> None:
    """`risk.consistency_loss` and its derivative."""
    heads, count = x_RHM.shape[1:]
    scale = 2 / (count * max(heads - 1, 1))
    mean_M = np.empty(count)
    for row in range(begin, end):
        mean_M[:] = 0.0
        for h in range(heads):
            for m in range(count):
                mean_M[m] += x_RHM[row, h, m] / heads
        total = 0.0
        for h in range(heads):
            for m in range(count):
                apart = x_RHM[row, h, m] - mean_M[m]
                total += apart * apart
                slope_RHM[row, h, m] = 2 * scale * apart
        loss_R[row] = scale * total
