"""The oracle world: an automaton small enough that everything about it is known exactly (tasks/oracle_truth.py).

    user       17 ba
    assistant  01001

The prompt names a start, `ba`; the number means nothing and makes distinct prompts, some of them held out. Each start
has a hashed key, a word of 0 and 1, and an answer is right if more than half of its letters are those of the key.
What an automaton has to remember is the start and the number of matches. A word of another length, or with another
sign in it, is wrong.

Starts come in pairs with opposite keys and words have odd length, so every word is right for exactly half of the
starts: a policy that does not look at the start scores 1/2, whatever it says. The teacher does look, so that the model
learns to: at each move of each start it is used to one letter, hashed, and plays it with probability `habit`. For one
half of the starts it is used to just over half of the key's letters, for the other half to just under: on average it
is right half of the time, greedy or not, and sharpening it changes nothing. Only a reward can.
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
from noisyrl.spec import Count, InputError, Natural, spec
from noisyrl.tasks.base import DemonstratedTask, Split
from noisyrl.tasks.embedded import conversation, last_answer
from noisyrl.types import Grade, Prompt

LETTERS = "01"
"""Digits: each is one token, and cannot be spelled otherwise."""
_NAMES = [consonant + vowel for consonant in "bdfghklmnprstvwz" for vowel in "aeiou"]


@dataclass(frozen=True, eq=False)
class Automaton:
    """S states, A letters, words of T letters; transitions may differ from move to move."""

    step_TSA: np.ndarray  # int64, the next state
    accept_S: np.ndarray  # bool, of the state after the last move

    def end(self, state: int, word: Sequence[int]) -> int:
        """The state in which a word ends. ValueError: it is shorter or longer than T."""
        for step_SA, letter in zip(self.step_TSA, word, strict=True):
            state = int(step_SA[state, letter])
        return state


@spec
class Oracle(DemonstratedTask):
    """Words for an automaton, shown by a teacher with habits."""

    name: ClassVar[str] = "oracle"

    world: Natural = 0
    """Names the keys, the habits and the held-out prompts."""
    starts: Annotated[int, Field(ge=2, le=len(_NAMES), multiple_of=2)] = 12
    """Starts, each with a key."""
    moves: Annotated[int, Field(ge=1, le=11)] = 5
    """T, letters of a word: decisions, and tokens before the end of the turn. Odd."""
    train_prompts: Count = 12
    """Prompts per start in the split "train"."""
    test_prompts: Count = 10
    """Prompts per start in the split "test"."""
    habit: Annotated[float, Field(ge=0.5, le=1)] = 0.75
    """How often the teacher plays the letter it is used to."""

    def __post_init__(self) -> None:
        if self.moves % 2 == 0:
            raise InputError(f"oracle: moves={self.moves} can match in exactly half; set an odd number")

    @property
    def splits(self) -> tuple[Split, ...]:
        return ("train", "test")

    def prompts(self, split: Split) -> Sequence[Prompt]:
        if split not in self.splits:
            raise InputError(f"oracle has no split {split!r}; choose from {', '.join(self.splits)}")
        return self._pools[split]

    def grade(self, prompt: Prompt, turns: Sequence[str]) -> Grade:
        """`prompt.answer` is the key, one of many right answers."""
        word = last_answer(turns)
        if not re.fullmatch(f"[{LETTERS}]{{{self.moves}}}", word):
            return Grade(score=0.0)
        matches = sum(said == wanted for said, wanted in zip(word, prompt.answer, strict=True))
        return Grade(score=float(2 * matches > self.moves), extracted=word)

    def demonstrations(self) -> Iterator[Sequence[dict[str, str]]]:
        source = rng.generator("demonstrations", self.name, self.world)
        pool = self.prompts("train")
        while True:
            prompt = pool[int(source.integers(len(pool)))]
            one_T = source.random(self.moves) < self.teacher_TSA[:, self.state(self.start(prompt)), 1]
            yield conversation(prompt.messages[0]["content"], ["".join(LETTERS[int(one)] for one in one_T)])

    def key(self, start: int) -> str:
        """The word that matches in every letter."""
        pair, mirrored = divmod(start, 2)
        bits = rng.hash64("key", self.name, self.world, pair)
        return "".join(LETTERS[(bits >> move & 1) ^ mirrored] for move in range(self.moves))

    def start(self, prompt: Prompt) -> int:
        """Number of the start that a prompt names."""
        return _NAMES.index(prompt.messages[0]["content"].split()[-1])

    def state(self, start: int, matches: int = 0) -> int:
        """Number of an automaton's state."""
        return start * (self.moves + 1) + matches

    @cached_property
    def automaton(self) -> Automaton:
        """What decides about words. A state of the last column steps to itself: no word leads there before the end."""
        matches_S = np.tile(np.arange(self.moves + 1), self.starts)
        match_TSA = np.arange(len(LETTERS)) == self._keys_TS[:, :, None]
        step_TSA = np.arange(len(matches_S))[:, None] + (match_TSA & (matches_S < self.moves)[:, None])
        return Automaton(step_TSA, 2 * matches_S > self.moves)

    @cached_property
    def teacher_TSA(self) -> np.ndarray:
        """[T, S, 2] float64, the teacher's probability of each letter; how many matched so far is nothing to it."""
        used_TS = 1 - self._keys_TS
        for start in range(self.starts):
            ranked = sorted(range(self.moves), key=lambda move: rng.hash64("habit", self.name, self.world, start, move))
            good = ranked[: (self.moves + start % 2) // 2]
            states = slice(self.state(start), self.state(start + 1))
            used_TS[good, states] = self._keys_TS[good, states]
        return np.where(np.arange(len(LETTERS)) == used_TS[:, :, None], self.habit, 1 - self.habit)

    @cached_property
    def _keys_TS(self) -> np.ndarray:
        """[T, S] int64, the letter that matches."""
        letters = [[LETTERS.index(letter) for letter in self.key(start)] for start in range(self.starts)]
        return np.repeat(np.array(letters), self.moves + 1, axis=0).T

    @cached_property
    def _pools(self) -> Mapping[str, Sequence[Prompt]]:
        """Every start is equally often in a split: what is true of the automaton is true of the split."""
        pools: dict[str, list[Prompt]] = {split: [] for split in self.splits}
        for start in range(self.starts):
            numbers = range(self.train_prompts + self.test_prompts)
            ranked = sorted(numbers, key=lambda number: rng.hash64("heldout", self.name, self.world, start, number))
            for place, number in enumerate(ranked):
                pools["test" if place < self.test_prompts else "train"].append(self._prompt(start, number))
        return pools

    def _prompt(self, start: int, number: int) -> Prompt:
        messages = ({"role": "user", "content": f"{number} {_NAMES[start]}"},)
        uid = f"{self.name}/{self.world}/{_NAMES[start]}/{number}"
        return Prompt(messages=messages, answer=self.key(start), task=self.name, uid=uid, domain=self.name)
