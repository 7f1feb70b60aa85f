"""A task: where prompts come from, what the user says next, and how an answer is graded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Literal

from noisyrl import rng
from noisyrl.spec import InputError, spec
from noisyrl.types import Grade, Prompt

Split = Literal["train", "test", "ood"]


@spec
class Task(ABC):
    """Data and grader of one source of prompts. Pure: the same fields give the same prompts everywhere."""

    @property
    @abstractmethod
    def splits(self) -> tuple[Split, ...]:
        """The splits that exist; "train" always does. Evaluation covers the others."""

    @abstractmethod
    def prompts(self, split: Split) -> Sequence[Prompt]:
        """All prompts of a split, in a fixed order."""

    def reply(self, prompt: Prompt, turns: Sequence[str]) -> str | None:
        """The user's next message after `turns` (assistant, user, ..., assistant); None ends the rollout."""
        return None

    @abstractmethod
    def grade(self, prompt: Prompt, turns: Sequence[str]) -> Grade:
        """Clean grade of a finished response, `turns` as for `reply`."""


@spec
class DemonstratedTask(Task):
    """A task that can also show how it is done, so that a model made from nothing can be warm-started on it."""

    @abstractmethod
    def demonstrations(self) -> Iterator[Sequence[dict[str, str]]]:
        """An endless, reproducible stream of conversations (lists of {"role", "content"}) by the imperfect teacher."""


def batch(prompts: Sequence[Prompt], step: int, size: int, seed: int) -> list[Prompt]:
    """The prompts of one training step: a pure function of (seed, step).

    The pool is walked in a fresh permutation each epoch; what does not fill a step is left out of that epoch, so no
    prompt stands twice in one step. InputError: the pool is smaller than a step.
    """
    if len(prompts) < size:
        raise InputError(f"trainer.prompts={size} asks for more prompts than the {len(prompts)} of the training split")
    epoch, within = divmod(step, len(prompts) // size)
    order = rng.generator("data", seed, epoch).permutation(len(prompts))
    return [prompts[i] for i in order[within * size : (within + 1) * size]]
