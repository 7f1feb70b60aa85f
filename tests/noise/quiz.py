"""A task whose answers are letters, and a starting policy that says what it is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from noisyrl.noise.base import Setting
from noisyrl.rollout.base import Sampler
from noisyrl.spec import spec
from noisyrl.tasks.base import Task
from noisyrl.types import Grade, Prompt, Rollout


@spec
class Quiz(Task):
    """Answers a, b, c, ... in turn; "?" cannot be graded and "" is no answer."""

    count: int = 12
    options: int = 4

    @property
    def splits(self):
        return ("train",)

    def prompts(self, split):
        return [
            Prompt(({"role": "user", "content": f"{i}"},), "abcdefgh"[i % self.options], "quiz", f"q{i}", "quiz")
            for i in range(self.count)
        ]

    def grade(self, prompt, turns):
        if turns[-1] == "?":
            return Grade(None, "error")
        return Grade(float(turns[-1] == prompt.answer), extracted=turns[-1] or None)


@spec
class Told(Sampler):
    """Gives each prompt the answers listed for it."""

    answers: Mapping[str, Sequence[str]]  # uid -> texts
    default: str = "z"

    def __call__(self, lm, task, prompts, *, seed, step):
        assert step < 0, "a stream that training meets"
        said = {p.uid: (list(self.answers.get(p.uid, [])) + [self.default] * self.samples) for p in prompts}
        return rollout_of(prompts, {uid: texts[: self.samples] for uid, texts in said.items()})


def rollout_of(prompts: Sequence[Prompt], said: Mapping[str, Sequence[str]]) -> Rollout:
    """One row for each text that a prompt is given."""
    pairs = [(p, i, text) for p in prompts for i, text in enumerate(said[p.uid])]
    rows = len(pairs)
    return Rollout(
        prompts=[p for p, _, _ in pairs], turns=[(text,) for _, _, text in pairs],
        tokens_BL=torch.ones(rows, 3, dtype=torch.int64), attention_BL=torch.ones(rows, 3, dtype=torch.bool),
        mask_BT=torch.ones(rows, 1, dtype=torch.bool), logp_BT=torch.zeros(rows, 1),
        group_B=torch.tensor([[q.uid for q in prompts].index(p.uid) for p, _, _ in pairs]),
        sample_B=torch.tensor([i for _, i, _ in pairs]), finished_B=torch.ones(rows, dtype=torch.bool),
    )  # fmt: skip


def clean_of(task: Task, rollout: Rollout) -> torch.Tensor:
    """[B] as graded; NaN = could not be."""
    grades = [task.grade(p, turns).score for p, turns in zip(rollout.prompts, rollout.turns, strict=True)]
    return torch.tensor([float("nan") if score is None else score for score in grades])


def setting_for(task: Task, sampler: Sampler | None = None, **changed) -> Setting:
    """Every training prompt is met; nothing is kept unless `folder` is given."""
    prompts = task.prompts("train")
    setting = Setting(task=task, lm=None, sampler=sampler or Told(answers={}), prompts=prompts, met=prompts, seed=0)
    return replace(setting, **changed)
