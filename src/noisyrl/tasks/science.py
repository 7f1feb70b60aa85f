"""Questions about the properties of made-up entities.

    user       color of zor , mass of mik , phase of pol ?
    assistant  ans zor red , mik 4 , pol gas

    user       heaviest of zor , mik , pol ?
    assistant  zor 2 , mik 4 , pol 7 ; ans pol

    user       which is red : a mik , b zor , c pol , d tul ?
    assistant  a mik blue , b zor red ; ans b

Only what follows the last `ans` is graded. An atomic fact is a property of an entity. The teacher's bugs: for
`buggy_frac` of the facts it knows one wrong value, which it states about every second time and then reasons on.
Out of distribution: more things to compare, more options to choose from, and questions in two hops.

    user       color of the lightest of zor , mik ?
    assistant  zor 2 , mik 4 ; ans zor red
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Annotated, ClassVar, Protocol

from numpy.random import Generator
from pydantic import Field

from noisyrl import rng
from noisyrl.spec import Count, Fraction, InputError, spec
from noisyrl.tasks.embedded import Embedded, Item, grade_final
from noisyrl.types import Grade, Prompt

Fact = tuple[str, str]  # property, entity
Recall = Callable[[Fact], str]  # the value somebody has for a fact

VALUES = {
    "color": ("red", "blue", "green", "grey", "pink", "black", "white", "brown"),
    "phase": ("gas", "solid", "fluid"),
    "family": ("salt", "metal", "acid", "resin", "clay", "glass"),
    "mass": tuple("123456789"),
}
_LETTERS = "abcdefgh"
_EXTREMES: dict[str, Callable] = {"heaviest": max, "lightest": min}
_MOST_ENTITIES = 200


class Template(Protocol):
    """One kind of question. `say` is the whole reply of somebody who recalls facts as `recall` does."""

    @property
    def question(self) -> str: ...

    def say(self, recall: Recall) -> str: ...


@dataclass(frozen=True)
class Plain:
    """Several facts at once."""

    facts: tuple[Fact, ...]

    @property
    def question(self) -> str:
        return " , ".join(f"{prop} of {entity}" for prop, entity in self.facts) + " ?"

    def say(self, recall: Recall) -> str:
        return "ans " + " , ".join(f"{entity} {recall((prop, entity))}" for prop, entity in self.facts)


@dataclass(frozen=True)
class Comparison:
    """The heaviest or lightest of some entities, or (two hops) a property of it."""

    extreme: str
    entities: tuple[str, ...]
    then: str | None = None

    @property
    def question(self) -> str:
        listed = f"{self.extreme} of {' , '.join(self.entities)} ?"
        return f"{self.then} of the {listed}" if self.then else listed

    def say(self, recall: Recall) -> str:
        masses = {entity: recall(("mass", entity)) for entity in self.entities}
        found = _EXTREMES[self.extreme](masses, key=lambda entity: int(masses[entity]))
        answer = f"{found} {recall((self.then, found))}" if self.then else found
        return " , ".join(f"{entity} {mass}" for entity, mass in masses.items()) + f" ; ans {answer}"


@dataclass(frozen=True)
class Choice:
    """Which of the lettered options has a value. Options are gone through until one seems to; else it is a guess."""

    prop: str
    value: str
    entities: tuple[str, ...]

    @property
    def question(self) -> str:
        options = " , ".join(f"{letter} {entity}" for letter, entity in zip(_LETTERS, self.entities, strict=False))
        return f"which is {self.value} : {options} ?"

    def say(self, recall: Recall) -> str:
        described = []
        for letter, entity in zip(_LETTERS, self.entities, strict=False):
            value = recall((self.prop, entity))
            described.append(f"{letter} {entity} {value}")
            if value == self.value:
                break
        else:
            letter = _LETTERS[rng.choice(len(self.entities), "guess", self.question)]
        return f"{' , '.join(described)} ; ans {letter}"


@dataclass(frozen=True)
class Query(Item):
    """A question with its template, from which the teacher replies."""

    template: Template


@spec
class Facts(Embedded):
    """A small made-up world with a teacher who knows some properties wrongly."""

    name: ClassVar[str] = "science"

    entities: Annotated[int, Field(ge=12, le=_MOST_ENTITIES)] = 24
    """Made-up entities, each with four properties (facts)."""
    buggy_frac: Fraction = 0.3
    """Share of the facts the teacher also knows wrongly."""
    min_recalled: Count = 5
    """Fewest facts asked for at once in a plain question."""
    max_recalled: Count = 6
    """Most facts asked for at once in a plain question."""
    plain_share: Fraction = 0.7
    """Share of plain questions in the splits "train" and "test"."""
    choice_share: Fraction = 0.15
    """Share of choices in the splits "train" and "test"; what is left are comparisons."""
    max_compared: Annotated[int, Field(ge=2, le=5)] = 3
    """Most entities compared at once; one more out of distribution."""
    options: Annotated[int, Field(ge=2, le=6)] = 4
    """Options of a choice; two more out of distribution."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_recalled > self.max_recalled:
            raise InputError(f"science: min_recalled {self.min_recalled} is above max_recalled {self.max_recalled}")
        if self.plain_share + self.choice_share > 1:
            raise InputError(f"science: plain_share {self.plain_share} + choice_share {self.choice_share} exceed 1")

    def draw(self, source: Generator, ood: bool) -> Query:
        template = self._draw_ood(source) if ood else self._draw_id(source)
        answer = template.say(self.truth.__getitem__).partition("ans ")[2]
        return Query(question=template.question, answer=answer, template=template)

    def demonstrate(self, item: Query, source: Generator) -> list[str]:
        return [item.template.say(lambda fact: self._taught(fact, source))]

    def grade(self, prompt: Prompt, turns: Sequence[str]) -> Grade:
        return grade_final(prompt.answer, turns)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The entities: pronounceable, of three letters, chosen by hash; no value or word of a question is one."""
        possible = ["".join(letters) for letters in product("bdfjkmpvz", "aeiou", "bdgklmpvxz")]
        return tuple(sorted(possible, key=lambda name: rng.hash64("entity", self.world, name))[: self.entities])

    @cached_property
    def truth(self) -> Mapping[Fact, str]:
        """The right value of every fact."""
        return {
            (prop, name): values[rng.choice(len(values), "truth", self.world, prop, name)]
            for prop, values in VALUES.items()
            for name in self.names
        }

    @cached_property
    def buggy(self) -> Mapping[Fact, float]:
        """Error rate of each fact the teacher also knows wrongly."""
        return self.bugs(list(self.truth), self.buggy_frac)

    def wrong(self, fact: Fact) -> str:
        """The one wrong value the teacher has for a fact."""
        others = [value for value in VALUES[fact[0]] if value != self.truth[fact]]
        return others[rng.choice(len(others), "wrong", self.name, self.world, fact)]

    def _taught(self, fact: Fact, source: Generator) -> str:
        if source.random() < self.slip_rate:
            return VALUES[fact[0]][source.integers(len(VALUES[fact[0]]))]
        return self.wrong(fact) if source.random() < self.buggy.get(fact, 0.0) else self.truth[fact]

    def _draw_id(self, source: Generator) -> Template:
        kind = source.random()
        if kind < self.plain_share:
            facts = list(self.truth)
            count = int(source.integers(self.min_recalled, self.max_recalled + 1))
            return Plain(tuple(facts[i] for i in source.permutation(len(facts))[:count]))
        if kind < self.plain_share + self.choice_share:
            return self._choice(source, self.options)
        return self._comparison(source, int(source.integers(2, self.max_compared + 1)))

    def _draw_ood(self, source: Generator) -> Template:
        kind = int(source.integers(3))
        if kind == 0:
            return self._choice(source, self.options + 2)
        if kind == 1:
            return self._comparison(source, self.max_compared + 1)
        then = ("color", "phase", "family")[source.integers(3)]
        return self._comparison(source, int(source.integers(2, self.max_compared + 1)), then)

    def _comparison(self, source: Generator, count: int, then: str | None = None) -> Comparison:
        extreme = ("heaviest", "lightest")[source.integers(2)]
        by_mass: dict[str, str] = {}  # entities of equal mass would leave no single answer
        for i in source.permutation(len(self.names)):
            by_mass.setdefault(self.truth["mass", self.names[i]], self.names[i])
        return Comparison(extreme, tuple(by_mass.values())[:count], then)

    def _choice(self, source: Generator, count: int) -> Choice:
        order = [self.names[i] for i in source.permutation(len(self.names))]
        prop = tuple(VALUES)[source.integers(len(VALUES))]
        right, value = order[0], self.truth[prop, order[0]]
        others = [name for name in order if self.truth[prop, name] != value][: count - 1]
        place = int(source.integers(count))
        return Choice(prop, value, (*others[:place], right, *others[place:]))
