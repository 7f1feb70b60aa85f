"""Snapshots of the critic on a few fixed prompts, so that one can watch a value, or its distribution, change.

runs/NAME/probes/step_000060.npz holds `uid` [P] and every field of the critic's `Value` before the first response
token: `mean` [P], for a quantile critic `quantiles` [P, H, M] and `ensemble` [P, M].
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from noisyrl.models.base import LanguageModel
from noisyrl.rollout.chat import prompt_tokens
from noisyrl.tasks.base import Task
from noisyrl.types import Prompt, Rollout

_COUNT = 8


def choose(task: Task) -> Sequence[Prompt]:
    """The probe prompts of a task: the first few of its first held-out split, or of the training split."""
    held_out = [split for split in task.splits if split != "train"]
    return task.prompts(held_out[0] if held_out else "train")[:_COUNT]


@torch.no_grad()
def snapshot(agent: torch.nn.Module, lm: LanguageModel, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """The critic's estimates before the first response token, by field. To be called on every process."""
    value = agent(_unanswered(lm, prompts), values_only=True)[1]
    found = {field.name.rpartition("_")[0]: getattr(value, field.name)[:, 0] for field in fields(value)}
    return {"uid": np.array([p.uid for p in prompts]), **{name: x.float().cpu().numpy() for name, x in found.items()}}


def write(path: Path, arrays: dict[str, Any]) -> None:
    """Writes an .npz file aside and renames it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".writing-{path.name}")
    np.savez(aside, **arrays)
    os.replace(aside, path)


def _unanswered(lm: LanguageModel, prompts: Sequence[Prompt]) -> Rollout:
    """Prompts with one response token each; values before it do not depend on it."""
    contexts = [prompt_tokens(lm.tokenizer, prompt) for prompt in prompts]
    rows, width = len(contexts), max(len(context) for context in contexts)
    tokens_BL = torch.zeros(rows, width + 1, dtype=torch.int64)
    attention_BL = torch.zeros(rows, width + 1, dtype=torch.bool)
    for row, context in enumerate(contexts):
        tokens_BL[row, width - len(context) : width] = torch.tensor(context)
        attention_BL[row, width - len(context) :] = True
    device = lm.model.device
    zeros_B = torch.zeros(rows, dtype=torch.int64, device=device)
    return Rollout(
        prompts=prompts,
        turns=[()] * rows,
        tokens_BL=tokens_BL.to(device),
        attention_BL=attention_BL.to(device),
        mask_BT=torch.ones(rows, 1, dtype=torch.bool, device=device),
        logp_BT=torch.zeros(rows, 1, device=device),
        group_B=torch.arange(rows, device=device),
        sample_B=zeros_B,
        finished_B=zeros_B.bool(),
    )
