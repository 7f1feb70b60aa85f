"""A grader that likes short dialogues: a bonus for asking the user less.

A small one leaves the clean optimum where it is: a question saved is worth less than the slot that is then guessed.
Yet groups in which all answers are right now differ in their reward, and dividing by their standard deviation makes
much of that.
"""

from __future__ import annotations

import torch
from torch import Tensor

from noisyrl.noise.bonus import Bonus
from noisyrl.spec import Count, spec
from noisyrl.types import Rollout


@spec
class Skip(Bonus):
    """observed = clean + coef * max(0, 1 - questions / most_questions), questions = the policy's turns after its first.

    Responses of a single turn all get `coef`, which cancels in a group: this is noise for dialogues.
    """

    most_questions: Count = 2
    """Number of questions from which on nothing is paid."""

    def amount(self, rollout: Rollout) -> Tensor:
        questions_B = torch.tensor([len(turns[0::2]) - 1 for turns in rollout.turns], dtype=torch.float64)
        return (1 - questions_B / self.most_questions).clamp(min=0)

    def describe(self) -> str:
        return self.described(f"asking nothing, in proportion less up to {self.most_questions} questions")
