"""The frame of every comparison: sides take turns (A B A B), each turn is timed in CPU seconds and wall-clock.

CPU time is that of this process and of the children it has waited for. Ratios are taken round by round and then their
median: what slows the machine for a while slows both sides of a round.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Literal

import numpy as np

Better = Literal["higher", "lower"]


def cpu_s() -> float:
    """CPU seconds used so far by this process and by its finished children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(x.ru_utime + x.ru_stime for x in used)


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


@dataclass
class Samples:
    """The turns of one side of one case."""

    case: str
    side: str
    cpu_s: list[float] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)
    work: list[float] = field(default_factory=list)
    """What each turn got done, in `unit`; empty = not counted."""
    unit: str = "tokens"
    peak_mib: float | None = None
    """Memory that the side needed on top of its inputs, where it was measured."""

    def rates(self) -> list[float]:
        """Work per CPU second, turn by turn."""
        return [work / cpu for work, cpu in zip(self.work, self.cpu_s, strict=True)]


@dataclass
class Ratio:
    """One comparison in one number per round."""

    name: str
    values: list[float]
    better: Better
    bar: float | None = None
    """What the project asks for; None = only shown."""
    watched: bool = False
    """Whether CI compares it with the committed one."""

    @property
    def value(self) -> float:
        return median(self.values)

    @property
    def held(self) -> bool | None:
        """Whether the bar is met; None = there is none."""
        if self.bar is None:
            return None
        return self.value >= self.bar if self.better == "higher" else self.value <= self.bar

    def spread(self) -> tuple[float, float]:
        """The quartiles over rounds."""
        low, high = np.quantile(self.values, [0.25, 0.75])
        return float(low), float(high)


@dataclass
class Part:
    """What one part of the benchmark found."""

    name: str
    title: str
    samples: list[Samples] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, samples: Sequence[Samples]) -> None:
        """Takes the sides of a case, and shows them."""
        self.samples += samples
        for side in samples:
            say(f"  {side.case}: {side.side}  {median(side.cpu_s):.3f} CPU s")

    def compare(
        self, name: str, values: list[float], better: Better, *, bar: float | None = None, watched: bool = False
    ) -> None:
        """Takes a ratio, and shows it."""
        self.ratios.append(Ratio(name, values, better, bar, watched))
        say(f"  {name}: {self.ratios[-1].value:.2f}")

    def note(self, text: str) -> None:
        """A line under the tables: what was left out, and why."""
        self.notes.append(text)
        say(f"  {text}")

    def plain(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def read(cls, plain: dict[str, Any]) -> Part:
        """What `plain` wrote."""
        samples = [Samples(**x) for x in plain["samples"]]
        return cls(plain["name"], plain["title"], samples, [Ratio(**x) for x in plain["ratios"]], plain["notes"])


class Record:
    """The turns of the sides of one case; the first `warmups` turns of each side are not kept."""

    def __init__(self, case: str, sides: Sequence[str], *, warmups: int = 1) -> None:
        self.sides = {side: Samples(case, side) for side in sides}
        self._left = dict.fromkeys(sides, warmups)

    @contextmanager
    def turn(self, side: str) -> Iterator[list[float]]:
        """Times the block as a turn of `side`; the block appends what it got done to the list, if anything."""
        work: list[float] = []
        wall, cpu = time.perf_counter(), cpu_s()
        yield work
        self.take(side, cpu_s() - cpu, time.perf_counter() - wall, work)

    def take(self, side: str, cpu: float, wall: float, work: Sequence[float]) -> None:
        """A turn that has been timed, here or in another process."""
        if self._left[side]:
            self._left[side] -= 1
            return
        samples = self.sides[side]
        samples.cpu_s.append(cpu)
        samples.wall_s.append(wall)
        samples.work += work

    def list(self) -> list[Samples]:
        """The sides, in their order."""
        return list(self.sides.values())


def alternate(
    case: str, sides: Mapping[str, Callable[[], float | None]], rounds: int, *, warmups: int = 1
) -> dict[str, Samples]:
    """Every side in turn, `rounds` times after `warmups` rounds that are not kept. A side returns the work it did."""
    record = Record(case, list(sides), warmups=warmups)
    for _ in range(warmups + rounds):
        for name, run in sides.items():
            with record.turn(name) as work:
                done = run()
                if done is not None:
                    work.append(done)
    return record.sides


def ratios(above: Samples, below: Samples) -> list[float]:
    """CPU time of one side over that of another, round by round."""
    return [a / b for a, b in zip(above.cpu_s, below.cpu_s, strict=True)]
