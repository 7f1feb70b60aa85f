"""SGD on disk: schemas, and the user's goal behind each dialogue.

The layout is that of the public repository google-research-datasets/dstc8-schema-guided-dialogue (CC-BY-SA-4.0) since
July 2020, when service calls were added: {train,dev,test}/schema.json and dialogues_*.json. A goal is what a dialogue
amounts to, not how it went: for each (service, intent) that was called, the last call that succeeded, with all spoken
forms of its values and what the user wanted to know of the result.

A dialogue that goes through several of the five domains is several goals, one for each domain.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from noisyrl.spec import InputError
from noisyrl.tasks.sgd.values import ANYTHING, same

FOLDERS = ("train", "dev", "test")
FETCH = "git clone --depth 1 https://github.com/google-research-datasets/dstc8-schema-guided-dialogue"
DOMAINS = {
    "life": ("Restaurants", "Hotels", "Homes", "Services_1", "Weather", "Alarm"),
    "transportation": ("Flights", "Buses", "Trains", "RentalCars", "RideSharing", "Travel"),
    "healthcare": ("Services_2", "Services_3", "Services_4"),
    "social": ("Events", "Movies", "Media", "Music", "Messaging", "Calendar"),
    "finance": ("Banks", "Payment"),
}
"""Our mapping of SGD's services to the five domains of the DVPO paper, by family or, where a family is divided, by
name: Services_1 is a hair stylist, 2 a dentist, 3 a doctor, 4 a therapist."""
_DOMAIN_OF = {name: domain for domain, names in DOMAINS.items() for name in names}


@dataclass(frozen=True)
class Slot:
    """`values` are all it can have; () = free text."""

    name: str
    description: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Intent:
    """Something a service does. optional: slot -> the value it has if none is given."""

    name: str
    description: str
    required: tuple[str, ...]
    optional: Mapping[str, str]


@dataclass(frozen=True)
class Service:
    """One schema."""

    name: str
    description: str
    slots: Mapping[str, Slot]
    intents: Mapping[str, Intent]


@dataclass(frozen=True)
class Want:
    """One task of a goal: a call to be made, and what is to be said of its result.

    values     slot -> accepted forms of the value the call must have, the service's own first
    required   slots the call must have
    defaults   optional slot -> what the service takes if the call leaves it out
    result     what the service answers to the right call
    wanted     slot of the result that the user asks about -> accepted forms
    told       slots whose value the user states when coming to this task
    to_ask     required slots that only asking brings to light; the denominator of ACR
    """

    service: str
    intent: str
    description: str
    values: Mapping[str, tuple[str, ...]]
    required: tuple[str, ...]
    defaults: Mapping[str, str]
    result: Mapping[str, str]
    wanted: Mapping[str, tuple[str, ...]]
    told: tuple[str, ...] = ()
    to_ask: tuple[str, ...] = ()


@dataclass(frozen=True)
class Goal:
    """What one user wants, in order, all of it in one domain; `name` says which dialogue it comes from."""

    name: str
    domain: str
    wants: tuple[Want, ...]

    @property
    def services(self) -> tuple[str, ...]:
        """Each once, in the order of the wants."""
        return tuple(dict.fromkeys(want.service for want in self.wants))


def dump(goal: Goal) -> str:
    """The goal as one line of JSON."""
    raw = {"name": goal.name, "domain": goal.domain, "wants": [vars(want) for want in goal.wants]}
    return json.dumps(raw, ensure_ascii=False, separators=(",", ":"))


@lru_cache(maxsize=4096)  # a dialogue is replayed at each of its turns, for each sample of a group
def load(text: str) -> Goal:
    """The inverse of `dump`. ValueError: not such a line."""
    try:
        raw = json.loads(text)
        return Goal(raw["name"], raw["domain"], tuple(_want(each) for each in raw["wants"]))
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a goal: {text[:80]!r}") from error


def schema(root: Path, folder: str) -> dict[str, Service]:
    """The services of one folder, by name. InputError: the file is missing or not as it must be."""
    path = root / folder / "schema.json"
    try:
        return {raw["service_name"]: _service(raw) for raw in _read(path, root)}
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not an SGD schema ({error!r}): fetch it again") from error


def goals(root: Path, folder: str) -> Iterator[Goal]:
    """The goals of one folder, in the order of its files. InputError: there are none, or a file is damaged."""
    services = schema(root, folder)
    paths = sorted((root / folder).glob("dialogues_*.json"))
    if not paths:
        raise missing(root, f"no dialogues_*.json in {root / folder}/")
    found = False
    for path in paths:
        for number, dialogue in enumerate(_read(path, root)):
            try:
                for goal in _goals(dialogue, services, folder):
                    found = True
                    yield goal
            except (KeyError, TypeError, AttributeError) as error:
                raise InputError(f"{path}: dialogue {number} is not as SGD writes them ({error!r})") from error
    if not found:
        raise InputError(
            f"{root / folder}: no dialogue has a service_call: this is the release of 2019; get the newer one: "
            f"{FETCH} {root}"
        )


def missing(root: Path, what: str) -> InputError:
    """Says what is not there and how to get it."""
    return InputError(f"SGD: {what}. Fetch it: {FETCH} {root} (CC-BY-SA-4.0); data=sgd5 takes data.path=FOLDER")


def inventory(root: Path = Path("data/sgd")) -> list[str]:
    """One line: what is there, or how to fetch it."""
    counts = {folder: len(list((root / folder).glob("dialogues_*.json"))) for folder in FOLDERS}
    if not all(counts.values()):
        return [f"{'sgd5':13} missing; {FETCH} {root} (CC-BY-SA-4.0)"]
    files = ", ".join(f"{count} files in {folder}" for folder, count in counts.items())
    return [f"{'sgd5':13} {files} of {root}/"]


def domain_of(service: str) -> str:
    """One of DOMAINS. InputError: a service of no known family."""
    found = _DOMAIN_OF.get(service) or _DOMAIN_OF.get(service.partition("_")[0])
    if found is None:
        raise InputError(f"SGD: no domain for the service {service!r}: only the schemas of SGD itself can be read")
    return found


def _read(path: Path, root: Path) -> list[Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise missing(root, f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): fetch it again") from error
    if not isinstance(found, list):
        raise InputError(f"{path}: not an SGD file: a list is expected, got {type(found).__name__}")
    return found


def _service(raw: Mapping[str, Any]) -> Service:
    slots = [
        Slot(each["name"], each["description"], tuple(each["possible_values"]) if each["is_categorical"] else ())
        for each in raw["slots"]
    ]
    intents = [
        Intent(each["name"], each["description"], tuple(each["required_slots"]), dict(each["optional_slots"]))
        for each in raw["intents"]
    ]
    by_name = {slot.name: slot for slot in slots}, {intent.name: intent for intent in intents}
    return Service(raw["service_name"], raw["description"], *by_name)


def _goals(dialogue: Mapping[str, Any], services: Mapping[str, Service], folder: str) -> Iterator[Goal]:
    by_domain: dict[str, list[Want]] = {}
    for want in _wants(list(_frames(dialogue)), services):
        by_domain.setdefault(domain_of(want.service), []).append(want)
    for domain, wants in by_domain.items():
        yield Goal(f"{folder}/{dialogue['dialogue_id']}/{domain}", domain, tuple(wants))


def _frames(dialogue: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for turn in dialogue["turns"]:
        for frame in turn["frames"]:
            yield turn["speaker"], frame


Frames = list[tuple[str, Mapping[str, Any]]]


def _wants(frames: Frames, services: Mapping[str, Service]) -> list[Want]:
    """One for each (service, intent) that was called, in the order of the first calls."""
    calls: dict[tuple[str, str], int] = {}
    for place, (_, frame) in enumerate(frames):
        if call := frame.get("service_call"):
            key = frame["service"], call["method"]
            if key not in calls or _fitting(frame):
                calls[key] = place  # the last that succeeded; without any, the first
    found = []
    for (service, intent), place in calls.items():
        later = [
            frames[other][1]["service_call"]["parameters"]
            for (theirs, _), other in calls.items()
            if theirs == service and other > place
        ]
        found.append(_want_of(frames, place, services[service].intents[intent], _chosen(frames[place][1], later)))
    # A call without all it requires is a slip of the data.
    return [want for want in found if set(want.required) <= set(want.values)]


def _chosen(frame: Mapping[str, Any], later: list[Mapping[str, str]]) -> Mapping[str, str]:
    """The result the user settled on: it agrees most with the later calls of the service; the first of equals."""

    def agreement(result: Mapping[str, str]) -> int:
        return sum(result.get(slot) == value for call in later for slot, value in call.items())

    return max(_fitting(frame) or frame.get("service_results") or [{}], key=agreement)


def _fitting(frame: Mapping[str, Any]) -> list[Mapping[str, str]]:
    """The results that are what the call asked for: a service that fails may offer something else, another time say."""
    asked = [(slot, value) for slot, value in frame["service_call"]["parameters"].items() if value not in ANYTHING]
    results = frame.get("service_results") or []
    return [result for result in results if all(same(result.get(slot, value), [value]) for slot, value in asked)]


def _want_of(frames: Frames, place: int, intent: Intent, result: Mapping[str, str]) -> Want:
    frame = frames[place][1]
    service, parameters = frame["service"], frame["service_call"]["parameters"]
    allowed = {*intent.required, *intent.optional}
    states = [each["state"] for _, each in frames if each["service"] == service and "state" in each]
    before = [each["state"] for _, each in frames[:place] if each["service"] == service and "state" in each]
    # What the call was made from, also where it was said to another service.
    current = before[-1]["slot_values"] if before else {}
    values = {
        slot: tuple(dict.fromkeys([*_forms(frames[:place], service, slot, value), *current.get(slot, ())]))
        for slot, value in parameters.items()
        if slot in allowed
    }
    requested = dict.fromkeys(
        slot for state in states if state["active_intent"] == intent.name for slot in state["requested_slots"]
    )
    wanted = {s: _forms(frames, service, s, result[s]) for s in requested if s in result and s not in values}
    return Want(
        service=service,
        intent=intent.name,
        description=intent.description,
        values=values,
        required=intent.required,
        defaults=intent.optional,
        result=dict(result),
        wanted=wanted,
    )


def _forms(frames: Frames, service: str, slot: str, value: str) -> tuple[str, ...]:
    """`value` and everything that was said for it: what actions pair with it, and the states' variants of those."""
    forms = dict.fromkeys([value])
    own = [frame for _, frame in frames if frame["service"] == service]
    for frame in own:
        for action in frame["actions"]:
            if action.get("slot") == slot:
                pairs = zip(action.get("values", ()), action.get("canonical_values", ()), strict=False)
                forms |= dict.fromkeys(said for said, meant in pairs if meant == value)
    for frame in own:
        variants = frame.get("state", {}).get("slot_values", {}).get(slot, ())
        if any(variant in forms for variant in variants):
            forms |= dict.fromkeys(variants)
    return tuple(forms)


def _want(raw: Mapping[str, Any]) -> Want:
    lists = {key: tuple(raw[key]) for key in ("required", "told", "to_ask")}
    forms = {key: {slot: tuple(said) for slot, said in raw[key].items()} for key in ("values", "wanted")}
    return Want(**{**raw, **lists, **forms})


def divided(goal: Goal, volunteers: Callable[[str, str], bool]) -> Goal:
    """The goal with `told` and `to_ask` filled in. volunteers(service, slot): whether the user states it unasked.

    At each task the user states what was volunteered, wishes for optional slots that differ from the default, and
    what differs from an earlier task. A required slot that was stated before, or whose value a result showed, need
    not be asked for; the others must be.
    """
    wants: list[Want] = []
    shared: dict[tuple[str, str], tuple[str, ...]] = {}  # what will have been said by then
    for want in goal.wants:
        shown = [earlier.result for earlier in wants if earlier.service == want.service]
        told: list[str] = []
        to_ask: list[str] = []
        values = dict(want.values)
        for slot, default in want.defaults.items():
            if slot not in values and (want.service, slot) in shared:
                values[slot] = (default or ANYTHING[1],)  # said before, and no longer meant
        for slot, forms in values.items():
            key = want.service, slot
            if key in shared:
                told += [slot] * (not same(forms[0], shared[key]))
            elif slot not in want.required:
                told += [slot] * (forms[0] not in ANYTHING and not same(forms[0], [want.defaults[slot]]))
            elif not any(same(result.get(slot, ""), forms) for result in shown):
                (told if volunteers(*key) else to_ask).append(slot)
            if slot in told or slot in to_ask:
                shared[key] = forms
        wants.append(replace(want, values=values, told=tuple(told), to_ask=tuple(to_ask)))
    return replace(goal, wants=tuple(wants))
