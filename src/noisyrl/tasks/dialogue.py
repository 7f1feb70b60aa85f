"""Bookings in several turns: the user says some of it, the agent has to ask for the rest.

    user       hi , table : food thai , city rome ; no , food soup
    assistant  ask people
    user       people 3
    assistant  ask time
    user       time noon
    assistant  call table city = rome , food = soup , people = 3 , time = noon

The answer is worth 1 if the last turn is exactly the right call, slots in the order of `INTENTS`. The user is a
script: asked for a slot of the goal it states the value, asked for another one it says `not needed`, to anything else
it says `sorry ?`; a call, or the `max_turns`-th turn of the agent, ends the dialogue.

The teacher's bugs: for `buggy_frac` of the pairs (intent, slot) it fills in a favourite value of its own instead of
asking, about every second time; and for as many of the pairs it overhears a correction. Out of distribution: three or
more slots to ask for, or a combination of given slots that is kept out of the other splits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import ClassVar

from numpy.random import Generator

from noisyrl import rng
from noisyrl.spec import Count, Fraction, spec
from noisyrl.tasks.embedded import Embedded, Item, last_answer
from noisyrl.types import Grade, Prompt

_PLACES = ("rome", "oslo", "lima", "cairo", "paris", "delhi")
_NUMBERS = tuple("123456")

VALUES = {
    "city": _PLACES,
    "from": _PLACES,
    "to": _PLACES,
    "day": ("mon", "tue", "wed", "thu", "fri", "sat"),
    "time": ("dawn", "noon", "dusk", "six", "nine", "late"),
    "people": _NUMBERS,
    "nights": _NUMBERS,
    "stars": _NUMBERS,
    "food": ("thai", "soup", "pizza", "curry", "sushi", "salad"),
    "film": ("alien", "heat", "up", "jaws", "solaris", "psycho"),
    "seat": ("front", "rear", "aisle", "window", "box", "floor"),
    "size": ("tiny", "small", "mid", "large", "huge", "any"),
    "color": ("red", "blue", "green", "grey", "pink", "black"),
}
INTENTS = {
    "table": ("city", "food", "people", "time"),
    "hotel": ("city", "stars", "nights", "people"),
    "train": ("from", "to", "day", "seat"),
    "taxi": ("from", "to", "time", "people"),
    "movie": ("film", "day", "seat", "people"),
    "car": ("city", "size", "color", "day"),
    "weather": ("city", "day", "time"),
    "shirt": ("size", "color", "people"),
}
_OPENERS = ("", "hi , ", "please , ")
_ID_MISSING = 2  # most slots to ask for in the training shapes

Shape = tuple[str, tuple[str, ...]]  # intent, slots given in the first turn (order of INTENTS)


@dataclass(frozen=True)
class Goal(Item):
    """What the user wants, and what the first turn says of it; `misheard` is (slot, value before the correction)."""

    intent: str
    values: Mapping[str, str]
    given: tuple[str, ...]
    misheard: tuple[str, str] | None


@spec
class Bookings(Embedded):
    """A scripted user with a goal, and a teacher who sometimes guesses instead of asking."""

    name: ClassVar[str] = "dialogue"

    buggy_frac: Fraction = 0.6
    """Share of the pairs (intent, slot) for which the teacher guesses; and for which it overhears a correction."""
    bug_spread: Fraction = 0.35
    """As in the other tasks, but larger: asking or guessing is one habit, and with .2 shuffled rewards moved it, and
    with it the accuracy, by up to .13 either way in 60 steps."""
    correction_rate: Fraction = 0.3
    """How often the user states one slot wrongly first and corrects it."""
    ood_shape_frac: Fraction = 0.25
    """Share of the (intent, given slots) combinations of the training shapes that is moved to the split "ood"."""
    max_turns: Count = 6
    """Turns the agent has; the user leaves after the last."""

    def draw(self, source: Generator, ood: bool) -> Goal:
        shapes = self.shapes[ood]
        intent, given = shapes[int(source.integers(len(shapes)))]
        values = {slot: _pick(VALUES[slot], source) for slot in INTENTS[intent]}
        said = tuple(given[i] for i in source.permutation(len(given)))
        misheard = None
        if source.random() < self.correction_rate:
            slot = _pick(given, source)
            misheard = (slot, _pick([value for value in VALUES[slot] if value != values[slot]], source))
        stated = values | dict([misheard] if misheard else [])
        question = f"{_pick(_OPENERS, source)}{intent} : " + " , ".join(f"{slot} {stated[slot]}" for slot in said)
        if misheard:
            question += f" ; no , {misheard[0]} {values[misheard[0]]}"
        answer = call(intent, values)
        return Goal(question=question, answer=answer, intent=intent, values=values, given=given, misheard=misheard)

    def demonstrate(self, item: Goal, source: Generator) -> list[str]:
        turns, believed = [], dict(item.values)
        for slot in INTENTS[item.intent]:
            wrong = source.random() < self.error_rate(item, slot)
            if item.misheard and slot == item.misheard[0] and wrong:
                believed[slot] = item.misheard[1]
            elif slot not in item.given and wrong:
                believed[slot] = self.favourite(item.intent, slot)
            elif slot not in item.given:
                turns += [f"ask {slot}", f"{slot} {item.values[slot]}"]
        return [*turns, call(item.intent, believed)]

    def reply(self, prompt: Prompt, turns: Sequence[str]) -> str | None:
        spoken = " ".join(last_answer(turns).split())
        if spoken.startswith("call ") or len(turns) >= 2 * self.max_turns - 1:
            return None
        asked = re.fullmatch(r"ask ([a-z]+)", spoken)
        if not asked or asked[1] not in VALUES:
            return "sorry ?"
        wanted = re.search(rf" {asked[1]} = (\S+)", prompt.answer)
        return f"{asked[1]} {wanted[1]}" if wanted else "not needed"

    def grade(self, prompt: Prompt, turns: Sequence[str]) -> Grade:
        spoken = " ".join(last_answer(turns).split())
        extracted = spoken if spoken.startswith("call ") else None
        return Grade(score=float(extracted == prompt.answer), extracted=extracted)

    @cached_property
    def shapes(self) -> Mapping[bool, Sequence[Shape]]:
        """Shapes of the training side (key False) and of the split "ood" (key True)."""
        sides: dict[bool, list[Shape]] = {False: [], True: []}
        for shape in _all_shapes():
            missing = len(INTENTS[shape[0]]) - len(shape[1])
            kept_out = rng.uniform("shape", self.name, self.world, *shape) < self.ood_shape_frac
            sides[missing > _ID_MISSING or kept_out].append(shape)
        return sides

    @cached_property
    def buggy(self) -> Mapping[tuple[str, str, str], float]:
        """Error rate of each buggy decision: ("ask" or "heed", intent, slot)."""
        pairs = [(intent, slot) for intent, slots in INTENTS.items() for slot in slots]
        asking = self.bugs([("ask", *pair) for pair in pairs], self.buggy_frac)
        return {**asking, **self.bugs([("heed", *pair) for pair in pairs], self.buggy_frac)}

    def error_rate(self, item: Goal, slot: str) -> float:
        """How often the teacher gets a slot of an item wrong."""
        if slot in item.given and not (item.misheard and item.misheard[0] == slot):
            return 0.0
        decision = "heed" if slot in item.given else "ask"
        return max(self.buggy.get((decision, item.intent, slot), 0.0), self.slip_rate)

    def favourite(self, intent: str, slot: str) -> str:
        """What the teacher fills in when it does not ask."""
        return VALUES[slot][rng.choice(len(VALUES[slot]), "favourite", self.world, intent, slot)]


def call(intent: str, values: Mapping[str, str]) -> str:
    """The call that books `values`: call taxi from = oslo , to = rome , time = noon , people = 2."""
    return f"call {intent} " + " , ".join(f"{slot} = {values[slot]}" for slot in INTENTS[intent])


def _all_shapes() -> Iterator[Shape]:
    for intent, slots in INTENTS.items():
        for count in range(1, len(slots) + 1):
            for given in combinations(slots, count):
                yield intent, given


def _pick(options: Sequence[str], source: Generator) -> str:
    return options[int(source.integers(len(options)))]
