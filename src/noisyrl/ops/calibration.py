"""Whether predicted quantiles are in order, and right."""

from __future__ import annotations

import torch
from torch import Tensor

from noisyrl.ops.risk import ascending, falls

_CACHED = 2**17  # numbers of which a few temporaries stay in a processor's cache


def crossing_rate(quantiles_M: Tensor) -> Tensor:
    """Share of neighbours j with quantile j + 1 below quantile j, or either NaN, [...]; 0 for one quantile.

    quantiles_M  [..., M] float
    """
    return falls(quantiles_M).to(quantiles_M.dtype) / max(quantiles_M.shape[-1] - 1, 1)


def coverage_error(quantiles_NM: Tensor, outcome_N: Tensor, tau_M: Tensor, *, tolerance: float = 0.0) -> Tensor:
    """How far the levels are from what the quantiles cover, a scalar in [0, 1]: the mean over quantiles.

    tau_M  [M] float; other arguments as in `coverage`

    A right quantile of a discrete law lies on an atom, so quantile j is right when tau_j lies between what `coverage`
    says of it; else its error is the distance to that interval. ValueError: no outcome.
    """
    below_M, upto_M = coverage(quantiles_NM, outcome_N, tolerance=tolerance)
    return ((below_M - tau_M).clamp(min=0) + (tau_M - upto_M).clamp(min=0)).mean().to(quantiles_NM.dtype)


def coverage(quantiles_NM: Tensor, outcome_N: Tensor, *, tolerance: float = 0.0) -> tuple[Tensor, Tensor]:
    """What each quantile covers: shares of outcomes below it and up to it, both [M] float64.

    quantiles_NM  [N, M] float   prediction for each outcome
    outcome_N     [N] float
    tolerance     in units of value: a quantile this close to an outcome counts as lying on it

    P(Y < quantile_j - tolerance) and P(Y <= quantile_j + tolerance). ValueError: no outcome.
    """
    outcome_N1 = _outcomes(outcome_N, quantiles_NM)
    count = quantiles_NM.shape[1]
    below_M, upto_M = torch.zeros(2, count, dtype=torch.float64, device=quantiles_NM.device)
    rows = max(1, _CACHED // count)
    for quantiles, outcome in zip(quantiles_NM.split(rows), outcome_N1.split(rows), strict=True):
        below_M += (quantiles - tolerance).gt_(outcome).sum(0)
        upto_M += (quantiles + tolerance).ge_(outcome).sum(0)
    return below_M / len(outcome_N1), upto_M / len(outcome_N1)


def pit_histogram(quantiles_NM: Tensor, outcome_N: Tensor, *, bins: int = 10, tolerance: float = 0.0) -> Tensor:
    """Histogram of the levels at which outcomes fall, [bins], sum 1: flat if calibrated, U-shaped if too narrow.

    quantiles_NM  [N, M] float   prediction for each outcome, in any order
    outcome_N     [N] float
    tolerance     in units of value: a quantile this close to an outcome counts as lying on it

    The non-randomised transform of Czado, Gneiting, Held 2009 (doi:10.1111/j.1541-0420.2009.01191.x): an outcome
    spreads its mass evenly over [F(y-), F(y)], the shares of its quantiles below y and up to y. Strictly between two
    atoms the interval is the point j / M: its mass goes to the bin that holds it, halved between two bins where it is
    their edge, so exact midpoint quantiles of a continuous law give a flat histogram whenever `bins` divides M.
    ValueError: no outcome.
    """
    outcome_N1 = _outcomes(outcome_N, quantiles_NM)
    sorted_NM = ascending(quantiles_NM)
    below_N1 = torch.searchsorted(sorted_NM, outcome_N1 - tolerance)
    upto_N1 = torch.searchsorted(sorted_NM, outcome_N1 + tolerance, right=True)
    # In units of 1 / (M * bins) the interval and the edges are whole numbers, so comparisons are exact.
    low_N1, high_N1 = (count_N1.double() * bins for count_N1 in (below_N1, upto_N1))
    edge_E = torch.arange(1, bins, dtype=torch.float64, device=outcome_N1.device) * quantiles_NM.shape[1]
    spread_NE = ((edge_E - low_N1) / (high_N1 - low_N1).clamp(min=1)).clamp(0, 1)
    point_NE = torch.heaviside(edge_E - low_N1, edge_E.new_tensor(0.5))
    share_E = torch.where(high_N1 > low_N1, spread_NE, point_NE).mean(0)
    return torch.cat([share_E.new_zeros(1), share_E, share_E.new_ones(1)]).diff().to(quantiles_NM.dtype)


def _outcomes(outcome_N: Tensor, quantiles_NM: Tensor) -> Tensor:
    """[N, 1] in the type of the quantiles, so that equal values compare as equal."""
    if outcome_N.shape != quantiles_NM.shape[:1] or not outcome_N.numel():
        raise ValueError(
            f"outcomes {tuple(outcome_N.shape)} for quantiles {tuple(quantiles_NM.shape)}: "
            "give one outcome for each row, and at least one"
        )
    return outcome_N.to(quantiles_NM.dtype)[:, None]
