"""Chains of digit arithmetic, modulo 10, worked out step by step.

    user       start 7 , add 4 , times 3 . result ?
    assistant  7 + 4 = 1 ; 1 * 3 = 3 ; ans 3

Only what follows the last `ans` is graded. An atomic fact is a triple like (7, +, 4). The teacher's bugs: for
`buggy_frac` of the facts it knows one wrong result, which it writes about every second time and then calculates on.
Out of distribution: longer chains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Annotated, ClassVar

from numpy.random import Generator
from pydantic import Field

from noisyrl import rng
from noisyrl.spec import Count, Fraction, InputError, spec
from noisyrl.tasks.embedded import Embedded, Item, grade_final
from noisyrl.types import Grade, Prompt

Fact = tuple[int, str, int]

_WORDS = {"+": "add", "-": "minus", "*": "times"}
_OPERATIONS = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}


@dataclass(frozen=True)
class Chain(Item):
    """A start digit and the steps (symbol, operand) applied to it."""

    start: int
    steps: tuple[tuple[str, int], ...]


@spec
class Chains(Embedded):
    """Digit chains with a teacher who knows some sums wrongly."""

    name: ClassVar[str] = "math"

    min_steps: Count = 3
    """Shortest chain, in operations."""
    max_steps: Count = 5
    """Longest chain of the splits "train" and "test"."""
    ood_max_steps: Count = 8
    """Longest chain of the split "ood", whose shortest is `max_steps` + 1."""
    max_operand: Annotated[int, Field(ge=1, le=9)] = 5
    """Largest operand; there are 30 facts per operand, and their number decides how long the warm start takes."""
    buggy_frac: Fraction = 0.4
    """Share of the facts the teacher also knows wrongly."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.min_steps <= self.max_steps < self.ood_max_steps:
            raise InputError(
                f"math: set min_steps <= max_steps < ood_max_steps, not "
                f"{self.min_steps}, {self.max_steps}, {self.ood_max_steps}"
            )

    def draw(self, source: Generator, ood: bool) -> Chain:
        low, high = (self.max_steps + 1, self.ood_max_steps) if ood else (self.min_steps, self.max_steps)
        start = value = int(source.integers(10))
        steps = []
        for _ in range(int(source.integers(low, high + 1))):
            symbol, operand = "+-*"[source.integers(3)], int(source.integers(1, self.max_operand + 1))
            steps.append((symbol, operand))
            value = calculate((value, symbol, operand))
        spoken = " , ".join(f"{_WORDS[symbol]} {operand}" for symbol, operand in steps)
        question = f"start {start} , {spoken} . result ?"
        return Chain(question=question, answer=str(value), start=start, steps=tuple(steps))

    def demonstrate(self, item: Chain, source: Generator) -> list[str]:
        value, lines = item.start, []
        for symbol, operand in item.steps:
            result = self._taught((value, symbol, operand), source)
            lines.append(f"{value} {symbol} {operand} = {result}")
            value = result
        return [" ; ".join([*lines, f"ans {value}"])]

    def grade(self, prompt: Prompt, turns: Sequence[str]) -> Grade:
        return grade_final(prompt.answer, turns)

    @cached_property
    def buggy(self) -> Mapping[Fact, float]:
        """Error rate of each fact the teacher also knows wrongly."""
        return self.bugs(list(product(range(10), _WORDS, range(1, self.max_operand + 1))), self.buggy_frac)

    def wrong(self, fact: Fact) -> int:
        """The one wrong result the teacher has for a fact."""
        return (calculate(fact) + 1 + rng.choice(9, "wrong", self.name, self.world, fact)) % 10

    def _taught(self, fact: Fact, source: Generator) -> int:
        if source.random() < self.slip_rate:
            return int(source.integers(10))
        return self.wrong(fact) if source.random() < self.buggy.get(fact, 0.0) else calculate(fact)


def calculate(fact: Fact) -> int:
    """The right result of a fact: (7, "+", 4) -> 1."""
    left, symbol, right = fact
    return _OPERATIONS[symbol](left, right) % 10
