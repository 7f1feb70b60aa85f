"""What the three tasks of the embedded testbed share: how items are split, and how the teacher errs.

An item is one question with its answer. Whether it is held out is decided by a hash of the question's text alone, so
no held-out question can be met in the training prompts or in a demonstration, whatever the order of the draws and
however small a template is.

The teacher of the demonstrations is wrong on purpose. A hash-chosen share of the atomic decisions of a task (a fact
of arithmetic, a property of an entity, whether to ask) is *buggy*: about every second time the teacher takes it, it
takes it wrongly, always in the same way. A model trained on the demonstrations therefore knows both ways, and
reinforcement learning has something to choose from. For one half of the buggy decisions the teacher errs a little
less than half of the time, for the other half a little more: what a greedy model does is then a property of the task
and not of the warm start's last digits, and sharpening a model without a reward signal improves nothing.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from numpy.random import Generator

from noisyrl import rng
from noisyrl.spec import Count, Fraction, InputError, Natural, spec
from noisyrl.tasks.base import DemonstratedTask, Split
from noisyrl.types import Grade, Prompt

_PATIENCE = 200  # draws per wanted item before a template counts as exhausted


@dataclass(frozen=True)
class Item:
    """A question, and the answer that is worth 1. Each task adds what its teacher needs to know."""

    question: str
    answer: str


@spec
class Embedded(DemonstratedTask):
    """A task made of nothing but its fields. Everything drawn is keyed by the task's name and `world`."""

    name: ClassVar[str]

    world: Natural = 0
    """Names the made-up world: facts, bugs, splits. Another number gives another testbed of the same kind."""
    train_items: Count = 2000
    """Prompts in the split "train"."""
    heldout_items: Count = 1000
    """Prompts in each of the splits "test" and "ood"; 1000 keep the standard error of an accuracy under 0.016."""
    heldout_frac: Fraction = 0.25
    """Share of all possible questions that is kept from training prompts and demonstrations."""
    ood_demo_frac: Fraction = 0.05
    """Share of demonstrations in the shapes of the split "ood", so that the model has seen their format."""
    bug_rate: Fraction = 0.5
    """How often the teacher takes a buggy decision wrongly, averaged over the buggy decisions."""
    bug_spread: Fraction = 0.2
    """Every second buggy decision is wrong at `bug_rate` + this, the others at `bug_rate` - this."""
    slip_rate: Fraction = 0.02
    """How often the teacher slips at random, on any decision."""

    def __post_init__(self) -> None:
        if not self.bug_spread <= self.bug_rate <= 1 - self.bug_spread:
            raise InputError(
                f"{self.name}: bug_rate {self.bug_rate} +- bug_spread {self.bug_spread} leaves [0, 1]; lower bug_spread"
            )

    @abstractmethod
    def draw(self, source: Generator, ood: bool) -> Item:
        """A random item of the training shapes, or of the out-of-distribution shapes."""

    @abstractmethod
    def demonstrate(self, item: Any, source: Generator) -> list[str]:
        """The teacher's turns on an item that `draw` made: assistant, user, ..., assistant."""

    @property
    def splits(self) -> tuple[Split, ...]:
        return ("train", "test", "ood")

    def prompts(self, split: Split) -> Sequence[Prompt]:
        if split not in self.splits:
            raise InputError(f"{self.name} has no split {split!r}; choose from {', '.join(self.splits)}")
        return self._pools[split]

    def demonstrations(self) -> Iterator[Sequence[dict[str, str]]]:
        source = rng.generator("demonstrations", self.name, self.world)
        while True:
            item = self.draw(source, source.random() < self.ood_demo_frac)
            if not self.is_heldout(item.question):
                yield conversation(item.question, self.demonstrate(item, source))

    def is_heldout(self, question: str) -> bool:
        """Whether a question belongs to the held-out side; a property of its text alone."""
        return rng.uniform("heldout", self.name, self.world, question) < self.heldout_frac

    def bugs(self, decisions: Sequence[Hashable], share: float) -> dict[Any, float]:
        """Error rate of each buggy decision: exactly `share` of `decisions`, chosen by hash."""
        ranked = sorted(decisions, key=lambda decision: rng.hash64("bug", self.name, self.world, decision))
        buggy = ranked[: round(share * len(ranked))]
        return {d: self.bug_rate + (self.bug_spread if i % 2 else -self.bug_spread) for i, d in enumerate(buggy)}

    @cached_property
    def _pools(self) -> Mapping[str, Sequence[Prompt]]:
        return {
            "train": self._collect("train", self.train_items, ood=False),
            "test": self._collect("test", self.heldout_items, ood=False),
            "ood": self._collect("ood", self.heldout_items, ood=True),
        }

    def _collect(self, split: Split, count: int, *, ood: bool) -> Sequence[Prompt]:
        source = rng.generator("items", self.name, self.world, split)
        found: dict[str, Prompt] = {}
        for _ in range(_PATIENCE * count):
            item = self.draw(source, ood)
            if self.is_heldout(item.question) == (split != "train") and item.question not in found:
                found[item.question] = self._prompt(item, split)
            if len(found) == count:
                return tuple(found.values())
        raise InputError(
            f"{self.name}: only {len(found)} distinct questions for the split {split!r}, {count} are wanted; "
            "lower train_items or heldout_items, or widen the task"
        )

    def _prompt(self, item: Item, split: Split) -> Prompt:
        uid = f"{self.name}/{split}/{rng.hash64(item.question, item.answer):016x}"
        messages = ({"role": "user", "content": item.question},)
        return Prompt(messages=messages, answer=item.answer, task=self.name, uid=uid, domain=self.name)


def conversation(question: str, turns: Sequence[str]) -> list[dict[str, str]]:
    """A question and the turns after it (assistant, user, ..., assistant) as chat messages."""
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate([question, *turns])]


def last_answer(turns: Sequence[str]) -> str:
    """Text of the last assistant turn; "" if there is none. `turns` start with an assistant turn."""
    return turns[0::2][-1] if turns else ""


def grade_final(answer: str, turns: Sequence[str]) -> Grade:
    """Grade of what follows the last word `ans` in the last assistant turn, spaces aside; only all of it counts."""
    parts = re.split(r"(?<!\S)ans(?!\S)", last_answer(turns))
    extracted = " ".join(parts[-1].split()) if len(parts) > 1 else ""
    return Grade(score=float(extracted == answer), extracted=extracted or None)
