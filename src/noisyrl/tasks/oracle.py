"""The oracle world: an automaton small enough that everything about it is known exactly (tasks/oracle_truth.py).

    user       note 17 , start ba
    assistant  010010

The prompt names a start state; the note means nothing and makes distinct prompts, some of them held out. Each letter
of the answer moves the automaton along one of its hashed transitions, and the answer is right if it ends in an
accepting state. A word of the wrong length or with another sign in it is wrong.

Every letter permutes the states. Whatever word a policy says, if it is the same for all starts, exactly `accept_frac`
of the starts accept it. So a policy that does not look at the start scores that and nothing else, sharpening it
changes nothing, and a gain or a loss of accuracy can only come from the reward.
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

_MOST_WORDS = 4096  # all of them are enumerated
_NAMES = [consonant + vowel for consonant in "bdfghklmnprstvwz" for vowel in "aeiou"]


@dataclass(frozen=True, eq=False)
class Automaton:
    """S states, A letters, words of T letters."""

    step_SA: np.ndarray  # int64, the next state
    accept_S: np.ndarray  # bool
    moves: int

    def end(self, state: int, word: Sequence[int]) -> int:
        """The state in which a word ends."""
        for letter in word:
            state = int(self.step_SA[state, letter])
        return state


@spec
class Oracle(DemonstratedTask):
    """Words for an automaton, by a teacher who chooses letters at random."""

    name: ClassVar[str] = "oracle"

    world: Natural = 0
    """Names the automaton: transitions, accepting states, held-out notes."""
    states: Annotated[int, Field(ge=2, le=len(_NAMES))] = 40
    """States of the automaton; each is a start."""
    letters: Annotated[int, Field(ge=2, le=10)] = 2
    """Size of the alphabet 0, 1, ..."""
    moves: Count = 6
    """Letters of a word, each one token and one decision."""
    accept_frac: Fraction = 0.45
    """Share of accepting states: the accuracy of every policy that does not look at the start."""
    train_notes: Count = 12
    """Prompts per start in the split "train"."""
    test_notes: Count = 3
    """Prompts per start in the split "test"."""
    zero_prob: Fraction = 0.6
    """How often the teacher plays 0; the other letters share the rest. Off 1 / `letters`, so that greedy has no ties."""

    def __post_init__(self) -> None:
        if self.letters**self.moves > _MOST_WORDS:
            raise InputError(
                f"oracle: {self.letters} letters and {self.moves} moves make more than {_MOST_WORDS} words; "
                "lower moves or letters"
            )

    @property
    def splits(self) -> tuple[Split, ...]:
        return ("train", "test")

    def prompts(self, split: Split) -> Sequence[Prompt]:
        if split not in self.splits:
            raise InputError(f"oracle has no split {split!r}; choose from {', '.join(self.splits)}")
        return self._pools[split]

    def grade(self, prompt: Prompt, turns: Sequence[str]) -> Grade:
        """`prompt.answer` is the start state: many words are right."""
        word = last_answer(turns)
        if not re.fullmatch(f"[{self.alphabet}]{{{self.moves}}}", word):
            return Grade(score=0.0)
        end = self.automaton.end(self.start(prompt), [int(letter) for letter in word])
        return Grade(score=float(self.automaton.accept_S[end]), extracted=word)

    def demonstrations(self) -> Iterator[Sequence[dict[str, str]]]:
        source = rng.generator("demonstrations", self.name, self.world)
        pool, chances = self.prompts("train"), self.teacher_TSA[0, 0]
        while True:
            prompt = pool[source.integers(len(pool))]
            word = source.choice(list(self.alphabet), self.moves, p=chances)
            yield conversation(prompt.messages[0]["content"], ["".join(word)])

    @property
    def alphabet(self) -> str:
        """The letters, digits: a digit is one token and cannot be spelled otherwise."""
        return "0123456789"[: self.letters]

    @cached_property
    def automaton(self) -> Automaton:
        """The machine that grades."""

        accept_S = np.zeros(self.states, bool)
        accept_S[self._shuffled("accept")[: round(self.accept_frac * self.states)]] = True
        step_SA = np.array([self._shuffled("step", letter) for letter in self.alphabet]).T
        return Automaton(step_SA, accept_S, self.moves)

    @property
    def teacher_TSA(self) -> np.ndarray:
        """[T, S, A] float64, the teacher's probability of each letter; the same at every move and in every state."""
        others = (1 - self.zero_prob) / (self.letters - 1)
        return np.broadcast_to([self.zero_prob] + [others] * (self.letters - 1), (self.moves, self.states, self.letters))

    def start(self, prompt: Prompt) -> int:
        """The state a prompt starts in."""
        return _NAMES.index(prompt.answer)

    @cached_property
    def _pools(self) -> Mapping[str, Sequence[Prompt]]:
        """Every start is equally often in a split: what is true of the automaton is true of the split."""
        pools: dict[str, list[Prompt]] = {split: [] for split in self.splits}
        notes = range(self.train_notes + self.test_notes)
        for state in range(self.states):
            ranked = sorted(notes, key=lambda note: rng.hash64("heldout", self.name, self.world, state, note))
            for place, note in enumerate(ranked):
                pools["test" if place < self.test_notes else "train"].append(self._prompt(state, note))
        return pools

    def _shuffled(self, *key: object) -> list[int]:
        """The states in an order that the world and the key decide."""
        return sorted(range(self.states), key=lambda state: rng.hash64(self.name, self.world, *key, state))

    def _prompt(self, state: int, note: int) -> Prompt:
        uid = f"{self.name}/{self.world}/{_NAMES[state]}/{note}"
        messages = ({"role": "user", "content": f"note {note} , start {_NAMES[state]}"},)
        return Prompt(messages=messages, answer=_NAMES[state], task=self.name, uid=uid, domain=self.name)
