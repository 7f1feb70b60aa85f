"""One step's experience: sample, grade, add noise, annotate.

Every process handles its share of the prompts; what it found is gathered, so that noise and credit see the whole
step everywhere and world size changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from noisyrl.models.base import LanguageModel
from noisyrl.noise.base import Noise
from noisyrl.rollout.base import Sampler
from noisyrl.tasks.base import Task
from noisyrl.types import Batch, Prompt, Rollout, Scores, Value, concat, rows, to_device


@dataclass(frozen=True)
class Experience:
    """A batch, and beside it what must never reach an algorithm."""

    batch: Batch
    clean_B: Tensor
    unscored: int  # responses that could not be graded and were left out


@dataclass(frozen=True)
class _Share:
    """What one process found; concatenated over processes."""

    rollout: Rollout
    clean_B: Tensor  # NaN = could not be scored
    logp_BT: Tensor  # under the policy as the trainer computes it
    reference: Scores | None
    value: Value


@dataclass(frozen=True)
class Collector:
    """Everything that turns prompts into experience."""

    accelerator: Accelerator
    lm: LanguageModel
    task: Task
    sampler: Sampler
    noise: Noise
    agent: torch.nn.Module  # Agent, wrapped for several processes
    reference: torch.nn.Module | None  # a Policy
    micro_rows: int
    seed: int
    trust_sampler: bool = True  # its log-probabilities are the trainer's: same weights, same precision

    def sample(self, prompts: Sequence[Prompt], step: int) -> tuple[Rollout, Tensor]:
        """This process's share of the rollout with clean grades [B] (NaN = could not be scored)."""
        mine = prompts[share(len(prompts), self.accelerator)]
        rollout = to_device(self.sampler(self.lm, self.task, mine, seed=self.seed, step=step), self.accelerator.device)
        grades = [self.task.grade(prompt, turns) for prompt, turns in zip(rollout.prompts, rollout.turns, strict=True)]
        scores = [float("nan") if grade.score is None else grade.score for grade in grades]
        return rollout, torch.tensor(scores, device=self.accelerator.device)

    def annotate(self, rollout: Rollout, clean_B: Tensor, step: int) -> Experience:
        """The whole step's experience, the same on every process."""
        found = self._gather(self._estimates(rollout, clean_B))
        scored = (~found.clean_B.isnan()).nonzero().flatten()
        kept = rows(found, scored)
        batch = Batch(
            rollout=kept.rollout,
            reward_B=self.noise(kept.clean_B, kept.rollout, step),
            logp_BT=kept.logp_BT,
            reference=kept.reference,
            value=kept.value,
            reward_range=self.noise.reward_range,
        )
        return Experience(batch=batch, clean_B=kept.clean_B, unscored=len(found.clean_B) - len(scored))

    @torch.no_grad()
    def _estimates(self, rollout: Rollout, clean_B: Tensor) -> _Share:
        value = in_micro_batches(lambda part: self.agent(part, values_only=True)[1], rollout, self.micro_rows)
        logp_BT = rollout.logp_BT
        if not self.trust_sampler:
            logp_BT = in_micro_batches(lambda part: self.agent(part)[0], rollout, self.micro_rows).logp_BT
        reference = None if self.reference is None else in_micro_batches(self.reference, rollout, self.micro_rows)
        return _Share(rollout, clean_B, logp_BT, reference, value)

    def _gather(self, local: _Share) -> _Share:
        if self.accelerator.num_processes == 1:
            return local
        found = gather_object([to_device(local, torch.device("cpu"))])
        return to_device(concat(found), self.accelerator.device)


def share(count: int, accelerator: Accelerator) -> slice:
    """This process's contiguous part of `count` items, so that gathering restores their order."""
    world, rank = accelerator.num_processes, accelerator.process_index
    return slice(count * rank // world, count * (rank + 1) // world)


def by_length(rollout: Rollout) -> Tensor:
    """[B] row numbers, longest sequence first: neighbours need little padding."""
    return rollout.attention_BL.sum(dim=1).argsort(descending=True, stable=True)


def in_micro_batches(function: Callable[[Rollout], Value | Scores], rollout: Rollout, micro_rows: int):
    """`function` of every row, computed `micro_rows` rows at a time, in the order of the rollout."""
    order_B = by_length(rollout)
    parts = [function(rows(rollout, index)) for index in order_B.split(micro_rows)]
    return rows(concat(parts), order_B.argsort())
