"""The oracle world: an automaton small enough that everything about it is known exactly (tasks/oracle_truth.py).

    user       17 ba
    assistant  01001

The prompt names a start; the note means nothing and makes distinct prompts, some of them held out. Each start has a
hashed key, a word of 0 and 1, and an answer is right if more than half of its letters are those of the key. What an
automaton has to remember is the start and the number of matches. A word of another length, or with another sign in
it, is wrong.

Starts come in pairs with opposite keys, and words have odd length, so every word is right for exactly half of the
starts. A policy that does not look at the start scores 1/2 whatever it says, sharpening it changes nothing, and only
the reward can tell it what to do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from noisyrl import rng
from noisyrl.spec import Count, Fraction, InputError, Natural, spec
from noisyrl.tasks.base import DemonstratedTask, Split
from noisyrl.tasks.embedded import conversation, last_answer
from noisyrl.types import Grade, Prompt

LETTERS = "01"
"""Digits: one is one token, and cannot be spelled otherwise."""
_NAMES = [consonant + vowel for consonant in "bdfghklmnprstvwz" for vowel in "aeiou"]


@dataclass(frozen=True, eq=False)
class Automaton:
    """S states, A letters, words of T letters; transitions may differ from move to move."""

    step_TSA: np.ndarray  # int64, the next state
    accept_S: np.ndarray  # bool, of the state after the last move

    def end(self, state: int, word: Sequence[int]) -> int:
        """The state after a word."""
        for step_SA, letter in zip(self.step_TSA, word, strict=True):
            state = int(step_SA[state, letter])
        return state


@spec
class Oracle(DemonstratedTask):
    """Words for an automaton, by a teacher who chooses letters at random."""

    name: ClassVar[str] = "oracle"

    world: Natural = 0
    """Names the keys and the held-out notes."""
    starts: Annotated[int, Field(ge=2, le=len(_NAMES), multiple_of=2)] = 20
    """Starts, each with a key. Few are learned fast."""
    moves: Annotated[int, Field(ge=1, le=11)] = 5
    """T, letters of a word: decisions, and tokens before the end of the turn. Odd."""
    train_notes: Count = 12
    """Prompts per start in the split "train"."""
    test_notes: Count = 5
    """Prompts per start in the split "test"."""
    habit: Annotated[float, Field(ge=0.5, le=1)] = 0.75
    """How often the teacher plays the letter it is used to."""

    def __post_init__(self) -> None:
        if self.moves % 2 == 0:
            raise InputError(f"oracle: more than half of {self.moves} letters must match; set moves to an odd number")

    @property
    def splits(self) -> tuple[Split, ...]:
        return ("train", "test")

    def prompts(self, split: Split) -> Sequence[Prompt]:
        if split not in self.splits:
            raise InputError(f"oracle has no split {split!r}; choose from {', '.join(self.splits)}")
        return self._pools[split]

    def grade(self, prompt: Prompt, turns: Sequence[str]) -> Grade:
        """`prompt.answer` is the key; half of all words are right."""
        word = last_answer(turns)
        if not re.fullmatch(f"[{LETTERS}]{{{self.moves}}}", word):
            return Grade(score=0.0)
        matches = sum(said == wanted for said, wanted in zip(word, prompt.answer, strict=True))
        return Grade(score=float(2 * matches > self.moves), extracted=word)

    def demonstrations(self) -> Iterator[Sequence[dict[str, str]]]:
        source = rng.generator("demonstrations", self.name, self.world)
        pool = self.prompts("train")
        while True:
            prompt = pool[source.integers(len(pool))]
            ones_T = self.teacher_TSA[:, self.state(self.start(prompt)), 1]
            word = "".join(LETTERS[int(one)] for one in source.random(self.moves) < ones_T)
            yield conversation(prompt.messages[0]["content"], [word])

    def key(self, start: int) -> str:
        """The word that matches in every letter."""
        pair, mirrored = divmod(start, 2)
        bits = rng.hash64("key", self.name, self.world, pair)
        return "".join(LETTERS[(bits >> move & 1) ^ mirrored] for move in range(self.moves))

    @cached_property
    def automaton(self) -> Automaton:
        """What grades valid words; its states are `state(start, matches)`."""
        matches_S = np.tile(np.arange(self.moves + 1), self.starts)
        state_S = np.arange(len(matches_S))
        step_TSA = np.empty((self.moves, len(state_S), len(LETTERS)), np.int64)
        wanted_ST = np.repeat(
            [[LETTERS.index(letter) for letter in self.key(s)] for s in range(self.starts)], self.moves + 1, axis=0
        )
        for letter in range(len(LETTERS)):
            # Unreachable: more matches than moves
            step_TSA[:, :, letter] = state_S + ((wanted_ST.T == letter) & (matches_S < self.moves))
        return Automaton(step_TSA, 2 * matches_S > self.moves)

    def state(self, start: int, matches: int = 0) -> int:
        """Number of the state with so many matches."""
        return start * (self.moves + 1) + matches

    def start(self, prompt: Prompt) -> int:
        """Number of the start a prompt names."""
        return _NAMES.index(prompt.messages[0]["content"].split()[-1])

    @cached_property
    def teacher_TSA(self) -> np.ndarray:
        """[T, S, 2] float64, the teacher's probability of each letter; the matches so far do not matter to it."""
        right_TS = np.full((self.moves, self.starts), 1 - self.habit)
        for start in range(self.starts):
            ranked = sorted(range(self.moves), key=lambda move: rng.hash64("habit", self.name, self.world, start, move))
            right_TS[ranked[: (self.moves + start % 2) // 2 + (0 if start % 2 else 0)], start] = self.habit
        ones_TS = np.array(
            [[r if k == "1" else 1 - r for r, k in zip(col, self.key(s2))] for s2, col in enumerate(right_TS.T)]
        ).T
        ones_TS = np.repeat(ones_TS, self.moves + 1, axis=1)
        return np.stack([1 - ones_TS, ones_TS], axis=2)

    @cached_property
    def _pools(self) -> Mapping[str, Sequence[Prompt]]:
        """Every start is equally often in a split: what is true of the automaton is true of the split."""
        pools: dict[str, list[Prompt]] = {split: [] for split in self.splits}
        for start in range(self.starts):
            notes = range(self.train_notes + self.test_notes)
            ranked = sorted(notes, key=lambda note: rng.hash64("heldout", self.name, self.world, start, note))
            for place, note in enumerate(ranked):
                pools["test" if place < self.test_notes else "train"].append(self._prompt(start, note))
        return pools

    def _prompt(self, start: int, note: int) -> Prompt:
        messages = ({"role": "user", "content": f"{note} {_NAMES[start]}"},)
        uid = f"{self.name}/{self.world}/{_NAMES[start]}/{note}"
        return Prompt(messages=messages, answer=self.key(start), task=self.name, uid=uid, domain=self.name)
