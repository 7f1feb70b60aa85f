"""One step's experience: sample, grade, add noise, correct, annotate.

Every process handles its share of the prompts; what it found is gathered, so that noise and credit see the whole
step everywhere and world size changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from noisyrl.correction.base import Correction
from noisyrl.correction.none import NoCorrection
from noisyrl.ledger import Ledger, group_numbers
from noisyrl.models.base import LanguageModel
from noisyrl.noise.base import Noise
from noisyrl.rollout.base import Sampler
from noisyrl.tasks.base import Task
from noisyrl.tasks.deadline import graded
from noisyrl.types import Batch, Prompt, Range, Rollout, Scores, Value, concat, placed, rows, to_device, trimmed

S = TypeVar("S", bound=Value | Scores)


@dataclass(frozen=True)
class Experience:
    """A batch, and beside it what must never reach an algorithm."""

    batch: Batch
    clean_B: Tensor  # of the batch's rows
    ledger: Ledger  # of all rows, those left out of the batch included
    memory: Mapping[str, float] = field(default_factory=dict)  # of the correction, for the next step
    evidence: Evidence | None = None  # what it was made of

    @property
    def clean_batch(self) -> Batch:
        """The batch as it would be without noise: for measurements beside the training, never for an update."""
        return replace(self.batch, reward_B=self.clean_B.to(self.batch.reward_B), early_BT=None)


@dataclass(frozen=True)
class Grades:
    """Clean grades of some responses."""

    clean_B: Tensor  # NaN = could not be scored
    statuses: Sequence[str] = ()  # [B] scored, error, timeout; () = what the scores say

    def __post_init__(self) -> None:
        if not self.statuses:
            said = ["error" if missing else "scored" for missing in self.clean_B.isnan().tolist()]
            object.__setattr__(self, "statuses", said)
        assert len(self.statuses) == len(self.clean_B)


@dataclass(frozen=True)
class Evidence:
    """What is known of a step's rollouts before any noise, unscored ones included."""

    rollout: Rollout
    clean_B: Tensor  # NaN = could not be scored
    statuses: Sequence[str]
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
    correction: Correction = NoCorrection()
    grader_deadline_s: float = 60.0

    def sample(self, prompts: Sequence[Prompt], step: int) -> tuple[Rollout, Grades]:
        """This process's share of the rollout, graded."""
        mine = prompts[share(len(prompts), self.accelerator)]
        rollout = to_device(self.sampler(self.lm, self.task, mine, seed=self.seed, step=step), self.accelerator.device)
        grades = [
            graded(self.task, prompt, turns, self.grader_deadline_s)
            for prompt, turns in zip(rollout.prompts, rollout.turns, strict=True)
        ]
        scores = [float("nan") if grade.score is None else grade.score for grade in grades]
        clean_B = torch.tensor(scores, device=self.accelerator.device)
        return rollout, Grades(clean_B, [grade.status for grade in grades])

    def annotate(
        self, rollout: Rollout, grades: Grades, step: int, memory: Mapping[str, float] | None = None
    ) -> Experience:
        """The whole step's experience, the same on every process. memory: `Experience.memory` of the step before."""
        evidence = self._gather(self._estimates(rollout, grades))
        return rewarded(evidence, self.noise, self.correction, step, memory or {})

    @torch.no_grad()
    def _estimates(self, rollout: Rollout, grades: Grades) -> Evidence:
        value = in_micro_batches(self._value, rollout, self.micro_rows)
        logp_BT = rollout.logp_BT
        if not self.trust_sampler:
            logp_BT = in_micro_batches(lambda part: self.agent(part)[0], rollout, self.micro_rows).logp_BT
        reference = None if self.reference is None else in_micro_batches(self.reference, rollout, self.micro_rows)
        return Evidence(rollout, grades.clean_B, grades.statuses, logp_BT, reference, value)

    def _value(self, part: Rollout) -> Value:
        return self.agent(part, values_only=True)[1].kept(part.mask_BT)

    def _gather(self, local: Evidence) -> Evidence:
        if self.accelerator.num_processes == 1:
            return local
        found = gather_object([to_device(local, torch.device("cpu"))])
        return to_device(concat(found), self.accelerator.device)


def rewarded(
    evidence: Evidence, noise: Noise, correction: Correction, step: int, memory: Mapping[str, float]
) -> Experience:
    """What noise and correction make of a whole step. memory: `Experience.memory` of the step before."""
    scored = (~evidence.clean_B.isnan()).nonzero().flatten()
    part, clean_N = rows(evidence.rollout, scored), evidence.clean_B[scored]
    observed_N, causes_N = noise.causes(clean_N, part, step)
    memory = correction.remember(clean_N, observed_N, part, memory)
    used_N = correction(observed_N, part, memory)
    ledger = _ledger(evidence, scored, observed_N, used_N, causes_N)
    kept = evidence if len(ledger.kept) == len(evidence.clean_B) else rows(evidence, ledger.kept)
    batch = Batch(
        rollout=kept.rollout,
        reward_B=ledger.used_B[ledger.kept],
        logp_BT=kept.logp_BT,
        reference=kept.reference,
        value=kept.value,
        reward_range=correction.corrected_range(noise.observed_range(Range())),
        early_BT=noise.early_rewards(kept.rollout, step),
    )
    return Experience(batch=batch, clean_B=kept.clean_B, ledger=ledger, memory=memory, evidence=evidence)


def _ledger(found: Evidence, scored: Tensor, observed_N: Tensor, used_N: Tensor, causes_N: Sequence[str]) -> Ledger:
    """What became of all rows, of which noise and correction saw those numbered `scored`."""
    uids = [prompt.uid for prompt in found.rollout.prompts]
    missing_B = torch.full_like(found.clean_B, float("nan"))
    causes = [""] * len(uids)
    for row, cause in zip(scored.tolist(), causes_N, strict=True):
        causes[row] = cause
    return Ledger(
        uids=uids,
        sample_B=found.rollout.sample_B,
        group_B=group_numbers(uids).to(found.clean_B.device),
        clean_B=found.clean_B,
        observed_B=missing_B.index_copy(0, scored, observed_N),
        used_B=missing_B.index_copy(0, scored, used_N),
        causes=causes,
        statuses=found.statuses,
        finished_B=found.rollout.finished_B,
    )


def share(count: int, accelerator: Accelerator) -> slice:
    """This process's contiguous part of `count` items, so that gathering restores their order."""
    world, rank = accelerator.num_processes, accelerator.process_index
    return slice(count * rank // world, count * (rank + 1) // world)


def by_length(rollout: Rollout) -> Tensor:
    """[B] row numbers, longest sequence first, equal ones by group: neighbours need little padding, share much."""
    by_group_B = rollout.group_B.argsort(stable=True)
    size_B = rollout.attention_BL.sum(dim=1)[by_group_B]
    return by_group_B[size_B.argsort(descending=True, stable=True)]


def in_micro_batches(function: Callable[[Rollout], S], rollout: Rollout, micro_rows: int) -> S:
    """`function` of every row, computed `micro_rows` rows at a time, in the order of the rollout."""
    indices = by_length(rollout).split(micro_rows)
    parts = []
    for index in indices:
        part = rows(rollout, index)
        parts.append(function(trimmed(part, part)))
    return placed(parts, indices, rollout.mask_BT.shape)
