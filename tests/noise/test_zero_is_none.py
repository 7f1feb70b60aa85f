"""Noise of strength 0 leaves every bit of every reward as it is."""

import pytest
import torch

from noisyrl.noise.adversarial import Adversarial
from noisyrl.noise.bias import Bias
from noisyrl.noise.chain import Chain
from noisyrl.noise.dropout import Dropout
from noisyrl.noise.flip import Flip
from noisyrl.noise.flip_asym import FlipAsym
from noisyrl.noise.format import Format
from noisyrl.noise.gaussian import Gaussian
from noisyrl.noise.heavy_tail import HeavyTail
from noisyrl.noise.heteroscedastic import Heteroscedastic
from noisyrl.noise.length import Length
from noisyrl.noise.none import NoNoise
from noisyrl.noise.per_turn import PerTurn
from noisyrl.noise.skip import Skip
from noisyrl.types import Range
from tests.noise.bounds import CLEAN, ROLLOUT

BINARY = [
    Flip(rate=0.0),
    FlipAsym(false_positive=0.0, false_negative=0.0),
    Adversarial(budget=0.0),
    Adversarial(budget=0.0, scope="step"),
    Chain(first=Flip(rate=0.0), second=Gaussian(sd=0.0)),
]
GRADED = [
    Bias(),
    Length(coef=0.0),
    Length(coef=0.0, mode="zscore"),
    Format(coef=0.0, pattern="text"),
    Skip(coef=0.0),
    *(Dropout(rate=0.0, mode=mode) for mode in ("zero", "mask", "impute")),
    HeavyTail(rate=0.0, size=5.0),
    HeavyTail(rate=1.0, size=0.0, df=1.0),
    PerTurn(sd=0.0),
    Gaussian(sd=0.0),
    Heteroscedastic(sd=0.0, frac=0.5),
    Chain(first=NoNoise()),
]


@pytest.mark.parametrize("noise", [*BINARY, *GRADED], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_is_none(noise, dtype):
    rewards = [CLEAN.to(dtype)]
    if noise in GRADED:
        rewards.append(torch.rand(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype))
    for reward in rewards:
        observed, causes = noise.causes(reward, ROLLOUT, 3)
        assert observed.dtype == dtype and torch.equal(observed, reward) and not any(causes)
    assert noise.early_rewards(ROLLOUT, 3) is None
    assert noise.observed_range(Range()) == Range()
