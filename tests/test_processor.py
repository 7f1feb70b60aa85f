"""Freed memory stays with the process: its pages are not cleared again. Threads change no bit."""

import platform
import subprocess
import sys

import pytest
import torch

from noisyrl.ops.advantages import mixture_target
from noisyrl.ops.quantiles import midpoints, quantile_huber_each
from noisyrl.processor import takes_kernels

FAULTS = """
import resource, torch
from noisyrl.processor import keep_freed_memory
assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step():
    return [torch.ones(2**22) for _ in range(8)]  # 128 MiB
step()
step()
before = faults()
step()
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_blocks_are_taken_from_memory_that_was_freed():
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    # All 32768 are cleared again by default; 4096 of them for each aligned block that does not fit where another was.
    assert int(done.stdout) < 16384


def test_rows_are_shared_out_over_threads_bit_for_bit():
    draw = torch.Generator().manual_seed(0)
    reward, quantiles = torch.randn(150, 7, generator=draw), torch.randn(150, 7, 20, generator=draw)
    mask = torch.rand(150, 7, generator=draw) < 0.7
    mask[:, 0] = True

    def found():
        target = mixture_target(reward, quantiles, mask, gamma=1.0, lam=0.9)
        return target, quantile_huber_each(quantiles, target, midpoints(20), kappa=0.1, divide_by_kappa=True)

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = found()
        for count in (2, 3, 16):
            torch.set_num_threads(count)
            assert all(map(torch.equal, alone, found()))
    finally:
        torch.set_num_threads(threads)


def test_kernels_take_what_numpy_can_hold():
    assert takes_kernels(torch.zeros(2), torch.zeros(2).double())
    assert not takes_kernels(torch.zeros(2), torch.zeros(2).bfloat16())
    assert not takes_kernels(torch.zeros(2, device="meta"))
