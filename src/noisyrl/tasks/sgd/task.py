"""`data=sgd5`: Schema-Guided Dialogue in five domains, played with a scripted user (user.py) and scored (score.py).

A prompt tells the agent the schemas of the services concerned and the user's first words; `answer` holds the goal.
Domains, tasks and the definitions of TCR, ACR and GCR are ours, because those of the papers are unpublished.

Splits go by service and dialogue: `ood` are the dialogues of dev and test with a service that no training dialogue
has; `test` are the other dialogues of dev and test and `heldout_frac` of train, which are not trained on: without them
finance and healthcare would hardly have a service that was seen.

`eval.hub=[sgd5]` asks the same two splits, with the defaults below, of runs that were trained on something else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

from noisyrl import rng
from noisyrl.spec import Count, Fraction, InputError, Natural, spec
from noisyrl.tasks.base import Split, Task
from noisyrl.tasks.sgd import data
from noisyrl.tasks.sgd.data import Goal, Service
from noisyrl.tasks.sgd.score import average, measures
from noisyrl.tasks.sgd.user import Conversation, opening, outcome, replay
from noisyrl.types import Grade, Prompt, Range

RULES = """\
You help a user by means of services. In each turn you say one JSON object and nothing else, one of
{"act": "ask", "slots": {"SLOT": ""}, "say": "TEXT"} to ask the user for slots
{"act": "call", "intent": "INTENT", "slots": {"SLOT": "VALUE"}, "say": "TEXT"} to call a service
{"act": "inform", "slots": {"SLOT": "VALUE"}, "say": "TEXT"} to tell the user what a result says
{"act": "close", "slots": {}, "say": "TEXT"} to leave when nothing is left to do
A call needs all its required slots. Ask for those you do not know, once, before the call. Optional slots have the
default shown unless the user wishes otherwise; dontcare is any value. Today is 2019-03-01."""


@spec
class Sgd(Task):
    """Goals of real dialogues, pursued by a scripted user."""

    path: str = "data/sgd"
    """Folder of the public repository: train/, dev/ and test/ with schema.json and dialogues_*.json."""
    reward: Literal["goal", "average"] = "goal"
    """goal = GCR, 0 or 1: what counts in the end, and what noise that flips rewards needs; average = mean of TCR, ACR
    and GCR, which pays for parts. The three are scored either way."""
    volunteer_rate: Fraction = 0.5
    """Probability that the user states a required slot before being asked."""
    max_turns: Count = 20
    """Turns the agent has."""
    patience: Count = 4
    """Turns that lead nowhere after which the user leaves."""
    heldout_frac: Fraction = 0.1
    """Share of the training dialogues that is kept for the split "test"."""
    heldout_items: Count | None = 200
    """Dialogues per domain in each of "test" and "ood", those with the smallest hash; null = all."""
    world: Natural = 0
    """Keys what is drawn: what is volunteered, and which training dialogues are held out."""

    @property
    def splits(self) -> tuple[Split, ...]:
        return ("train", "test", "ood")

    @property
    def field(self) -> Literal["dialogue"]:
        """What it trains; public benchmarks of another field are out of distribution."""
        return "dialogue"

    @property
    def reward_range(self) -> Range:
        """What grades may be, for noise and corrections that need verdicts."""
        return Range(graded=self.reward == "average")

    def prompts(self, split: Split) -> Sequence[Prompt]:
        """InputError: the files are not there (says how to fetch them), or one is not as it must be."""
        if split not in self.splits:
            raise InputError(f"data=sgd5 has no split {split!r}; choose from {', '.join(self.splits)}")
        return self._train if split == "train" else self._heldout[split]

    def reply(self, prompt: Prompt, turns: Sequence[str]) -> str | None:
        return self._play(prompt, turns)[1]

    def grade(self, prompt: Prompt, turns: Sequence[str]) -> Grade:
        """Where noise has put a label in place of the goal, such as a majority's outcome: 1 for that very outcome."""
        done = outcome(turns)
        if prompt.answer.startswith("done "):
            return Grade(float(done == prompt.answer), extracted=done)
        found = self.measure(prompt, turns)
        gcr = found["gcr"]
        assert gcr is not None
        return Grade(gcr if self.reward == "goal" else average(found), extracted=done)

    def graded_by(self, prompt: Prompt) -> str:
        """Name and version of the rule."""
        return f"sgd5-{self.reward}@v1"

    def measure(self, prompt: Prompt, turns: Sequence[str]) -> Mapping[str, float | None]:
        """tcr, acr, gcr and format_error_rate of a dialogue; None = it has nothing the figure could be about."""
        return measures(self._play(prompt, turns)[0])

    def _play(self, prompt: Prompt, turns: Sequence[str]) -> tuple[Conversation, str | None]:
        return replay(data.load(prompt.answer), turns, max_turns=self.max_turns, patience=self.patience)

    @cached_property
    def _train(self) -> tuple[Prompt, ...]:
        found = tuple(self._prompt(goal, self._services["train"]) for goal in self._goals if not self._is_heldout(goal))
        if not found:
            raise InputError(f"SGD: {self.path}/train has no dialogue left to train on: lower data.heldout_frac")
        return found

    @cached_property
    def _heldout(self) -> dict[str, tuple[Prompt, ...]]:
        seen = {service for goal in self._goals if not self._is_heldout(goal) for service in goal.services}
        sides: dict[str, list[tuple[str, Goal]]] = {"test": [], "ood": []}
        for folder in data.FOLDERS:
            goals = self._goals if folder == "train" else data.goals(self._root, folder)
            for goal in goals:
                if folder != "train" or self._is_heldout(goal):
                    sides["test" if seen.issuperset(goal.services) else "ood"].append((folder, goal))
        return {
            side: tuple(self._prompt(goal, self._services[folder]) for folder, goal in self._chosen(found))
            for side, found in sides.items()
        }

    def _chosen(self, found: Sequence[tuple[str, Goal]]) -> Iterator[tuple[str, Goal]]:
        """In the order of their hashes, so that the first ones are a fair sample; domain by domain."""
        ranked = sorted(found, key=lambda each: rng.hash64("sgd item", each[1].name))
        for domain in data.DOMAINS:
            yield from [each for each in ranked if each[1].domain == domain][: self.heldout_items]

    def _is_heldout(self, goal: Goal) -> bool:
        # By dialogue: its goals in other domains share values with this one.
        dialogue = goal.name.rpartition("/")[0]
        return rng.uniform("sgd heldout", self.world, dialogue) < self.heldout_frac

    @property
    def _root(self) -> Path:
        return Path(self.path)

    @cached_property
    def _goals(self) -> tuple[Goal, ...]:
        return tuple(data.goals(self._root, "train"))

    @cached_property
    def _services(self) -> dict[str, dict[str, Service]]:
        return {folder: data.schema(self._root, folder) for folder in data.FOLDERS}

    @cached_property
    def _briefings(self) -> dict[tuple[str, tuple[str, ...]], str]:
        return {}

    def _prompt(self, goal: Goal, services: Mapping[str, Service]) -> Prompt:
        drawn = ("sgd volunteer", self.world, goal.name)
        goal = data.divided(goal, lambda *slot: rng.uniform(*drawn, *slot) < self.volunteer_rate)
        key = goal.name.partition("/")[0], goal.services
        if key not in self._briefings:  # shared by many prompts
            self._briefings[key] = briefing([services[name] for name in goal.services])
        messages = (
            {"role": "system", "content": self._briefings[key]},
            {"role": "user", "content": opening(goal.wants[0], goal)},
        )
        return Prompt(messages, data.dump(goal), f"sgd5_{goal.domain}", f"sgd5/{goal.name}", goal.domain)


def briefing(services: Sequence[Service]) -> str:
    """What the agent is told before the user speaks: how to speak, and what the services do."""
    return "\n\n".join([RULES, *map(_manual, services)])


def _manual(service: Service) -> str:
    lines = [f"Service {service.name}: {service.description}"]
    for intent in service.intents.values():
        optional = ", ".join(f"{slot}={default or 'dontcare'}" for slot, default in intent.optional.items())
        lines.append(
            f"Intent {intent.name}: {intent.description.rstrip('.')}. "
            f"Required: {', '.join(intent.required) or 'none'}. Optional: {optional or 'none'}."
        )
    for slot in service.slots.values():
        values = f" ({' | '.join(slot.values)})" if slot.values else ""
        lines.append(f"Slot {slot.name}: {slot.description}{values}")
    return "\n".join(lines)
