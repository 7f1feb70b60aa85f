"""The three tasks of the testbed as one: their prompts take turns, and every answer goes back to its own task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, zip_longest
from typing import Any

from noisyrl import rng
from noisyrl.spec import Positive, spec
from noisyrl.tasks.base import DemonstratedTask, Split, Task
from noisyrl.tasks.dialogue import Bookings
from noisyrl.tasks.embedded import Embedded
from noisyrl.tasks.math import Chains
from noisyrl.tasks.science import Facts
from noisyrl.types import Grade, Prompt


@spec
class Mix(DemonstratedTask):
    """Math, science and dialogue together; `Prompt.domain` tells them apart."""

    math: Chains = Chains()
    """Chains of digit arithmetic."""
    science: Facts = Facts()
    """Properties of made-up entities."""
    dialogue: Bookings = Bookings()
    """Bookings in several turns."""
    math_weight: Positive = 1.2
    """How often a demonstration is about math, relative to the other weights."""
    science_weight: Positive = 1.0
    """How often a demonstration is about science, relative to the other weights."""
    dialogue_weight: Positive = 1.0
    """How often a demonstration is a dialogue, relative to the other weights."""

    @property
    def splits(self) -> tuple[Split, ...]:
        return ("train", "test", "ood")

    def prompts(self, split: Split) -> Sequence[Prompt]:
        columns = zip_longest(*(part.prompts(split) for part in self.parts))
        return tuple(prompt for prompt in chain.from_iterable(columns) if prompt is not None)

    def reply(self, prompt: Prompt, turns: Sequence[str]) -> str | None:
        return self._of(prompt).reply(prompt, turns)

    def grade(self, prompt: Prompt, turns: Sequence[str]) -> Grade:
        return self._of(prompt).grade(prompt, turns)

    def demonstrations(self) -> Iterator[Sequence[dict[str, str]]]:
        streams = [part.demonstrations() for part in self.parts]
        weights = (self.math_weight, self.science_weight, self.dialogue_weight)
        shares = [weight / sum(weights) for weight in weights]
        source = rng.generator("mix", *shares)
        while True:
            yield next(streams[source.choice(len(streams), p=shares)])

    @property
    def parts(self) -> tuple[Chains, Facts, Bookings]:
        return self.math, self.science, self.dialogue

    def _of(self, prompt: Prompt) -> Task:
        return {part.name: part for part in self.parts}[prompt.task]


def curriculum(task: Task) -> DemonstratedTask:
    """What a model made from nothing learns before it is trained on `task`.

    The mix of the three for each of them and for a task without demonstrations, so that all share one model: a part
    that is configured differently replaces its namesake. Any other demonstrated task teaches itself. The sizes of
    the splits are reset, because the demonstrations do not depend on them.
    """
    if isinstance(task, Embedded):
        parts: dict[str, Any] = {task.name: task}
        task = Mix(**parts)
    elif not isinstance(task, DemonstratedTask):
        task = Mix()
    if not isinstance(task, Mix):
        return task
    short: dict[str, Any] = {part.name: replace(part, train_items=1, heldout_items=1) for part in task.parts}
    return replace(task, **short)
