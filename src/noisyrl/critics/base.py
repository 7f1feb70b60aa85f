"""A critic: hidden states in, a value before each response token out. Networks only; losses belong to algorithms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

from torch import nn

from noisyrl.spec import Natural, Positive, spec


@spec
class CriticSpec(ABC):
    """What `critic=` configures."""

    backbone: Literal["own", "shared"] = "own"
    """own = a copy of the starting policy's transformer, trained apart; shared = a head on the policy's states."""
    lr: Positive = 5e-4
    """Peak learning rate of the critic's parameters."""
    warmup_steps: Natural = 0
    """Critic-only steps on rollouts of the starting policy before training begins."""

    @abstractmethod
    def make(self, hidden_size: int, *, seed: int = 0) -> nn.Module:
        """A module that maps hidden states [B, T, D] (float32) to a `Value`; the same weights for the same seed."""
