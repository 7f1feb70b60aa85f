"""Freed memory stays with the process: its pages are not cleared again. Threads change no bit."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from noisyrl.ops.advantages import mixture_target
from noisyrl.ops.quantiles import midpoints, quantile_huber_each
from noisyrl.processor import each_row, takes_kernels

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


COMPILES = """
import sys, time, torch
from numba.core.caching import IndexDataCacheFile
from noisyrl.ops.risk import ascending
def after(seconds, write):
    def late(*args):
        time.sleep(seconds)
        write(*args)
    return late
of_list, of_code = float(sys.argv[1]), float(sys.argv[2])
IndexDataCacheFile._save_index = after(of_list, IndexDataCacheFile._save_index)
IndexDataCacheFile._save_data = after(of_code, IndexDataCacheFile._save_data)
for dtype in sys.argv[3:]:
    ascending(torch.rand(3, 4, dtype=getattr(torch, dtype)))
"""


def test_processes_that_compile_at_once_leave_a_cache_that_works(tmp_path):
    """Left to itself, numba gives both codes one name: listed as that of float64, written last by float32."""

    def start(*words):
        env = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
        return subprocess.Popen([sys.executable, "-c", COMPILES, *words], env=env)

    both = [start("0.6", "1.2", "float32"), start("1.2", "0", "float64")]
    assert [side.wait() for side in both] == [0, 0]
    assert start("0", "0", "float64", "float32").wait() == 0
    assert len(list(tmp_path.rglob("kernels.falls*.nbc"))) == 2


def test_kernels_that_are_not_compiled_work_too():
    """As they are under NUMBA_DISABLE_JIT, to be stepped through."""

    def doubled(begin, end, x, out):
        out[begin:end] = 2 * x[begin:end]

    out = torch.zeros(5)
    each_row(doubled, 5, torch.arange(5.0), out)
    assert out.tolist() == [0, 2, 4, 6, 8]


def test_kernels_take_what_numpy_can_hold():
    assert takes_kernels(torch.zeros(2), torch.zeros(2).double())
    assert not takes_kernels(torch.zeros(2), torch.zeros(2).bfloat16())
    assert not takes_kernels(torch.zeros(2, device="meta"))
