"""How a process that computes on its processor uses threads and memory."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Parameters of mallopt(3), and the largest value that glibc takes for the first.
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
_BLOCK_BYTES = 32 * 2**20
_KEPT_BYTES = 256 * 2**20


def keep_freed_memory() -> bool:
    """Lets the C library take blocks of up to 32 MiB from its heap, of which it keeps up to 256 MiB that are free.

    By default glibc soon gives such memory back, and the kernel clears every page of it again when it is next written
    to: up to a tenth of a step whose tensors are large (DVPO's, with 600 quantiles a token). Keeping all memory would
    gain little more, but blocks that are aligned seldom fit where one of their size was.
    Returns False where there is nothing to ask: other C libraries have no mallopt.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _BLOCK_BYTES) and mallopt(_TRIM_THRESHOLD, _KEPT_BYTES))


@contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread; the count is put back.

    For sums whose order must be fixed, and in a copy of a process (fork), where torch hangs if it starts threads anew.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
