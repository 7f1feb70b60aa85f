"""Quantile loss against all pairs, time and memory: python -m tests.ops.bench_quantiles (one thread, two minutes).

The sides run in turn in one process; times are CPU seconds, so other jobs disturb them less. Memory is the peak of what
torch allocates during forward and backward, by its profiler. The bars hold for pairs as the loss is defined; pairs
through torch's fused Huber kernel, the fastest form found, are shown beside them.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import huber_loss
from torch.profiler import ProfilerActivity, profile

from noisyrl.ops.quantiles import midpoints, quantile_huber

TOKENS, KAPPA = 2048, 0.05
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def ours(quantiles: Tensor, target: Tensor, tau: Tensor) -> Tensor:
    return quantile_huber(quantiles, target, tau, kappa=KAPPA, divide_by_kappa=True)


def pairwise(quantiles: Tensor, target: Tensor, tau: Tensor) -> Tensor:
    u = target[:, None, :] - quantiles[:, :, None]
    hub = torch.where(u.abs() <= KAPPA, 0.5 * u.square(), KAPPA * (u.abs() - 0.5 * KAPPA))
    weight = (tau[:, None] - (u.detach() < 0).to(u.dtype)).abs()
    return (weight * hub).mean((-2, -1)) / KAPPA


def fused(quantiles: Tensor, target: Tensor, tau: Tensor) -> Tensor:
    above, below = torch.broadcast_tensors(target[:, None, :], quantiles[:, :, None])
    weight = (tau[:, None] - (above < below).to(tau.dtype)).abs()
    return (weight * huber_loss(below, above, reduction="none", delta=KAPPA)).mean((-2, -1)) / KAPPA


def inputs(size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Quantiles in nearly sorted order, as a critic gives them; target atoms in none."""
    draw = torch.Generator().manual_seed(size)
    quantiles, noise, target = (torch.randn(TOKENS, size, generator=draw) for _ in range(3))
    return (quantiles.sort(-1).values + 0.1 * noise).requires_grad_(), target, midpoints(size)


def gradient(loss: Loss, size: int) -> tuple[float, Tensor]:
    """CPU seconds of forward and backward, and the gradient."""
    quantiles, target, tau = inputs(size)
    start = time.process_time()
    loss(quantiles, target, tau).sum().backward()
    return time.process_time() - start, quantiles.grad


def medians(rounds: int, *jobs: tuple[Loss, int]) -> list[float]:
    """Median CPU seconds of each (loss, size), in turn."""
    times = [[gradient(*job)[0] for job in jobs] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def peak_mib(loss: Loss, size: int) -> float:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        gradient(loss, size)
    changes = [x for x in record.profiler.kineto_results.events() if x.name() == "[memory]"]
    level = peak = 0
    for change in sorted(changes, key=lambda x: x.start_ns()):
        level += change.nbytes()
        peak = max(peak, level)
    return peak / 2**20


def main() -> int:
    torch.set_num_threads(1)
    for loss in (pairwise, fused):
        torch.testing.assert_close(gradient(ours, 30)[1], gradient(loss, 30)[1])
    sides = [pairwise, fused, ours]
    seconds = dict(zip(sides, medians(5, *[(side, 200) for side in sides]), strict=True))
    time_50, time_500 = medians(15, (ours, 50), (ours, 500))
    peaks = {side: peak_mib(side, 200) for side in sides}

    print(f"{TOKENS} tokens, M = K = 200, float32, forward and backward, one thread")
    print(f"{'':8} {'CPU ms':>8} {'/ ours':>7} {'peak MiB':>9}")
    for side in sides:
        ratio = seconds[side] / seconds[ours]
        print(f"{side.__name__:8} {1e3 * seconds[side]:8.1f} {ratio:7.1f} {peaks[side]:9.1f}")
    print(f"ours at M = K = 50: {1e3 * time_50:.1f} ms, at 500: {1e3 * time_500:.1f} ms\n")
    checks = [
        ("time, pairwise / ours", seconds[pairwise] / seconds[ours], 30.0, True),
        ("peak memory, pairwise / ours", peaks[pairwise] / peaks[ours], 8.0, True),
        ("our time, M = K = 500 / 50", time_500 / time_50, 14.0, False),
    ]
    held = [value >= bar if at_least else value <= bar for _, value, bar, at_least in checks]
    for (label, value, bar, at_least), ok in zip(checks, held, strict=True):
        print(f"{label:30} {value:7.1f}   bar {'>=' if at_least else '<='} {bar:4.0f}   {'pass' if ok else 'FAIL'}")
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
