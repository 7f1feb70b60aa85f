"""Dialogue in one pass: the history is given and right so far, the next turn of the agent is scored.

For models that lm-eval can only ask once. It says whether a model knows the next move after a flawless history, not
whether it would have reached that point; tables use the dialogues played to their end.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from noisyrl import rng
from noisyrl.spec import spec
from noisyrl.tasks.base import Split, Task
from noisyrl.tasks.dialogue import Bookings
from noisyrl.tasks.embedded import conversation, last_answer
from noisyrl.types import Grade, Prompt


@spec
class NextTurn(Task):
    """One turn of each held-out dialogue, chosen by its uid; `answer` holds the right turns, one a line.

    While slots are missing, asking for any of them is right; then only the call is.
    """

    bookings: Bookings = Bookings()
    """The dialogues."""

    @property
    def splits(self) -> tuple[Split, ...]:
        return self.bookings.splits

    def prompts(self, split: Split) -> Sequence[Prompt]:
        return tuple(self._turn_of(prompt) for prompt in self.bookings.prompts(split))

    def grade(self, prompt: Prompt, turns: Sequence[str]) -> Grade:
        spoken = " ".join(last_answer(turns).split())
        return Grade(score=float(spoken in prompt.answer.splitlines()), extracted=spoken or None)

    def _turn_of(self, prompt: Prompt) -> Prompt:
        asks = [f"ask {slot}" for slot in missing_slots(prompt)]
        done = rng.choice(len(asks) + 1, "next turn", prompt.uid)
        history = [text for ask in asks[:done] for text in (ask, str(self.bookings.reply(prompt, [ask])))]
        messages = (*prompt.messages[:-1], *conversation(prompt.messages[-1]["content"], history))
        answer = "\n".join(asks[done:]) or prompt.answer
        return replace(prompt, messages=messages, answer=answer, task="dialogue_step", uid=f"{prompt.uid}/turn{done}")


def missing_slots(prompt: Prompt) -> list[str]:
    """Slots of the right call that the user's first message does not give, in the order of the call."""
    said = prompt.messages[-1]["content"]
    wanted = re.findall(r"(\S+) = (\S+)", prompt.answer)
    return [slot for slot, value in wanted if not re.search(rf"(?<!\S){slot} {value}(?!\S)", said)]
