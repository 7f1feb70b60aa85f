"""What became of every reward: clean score, observed reward, what the algorithm was handed, and why they differ.

`runs/NAME/ledger.jsonl` has one line per sample and step. Nothing here reaches an algorithm.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from scipy.special import betaincinv
from torch import Tensor

from noisyrl.ops.masked import correlation
from noisyrl.spec import InputError

if TYPE_CHECKING:
    import pandas as pd

ERRORS = ("false positive", "false negative")


@dataclass(frozen=True)
class Ledger:
    """One step's samples, all of them, in the order of the rollout."""

    uids: Sequence[str]  # [B] of the prompts
    sample_B: Tensor  # int64, index among the samples of the prompt
    group_B: Tensor  # int64, samples of one prompt share a number
    clean_B: Tensor  # as graded; NaN = could not be scored
    observed_B: Tensor  # after noise; NaN = none was given
    used_B: Tensor  # after correction, what the algorithm is handed; NaN = the sample left its group and the loss
    causes: Sequence[str]  # [B] the noise model that changed the reward, several joined by "+"; "" = as graded
    statuses: Sequence[str]  # [B] scored, error, timeout: what became of grading
    finished_B: Tensor  # bool, False = the response was cut by a length limit

    @property
    def kept(self) -> Tensor:
        """[N] int64, rows that the algorithm sees."""
        return self.used_B.isfinite().nonzero().flatten()

    def metrics(self) -> dict[str, float]:
        """What of it is logged at every step; NaN where there was no case."""
        total = max(len(self.uids), 1)
        scored_B = self.clean_B.isfinite()
        metrics = {
            "rollout/unscored_frac": float((~scored_B).sum()) / total,
            "rollout/error_count": float(sum(status == "error" for status in self.statuses)),
            "rollout/timeout_count": float(sum(status == "timeout" for status in self.statuses)),
            "rollout/truncated_count": float((~self.finished_B).sum()),
            "noise/left_out_frac": float((scored_B & ~self.used_B.isfinite()).sum()) / total,
        }
        both_B = scored_B & self.observed_B.isfinite()
        if not both_B.any():
            return metrics
        return metrics | compare(self.clean_B[both_B], self.observed_B[both_B], self.group_B[both_B])

    def entries(self, step: int) -> list[dict[str, Any]]:
        """One flat record per sample, as stored; None where a number is missing."""
        columns = zip(
            self.uids, self.sample_B.tolist(), self.clean_B.tolist(), self.observed_B.tolist(), self.used_B.tolist(),
            self.causes, self.statuses, self.finished_B.tolist(), strict=True,
        )  # fmt: skip
        return [
            {
                "step": step,
                "uid": uid,
                "sample": sample,
                "clean": _number(clean),
                "observed": _number(observed),
                "used": _number(used),
                "cause": cause,
                "status": status,
                "finished": finished,
            }
            for uid, sample, clean, observed, used, cause, status, finished in columns
        ]


def compare(clean_N: Tensor, observed_N: Tensor, group_N: Tensor) -> dict[str, float]:
    """What noise did to rewards of which both values are known, in groups `group_N`; NaN where there was no case."""
    clean_N, observed_N = clean_N.double(), observed_N.double()
    right_N = clean_N > 0.5
    equal_clean_P, equal_observed_P = equal_groups(clean_N, group_N), equal_groups(observed_N, group_N)
    z_P = alignments(clean_N, observed_N, group_N)
    return {
        "reward/observed_mean": float(observed_N.mean()),
        "reward/clean_mean": float(clean_N.mean()),
        "noise/gap_mean": float((observed_N - clean_N).mean()),
        "noise/changed_frac": float((observed_N != clean_N).double().mean()),
        "noise/false_positive_frac": float((observed_N > clean_N)[~right_N].double().mean()),
        "noise/false_negative_frac": float((observed_N < clean_N)[right_N].double().mean()),
        "noise/j": youden(clean_N, observed_N),
        "noise/reward_correlation": correlation(observed_N, clean_N),
        "noise/alignment_mean": float(z_P.mean()),
        "noise/alignment_snr": signal_to_noise(z_P),
        "group/equal_observed_frac": float(equal_observed_P.double().mean()),
        "group/equal_clean_frac": float(equal_clean_P.double().mean()),
        "group/made_learnable_frac": float((equal_clean_P & ~equal_observed_P).double().mean()),
        "group/made_unlearnable_frac": float((equal_observed_P & ~equal_clean_P).double().mean()),
    }


def youden(clean_N: Tensor, observed_N: Tensor) -> float:
    """J, the signal left: how far right and wrong responses are apart as observed, over how far apart they are.

    1 - FPR - FNR where all rewards are 0 and 1. NaN: nothing is right (clean above one half), or nothing wrong.
    """
    right_N = clean_N > 0.5
    apart = [float(x_N[right_N].mean() - x_N[~right_N].mean()) for x_N in (observed_N, clean_N)]
    return apart[0] / apart[1]


def alignments(clean_N: Tensor, observed_N: Tensor, group_N: Tensor) -> Tensor:
    """[Q] per group with clean spread, how much of the clean preference is left in the observed one.

    z = sum(observed a * clean a) / sum(clean a ** 2), a = reward minus its group's mean: 1 without noise, -1 where a
    binary group is inverted, and its mean over groups is J where errors do not hang on the response. What a group
    adds to the gradient along the clean direction is proportional to it, so mean over standard deviation is the
    signal-to-noise ratio of one group; that of a step of P groups is sqrt(P) times as large.
    """
    names_P, place_N = group_N.unique(return_inverse=True)

    def sums(x_N: Tensor) -> Tensor:
        return torch.zeros(len(names_P), dtype=torch.float64, device=x_N.device).index_add(0, place_N, x_N.double())

    size_P = sums(torch.ones_like(clean_N))
    clean_a_N, observed_a_N = (x_N.double() - (sums(x_N) / size_P)[place_N] for x_N in (clean_N, observed_N))
    spread_P = ~equal_groups(clean_N, group_N)
    return sums(observed_a_N * clean_a_N)[spread_P] / sums(clean_a_N**2)[spread_P]


def signal_to_noise(z_P: Tensor) -> float:
    """Mean over standard deviation of `alignments`. inf: no spread at all, as without noise; NaN: under 2 groups."""
    if len(z_P) < 2:
        return math.nan
    mean, sd = float(z_P.mean()), float(z_P.std())
    return mean / sd if sd > 1e-9 else math.copysign(math.inf, mean)


def equal_groups(reward_N: Tensor, group_N: Tensor) -> Tensor:
    """[P] bool, whether all samples of a group got the same reward; groups in ascending order."""
    names_P, place_N = group_N.unique(return_inverse=True)
    empty_P = torch.zeros(len(names_P), dtype=reward_N.dtype, device=reward_N.device)
    highest_P, lowest_P = (
        empty_P.scatter_reduce(0, place_N, reward_N, kind, include_self=False) for kind in ("amax", "amin")
    )
    return highest_P == lowest_P


def group_numbers(uids: Sequence[str]) -> Tensor:
    """[B] int64, rows of one prompt share a number."""
    seen: dict[str, int] = {}
    return torch.tensor([seen.setdefault(uid, len(seen)) for uid in uids], dtype=torch.int64)


def exact_bounds(count: int, cases: int) -> tuple[float, float]:
    """95 % Clopper-Pearson bounds of a rate seen in `count` of `cases` independent cases; (0, 1) without a case."""
    if not cases:
        return 0.0, 1.0
    low = betaincinv(count, cases - count + 1, 0.025) if count else 0.0
    high = betaincinv(count + 1, cases - count, 0.975) if count < cases else 1.0
    return float(low), float(high)


def read(folder: Path) -> pd.DataFrame:
    """The stored ledger of a run folder: columns as in `Ledger.entries`, NaN where a number is missing.

    A torn last line, as a killed run leaves it, is not read. InputError: there is no ledger, or a line is damaged.
    """
    file = folder / "ledger.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.is_file() else []
    entries = []
    for number, line in enumerate(lines, start=1):
        if not line.endswith("\n"):
            break
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise InputError(
                f"{file}, line {number} is damaged ({error}); delete the run folder to start again"
            ) from None
    if not entries:
        raise InputError(
            f"{file} {'has no whole line yet' if file.is_file() else 'does not exist'}: the run has not ended its "
            "first step, or was made before there were ledgers; train it, or train it again with another name="
        )
    import pandas as pd  # takes half a second to import: not for every command that only trains

    rows = pd.DataFrame.from_records(entries)
    return rows.astype({"clean": float, "observed": float, "used": float, "finished": bool})


def _number(x: float) -> float | None:
    return x if math.isfinite(x) else None
