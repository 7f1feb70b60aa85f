"""How a process that computes on its processor uses threads and memory."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

# Parameters of mallopt(3), and the largest value that glibc takes for the first.
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
_BLOCK_BYTES = 32 * 2**20
_KEPT_BYTES = 256 * 2**20
_READY: set[tuple[Any, ...]] = set()  # kernels with the kinds of arrays that this process has them for


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


def takes_kernels(*tensors: Tensor) -> bool:
    """Whether compiled loops (`kernels.py` files) can work on them: on a processor, in a type that numpy has."""
    return all(x.is_cpu and x.dtype in (torch.float32, torch.float64) for x in tensors)


def each_row(kernel: Callable[..., None], rows: int, *args: Any, least: int = 64) -> None:
    """kernel(begin, end, *args) for all rows, shared out over torch's threads.

    kernel  lets go of the interpreter and works on every row alone
    args    tensors become arrays on the same memory; the kernel writes its results into some
    least   rows per thread, with fewer of which starting one takes longer than it saves
    """
    arrays = [x.detach().numpy() if isinstance(x, Tensor) else x for x in args]
    _make_ready(kernel, arrays)
    threads = min(torch.get_num_threads(), rows // least)
    if threads <= 1:
        kernel(0, rows, *arrays)
        return
    edges = [rows * i // threads for i in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda begin, end: kernel(begin, end, *arrays), edges, edges[1:]))


def _make_ready(kernel: Callable[..., None], arrays: Sequence[Any]) -> None:
    """Has a kernel compiled for such arrays, or read from disk, before its first use.

    By one process at a time: of two that compile at once for different types, numba's cache may keep the code of one
    under the types of the other, which spoils every later run (numba issue 10128).
    """
    kinds = [(x.dtype.num, x.ndim, x.flags.num) if isinstance(x, np.ndarray) else type(x) for x in arrays]
    asked = (kernel, *kinds)
    if asked in _READY or not hasattr(kernel, "stats"):  # NUMBA_DISABLE_JIT leaves plain functions
        return
    folder = Path(kernel.stats.cache_path)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "kernels.lock"):  # the operating system frees it if its holder dies
        kernel(0, 0, *arrays)
    _READY.add(asked)
