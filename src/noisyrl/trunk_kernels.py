"""The passes over memory of `trunk`, forward and backward, compiled for a processor.

numba compiles a kernel when it first meets a type, which takes a second or two, and keeps it on disk. Importing this
module takes .2 s: `trunk` does where it is called. Kernels work on the rows begin..end of what their docstring names,
each by itself, so threads (`processor.each_row`) change no bit.

Axes: N tokens of size D, C heads of size E, of which the first T are turned; I gates.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Integers = NDArray[np.int64]
# Tokens whose gradients of weights are added up before those of others: the sums are the same for any threads.
BLOCK = 128

# Sums may be taken in any order, which vector instructions need.
_compiled = njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})


@_compiled
def normed(begin: int, end: int, x_ND: Floats, eps: float, out_ND: Floats, scale_N: Floats) -> None:
    """Tokens over their root mean square, and what they were multiplied by."""
    for n in range(begin, end):
        x_D, out_D = x_ND[n], out_ND[n]
        scale = _scale(x_D, eps)
        scale_N[n] = scale
        for d in range(len(x_D)):
            out_D[d] = x_D[d] * scale


@_compiled
def normed_back(begin: int, end: int, grad_ND: Floats, normed_ND: Floats, scale_N: Floats, out_ND: Floats) -> None:
    """Gradient of what was normed, by tokens."""
    for n in range(begin, end):
        grad_D, normed_D, out_D = grad_ND[n], normed_ND[n], out_ND[n]
        along = grad_ND.dtype.type(0)
        for d in range(len(grad_D)):
            along += grad_D[d] * normed_D[d]
        along /= grad_ND.dtype.type(len(grad_D))
        for d in range(len(grad_D)):
            out_D[d] = (grad_D[d] - normed_D[d] * along) * scale_N[n]


@_compiled
def turned(  # noqa: PLR0913 - a kernel takes arrays one by one
    begin: int,
    end: int,
    x_NCE: Floats,
    weight_TE: Floats,
    cos_NE: Floats,
    sin_NE: Floats,
    norm: bool,
    eps: float,
    out_NCE: Floats,
    scale_NT: Floats,
) -> None:
    """Heads turned by their tokens' positions, after a norm if `norm`; those behind T as they are. By tokens."""
    half = x_NCE.shape[2] // 2
    for n in range(begin, end):
        cos_E, sin_E = cos_NE[n], sin_NE[n]
        for c in range(len(weight_TE)):
            x_E, out_E, weight_E = x_NCE[n, c], out_NCE[n, c], weight_TE[c]
            scale = _scale(x_E, eps) if norm else x_NCE.dtype.type(1)
            scale_NT[n, c] = scale
            for e in range(len(x_E)):
                out_E[e] = x_E[e] * scale * weight_E[e]
            for e in range(half):
                low, high = out_E[e], out_E[e + half]
                out_E[e] = low * cos_E[e] + high * sin_E[e]
                out_E[e + half] = high * cos_E[e + half] + low * sin_E[e + half]
        for c in range(len(weight_TE), x_NCE.shape[1]):
            for e in range(x_NCE.shape[2]):  # not slices, which take numba three seconds to compile
                out_NCE[n, c, e] = x_NCE[n, c, e]


@_compiled
def turned_back(  # noqa: PLR0913
    begin: int,
    end: int,
    grad_NCE: Floats,
    x_NCE: Floats,
    scale_NT: Floats,
    weight_TE: Floats,
    cos_NE: Floats,
    sin_NE: Floats,
    norm: bool,
    weight_grad_BTE: Floats,
) -> None:
    """The gradient becomes that of the heads before `turned`; that of the norm's weights is added. By blocks."""
    half = x_NCE.shape[2] // 2
    for block in range(begin, end):
        for n in range(block * BLOCK, min(len(x_NCE), (block + 1) * BLOCK)):
            cos_E, sin_E = cos_NE[n], sin_NE[n]
            for c in range(len(weight_TE)):
                x_E, grad_E, weight_E = x_NCE[n, c], grad_NCE[n, c], weight_TE[c]
                weight_grad_E = weight_grad_BTE[block, c]
                scale = scale_NT[n, c]
                for e in range(half):
                    low, high = grad_E[e], grad_E[e + half]
                    grad_E[e] = low * cos_E[e] + high * sin_E[e + half]
                    grad_E[e + half] = high * cos_E[e + half] + low * sin_E[e]
                along = x_NCE.dtype.type(0)
                for e in range(len(x_E)):
                    product = grad_E[e] * x_E[e] * scale
                    weight_grad_E[e] += product
                    along += product * weight_E[e]
                along = along * scale / x_NCE.dtype.type(len(x_E)) if norm else x_NCE.dtype.type(0)
                for e in range(len(x_E)):
                    grad_E[e] = (grad_E[e] * weight_E[e] - x_E[e] * along) * scale


@_compiled
def added(  # noqa: PLR0913
    begin: int, end: int, number_RS: Integers, grad_RSHE: Floats, first: int, out_NCE: Floats
) -> None:
    """Adds gradients of tokens in rows to those of the distinct tokens; H heads, of which the first is C's `first`."""
    for r in range(number_RS.shape[0]):
        for s in range(number_RS.shape[1]):
            for h in range(begin, end):
                grad_E, out_E = grad_RSHE[r, s, h], out_NCE[number_RS[r, s], first + h]
                for e in range(len(grad_E)):
                    out_E[e] += grad_E[e]


@_compiled
def gated_back(begin: int, end: int, grad_NI: Floats, both_NJ: Floats, sigmoid_NI: Floats, out_NJ: Floats) -> None:
    """Gradient of gates and what they are multiplied with, side by side, of silu(gate) * up. By tokens."""
    size = grad_NI.shape[1]
    for n in range(begin, end):
        for i in range(size):
            gate, up, share, grad = both_NJ[n, i], both_NJ[n, i + size], sigmoid_NI[n, i], grad_NI[n, i]
            silu = gate * share
            out_NJ[n, i] = grad * up * (share + silu - silu * share)
            out_NJ[n, i + size] = grad * silu


@_compiled
def _scale(x_D: Floats, eps: float) -> float:
    """What x is multiplied by to have a root mean square of 1."""
    total = x_D.dtype.type(0)
    for d in range(len(x_D)):
        total += x_D[d] * x_D[d]
    return x_D.dtype.type(1) / np.sqrt(total / x_D.dtype.type(len(x_D)) + x_D.dtype.type(eps))
