"""Reward noise: clean scores in, the rewards an algorithm sees out.

Pure and stateless. Every draw is keyed by (noise, seed, step, prompt, sample), never taken from a generator, so two
algorithms with the same seed meet the same corruption, a resumed run repeats it, and no reward changes because
another sample was added.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

from noisyrl import rng
from noisyrl.spec import Natural, spec
from noisyrl.types import Range, Rollout


@spec
class Noise(ABC):
    """What `noise=` configures."""

    seed: Natural = 0
    """Seed of the draws; the run's seed unless set."""

    @abstractmethod
    def __call__(self, reward_B: Tensor, rollout: Rollout, step: int) -> Tensor:
        """[B] observed rewards. `reward_B` is left as it is; rows may be any subset, in any order."""

    @property
    def reward_range(self) -> Range:
        """What is usually observed where clean scores lie in [0, 1]; of unbounded noise, two standard deviations.

        Declared and never estimated: scales that are relative to rewards (the critic's kappa) hang on it.
        """
        return Range()

    def describe(self) -> str:
        """One line for a person: what happens to which unit."""
        return type(self).__name__.lower()


@spec
class KeyedNoise(Noise):
    """Noise whose draws belong to units that either keep their draw or get a fresh one at every step."""

    unit: Literal["sample", "prompt", "response"] = "sample"
    """What shares a draw: each sample, all samples of a prompt, or all copies of a response text."""
    persistence: Literal["resample", "persistent"] = "resample"
    """resample = a fresh draw at every step; persistent = the same draw whenever the unit returns."""

    def uniforms(self, name: str, rollout: Rollout, step: int, *, draw: int = 0) -> Tensor:
        """[B] float64 uniform draws in [0, 1), one per unit.

        name  of the noise model, part of the key
        draw  number of the draw, for models that need several
        """
        when = -1 if self.persistence == "persistent" else step
        draws = [
            rng.uniform("noise-v1", name, self.seed, when, prompt.uid, self._member(rollout, row), draw)
            for row, prompt in enumerate(rollout.prompts)
        ]
        return torch.tensor(draws, dtype=torch.float64)

    def normals(self, name: str, rollout: Rollout, step: int, *, draw: int = 0) -> Tensor:
        """[B] float64 standard normal draws by inversion of `uniforms`, one per unit."""
        tiny = 2.0**-53
        return torch.special.ndtri(self.uniforms(name, rollout, step, draw=draw).clamp(tiny, 1 - tiny))

    def _member(self, rollout: Rollout, row: int) -> object:
        if self.unit == "response":
            return f"{rng.hash64(rollout.texts[row]):016x}"
        return int(rollout.sample_B[row]) if self.unit == "sample" else -1
