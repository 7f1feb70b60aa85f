"""What became of every reward: clean score, observed reward, what the algorithm was handed, and why they differ.

`runs/NAME/ledger.jsonl` has one line per sample and step. Nothing here reaches an algorithm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


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
        """What of it is logged at every step."""
        total = max(len(self.uids), 1)
        scored_B = self.clean_B.isfinite()
        metrics = {
            "rollout/unscored_frac": float((~scored_B).sum()) / total,
            "noise/left_out_frac": float((scored_B & ~self.used_B.isfinite()).sum()) / total,
        }
        both_B = scored_B & self.observed_B.isfinite()
        if not both_B.any():
            return metrics
        clean_N, observed_N, group_N = self.clean_B[both_B], self.observed_B[both_B], self.group_B[both_B]
        return metrics | {
            "reward/observed_mean": float(observed_N.mean()),
            "reward/clean_mean": float(clean_N.mean()),
            "noise/changed_frac": float((observed_N != clean_N).float().mean()),
            "group/equal_observed_frac": float(equal_groups(observed_N, group_N).float().mean()),
            "group/equal_clean_frac": float(equal_groups(clean_N, group_N).float().mean()),
        }

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


def equal_groups(reward_B: Tensor, group_B: Tensor) -> Tensor:
    """[P] bool, whether all samples of a group got the same reward; groups in ascending order."""
    names_P = group_B.unique()
    return torch.stack([(reward_B[group_B == name] == reward_B[group_B == name][0]).all() for name in names_P])


def group_numbers(uids: Sequence[str]) -> Tensor:
    """[B] int64, rows of one prompt share a number."""
    seen: dict[str, int] = {}
    return torch.tensor([seen.setdefault(uid, len(seen)) for uid in uids], dtype=torch.int64)


def _number(x: float) -> float | None:
    return x if math.isfinite(x) else None
