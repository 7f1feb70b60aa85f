"""Rewards as observed."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from noisyrl.correction.base import Correction
from noisyrl.spec import spec
from noisyrl.types import Rollout


@spec
class NoCorrection(Correction):
    """Nothing is done about noise."""

    def __call__(self, observed_B: Tensor, rollout: Rollout, memory: Mapping[str, float]) -> Tensor:
        return observed_B
