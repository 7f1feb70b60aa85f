"""No critic: values are 0 and nothing is learned, so the training loop needs no branch."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from noisyrl.critics.base import CriticSpec, Head, Sight
from noisyrl.spec import Positive, spec
from noisyrl.types import Value


@spec
class NoCritic(CriticSpec):
    """For methods whose baseline is the group."""

    backbone: Literal["shared"] = "shared"
    """No transformer of its own: there is nothing to feed."""
    lr: Positive = 1.0
    """Unused: there are no parameters."""
    warmup_steps: Literal[0] = 0
    """There is nothing to warm up."""

    def make(self, hidden_size: int, *, seed: int = 0, lm: object = None) -> Head:
        return _Zero()


class _Zero(Head):
    def forward(self, hidden_BTD: Tensor, sight: Sight | None = None) -> Value:
        return Value(mean_BT=hidden_BTD.new_zeros(hidden_BTD.shape[:2]))
