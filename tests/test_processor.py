"""Freed memory stays with the process: its pages are not cleared again."""

import platform
import subprocess
import sys

import pytest

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
    assert int(done.stdout) <= 8192  # of 32768 pages, which are all cleared again by default
