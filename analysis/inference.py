"""Differences between methods: the two-way clustered t of paired scores, Holm's correction, what could be detected.

Runs are paired by seed, questions by id. Both are samples, of trainings and of questions, and both are crossed: a test
over questions alone calls luck of training a finding in a quarter of all cases, one over seeds alone speaks of these
questions only.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy import ndarray
from scipy import optimize, stats

LEVEL = 0.05
_POWER = 0.8
_NOTHING = 1e-12  # a spread that is rounding
_FEWEST = 3  # seeds of a test: with two, a t has one degree of freedom, and its interval no use


class Difference(NamedTuple):
    """Mean paired difference with its 95 % interval; p is NaN with fewer than three common seeds or two questions."""

    mean: float
    low: float
    high: float
    p: float
    """Two-sided, over seeds and questions: does it hold for other trainings and other questions?"""
    p_family: float
    """The same t with S - 1 degrees of freedom: what Holm's correction is given. Far out in its tails `p` is too small,
    so that among seven equal methods and three seeds one pair in five tables stood out; with this, none did."""
    p_seeds: float
    """Two-sided, over seeds alone: does it hold on these questions? NaN where seeds do not differ at all: on few
    questions they agree by chance, and three equal runs are not three observations."""
    seeds: int
    spread: float
    """Standard deviation between seeds of the paired difference."""


def paired(first: Sequence[ndarray], second: Sequence[ndarray], benchmarks: Sequence[str] | None = None) -> Difference:
    """first minus second, averaged over columns.

    first, second  for each column [S, Q] scores; rows are the same seeds and columns the same questions in both
    benchmarks     whose questions each column asks; columns of one benchmark, such as those of runs trained on
                   different data, share its questions. None = each has its own

    With one benchmark, V = Vs + Vq - Vsq: the variance of the mean by seeds, plus that by questions, less what both
    count, and never below either (Cameron, Gelbach and Miller 2011); degrees of freedom by Satterthwaite, at least
    S - 1. With several, every seed counts once, with its average over them, and every question once.
    ValueError: shapes that do not pair.
    """
    differences = [np.asarray(a, float) - np.asarray(b, float) for a, b in zip(first, second, strict=True)]
    seeds = {len(d) for d in differences}
    if len(seeds) != 1 or not all(d.ndim == 2 and d.size for d in differences):
        raise ValueError(
            f"paired scores need one number of seeds and a question each, got {[d.shape for d in differences]}"
        )
    (count,) = seeds
    mean = float(np.mean([d.mean() for d in differences]))
    by_seed_S = np.mean([d.mean(axis=1) for d in differences], axis=0)
    spread = float(by_seed_S.std(ddof=1)) if count > 1 else float("nan")
    if count < _FEWEST or all(d.shape[1] == 1 for d in differences):
        nan = float("nan")
        return Difference(mean, nan, nan, nan, nan, nan, count, spread)
    variance, freedom = _variance(_by_benchmark(differences, benchmarks), by_seed_S)
    low, high, p = _t(mean, variance, freedom)
    strict = _t(mean, variance, count - 1)[2]
    alone = float("nan") if mean and spread < _NOTHING else _t(mean, spread**2 / count, count - 1)[2]
    return Difference(mean, low, high, p, strict, alone, count, spread)


def _by_benchmark(differences: Sequence[ndarray], benchmarks: Sequence[str] | None) -> list[ndarray]:
    """What each set of questions adds to the mean difference, [S, Q] each."""
    parts: dict[str, ndarray] = {}
    for name, d in zip(benchmarks or map(str, range(len(differences))), differences, strict=True):
        parts[name] = parts.get(name, 0.0) + d / len(differences)
    return list(parts.values())


def _variance(parts: Sequence[ndarray], by_seed_S: ndarray) -> tuple[float, float]:
    """Variance of the mean difference, which is the sum of the parts' means, and its degrees of freedom."""
    count = len(by_seed_S)
    of_seeds = float(by_seed_S.var(ddof=1)) / count
    by_question = [d.mean(axis=0) for d in parts]
    of_questions = sum(float(q.var(ddof=1)) / len(q) if len(q) > 1 else 0.0 for q in by_question)
    of_both = sum(float(np.square(d - d.mean()).sum()) / d.size**2 for d in parts)
    variance = max(of_seeds + of_questions - of_both, of_seeds, of_questions)
    spare = sum(len(q) - 1 for q in by_question)
    weighed = of_seeds**2 / (count - 1) + (of_questions**2 / spare if spare else 0.0)
    return variance, max(count - 1.0, variance**2 / weighed if weighed else 0.0)


def _t(mean: float, variance: float, freedom: float) -> tuple[float, float, float]:
    """Ends of the 95 % interval, and the two-sided p of a mean of 0."""
    if variance <= 0:
        return mean, mean, 1.0 if mean == 0 else 0.0
    error = variance**0.5
    half = float(stats.t.ppf(1 - LEVEL / 2, freedom)) * error
    return mean - half, mean + half, float(2 * stats.t.sf(abs(mean) / error, freedom))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted so that the chance of any false finding is bounded (Holm 1979); NaN stays NaN, uncounted."""
    known = sorted((p, i) for i, p in enumerate(p_values) if not np.isnan(p))
    adjusted, highest = [float("nan")] * len(p_values), 0.0
    for rank, (p, i) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        adjusted[i] = highest
    return adjusted


@lru_cache
def detectable(seeds: int, level: float = LEVEL) -> float:
    """The smallest difference that a paired t over `seeds` finds in 80 % of all cases, in units of their spread.

    NaN with fewer than three seeds.
    """
    if seeds < _FEWEST:
        return float("nan")
    critical = stats.t.ppf(1 - level / 2, seeds - 1)

    def lack(effect: float) -> float:
        shift = effect * seeds**0.5
        # The other tail is that of a finding with the wrong sign: negligible where power is high.
        return float(stats.nct.sf(critical, seeds - 1, shift)) - _POWER

    return float(optimize.brentq(lack, 1e-3, 12))


def seeds_needed(effect: float, spread: float, level: float = LEVEL) -> int | None:
    """Fewest seeds with which `effect` is found in 80 % of all cases; None = more than 1000."""
    if spread == 0:
        return _FEWEST if effect else None
    return next((n for n in range(_FEWEST, 1001) if detectable(n, level) * spread <= abs(effect)), None)


def wilson(count: int, total: int) -> tuple[float, float]:
    """95 % interval of a share. ValueError: total < 1."""
    interval = stats.binomtest(count, total).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def improvement(first_S: ndarray, second_S: ndarray) -> float:
    """Probability that a run of the first beats a run of the second, ties counted half (Agarwal et al. 2021)."""
    gap = np.asarray(first_S)[:, None] - np.asarray(second_S)[None]
    return float((gap > 0).mean() + 0.5 * (gap == 0).mean())


def interquartile_mean(scores: ndarray) -> float:
    """Mean without the lowest and the highest quarter (Agarwal et al. 2021)."""
    return float(stats.trim_mean(np.ravel(scores), 0.25))
