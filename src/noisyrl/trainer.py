"""The training loop. It knows no algorithm: it calls `credit`, `token_weights`, `policy_loss` and `critic_loss`.

Sums are written as per-token weights that already hold the normaliser, computed from the whole minibatch, so
micro-batching and sharding are exact. Every draw is keyed by the step, so a resumed run repeats what would have been.

Critic warm-up takes its rollouts from behind the last training step of the data stream: step k then meets the same
prompts and the same noise in every algorithm, warmed up or not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from noisyrl import rng
from noisyrl.algos.base import Algorithm
from noisyrl.experience import Collector, Experience, by_length
from noisyrl.ledger import Ledger
from noisyrl.ops.masked import correlation, explained_variance, keep, masked_mean
from noisyrl.policy import Agent
from noisyrl.rollouts import Stored
from noisyrl.spec import Count, Natural, NonNegative, Positive, spec
from noisyrl.tasks.base import batch as draw_prompts
from noisyrl.types import Batch, Credit, Loss, rows, trimmed

# Share of the reward range within which a quantile counts as equal to an outcome; below the calibrated critic's kappa.
TOLERANCE = 0.05


@spec
class Trainer:
    """What `trainer=` configures."""

    steps: Count = 60
    """Training steps, one rollout each."""
    prompts: Count = 16
    """P, prompts per step; each is answered `rollout.samples` times."""
    minibatches: Count = 1
    """Gradient steps per epoch. With one minibatch and one epoch the old policy is the new one: clipping never acts."""
    epochs: Count = 1
    """Passes over each rollout."""
    micro_rows: Count = 32
    """Rows per forward and backward pass; bounds memory, changes no gradient."""
    grad_clip: Positive = 1.0
    """Largest gradient norm, of policy and critic each."""
    lr_warmup_steps: Natural = 0
    """Steps over which the policy's learning rate rises to its peak."""
    lr_decay: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the policy's learning rate after its peak, down to 0 after the last step."""
    weight_decay: NonNegative = 0.0
    """AdamW weight decay."""
    checkpoint_every: Natural = 20
    """Steps between checkpoints; 0 = only the last. A run resumes from its newest."""
    keep_last: Count = 1
    """Checkpoints kept."""
    store_rollouts_every: Natural = 20
    """Steps between stored rollouts, which `src/probe.py` scores again; 0 = none."""
    probe_continuations: Natural = 32
    """Responses to each probe prompt at every checkpoint, whose returns the critic is judged by; 0 = none."""
    threads: Natural = 1
    """CPU threads per process; 0 = torch's choice. Fixed because it decides rounding: a run must give the same bytes
    alone and beside others."""
    grader_deadline_s: Positive = 60.0
    """Seconds of wall clock after which grading a response is given up: it is left out, never counted as wrong."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 = mixed precision with float32 weights; the sampler's log-probabilities are then computed again."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""

    def lr_factor(self, step: int) -> float:
        """Share of the peak learning rate at training step `step` (0-based; negative in critic warm-up)."""
        if step < self.lr_warmup_steps:
            return (max(step, 0) + 1) / (self.lr_warmup_steps + 1)
        done = (step - self.lr_warmup_steps) / max(1, self.steps - self.lr_warmup_steps)
        return {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[self.lr_decay]

    def optimizer(self, algo: Algorithm, agent: Agent) -> torch.optim.Optimizer:
        """AdamW with one group for the policy and one for the critic."""
        critic_lr = algo.critic.lr
        groups = [
            {"params": list(agent.policy.parameters()), "lr": algo.lr, "peak_lr": algo.lr, "part": "policy"},
            {"params": list(agent.critic.parameters()), "lr": critic_lr, "peak_lr": critic_lr, "part": "critic"},
        ]
        groups = [group for group in groups if group["params"]]
        return torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8, weight_decay=self.weight_decay)


@dataclass
class Progress:
    """Where a run stands; saved with each checkpoint."""

    position: int = 0  # steps done, critic warm-up included
    updates: int = 0
    skipped_updates: int = 0
    rollouts: int = 0
    tokens: int = 0
    right: int = 0  # responses with clean reward above one half
    right_lowered: int = 0  # of these, rewarded less than they deserved
    wrong_raised: int = 0  # of the others, rewarded more than they deserved
    memory: dict[str, float] = field(default_factory=dict)  # what the algorithm carries from step to step
    correction: dict[str, float] = field(default_factory=dict)  # what the correction carries

    def count(self, experience: Experience) -> None:
        """Adds one step's rollouts."""
        ledger = experience.ledger
        both = (ledger.clean_B.isfinite() & ledger.observed_B.isfinite()).nonzero().flatten()
        clean_B, observed_B = ledger.clean_B[both], ledger.observed_B[both]
        right_B = clean_B > 0.5
        self.rollouts += len(clean_B)
        self.tokens += int(experience.batch.mask_BT.sum())
        self.right += int(right_B.sum())
        self.right_lowered += int((right_B & (observed_B < clean_B)).sum())
        self.wrong_raised += int((~right_B & (observed_B > clean_B)).sum())


@dataclass
class Loop:
    """One run of the loop over steps; `optimizer` and the collector's agent are what it changes."""

    trainer: Trainer
    algo: Algorithm
    collector: Collector
    optimizer: torch.optim.Optimizer
    prompts: list
    seed: int
    progress: Progress = field(default_factory=Progress)
    store: Callable[[int, Stored], None] | None = None  # is handed step and rollouts where they are due

    def steps(self) -> Iterator[tuple[int, Mapping[str, float], Ledger]]:
        """Runs the loop, yielding (step, metrics, ledger) after each step; steps up to 0 are critic warm-up."""
        warmup = self.algo.critic.warmup_steps
        while self.progress.position < warmup + self.trainer.steps:
            yield self.progress.position - warmup + 1, *self._step(self.progress.position - warmup)

    def _step(self, step: int) -> tuple[Mapping[str, float], Ledger]:
        stream = step if step >= 0 else self.trainer.steps - 1 - step
        clock = _Clock()
        drawn = draw_prompts(self.prompts, stream, self.trainer.prompts, self.seed)
        rollout, grades = self.collector.sample(drawn, stream)
        clock.lap("time/rollout_s")
        experience = self.collector.annotate(rollout, grades, stream, self.progress.correction)
        clock.lap("time/annotate_s")
        metrics = describe(experience)
        before, self.progress.correction = self.progress.correction, dict(experience.memory)
        metrics |= self.collector.correction.metrics(self.progress.correction)
        if len(experience.clean_B):
            credit = self.credit(experience.batch)
            every = self.trainer.store_rollouts_every
            if self.store and experience.evidence and every and step >= 0 and (step + 1) % every == 0:
                kept = Stored(experience.evidence, stream, self.progress.memory, before, credit.advantage_BT)
                self.store(step + 1, kept)
            metrics |= advantage_error(credit, self.algo.advantages(experience.clean_batch), experience.batch)
            metrics |= self.learn(experience.batch, stream, step=step, credit=credit)
        clock.lap("time/update_s")
        self.progress.position += 1
        self.progress.count(experience)
        if not self.has_critic:
            metrics = {name: value for name, value in metrics.items() if not name.startswith("critic/")}
        metrics |= {"trainer/skipped_updates": self.progress.skipped_updates, "trainer/tokens": self.progress.tokens}
        return metrics | clock.laps | {"time/step_s": clock.total}, experience.ledger

    @property
    def has_critic(self) -> bool:
        """Whether there are critic parameters to train."""
        return any(group["part"] == "critic" for group in self.optimizer.param_groups)

    def credit(self, batch: Batch) -> Credit:
        """The algorithm's credit, corrected."""
        credit = self.algo.credit(replace(batch, memory=self.progress.memory))
        return self.collector.correction.credit(credit, batch, self.progress.correction)

    def learn(self, batch: Batch, stream: int, *, step: int, credit: Credit | None = None) -> dict[str, float]:
        """Trains on one batch, the critic alone if step < 0, and returns metrics. stream keys the minibatches."""
        credit = self.credit(batch) if credit is None else credit
        batch = replace(batch, value=batch.value.for_losses(), memory=self.progress.memory)
        self.progress.memory = dict(credit.memory)
        factor = self.trainer.lr_factor(step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * (factor if group["part"] == "policy" else 1.0)
        metrics = {f"{group['part']}/lr": group["lr"] for group in self.optimizer.param_groups}
        sums: dict[str, Tensor] = {}
        updates = 0
        for epoch in range(self.trainer.epochs):
            for index in self._minibatches(len(batch.reward_B), stream, epoch):
                metrics |= self._update(batch, credit, index, sums, critic_only=step < 0)
                updates += 1
        return metrics | self._reduced(sums, updates)

    def _minibatches(self, count: int, stream: int, epoch: int) -> Iterator[Tensor]:
        order = torch.from_numpy(rng.generator("minibatch", self.seed, stream, epoch).permutation(count))
        yield from (part for part in order.tensor_split(self.trainer.minibatches) if len(part))

    def _update(
        self, batch: Batch, credit: Credit, index: Tensor, sums: dict[str, Tensor], *, critic_only: bool
    ) -> dict[str, float]:
        """One gradient step on rows `index` of the global batch; adds weighted loss terms to `sums`."""
        weights_BT = self.algo.token_weights(batch.mask_BT[index.to(batch.mask_BT.device)])
        for micro, micro_weights_BT, sync in self._micro_batches(batch, index, weights_BT):
            part = rows(batch, micro)
            part, owed = trimmed(part, part.rollout), rows(trimmed(credit, part.rollout), micro)
            micro_weights_BT = micro_weights_BT[:, : part.mask_BT.shape[1]]
            with sync:
                scores, value = self.collector.agent(
                    part.rollout, part.reference, values_only=critic_only, freeze_policy=critic_only
                )
                loss = self.algo.critic_loss(value, part, owed)
                terms = {f"critic/{name}": term for name, term in loss.terms.items()}
                if not critic_only:
                    policy_loss = self.algo.policy_loss(scores, part, owed)
                    terms |= {f"policy/{name}": term for name, term in policy_loss.terms.items()}
                    loss = Loss(total_BT=loss.total_BT + policy_loss.total_BT, terms={})
                total = (micro_weights_BT * keep(loss.total_BT, part.mask_BT)).sum()
                if total.requires_grad:
                    self.collector.accelerator.backward(total)
            for name, term in terms.items():
                sums[name] = sums.get(name, 0.0) + (micro_weights_BT * keep(term, part.mask_BT)).sum().detach()
            if not critic_only:
                gap = keep(scores.logp_BT.detach() - part.rollout.logp_BT, part.mask_BT).abs().max()
                sums.setdefault("policy/logp_gap_max", gap)
        return self._apply()

    def _micro_batches(self, batch: Batch, index: Tensor, weights_BT: Tensor):
        """(rows of the global batch, their weights, context) for each micro-batch of this process.

        Gradients are averaged over processes, so weights are multiplied by their number. Shares are made equal by
        repeating a row with weight 0, so that every process makes the same number of passes.
        """
        accelerator = self.collector.accelerator
        world, rank = accelerator.num_processes, accelerator.process_index
        short = -len(index) % world
        index = torch.cat([index, index[:1].expand(short)])[rank::world]
        weights_BT = torch.cat([weights_BT, weights_BT.new_zeros(short, weights_BT.shape[1])])[rank::world] * world
        order = by_length(rows(batch.rollout, index)).cpu()
        micros = order.split(self.trainer.micro_rows)
        for number, micro in enumerate(micros):
            last = number == len(micros) - 1
            sync = nullcontext() if last else accelerator.no_sync(self.collector.agent)
            yield index[micro], weights_BT[micro.to(weights_BT.device)], sync

    def _apply(self) -> dict[str, float]:
        """Clips and steps, or drops the update if any gradient is not finite. Returns the norms."""
        norms = {}
        for group in self.optimizer.param_groups:
            if any(p.grad is not None for p in group["params"]):
                norm = self.collector.accelerator.clip_grad_norm_(group["params"], self.trainer.grad_clip)
                norms[f"{group['part']}/grad_norm"] = float(norm)
        if all(math.isfinite(norm) for norm in norms.values()):
            self.optimizer.step()
            self.progress.updates += 1
        else:
            self.progress.skipped_updates += 1
        self.optimizer.zero_grad(set_to_none=True)
        return norms

    def _reduced(self, sums: dict[str, Tensor], updates: int) -> dict[str, float]:
        """Sums over micro-batches -> means over updates and processes; `_max` metrics keep the largest."""
        accelerator = self.collector.accelerator
        reduced = {}
        for name, value in sums.items():
            every = accelerator.gather(value.reshape(1).float())
            reduced[name] = float(every.max() if name.endswith("_max") else every.mean() / updates)
        return reduced


class _Clock:
    """Wall-clock seconds between laps."""

    def __init__(self) -> None:
        self.start = self.last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self.last = now - self.last, now

    @property
    def total(self) -> float:
        return time.perf_counter() - self.start


def describe(experience: Experience) -> dict[str, float]:
    """The metrics of one step's experience, before any update."""
    batch, clean_B = experience.batch, experience.clean_B
    metrics = experience.ledger.metrics()
    if not len(clean_B):
        return metrics
    mask_BT, value_BT = batch.mask_BT, batch.value.mean_BT
    metrics |= {
        "rollout/length_tokens": float(mask_BT.sum(dim=1).float().mean()),
        "rollout/turns": sum((len(turns) + 1) // 2 for turns in batch.rollout.turns) / len(clean_B),
        "rollout/finished_frac": float(batch.rollout.finished_B.float().mean()),
        "critic/value_mean": float(masked_mean(value_BT, mask_BT)),
    }
    return metrics | describe_critic(batch, clean_B)


def describe_critic(batch: Batch, clean_B: Tensor) -> dict[str, float]:
    """How well the critic foretold these rollouts, before it was trained on any of them."""
    mask_BT, value_BT, reward_B = batch.mask_BT, batch.value.mean_BT, batch.reward_B
    value_N = value_BT[mask_BT].double()
    observed_N, clean_N = (x_B[:, None].expand_as(mask_BT)[mask_BT].double() for x_B in (reward_B, clean_B))
    return {
        "critic/explained_variance": explained_variance(reward_B[:, None].expand_as(value_BT), value_BT, mask_BT),
        "critic/explained_variance_clean": explained_variance(clean_B[:, None].expand_as(value_BT), value_BT, mask_BT),
        "critic/correlation_clean": correlation(value_N, clean_N),
        "critic/bias": float((value_N - observed_N).mean()),
        **batch.value.diagnostics(reward_B, mask_BT, TOLERANCE * batch.reward_range.width),
    }


def advantage_error(credit: Credit, clean_BT: Tensor, batch: Batch) -> dict[str, float]:
    """How the advantages compare with those that clean rewards would have given [B, T], over policy tokens."""
    mask_BT = batch.mask_BT
    found_N, clean_N = credit.advantage_BT[mask_BT].double(), clean_BT[mask_BT].double()
    matter_N = clean_N != 0
    agree = (found_N.sign() == clean_N.sign())[matter_N].double()
    return {
        "noise/advantage_correlation": correlation(found_N, clean_N),
        "noise/advantage_sign_agreement": float(agree.mean()) if len(agree) else float("nan"),
    }
