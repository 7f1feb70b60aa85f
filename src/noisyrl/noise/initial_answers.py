"""What the starting policy answers: sampled before the first step, from a stream that training never meets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from tqdm import tqdm

from noisyrl.noise.base import Setting
from noisyrl.tasks.deadline import graded
from noisyrl.types import Grade, Prompt

_STEP = -2  # training counts from 0 upwards
_PROMPTS_AT_ONCE = 64  # between two states of the bar


def initial_answers(setting: Setting, prompts: Sequence[Prompt], samples: int) -> dict[str, list[Grade]]:
    """uid -> the clean grades of `samples` responses of the starting policy; shows a bar on the main process."""
    sampler = replace(setting.sampler, samples=samples)
    found: dict[str, list[Grade]] = {prompt.uid: [] for prompt in prompts}
    with tqdm(total=len(prompts), desc="initial answers", unit="prompt", disable=not setting.main) as bar:
        for first in range(0, len(prompts), _PROMPTS_AT_ONCE):
            part = prompts[first : first + _PROMPTS_AT_ONCE]
            rollout = sampler(setting.lm, setting.task, part, seed=setting.seed, step=_STEP)
            for prompt, turns in zip(rollout.prompts, rollout.turns, strict=True):
                found[prompt.uid].append(graded(setting.task, prompt, turns, setting.grader_deadline_s))
            bar.update(len(part))
    return found


def most_frequent(answers: Sequence[str | None]) -> tuple[str | None, int, bool]:
    """The most frequent answer, how often it was given, and whether others were given as often.

    Among equals the lexicographically smallest; None stands for no answer and is not counted.
    """
    counts = Counter(answer for answer in answers if answer is not None)
    if not counts:
        return None, 0, False
    votes = max(counts.values())
    leaders = [answer for answer, count in counts.items() if count == votes]
    return min(leaders), votes, len(leaders) > 1
