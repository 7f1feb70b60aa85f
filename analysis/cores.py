"""One function for many things, on every core there is."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, TypeVar

X = TypeVar("X")
Y = TypeVar("Y")


def each(function: Callable[[X], Y], items: Sequence[X]) -> Iterator[Y]:
    """The function's value of every item, in order, each as soon as it and those before it are there.

    The processes are copies of this one (fork), so the function may be a closure; values travel back as pickles. They
    end with this process, ctrl-C included. An exception of the function is raised here. One core or one item, or no
    Linux (elsewhere copies are unsafe): the same without further processes.
    """
    cores = min(len(os.sched_getaffinity(0)), len(items)) if sys.platform == "linux" else 1
    if cores < 2:
        yield from map(function, items)
        return
    pool = ProcessPoolExecutor(cores, get_context("fork"), _begin, (function, items))
    try:
        yield from pool.map(_value, range(len(items)))
    finally:
        pool.shutdown(cancel_futures=True)


_work: tuple[Callable[[Any], Any], Sequence[Any]]


def _begin(function: Callable[[X], Y], items: Sequence[X]) -> None:
    global _work  # of this process, which does nothing else
    _work = function, items
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C is the parent's business


def _value(place: int) -> Any:
    function, items = _work
    return function(items[place])
