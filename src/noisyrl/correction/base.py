"""Correction: what is done about noise between the observed reward and the algorithm; any algorithm takes it.

A correction never sees a clean score, except those of a trusted subset, which it may count to estimate error rates.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor

from noisyrl.algos.base import Algorithm
from noisyrl.spec import InputError, spec
from noisyrl.types import Batch, Credit, Range, Rollout


@spec
class Correction(ABC):
    """What `correction=` configures. Pure: what it remembers is handed in and out as `memory`."""

    @abstractmethod
    def __call__(self, observed_B: Tensor, rollout: Rollout, memory: Mapping[str, float]) -> Tensor:
        """[B] the reward the algorithm is handed; NaN = abstain, and the sample leaves its group and the loss.

        NaN among the observed rewards stays NaN. Rows come in any order, groups whole.
        """

    def remember(
        self, clean_B: Tensor, observed_B: Tensor, rollout: Rollout, memory: Mapping[str, float]
    ) -> Mapping[str, float]:
        """The memory after a step, from the trusted samples among its rows; {} at first, and in the checkpoint."""
        return memory

    def credit(self, credit: Credit, batch: Batch, memory: Mapping[str, float]) -> Credit:
        """The algorithm's credit, corrected; most corrections act on rewards alone."""
        return credit

    def corrected_range(self, observed: Range) -> Range:
        """What rewards become that lie in `observed`; declared like the noise's, so it does not move with estimates."""
        return observed

    def check(self, algo: Algorithm) -> None:  # noqa: B027 - most corrections go with everything
        """InputError: the algorithm, as it is set, loses something under this correction."""

    def check_rewards(self, observed: Range) -> None:  # noqa: B027 - none takes them as they are
        """InputError: it cannot work on observed rewards that lie in `observed`."""

    def metrics(self, memory: Mapping[str, float]) -> dict[str, float]:
        """What is logged at every step, by metric name."""
        return {}

    @property
    def name(self) -> str:
        """What it is called in messages: the name of its file."""
        return type(self).__module__.rpartition(".")[2]

    def describe(self) -> str:
        """One line for a person."""
        return self.name


def binary(reward_B: Tensor, name: str) -> Tensor:
    """`reward_B` itself. InputError: a reward other than 0 and 1, of which there is no error rate."""
    odd = reward_B[(reward_B != 0) & (reward_B != 1) & ~reward_B.isnan()]
    if len(odd):
        raise InputError(
            f"correction={name} needs rewards 0 or 1, got {odd[0].item()}: "
            "set correction=none, or a noise that leaves rewards 0 or 1, such as noise=flip"
        )
    return reward_B
