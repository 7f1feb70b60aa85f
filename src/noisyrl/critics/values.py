"""What critics say before each response token, beside a plain `Value`."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from noisyrl.ops.calibration import coverage_error, crossing_rate, pit_histogram
from noisyrl.ops.masked import masked_mean, place, select
from noisyrl.ops.quantiles import midpoints
from noisyrl.ops.risk import ascending, tail_weights
from noisyrl.ops.worst_case import from_token_before
from noisyrl.types import Value

_TAIL = 0.1  # mass of each tail in the spreads that are logged


@dataclass(frozen=True)
class EnsembleValue(Value):
    """Several estimates; `mean_BT` is their mean."""

    heads_BTH: Tensor

    def diagnostics(self, outcome_B: Tensor, mask_BT: Tensor, tolerance: float) -> dict[str, float]:
        return {"critic/head_disagreement": _disagreement(self.heads_BTH[mask_BT])}


@dataclass(frozen=True)
class QuantileValue(Value):
    """Distributions of the return at U states, before N policy tokens: with 600 numbers each, padding costs much.

    `mean_BT` is the mean over quantiles of `ensemble_UM`, the heads' reduction, and 0 where the mask is False.
    """

    ensemble_UM: Tensor
    quantiles_UHM: Tensor
    of_N: Tensor  # int64, which of the U is before each token, row by row

    def before_the_first_token(self) -> dict[str, Tensor]:
        each = {"ensemble": self.ensemble_UM, "quantiles": self.quantiles_UHM}
        return {"mean": self.mean_BT[:, 0]} | {name: x_U.index_select(0, self.of_N) for name, x_U in each.items()}

    def kept(self, mask_BT: Tensor) -> Value:
        def each(x_U: Tensor) -> Tensor:
            return place(x_U.index_select(0, self.of_N), mask_BT)

        return DistributionValue(
            mean_BT=self.mean_BT,
            ensemble_BTM=each(self.ensemble_UM),
            heads_BTH=each(self.quantiles_UHM.mean(dim=-1)),
            crossed_BT=each(crossing_rate(self.quantiles_UHM).mean(dim=-1)),
        )


@dataclass(frozen=True)
class DistributionValue(Value):
    """What credit and diagnostics read of a `QuantileValue`: the distribution that all heads make together."""

    ensemble_BTM: Tensor
    heads_BTH: Tensor  # mean of each head
    crossed_BT: Tensor  # share of neighbouring quantiles in the wrong order, mean over heads

    def for_losses(self) -> Value:
        return Value(mean_BT=self.mean_BT)

    def diagnostics(self, outcome_B: Tensor, mask_BT: Tensor, tolerance: float) -> dict[str, float]:
        outcome_N = outcome_B[:, None].expand_as(mask_BT)[mask_BT]
        sorted_NM = ascending(select(self.ensemble_BTM, mask_BT))
        count = sorted_NM.shape[-1]
        tau_M = midpoints(count).to(sorted_NM)
        histogram = pit_histogram(sorted_NM, outcome_N, tolerance=tolerance)
        weights_M = tail_weights(count, _TAIL).to(sorted_NM)
        middle_N = sorted_NM[:, (count - 1) // 2]
        return {
            "critic/crossing_frac": float(masked_mean(self.crossed_BT, mask_BT)),
            "critic/coverage_error": float(coverage_error(sorted_NM, outcome_N, tau_M, tolerance=tolerance)),
            "critic/pit_error": float((histogram - 1 / len(histogram)).abs().sum() / 2),
            "critic/lower_spread": float((middle_N - sorted_NM @ weights_M).mean()),
            "critic/upper_spread": float((sorted_NM @ weights_M.flip(0) - middle_N).mean()),
            "critic/head_disagreement": _disagreement(self.heads_BTH[mask_BT]),
        }


@dataclass(frozen=True)
class BottleneckValue(Value):
    """An estimate through a noisy latent; `mean_BT` is that of the latent's mean, without noise."""

    sampled_BT: Tensor  # the estimate with noise, which is what is trained
    kl_BT: Tensor  # nats, latent to standard normal
    entropy_BT: Tensor  # nats, of the frozen LM head's distribution at the critic's states
    nll_BT: Tensor  # nats, of the token that was said, under the same distribution
    align_BT: Tensor  # nats, KL of the reference's distribution to it; 0 where no reference is at hand


@dataclass(frozen=True)
class ActionValue(Value):
    """Values of single tokens; `mean_BT` is the policy's expectation of them, the mean over candidates it drew."""

    taken_BT: Tensor  # value of the token that was said
    candidates_BTK: Tensor  # values of the candidates
    candidate_logp_BTK: Tensor  # nats, log-probabilities under which they were drawn

    def diagnostics(self, outcome_B: Tensor, mask_BT: Tensor, tolerance: float) -> dict[str, float]:
        return {"critic/action_sd": float(masked_mean(self.candidates_BTK.std(dim=-1, correction=0), mask_BT))}


@dataclass(frozen=True)
class FloorValue(Value):
    """A scalar estimate with the threshold of the dual of its worst case (`critic=rfqi`)."""

    threshold_BT: Tensor  # of the state after the token, before the token is known

    def diagnostics(self, outcome_B: Tensor, mask_BT: Tensor, tolerance: float) -> dict[str, float]:
        threshold_BT, there_BT = from_token_before(self.threshold_BT, mask_BT)
        return {
            "critic/threshold_mean": float(masked_mean(self.threshold_BT, mask_BT)),
            "critic/threshold_above_frac": float(masked_mean((threshold_BT >= self.mean_BT).float(), there_BT)),
        }


def _disagreement(heads_NH: Tensor) -> float:
    """Mean over tokens of the standard deviation between heads; 0 for one head."""
    return float(heads_NH.std(dim=-1).mean()) if heads_NH.shape[-1] > 1 else 0.0
