"""One function for many things: the same values in the same order, however many cores there are."""

from __future__ import annotations

import multiprocessing
import os
import sys

import pytest

from analysis.cores import each
from noisyrl.spec import InputError


@pytest.fixture(params=[1, 2])
def cores(request, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(request.param)), raising=False)
    return request.param if sys.platform == "linux" else 1


def test_values_come_in_order_from_as_many_processes(cores):
    shift = 10  # a closure is what the callers have
    found = list(each(lambda x: (x + shift, os.getpid()), list(range(20))))
    assert [value for value, _ in found] == list(range(10, 30))
    assert len({process for _, process in found} - {os.getpid()}) <= cores and not multiprocessing.active_children()
    assert (os.getpid() in {process for _, process in found}) == (cores == 1)


def test_what_it_raises_is_raised_here(cores):
    def refuse(x):
        if x == 2:
            raise InputError(f"no {x}")
        return x

    found = each(refuse, [1, 2, 3])
    assert next(found) == 1
    with pytest.raises(InputError, match="^no 2$"):
        next(found)
    assert not multiprocessing.active_children()
