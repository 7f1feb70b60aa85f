"""Wrong labels: for a share of the prompts, whatever is right by a wrong answer key is rewarded, at every step.

Unlike flips this noise does not average out: on a corrupted prompt a right response is never rewarded, and a policy
that says the label always is. How harmful that is depends on the label. A random one is hardly ever said, so the
prompt mostly goes without reward; the policy's own favourite mistake (`attractive`) is said often, and learned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import ClassVar, Literal

from torch import Tensor

from noisyrl import rng
from noisyrl.noise.base import Noise, Setting
from noisyrl.noise.initial_answers import initial_answers, most_frequent
from noisyrl.noise.once import Row, worked_out
from noisyrl.spec import Count, Fraction, InputError, Positive, spec
from noisyrl.tasks.base import Task
from noisyrl.tasks.deadline import graded
from noisyrl.types import Grade, Prompt, Rollout


@spec
class WrongLabels(Noise):
    """With probability `rate` a prompt is graded against a wrong label, the same one at every step."""

    needs_setting: ClassVar[bool] = True

    rate: Fraction
    """Probability that a prompt has a wrong label."""
    kind: Literal["uniform", "other_prompt", "attractive"] = "uniform"
    """Where it comes from: uniform = any of the distinct answers to training prompts of the same domain;
    other_prompt = the answer to another of these prompts, so that frequent answers are frequent labels; attractive =
    the starting policy's most frequent wrong answer to the prompt (uniform where it gave none)."""
    samples: Count = 16
    """Responses of the starting policy to each corrupted prompt; `attractive` alone needs them."""

    def __call__(self, reward_B: Tensor, rollout: Rollout, step: int) -> Tensor:
        raise needs_preparation(self)

    def prepare(self, setting: Setting) -> Noise:
        """InputError: a prompt has no possible wrong label."""
        made_for = {"noise": self.name, **asdict(self)}
        rows = worked_out(setting, "labels.jsonl", made_for=made_for, work=lambda: self._work_out(setting))
        return _Corrupted(
            seed=self.seed,
            origin=self,
            task=setting.task,
            deadline_s=setting.grader_deadline_s,
            label_of={row["uid"]: row["label"] for row in rows},
            wrong=frozenset(row["uid"] for row in rows if row["wrong"]),
        )

    def is_corrupted(self, prompt: Prompt) -> bool:
        """Whether a prompt has a wrong label; a property of its uid alone."""
        return rng.uniform("noise-v1", "labels", self.seed, prompt.uid) < self.rate

    def describe(self) -> str:
        return (
            f"labels: each prompt has a wrong label ({self.kind}) with probability {self.rate:g}, at every step; on "
            "these FNR = 1 and FPR = how often the policy says the label, on the others the reward is as graded"
        )

    def _work_out(self, setting: Setting) -> list[Row]:
        corrupted = [prompt for prompt in setting.met if self.is_corrupted(prompt)]
        attractive = self._attractive(setting, corrupted) if self.kind == "attractive" else {}
        pools = {domain: self._pool(setting.prompts, domain) for domain in {prompt.domain for prompt in corrupted}}
        rows: list[Row] = []
        for prompt in setting.met:
            wrong, drawn = self.is_corrupted(prompt), False
            label = attractive.get(prompt.uid, prompt.answer)
            if wrong and prompt.uid not in attractive:
                label, drawn = self._drawn(prompt, pools[prompt.domain], setting), True
            rows.append({"uid": prompt.uid, "label": label, "wrong": wrong, "drawn": drawn, "right": prompt.answer})
        return rows

    def _attractive(self, setting: Setting, prompts: Sequence[Prompt]) -> dict[str, str]:
        """uid -> the most frequent wrong answer, where one was given."""
        answers = initial_answers(setting, prompts, self.samples)
        found = {
            uid: most_frequent([grade.extracted for grade in grades if grade.score == 0])[0]
            for uid, grades in answers.items()
        }
        return {uid: label for uid, label in found.items() if label is not None}

    def _pool(self, prompts: Sequence[Prompt], domain: str) -> list[str]:
        answers = [prompt.answer for prompt in prompts if prompt.domain == domain]
        return answers if self.kind == "other_prompt" else sorted(set(answers))

    def _drawn(self, prompt: Prompt, pool: Sequence[str], setting: Setting) -> str:
        """The first of the pool, in an order hashed for the prompt, that is a label and not the right one."""
        for label in _shuffled(pool, "noise-v1", "label", self.seed, prompt.uid):
            if label != prompt.answer and not _accepted(setting, prompt, label):
                return label
        raise InputError(
            f"noise=labels: no answer in the domain {prompt.domain!r} of the training split is wrong for prompt "
            f"{prompt.uid}: give the prompts domains with several answers, set noise.kind=attractive, or noise.rate=0"
        )


@spec
class _Corrupted(Noise):
    """Wrong labels, each prompt's known."""

    origin: WrongLabels
    task: Task
    deadline_s: Positive
    label_of: Mapping[str, str]  # uid -> label
    wrong: frozenset[str]  # uids whose label is wrong

    def __call__(self, reward_B: Tensor, rollout: Rollout, step: int) -> Tensor:
        """NaN where the response could not be graded against the wrong label. InputError: an unknown prompt."""
        observed_B = reward_B.clone()
        for row, prompt in enumerate(rollout.prompts):
            if prompt.uid not in self.label_of:
                raise InputError(f"noise=labels: prompt {prompt.uid} is not among those the run was to meet")
            if prompt.uid in self.wrong:
                observed_B[row] = reward_for(
                    self.label_of[prompt.uid], prompt, rollout.turns[row], task=self.task, seconds=self.deadline_s
                )
        return observed_B

    def describe(self) -> str:
        return f"{self.origin.describe()}; {len(self.wrong)} of the {len(self.label_of)} prompts of this run"


def reward_for(label: str, prompt: Prompt, turns: Sequence[str], *, task: Task, seconds: float) -> float:
    """The task's score of a response if `label` were the prompt's answer; NaN = it could not be scored."""
    score = graded(task, replace(prompt, answer=label), turns, seconds).score
    return float("nan") if score is None else score


def needs_preparation(noise: Noise) -> InputError:
    """For noise that is called before `prepare`."""
    return InputError(f"noise={noise.name} has to know the run: call prepare(Setting(...)) and use what it returns")


def _shuffled(items: Sequence[str], *key: object) -> Iterator[str]:
    return (items[i] for i in rng.generator(*key).permutation(len(items)))


def _accepted(setting: Setting, prompt: Prompt, label: str) -> bool:
    """Whether a response that states the right answer would be right by `label` too, or could not be judged by it.

    Two spellings of one number are one label, and a number is none where a letter is asked for. The response is in
    the forms that tasks/graders.py reads; tasks with forms of their own compare labels as texts.
    """
    stated = [f"\\boxed{{{prompt.answer}}}\nAnswer: {prompt.answer}"]
    try:
        grade: Grade = setting.task.grade(replace(prompt, answer=label), stated)
    except ValueError:
        return True
    return grade.score is None or grade.score > 0
