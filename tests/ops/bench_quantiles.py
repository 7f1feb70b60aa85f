"""Quantile loss against all pairs, time and memory: python -m tests.ops.bench_quantiles (one thread, about a minute).

Pairs are formed with torch's fused Huber loss, the fastest plain form found. Both sides run in turn in one process;
times are CPU seconds, so other jobs disturb them less. Memory is the rise of the peak resident set (Linux only).
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import huber_loss

from noisyrl.ops.quantiles import midpoints, quantile_huber

TOKENS, KAPPA = 2048, 0.05


def ours(quantiles: Tensor, target: Tensor, tau: Tensor) -> Tensor:
    return quantile_huber(quantiles, target, tau, kappa=KAPPA, divide_by_kappa=True)


def pairwise(quantiles: Tensor, target: Tensor, tau: Tensor) -> Tensor:
    above, below = torch.broadcast_tensors(target[:, None, :], quantiles[:, :, None])
    loss = huber_loss(below, above, reduction="none", delta=KAPPA)
    return (loss * (tau[:, None] - (above < below).to(tau.dtype)).abs()).mean((-2, -1)) / KAPPA


def inputs(size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Quantiles in nearly sorted order, as a critic gives them; target atoms in none."""
    draw = torch.Generator().manual_seed(size)
    quantiles, noise, target = (torch.randn(TOKENS, size, generator=draw) for _ in range(3))
    return (quantiles.sort(-1).values + 0.1 * noise).requires_grad_(), target, midpoints(size)


def gradient(loss, size: int) -> tuple[float, Tensor]:
    """CPU seconds of forward and backward, and the gradient."""
    quantiles, target, tau = inputs(size)
    start = time.process_time()
    loss(quantiles, target, tau).sum().backward()
    return time.process_time() - start, quantiles.grad


def peak_mib(loss, size: int) -> float:
    """Rise of the peak resident set above its level before the call."""
    quantiles, target, tau = inputs(size)

    def status(key: str) -> float:
        (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
        return int(line.split()[1]) / 1024

    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from the present
    before = status("VmRSS")
    loss(quantiles, target, tau).sum().backward()
    return status("VmHWM") - before


def medians(jobs: list, rounds: int) -> list[float]:
    """Median seconds of each (loss, size), in turn."""
    times = [[gradient(*job)[0] for job in jobs] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def main() -> int:
    torch.set_num_threads(1)
    torch.testing.assert_close(gradient(ours, 20)[1], gradient(pairwise, 20)[1])
    memory_ours, memory_pairs = peak_mib(ours, 200), peak_mib(pairwise, 200)
    time_pairs, time_ours = medians([(pairwise, 200), (ours, 200)], rounds=7)
    time_50, time_500 = medians([(ours, 50), (ours, 500)], rounds=15)
    checks = [
        ("pairwise / ours, time", time_pairs / time_ours, ">=", 30.0),
        ("ours / pairwise, peak memory", memory_ours / memory_pairs, "<=", 1 / 8),
        ("ours, time of M = K = 500 / 50", time_500 / time_50, "<=", 14.0),
    ]
    print(f"{TOKENS} tokens, M = K = 200, forward and backward, float32, one thread")
    print(f"{'':10} {'CPU ms':>9} {'peak MiB':>9}")
    print(f"{'pairwise':10} {1e3 * time_pairs:9.1f} {memory_pairs:9.1f}")
    print(f"{'ours':10} {1e3 * time_ours:9.1f} {memory_ours:9.1f}")
    print(f"ours at M = K = 50 and 500: {1e3 * time_50:.1f} and {1e3 * time_500:.1f} ms\n")
    held = [value >= bar if sign == ">=" else value <= bar for _, value, sign, bar in checks]
    for (label, value, sign, bar), ok in zip(checks, held, strict=True):
        print(f"{label:32} {value:8.3f}   bar {sign} {bar:6.3f}   {'pass' if ok else 'FAIL'}")
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
