"""Snapshots of the critic on a few fixed prompts, and what it should have said: returns of continuations.

runs/NAME/probes/step_000060.npz holds `uid` [P] and every field of the critic's `Value` before the first response
token: `mean` [P], for a quantile critic `quantiles` [P, H, M] and `ensemble` [P, M]. Beside them the returns of N
continuations of each prompt by the policy of that step, which no algorithm ever sees:

clean      [P, N]  as graded; NaN = could not be graded
observed   [P, N]  after the run's noise; NaN = none was given
used       [P, N]  after the run's correction, what a critic is to foretell; NaN = would have been left out
tolerance  []      a quantile this close to an outcome counts as lying on it, as in `critic/coverage_error`
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object

from noisyrl import rng
from noisyrl.experience import Collector, Evidence, rewarded, share
from noisyrl.models.base import LanguageModel
from noisyrl.noise.base import Noise
from noisyrl.rollout.base import Sampler
from noisyrl.rollout.chat import prompt_tokens
from noisyrl.tasks.base import Task
from noisyrl.trainer import TOLERANCE
from noisyrl.types import Prompt, Rollout, Value, concat, to_device

_COUNT = 8


def choose(task: Task, noise: Noise, first: Sequence[Prompt]) -> Sequence[Prompt]:
    """The probe prompts: a few of the task's first held-out split.

    Where there is no such split, or the noise knows only prompts of training (labels), a few of `first`, the prompts
    of the run's first step.
    """
    held_out = [split for split in task.splits if split != "train"]
    return first[:_COUNT] if noise.needs_setting or not held_out else task.prompts(held_out[0])[:_COUNT]


@torch.no_grad()
def snapshot(
    agent: torch.nn.Module, lm: LanguageModel, prompts: Sequence[Prompt], *, thinking: bool = False
) -> dict[str, Any]:
    """The critic's estimates before the first response token, by field. To be called on every process."""
    value = agent(_unanswered(lm, prompts, thinking), values_only=True)[1]
    found = {"uid": np.array([p.uid for p in prompts])}
    return found | {name: x.float().cpu().numpy() for name, x in value.before_the_first_token().items()}


def continuations(
    collector: Collector, prompts: Sequence[Prompt], sampler: Sampler, *, step: int, memory: Mapping[str, float]
) -> dict[str, Any]:
    """Returns of `sampler.samples` responses to each prompt by the policy as it is. To be called on every process.

    step    of the snapshot; noise that changes over training is that of the step before it
    memory  of the correction

    Draws are keyed apart from those of training. A group is the responses to one prompt, a step all of them.
    """
    apart = replace(collector, sampler=sampler, seed=rng.hash64("continuations", collector.seed))
    mine = []
    if prompts[share(len(prompts), collector.accelerator)]:  # there may be more processes than prompts
        rollout, grades = apart.sample(prompts, step)
        unjudged = Value(mean_BT=rollout.logp_BT)  # the critic is asked about the prompt alone, by `snapshot`
        mine = [Evidence(rollout, grades.clean_B, grades.statuses, rollout.logp_BT, None, unjudged)]
    found = gather_object([to_device(part, torch.device("cpu")) for part in mine])
    evidence = to_device(concat(found), collector.accelerator.device)
    experience = rewarded(evidence, collector.noise, collector.correction, max(step - 1, 0), memory)
    ledger = experience.ledger
    returns = {"clean": ledger.clean_B, "observed": ledger.observed_B, "used": ledger.used_B}
    arrays = {name: x_B.view(len(prompts), sampler.samples).float().cpu().numpy() for name, x_B in returns.items()}
    return arrays | {"tolerance": np.float32(TOLERANCE * experience.batch.reward_range.width)}


def write(path: Path, arrays: dict[str, Any]) -> None:
    """Writes an .npz file aside and renames it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".writing-{path.name}")
    np.savez(aside, **arrays)
    os.replace(aside, path)


def _unanswered(lm: LanguageModel, prompts: Sequence[Prompt], thinking: bool) -> Rollout:
    """Prompts with one response token each; values before it do not depend on it."""
    contexts = [prompt_tokens(lm.tokenizer, prompt, thinking=thinking) for prompt in prompts]
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
