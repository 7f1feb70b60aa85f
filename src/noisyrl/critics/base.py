"""A critic: hidden states in, a value before each response token out. Networks only; losses belong to algorithms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from noisyrl.ops.masked import place
from noisyrl.spec import Natural, Positive, spec
from noisyrl.types import Rollout, Scores, Value

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Sight:
    """What a head may look at beside the hidden states of its tokens."""

    rollout: Rollout
    scores: Scores | None = None  # the policy's, without gradient; there if the head asks for candidates
    reference: Scores | None = None  # the starting policy's, where the algorithm needs one


class States(NamedTuple):
    """Hidden states before N policy tokens, row by row: U different ones, since tokens with the same past share one."""

    hidden_UD: Tensor
    of_N: Tensor  # int64, which of them each token has

    @classmethod
    def all_different(cls, hidden_ND: Tensor) -> States:
        """Each token has its own."""
        return cls(hidden_ND, torch.arange(len(hidden_ND), device=hidden_ND.device))

    @property
    def each_ND(self) -> Tensor:
        """That of each token."""
        return embedding(self.of_N, self.hidden_UD)


def policy_tokens(hidden_BTD: Tensor, sight: Sight | None) -> Tensor:
    """[B, T] bool, the tokens whose values are asked for: those of the policy, all where there is no `sight`."""
    if sight is not None:
        return sight.rollout.mask_BT
    return torch.ones(hidden_BTD.shape[:2], dtype=torch.bool, device=hidden_BTD.device)


class Head(nn.Module, ABC):
    """Hidden states to a `Value`."""

    candidates = 0
    """K, tokens the policy is asked to draw at each position, for heads that value single tokens."""
    reads_reference = False
    """Whether it needs the hidden states of the reference."""

    @abstractmethod
    def forward(self, hidden_BTD: Tensor, sight: Sight | None = None) -> Value:
        """Values before each response token. hidden_BTD [B, T, D]; what lies outside the mask is never read."""

    def of_states(self, states: States, sight: Sight) -> Value:
        """The same from the states before the policy tokens alone."""
        return self(place(states.each_ND, sight.rollout.mask_BT), sight)


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
    def make(self, hidden_size: int, *, seed: int = 0, lm: PreTrainedModel | None = None) -> Head:
        """A head for D = hidden_size; the same weights for the same seed.

        lm  the starting policy, for heads that keep a frozen part of it
        """
