"""What a new token of each row asks of the keys before it, compiled for a processor (see `ops.kernels`).

Tensor operations make a dozen passes over small tensors where this makes one.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float32]
_UNSEEN = np.finfo(np.float32).min  # as `forward.additive`
# Sums may be taken in any order, which vector instructions need; NaN stays NaN.
_compiled = njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})


@_compiled
def ask(  # noqa: PLR0913 - a kernel takes arrays one by one
    begin: int,
    end: int,
    mixed: Floats,
    heads: Floats,
    eps: float,
    position: NDArray[np.int64],
    cos: Floats,
    sin: Floats,
    keys: Floats,
    values: Floats,
    scores: Floats,
) -> None:
    """Appends rows [begin, end) to the cache and scales the products of their queries with all keys.

    mixed         [N, H + 2 K, E]: H queries, K keys, K values of size E
    heads         [H + K, E], weights of the norm of queries and keys; [0, E] = no such norm
    position      [N, 1], of the new token in its row; columns before its first token are not seen
    cos, sin      [positions, E], rotary table
    keys, values  [at least N, K, capacity, E]; the last column that `scores` has is written
    scores        [N, H, columns], out; the lowest number at what is not seen
    """
    queries, columns = scores.shape[1:]
    key_heads, size = keys.shape[1], keys.shape[3]
    each, scale = queries // key_heads, np.float32(size**-0.5)
    turned = np.empty((queries + key_heads, size), np.float32)
    for n in range(begin, end):
        p = position[n, 0]
        first = columns - 1 - p
        _turn(turned, mixed[n], heads, eps, cos[p], sin[p])
        for k in range(key_heads):
            for e in range(size):
                keys[n, k, columns - 1, e] = turned[queries + k, e]
                values[n, k, columns - 1, e] = mixed[n, queries + key_heads + k, e]
            # Two queries at a time, so that a key is read once for both; an odd last one is its own partner.
            for one in range(k * each, (k + 1) * each, 2):
                other = min(one + 1, (k + 1) * each - 1)
                for t in range(first):
                    scores[n, one, t] = scores[n, other, t] = _UNSEEN
                for t in range(first, columns):
                    a = b = np.float32(0)
                    for e in range(size):
                        a += turned[one, e] * keys[n, k, t, e]
                        b += turned[other, e] * keys[n, k, t, e]
                    scores[n, one, t] = a * scale
                    scores[n, other, t] = b * scale


@_compiled
def _turn(turned: Floats, mixed: Floats, heads: Floats, eps: float, cos: Floats, sin: Floats) -> None:
    """The first heads of `mixed` [H + 2 K, E], normed if `heads` has rows, turned to their position [H + K, E]."""
    half = len(cos) // 2
    for h in range(len(turned)):
        norm = np.float32(1)
        if len(heads):
            square = np.float32(0)
            for e in range(len(cos)):
                square += mixed[h, e] * mixed[h, e]
            norm /= np.sqrt(square / np.float32(len(cos)) + np.float32(eps))
        for e in range(half):
            left, right = mixed[h, e] * norm, mixed[h, half + e] * norm
            if len(heads):
                left, right = left * heads[h, e], right * heads[h, half + e]
            turned[h, e] = left * cos[e] + right * sin[e]
            turned[h, half + e] = right * cos[half + e] + left * sin[half + e]
