"""Keyed random draws: a draw depends on its key alone, never on what was drawn before.

Batch layout, worker count and resume point therefore change nothing. The hash is BLAKE2b, so draws are the same on
every machine and Python version; Python's own `hash` is salted per process and must not be used.
"""

from __future__ import annotations

import hashlib
from statistics import NormalDist

import numpy as np
import torch

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def hash64(*key: object) -> int:
    """64-bit hash of the key's parts, joined by "|" in UTF-8 (big-endian BLAKE2b-8)."""
    text = "|".join(str(part) for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def uniform(*key: object) -> float:
    """Uniform draw in [0, 1) with 53 random bits."""
    return (hash64(*key) >> 11) * 2.0**-53


def normal(*key: object) -> float:
    """Standard normal draw by inversion of `uniform(*key)`."""
    return NormalDist().inv_cdf(min(max(uniform(*key), 2.0**-53), 1 - 2.0**-53))


def choice(count: int, *key: object) -> int:
    """Integer draw in [0, count). ValueError: count < 1."""
    if count < 1:
        raise ValueError(f"choice needs at least one option, got {count}")
    return hash64(*key) % count


def generator(*key: object) -> np.random.Generator:
    """NumPy generator seeded by the key, for draws made in one place in one go (permutations, synthetic data)."""
    return np.random.default_rng(hash64(*key))


def torch_generator(*key: object) -> torch.Generator:
    """CPU torch generator seeded by the key, for weight initialisation."""
    return torch.Generator().manual_seed(hash64(*key) & (2**63 - 1))


def counter_uniforms(keys_B: np.ndarray, position: int | np.ndarray) -> np.ndarray:
    """One uniform in [0, 1) for each (key, position) pair, vectorised.

    keys_B    [B] uint64        from hash64, one per sequence
    position  int or [B] int    counter inside the sequence
    returns   [B] float64

    The output function of splitmix64 (Steele, Lea and Flood 2014) at counter `position`.
    """
    with np.errstate(over="ignore"):
        z = keys_B.astype(np.uint64) + (np.asarray(position).astype(np.uint64) + np.uint64(1)) * _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
