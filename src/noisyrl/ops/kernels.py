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
Integers = NDArray[np.integer]


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc"})
def quantile_huber(  # noqa: PLR0913 - a kernel takes arrays one by one
    begin: int,
    end: int,
    x_UQ: Floats,
    of_R: Integers,
    order_VQ: Integers,
    which_U: Integers,
    y_RK: Floats,
    tau_Q: Floats,
    kappa: float,
    far: float,
    near: float,
    weight_TM: Floats,
    loss_RST: Floats,
    slope_RQ: Floats,
) -> None:
    """Weighted means over each of S stretches of M quantiles x of their mean losses over the sorted atoms y.

    And the derivative of each quantile's loss by the quantile, as `quantiles._loss_and_slope`. Atoms of row r meet
    the quantiles of row u = of_R[r], which are taken in the order order_VQ[which_U[u]]; as they come where it is -1.
    """
    terms, count = weight_TM.shape
    quantiles, atoms = x_UQ.shape[1], y_RK.shape[1]
    y_P, sum_N, square_N = np.empty(atoms + 1), np.zeros(atoms + 1), np.zeros(atoms + 1)
    found_CQ, loss_Q = np.empty((9, quantiles)), np.empty(quantiles)
    x_Q, sorted_tau_Q = np.empty(quantiles, x_UQ.dtype), np.empty(quantiles)
    sorted_loss_Q, sorted_slope_Q = np.empty(quantiles), np.empty(quantiles, x_UQ.dtype)
    for row in range(begin, end):
        u = of_R[row]
        v, slope_Q = which_U[u], slope_RQ[row]
        middle = np.float64(y_RK[row, atoms // 2])
        _add_up(y_RK[row], middle, y_P, sum_N, square_N)
        if v < 0:
            _search(x_UQ[u], middle, kappa, y_P, sum_N, square_N, found_CQ)
            _of_zones(tau_Q, kappa, far, near, sum_N, found_CQ, loss_Q, slope_Q)
        else:
            for q in range(quantiles):
                x_Q[q], sorted_tau_Q[q] = x_UQ[u, order_VQ[v, q]], tau_Q[order_VQ[v, q]]
            _search(x_Q, middle, kappa, y_P, sum_N, square_N, found_CQ)
            _of_zones(sorted_tau_Q, kappa, far, near, sum_N, found_CQ, sorted_loss_Q, sorted_slope_Q)
            for q in range(quantiles):
                loss_Q[order_VQ[v, q]], slope_Q[order_VQ[v, q]] = sorted_loss_Q[q], sorted_slope_Q[q]
        for s in range(loss_RST.shape[1]):
            for t in range(terms):
                total = 0.0
                for m in range(count):
                    total += weight_TM[t, m] * loss_Q[s * count + m]
                loss_RST[row, s, t] = total / count


@njit(cache=True, nogil=True, error_model="numpy")
def quantile_huber_back(  # noqa: PLR0913
    begin: int,
    end: int,
    first_U: Integers,
    order_R: Integers,
    grad_RST: Floats,
    weight_TM: Floats,
    slope_RQ: Floats,
    out_UQ: Floats,
) -> None:
    """Gradient by the quantiles from that by the weighted means, summed over the rows that meet the same quantiles.

    Those of quantiles u are order_R[first_U[u]] and what follows, up to the next.
    """
    terms, count = weight_TM.shape
    factor_M = np.empty(count, weight_TM.dtype)
    for u in range(begin, end):
        for row in order_R[first_U[u] : first_U[u + 1]]:
            for s in range(grad_RST.shape[1]):
                factor_M[:] = 0.0
                for t in range(terms):
                    grad = grad_RST[row, s, t] / weight_TM.dtype.type(count)
                    for m in range(count):
                        factor_M[m] += grad * weight_TM[t, m]
                for m in range(count):
                    out_UQ[u, s * count + m] += slope_RQ[row, s * count + m] * factor_M[m]


@njit(cache=True, nogil=True, error_model="numpy")
def _add_up(y_K: Floats, middle: float, y_P: Floats, sum_N: Floats, square_N: Floats) -> None:
    """The atoms less the middle one, and their prefix sums, counted from it so that an outlier stays at its end."""
    atoms = len(y_K)
    for k in range(atoms):
        y_P[k] = np.float64(y_K[k]) - middle
    y_P[atoms] = np.nan  # which stops every search
    for k in range(atoms // 2, atoms):
        sum_N[k + 1], square_N[k + 1] = sum_N[k] + y_P[k], square_N[k] + y_P[k] * y_P[k]
    for k in range(atoms // 2 - 1, -1, -1):
        sum_N[k], square_N[k] = sum_N[k + 1] - y_P[k], square_N[k + 1] - y_P[k] * y_P[k]


@njit(cache=True, nogil=True, error_model="numpy")
def _search(  # noqa: PLR0913
    x_Q: Floats, middle: float, kappa: float, y_P: Floats, sum_N: Floats, square_N: Floats, found_CQ: Floats
) -> None:
    """Each quantile finds its edges a few steps past those of the one before it; where it falls, it begins anew.

    Mostly 0 or 1 steps: the first is taken without a branch, which a processor would guess wrong half of the time.
    Numbers without sign, because a place below 0 would have to be looked for.
    """
    none, one = np.uint64(0), np.uint64(1)
    a = b = c = none
    last = -np.inf
    for q in range(len(x_Q)):
        x = np.float64(x_Q[q]) - middle
        if not x >= last:
            a = b = c = none
        last, low, high = x, x - kappa, x + kappa
        a += np.uint64(y_P[a] < low)
        b += np.uint64(y_P[b] < x)
        c += np.uint64(y_P[c] <= high)
        while y_P[a] < low:
            a += one
        while y_P[b] < x:
            b += one
        while y_P[c] <= high:
            c += one
        found_CQ[0, q] = x
        found_CQ[1, q], found_CQ[2, q], found_CQ[3, q] = np.int64(a), np.int64(b), np.int64(c)
        found_CQ[4, q], found_CQ[5, q], found_CQ[6, q] = sum_N[a], sum_N[b], sum_N[c]
        found_CQ[7, q], found_CQ[8, q] = square_N[b] - square_N[a], square_N[c] - square_N[b]


@njit(cache=True, nogil=True, error_model="numpy")
def _of_zones(  # noqa: PLR0913
    tau_Q: Floats,
    kappa: float,
    far: float,
    near: float,
    sum_N: Floats,
    found_CQ: Floats,
    loss_Q: Floats,
    slope_Q: Floats,
) -> None:
    """Apart from the search, and with comparisons for min and max, so that it works on several quantiles at once."""
    atoms = len(sum_N) - 1
    first, last, share = sum_N[0], sum_N[atoms], 1 / atoms
    for q in range(len(tau_Q)):
        x, a, b, c = found_CQ[0, q], found_CQ[1, q], found_CQ[2, q], found_CQ[3, q]
        low_sum, high_sum = found_CQ[5, q] - found_CQ[4, q], found_CQ[6, q] - found_CQ[5, q]
        low_slope, high_slope = (b - a) * x - low_sum, high_sum - (c - b) * x
        low = (low_slope - low_sum) * x + found_CQ[7, q]
        high = found_CQ[8, q] - (high_slope + high_sum) * x
        # Bounded as distances in [0, kappa] are: a tiny kappa would magnify rounding errors.
        low_slope, high_slope = _bounded(low_slope, (b - a) * kappa), _bounded(high_slope, (c - b) * kappa)
        low, high = _bounded(low, low_slope * kappa), _bounded(high, high_slope * kappa)
        low = near / 2 * low + far * (a * (x - kappa / 2) + first - found_CQ[4, q])
        high = near / 2 * high + far * (last - found_CQ[6, q] - (atoms - c) * (x + kappa / 2))
        low_slope, high_slope = near * low_slope + far * a, near * high_slope + far * (atoms - c)
        loss = (low + tau_Q[q] * (high - low)) * share
        loss_Q[q] = 0.0 if loss < 0.0 else loss
        slope_Q[q] = (low_slope - tau_Q[q] * (low_slope + high_slope)) * share


@njit(inline="always")
def _bounded(x: float, most: float) -> float:
    x = 0.0 if x < 0.0 else x
    return most if x > most else x


@njit(cache=True, nogil=True, error_model="numpy")
def mixture_target(  # noqa: PLR0913
    begin: int,
    end: int,
    reward_BT: Floats,
    quantiles_BTM: Floats,
    mask_BT: NDArray[np.bool_],
    gamma: float,
    lam: float,
    out_BTM: Floats,
) -> None:
    """`advantages.mixture_target`; what lies outside the mask is left as it is."""
    length, count = quantiles_BTM.shape[1:]
    first_M, second_M = np.empty(count), np.empty(count)
    target_M = np.empty(count)
    for row in range(begin, end):
        first_M[:] = 0.0
        second_M[:] = 0.0
        for t in range(length - 1, -1, -1):
            if not mask_BT[row, t]:
                continue
            _mix(first_M, second_M, lam, target_M)
            least = -np.inf
            for m in range(count):
                atom = reward_BT[row, t] + gamma * target_M[m]
                if not atom < least:  # rounding may have swapped equal atoms; NaN stays
                    least = atom
                second_M[m] = out_BTM[row, t, m] = least
                first_M[m] = quantiles_BTM[row, t, m]
            falls = 0
            for m in range(1, count):
                falls += not first_M[m] >= first_M[m - 1]
            if falls:
                first_M = np.sort(first_M)


@njit(cache=True, nogil=True, error_model="numpy")
def _mix(first_M: Floats, second_M: Floats, lam: float, out_M: Floats) -> None:
    """Averages over M bins of the atoms of two laws laid end to end in order: 1 - lam of a bin long, and lam."""
    count = len(out_M)
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
        out_M[m] = total + space * atom
        size -= space


@njit(cache=True, nogil=True, error_model="numpy")
def falls(begin: int, end: int, x_RM: Floats, out_R: Integers) -> None:
    """`risk.falls`."""
    for row in range(begin, end):
        count = 0
        for m in range(x_RM.shape[1] - 1):
            count += not x_RM[row, m + 1] >= x_RM[row, m]
        out_R[row] = count


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc"})
def consistency(begin: int, end: int, x_RHM: Floats, loss_R: Floats) -> None:
    """`risk.consistency_loss`."""
    heads, count = x_RHM.shape[1:]
    mean_M = np.empty(count, x_RHM.dtype)
    for row in range(begin, end):
        _mean_of_heads(x_RHM[row], mean_M)
        total = 0.0
        for h in range(heads):
            for m in range(count):
                apart = x_RHM[row, h, m] - mean_M[m]
                total += apart * apart
        loss_R[row] = total * 2 / (count * max(heads - 1, 1))


@njit(cache=True, nogil=True, error_model="numpy")
def consistency_back(begin: int, end: int, x_RHM: Floats, grad_RHM: Floats, grad_R: Floats, out_RHM: Floats) -> None:
    """Gradient by the quantiles from that by the loss, added to one they have from elsewhere."""
    heads, count = x_RHM.shape[1:]
    mean_M = np.empty(count, x_RHM.dtype)
    for row in range(begin, end):
        _mean_of_heads(x_RHM[row], mean_M)
        scale = x_RHM.dtype.type(grad_R[row] * 4 / (count * max(heads - 1, 1)))
        for h in range(heads):
            for m in range(count):
                out_RHM[row, h, m] = grad_RHM[row, h, m] + scale * (x_RHM[row, h, m] - mean_M[m])


@njit(inline="always")
def _mean_of_heads(x_HM: Floats, mean_M: Floats) -> None:
    part = x_HM.dtype.type(1 / len(x_HM))
    mean_M[:] = 0.0
    for h in range(len(x_HM)):
        for m in range(len(mean_M)):
            mean_M[m] += x_HM[h, m] * part


@njit(cache=True, nogil=True, error_model="numpy")
def tails(  # noqa: PLR0913
    begin: int,
    end: int,
    x_RM: Floats,
    lower_A: Floats,
    upper_A: Floats,
    lower_span: int,
    upper_span: int,
    found_R23: Floats,
) -> None:
    """`risk.tails` of atoms in order."""
    for row in range(begin, end):
        x_M = x_RM[row]
        count = len(x_M)
        _tail(x_M[: len(lower_A)], lower_A, x_M[: lower_span + 1], lower_span, found_R23[row, 0])
        _tail(x_M[count - len(upper_A) :], upper_A, x_M[count - upper_span - 1 :], upper_span, found_R23[row, 1])


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc"})
def _tail(x_A: Floats, weight_A: Floats, stretch_B: Floats, span: int, found_3: Floats) -> None:
    mean = variance = bend = 0.0
    for i in range(len(x_A)):
        mean += weight_A[i] * x_A[i]
    for i in range(len(x_A)):
        apart = x_A[i] - mean
        variance += weight_A[i] * apart * apart
    if span:  # second differences add up to the last step less the first
        last, first = np.float64(stretch_B[span]) - stretch_B[span - 1], np.float64(stretch_B[1]) - stretch_B[0]
        bend = (last - first) / (span - 1)
    found_3[0], found_3[1], found_3[2] = mean, variance, bend


@njit(cache=True, nogil=True, error_model="numpy")
def tails_back(  # noqa: PLR0913
    begin: int,
    end: int,
    x_RM: Floats,
    lower_A: Floats,
    upper_A: Floats,
    lower_span: int,
    upper_span: int,
    found_R23: Floats,
    grad_R23: Floats,
    out_RM: Floats,
) -> None:
    """Gradient by the atoms from that by what was found."""
    count = x_RM.shape[1]
    for row in range(begin, end):
        out_RM[row] = 0.0
        for side in range(2):
            weight_A, span = (upper_A, upper_span) if side else (lower_A, lower_span)
            first = count - len(weight_A) if side else 0
            mean, of_variance = found_R23[row, side, 0], 2 * grad_R23[row, side, 1]
            for i in range(len(weight_A)):
                slope = grad_R23[row, side, 0] + of_variance * (x_RM[row, first + i] - mean)
                out_RM[row, first + i] += weight_A[i] * slope
            if span:
                first = count - span - 1 if side else 0
                share = grad_R23[row, side, 2] / (span - 1)
                out_RM[row, first] += share
                out_RM[row, first + 1] -= share
                out_RM[row, first + span - 1] -= share
                out_RM[row, first + span] += share
