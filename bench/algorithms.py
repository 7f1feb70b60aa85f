"""What a step costs under each algorithm, and what the critic's head and loss cost alone.

All algorithms take their steps from the same starting weights with the same prompts and keyed draws; learning rates
of the policy are so small that responses stay alike.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from bench import frame, stage
from noisyrl.critics.base import Sight
from noisyrl.experience import by_length
from noisyrl.ops.masked import keep
from noisyrl.trainer import Loop
from noisyrl.types import Batch, Credit, rows

QUICK = ("grpo", "ppo", "dvpo", "dvpo_light")
STEPS = (*QUICK, "vrpo", "robust_bellman")
# Without VRPO, whose head reads the language model: only full steps tell what that costs.
CRITICS = ("ppo", "robust_bellman", "dvpo", "dvpo_light")
ATOMS = {"dvpo": (50, 100, 200, 500)}
# The most a step may cost beside one of PPO.
BARS = {("dvpo", "ppo"): 1.15, ("dvpo_light", "ppo"): 1.05}
WATCHED = {*BARS, ("grpo", "ppo")}

# Over its first steps a process still asks the kernel for memory, most where tensors are largest; a run has sixty.
_WARMUPS = 3
# CPU seconds that a turn should take at least.
_SHORTEST_S = 0.05


def measure(quick: bool) -> frame.Part:
    """Full steps of each algorithm, and critic losses by number of quantiles."""
    part = frame.Part("algorithms", "What each algorithm costs")
    with TemporaryDirectory() as at:
        folder = stage.model_folder(Path(at), end=stage.ENDS)
        _steps(part, folder, quick)
        if not quick:
            # What runs of the testbed start from: its samples share tokens, which a trunk computes once.
            _steps(part, stage.warm_started(Path(at), "tiny"), quick, "warm-started: ")
            _steps(part, stage.model_folder(Path(at), "small", end=stage.ENDS), quick, "small: ", QUICK)
        _losses(part, folder, quick)
    return part


def _loop(folder: Path, algo: str, quick: bool, *overrides: str) -> Loop:
    sizes = [f"trainer.prompts={8 if quick else 16}", f"rollout.max_tokens={32 if quick else 64}"]
    return stage.loop(stage.on(folder, f"algo={algo}", "algo.lr=1e-9", "trainer.steps=1000", *sizes, *overrides))


def _steps(part: frame.Part, folder: Path, quick: bool, label: str = "", algos: tuple[str, ...] = STEPS) -> None:
    names = QUICK if quick else algos
    sides: dict[str, Callable[[], float]] = {name: partial(stage.step, _loop(folder, name, quick)) for name in names}
    found = frame.alternate(f"{label}full step", sides, 3 if quick else 7, warmups=1 if quick else _WARMUPS)
    part.add(list(found.values()))
    for base in ("ppo",) if quick else ("ppo", "grpo"):
        for name in [name for name in names if name != base]:
            values, pair = frame.ratios(found[name], found[base]), (name, base)
            watched, bar = pair in WATCHED, BARS.get(pair)
            part.compare(f"{label}step, {name} / {base}", values, "lower", bar=bar, watched=watched)


def _losses(part: frame.Part, folder: Path, quick: bool) -> None:
    sides: dict[str, Callable[[], float]] = {}
    for name in CRITICS:
        if quick or name not in ATOMS:
            sides[name] = CriticAlone(_loop(folder, name, quick))
            continue
        for count in ATOMS[name]:
            made = _loop(folder, name, quick, f"algo.critic.quantiles={count}")
            sides[f"{name}, M = {count}"] = CriticAlone(made)
    found = frame.alternate("critic head and loss", sides, 5)
    part.add(list(found.values()))
    base = found.pop("ppo")
    for label, side in found.items():
        values = [a / b for a, b in zip(base.rates(), side.rates(), strict=True)]
        part.compare(f"critic head and loss, {label} / ppo", values, "lower", watched=quick and (label, "ppo") in BARS)


class CriticAlone:
    """A call is one forward and backward pass of a critic's head and loss, on hidden states that are given.

    Passes too short for the clock are repeated, unless `repeats` is given: compare tokens per second, not seconds.
    """

    def __init__(self, made: Loop, repeats: int | None = None) -> None:
        rollout, grades = made.collector.sample(stage.prompts_of(made, 0), 0)
        batch = made.collector.annotate(rollout, grades, 0).batch
        credit = made.credit(batch)
        agent: Any = made.collector.agent
        self.algo, self.head = made.algo, agent.critic.head
        width = agent.policy.hidden_size
        draw = torch.Generator().manual_seed(0)
        self.parts: list[tuple[Batch, Credit, Tensor]] = []
        for index in by_length(rollout).split(made.trainer.micro_rows):
            part = rows(batch, index)
            hidden_BTD = torch.randn(*part.mask_BT.shape, width, generator=draw)
            self.parts.append((part, rows(credit, index), hidden_BTD))

        self._pass()
        cpu = frame.cpu_s()
        self._pass()
        self.repeats = repeats or max(1, int(_SHORTEST_S / max(frame.cpu_s() - cpu, 1e-4)))

    def __call__(self) -> float:
        """The policy tokens it was computed for."""
        return sum(self._pass() for _ in range(self.repeats))

    def _pass(self) -> float:
        self.head.zero_grad()
        for part, owed, hidden_BTD in self.parts:
            value = self.head(hidden_BTD.requires_grad_(), Sight(part.rollout, None, part.reference))
            loss = self.algo.critic_loss(value, part, owed)
            keep(loss.total_BT, part.mask_BT).sum().backward()
            hidden_BTD.grad = None
        return float(sum(part.mask_BT.sum() for part, _, _ in self.parts))
