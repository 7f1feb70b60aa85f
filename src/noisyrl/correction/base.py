"""Correction: what is done about noise between the observed reward and the algorithm; any algorithm takes it.

A correction never sees a clean score, except those of a trusted subset, which it may count to estimate error rates.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor

from noisyrl.spec import spec
from noisyrl.types import Batch, Credit, Range, Rollout


@spec
class Correction(ABC):
    """What `correction=` configures. Pure: what it remembers is handed in and out as `memory`."""

    @abstractmethod
    def __call__(self, observed_B: Tensor, rollout: Rollout, memory: Mapping[str, float]) -> Tensor:
        """[B] the reward the algorithm is handed; NaN = abstain, and the sample leaves its group and the loss."""

    def remember(
        self, clean_B: Tensor, observed_B: Tensor, rollout: Rollout, memory: Mapping[str, float]
    ) -> Mapping[str, float]:
        """The memory after a step, from the trusted samples among its rows; {} at first, and in the checkpoint."""
        return memory

    def credit(self, credit: Credit, batch: Batch, memory: Mapping[str, float]) -> Credit:
        """The algorithm's credit, corrected; most corrections act on rewards alone."""
        return credit

    def corrected_range(self, observed: Range) -> Range:
        """What rewards become that lie in `observed`."""
        return observed

    def describe(self) -> str:
        """One line for a person."""
        return type(self).__module__.rpartition(".")[2]
