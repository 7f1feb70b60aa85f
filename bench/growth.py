"""How a step grows with its batch, lengths, quantiles, heads and parameters, and how far each phase is from the roof.

A fitted exponent of 1 means: twice the size costs twice the time. The roof of a phase is the time that its
multiplications would take at the rate of a large matrix product, or its weights and caches at the rate of a large
copy, whichever is more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np

from bench import frame, stage
from bench.algorithms import CriticAlone
from noisyrl.models.base import LanguageModel
from noisyrl.planning.cpu import measured_device
from noisyrl.trainer import Loop
from noisyrl.types import Rollout

_SAMPLES, _PROMPT_TOKENS = 8, 20  # prompts of the testbed's arithmetic have about as many
_STILL = "algo.lr=1e-9"  # a policy that learns would soon end its turns, and its steps would no longer be alike


def measure(quick: bool) -> frame.Part:
    """Exponents, then the roofline."""
    part = frame.Part("growth", "How the time of a step grows, and the roofline of this machine")
    with TemporaryDirectory() as at:
        _batch(part, Path(at), quick)
        if not quick:
            _length(part, Path(at))
            _parameters(part, Path(at))
        _critic(part, Path(at), quick)
        _roofline(part, Path(at), quick)
    return part


def _grown(
    part: frame.Part, case: str, sides: Mapping[int, Callable[[], float | None]], rounds: int,
    bar: float | None = None, watched: bool = False,
) -> None:  # fmt: skip
    """Measures the sides in turn and fits an exponent in each round. sides: size -> what to do."""
    found = frame.alternate(case, {str(size): run for size, run in sides.items()}, rounds)
    part.add(list(found.values()))
    logs = np.log(list(sides))
    slopes = [
        float(np.polyfit(logs, np.log(turn), 1)[0]) for turn in zip(*(x.cpu_s for x in found.values()), strict=True)
    ]
    part.compare(f"exponent, {case}", slopes, "lower", bar=bar, watched=watched)


def _step_of(folder: Path, *, rows: int, tokens: int, algo: str = "dvpo") -> Callable[[], float]:
    sizes = [f"trainer.prompts={rows // _SAMPLES}", f"rollout.samples={_SAMPLES}", f"rollout.max_tokens={tokens}"]
    return partial(stage.step, stage.loop(stage.on(folder, f"algo={algo}", _STILL, "trainer.steps=1000", *sizes)))


def _batch(part: frame.Part, at: Path, quick: bool) -> None:
    folder = stage.model_folder(at)
    batches = [512, 2048] if quick else [1024 * 2**i for i in range(6)]
    sides = {size: _step_of(folder, rows=size // 64, tokens=64 - _PROMPT_TOKENS) for size in batches}
    _grown(part, "a DVPO step against the tokens of its batch", sides, 3 if quick else 2, bar=1.1, watched=True)


def _length(part: frame.Part, at: Path) -> None:
    folder = stage.model_folder(at)
    sides = {length: _step_of(folder, rows=32, tokens=length - _PROMPT_TOKENS) for length in (64, 128, 256, 512)}
    _grown(part, "a DVPO step of 32 rows against their length", sides, 2)


def _parameters(part: frame.Part, at: Path) -> None:
    sides = {}
    for hidden in (64, 128, 256, 512):
        shape = [f"hidden={hidden}", f"intermediate={2 * hidden}", f"heads={hidden // 32}", f"kv_heads={hidden // 64}"]
        folder = stage.model_folder(at, *shape)
        count = sum(p.numel() for p in stage.load(folder).model.parameters())
        sides[count] = _step_of(folder, rows=32, tokens=44, algo="grpo")
    _grown(part, "a GRPO step of 32 rows against the policy's parameters", sides, 3)


def _critic(part: frame.Part, at: Path, quick: bool) -> None:
    folder = stage.model_folder(at)

    def alone(*overrides: str) -> Callable[[], float]:
        sizes = ["trainer.prompts=4", f"rollout.max_tokens={32 if quick else 64}", "trainer.steps=1000"]
        return CriticAlone(stage.loop(stage.on(folder, "algo=dvpo", *sizes, *overrides)), repeats=1)

    atoms = (50, 200) if quick else (50, 100, 200, 500, 1000)
    sides = {count: alone(f"algo.critic.quantiles={count}") for count in atoms}
    _grown(part, "DVPO's critic head and loss against M", sides, 5, watched=quick)
    if not quick:
        sides = {count: alone(f"algo.critic.heads={count}") for count in (1, 2, 4, 8)}
        _grown(part, "DVPO's critic head and loss against the number of heads", sides, 5)


def _roofline(part: frame.Part, at: Path, quick: bool) -> None:
    device = measured_device()
    flops, bandwidth = 1e3 * device.tflops_32, device.bandwidth_gbs
    part.note(f"Roof: {flops:.0f} GFLOP/s in a matrix product of 1024^3, {bandwidth:.1f} GB/s in a copy, one thread.")
    for size in ("tiny",) if quick else ("tiny", "small"):
        folder = stage.model_folder(at, size)
        shape = [f"trainer.prompts={4 if quick else 16}", f"rollout.max_tokens={16 if quick else 64}"]
        made = stage.loop(stage.on(folder, "algo=ppo", _STILL, "trainer.steps=1000", *shape))
        record = frame.Record(f"phases of a PPO step, {size}", ["rollout", "values", "update"])
        for number in range(4):
            with record.turn("rollout"):
                rollout, grades = made.collector.sample(stage.prompts_of(made, number), number)
            with record.turn("values"):
                batch = made.collector.annotate(rollout, grades, number).batch
            with record.turn("update"):
                made.learn(batch, number, step=number)
        part.add(record.list())
        for phase, floor in roofs(made, rollout, flops, bandwidth).items():
            measured = median(record.sides[phase].cpu_s)
            name = f"{phase}, {size}: time at the roof / measured (roof {1e3 * floor:.0f} ms)"
            part.compare(name, [floor / measured], "higher")


def roofs(made: Loop, rollout: Rollout, gflops: float, gbytes: float) -> dict[str, float]:
    """Seconds that each phase would take at the roof, for a PPO step with a critic of the policy's own size."""
    lm: LanguageModel = made.collector.lm
    config = lm.model.config
    head = lm.model.get_output_embeddings().weight.numel()
    trunk = sum(p.numel() for p in lm.model.model.layers.parameters())
    lengths = rollout.attention_BL.sum(dim=1).double()
    said = float(rollout.mask_BT.sum())
    # Scores and weighted sums over the tokens before each one, all heads and layers: 4 products per pair and width.
    width = config.num_attention_heads * config.head_dim * config.num_hidden_layers
    attention = float(4 * width * (lengths * (lengths + 1) / 2).sum())
    forward = 2 * trunk * float(lengths.sum()) + attention
    logits = 2 * head * said
    # Decoding reads all weights and the cache once for every token that the longest row says; keys and values.
    steps = rollout.mask_BT.shape[1]
    cache = 2 * 4 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * float(lengths.mean())
    read = steps * (4 * (trunk + head) + cache * len(lengths))
    at_flops = partial(_at, 1e9 * gflops)
    return {
        "rollout": max(at_flops(2 * (trunk + head) * said + attention), _at(1e9 * gbytes, read)),
        "values": at_flops(forward),
        "update": at_flops(3 * (2 * forward + logits)),
    }


def _at(rate: float, amount: float) -> float:
    assert math.isfinite(amount)
    return amount / rate
