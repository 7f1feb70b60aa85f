"""A grader that is taken in by a superficial form: a bonus for every response in which a pattern is found."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from noisyrl.noise.bonus import Bonus
from noisyrl.spec import InputError, spec
from noisyrl.types import Rollout


@spec
class Format(Bonus):
    """observed = clean + coef * [the pattern is found in what the policy said, its turns on separate lines]."""

    pattern: str
    """Regular expression (Python's `re.search`, case counts)."""

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise InputError(f"noise.pattern={self.pattern!r} is no regular expression: {error}") from error

    def amount(self, rollout: Rollout) -> Tensor:
        said = ["\n".join(turns[0::2]) for turns in rollout.turns]
        return torch.tensor([re.search(self.pattern, text) is not None for text in said], dtype=torch.float64)

    def describe(self) -> str:
        return self.described(f"a match of {self.pattern!r}")
