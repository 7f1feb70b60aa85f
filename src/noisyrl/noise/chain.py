"""Several kinds of noise one after another: each model sees what those before it left.

The order matters: flips need rewards 0 and 1 and stand before anything that is added, and labels and pseudo-labels,
which grade afresh, stand first. A member is given the rows whose reward is still there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

from torch import Tensor

from noisyrl import rng
from noisyrl.noise.base import Noise, Setting
from noisyrl.noise.none import NoNoise
from noisyrl.spec import InputError, spec
from noisyrl.types import Range, Rollout, rows


@spec
class Chain(Noise):
    """observed = fourth(third(second(first(clean)))); for flips and drop-outs to zero, effective signals multiply.

    A member draws what it would draw alone, unless an earlier one has the same draws (two flips, or `gaussian` and
    `heteroscedastic`, of one seed): the later then draws by a seed that is hashed from its own and its number.
    """

    first: Noise
    """What meets the graded reward; each slot is a config group: noise@noise.first=flip0.3."""
    second: Noise = NoNoise()
    """What meets the result of the first."""
    third: Noise = NoNoise()
    """What meets the result of the second."""
    fourth: Noise = NoNoise()
    """What meets the result of the third."""

    def __post_init__(self) -> None:
        if self.seed:
            raise InputError(f"noise=chain draws nothing itself, seed={self.seed} would change nothing: set first.seed")
        slots = list(self.noises.items())
        for slot, noise in slots:
            if isinstance(noise, Chain):
                raise InputError(f"noise=chain, slot {slot}: a chain in a chain; put its members into free slots")
        for slot, noise in slots[:-1]:
            if noise.pays_early:
                raise InputError(
                    f"noise=chain, slot {slot}: {noise.name} pays before the last token, and what comes after it would "
                    "change only the rest: put it into the last slot in use"
                )

    @cached_property
    def noises(self) -> Mapping[str, Noise]:
        """Slot -> model, in the order of their work; empty slots left out."""
        slots = {"first": self.first, "second": self.second, "third": self.third, "fourth": self.fourth}
        used: dict[str, Noise] = {}
        met: Counter[tuple[str, int]] = Counter()
        for slot, noise in slots.items():
            if isinstance(noise, NoNoise):
                continue
            draws = (noise.stream, noise.seed)
            used[slot] = replace(noise, seed=rng.hash64("chain", noise.seed, met[draws])) if met[draws] else noise
            met[draws] += 1
        return used

    @property
    def needs_setting(self) -> bool:  # type: ignore[override]
        return any(noise.needs_setting for noise in self.noises.values())

    def __call__(self, reward_B: Tensor, rollout: Rollout, step: int) -> Tensor:
        return self.causes(reward_B, rollout, step)[0]

    def causes(self, reward_B: Tensor, rollout: Rollout, step: int) -> tuple[Tensor, list[str]]:
        """As of `Noise`; several models that changed a reward are joined by "+". InputError: one refuses a reward."""
        observed_B = reward_B.clone()
        names: list[list[str]] = [[] for _ in reward_B]
        for slot, noise in self.noises.items():
            present = (~observed_B.isnan()).nonzero().flatten()
            if not len(present):
                break
            try:
                observed_N, causes = noise.causes(observed_B[present], rows(rollout, present), step)
            except InputError:
                raise
            except ValueError as error:
                raise InputError(f"noise=chain, slot {slot}: {error}, or give it an earlier slot") from error
            observed_B[present] = observed_N
            for row, cause in zip(present.tolist(), causes, strict=True):
                names[row] += [cause] if cause else []
        return observed_B, ["+".join(changed) for changed in names]

    def check(self, samples: int, given: Range) -> None:
        """InputError: a member cannot work on what those before it leave."""
        for slot, noise in self.noises.items():
            try:
                noise.check(samples, given)
            except InputError as error:
                raise InputError(f"noise=chain, slot {slot}: {error}, or give it an earlier slot") from error
            given = noise.observed_range(given)

    def prepare(self, setting: Setting) -> Noise:
        ready: dict[str, Any] = {slot: noise.prepare(setting) for slot, noise in self.noises.items()}
        return replace(self, **ready)

    def early_rewards(self, rollout: Rollout, step: int) -> Tensor | None:
        for noise in list(self.noises.values())[-1:]:
            return noise.early_rewards(rollout, step)
        return None

    def observed_range(self, clean: Range) -> Range:
        for noise in self.noises.values():
            clean = noise.observed_range(clean)
        return clean

    def describe(self) -> str:
        return f"{self.name}: {'; then '.join(n.describe() for n in self.noises.values()) or 'rewards are as graded'}"
