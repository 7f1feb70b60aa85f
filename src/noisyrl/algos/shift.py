"""The one-sided shift term (DVPO eq. 7) on running means, shared by DVPO and its scalar control.

The term punishes a mean value below the mean target. On a single batch it is optimistic wherever rewards are noisy:
the positive part of a noisy difference is positive on average. Both means are therefore exponential averages over
steps, which the trainer carries from step to step and saves with the checkpoint. The sign and size of the gap are
fixed when credit is given, so that micro-batches and processes change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from noisyrl.ops.masked import keep, masked_mean
from noisyrl.types import Batch, Value


@torch.no_grad()
def running_gap(batch: Batch, target: Tensor, *, decay: float) -> tuple[Tensor, Mapping[str, float]]:
    """[B] excess of the mean target over the mean value, the same for every row, and the memory for the next step.

    target  [B, T] returns or [B, T, K] atoms
    decay   weight of the past in the running means; 0 = this batch alone
    """
    mean_target_BT = target if target.dim() == 2 else target.mean(dim=-1)
    new = {
        "shift_target": float(masked_mean(mean_target_BT, batch.mask_BT)),
        "shift_value": float(masked_mean(batch.value.mean_BT, batch.mask_BT)),
        "shift_weight": 1.0,
    }
    memory = {name: decay * batch.memory.get(name, 0.0) + (1 - decay) * x for name, x in new.items()}
    gap = (memory["shift_target"] - memory["shift_value"]) / memory["shift_weight"]
    return batch.reward_B.new_full(batch.reward_B.shape, gap), memory


def shift_term(value: Value, batch: Batch, gap_B: Tensor) -> Tensor:
    """[B, T] loss whose mean over tokens is relu(gap) before the update, and whose gradient lifts the mean value."""
    moved_BT = keep(batch.value.mean_BT, batch.mask_BT) - keep(value.mean_BT, batch.mask_BT)
    return torch.where(batch.mask_BT & (gap_B > 0)[:, None], gap_B[:, None] + moved_BT, 0.0)
