"""Rollouts for counting, and 99.9 % bounds to count against."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import torch
from scipy.stats import binomtest, chi2

from noisyrl.noise.base import KeyedNoise
from noisyrl.types import Rollout, rows
from tests.frame import made_up_rollout

ROLLOUT = made_up_rollout(prompts=50, samples=8)
CLEAN = (torch.arange(400) % 3 == 0).double()
STEPS = 50  # of 400 samples: 20 000 draws


def observed(noise, clean=CLEAN, rollout=ROLLOUT):
    """[STEPS, B] what is observed step by step."""
    return torch.stack([noise(clean, rollout, step) for step in range(STEPS)])


def assert_rate(hit, rate):
    """A count of hits inside the exact binomial bounds of `rate`."""
    assert binomtest(int(hit.sum()), hit.numel(), rate).pvalue > 0.001


def assert_mean(x, mean, sd):
    """The mean of independent draws inside its normal bounds."""
    assert abs(float(x.mean()) - mean) < 3.29 * sd / math.sqrt(x.numel())


def assert_normal_sd(x, sd):
    """The standard deviation of normal draws inside its chi-square bounds."""
    low, high = chi2.ppf([0.0005, 0.9995], x.numel() - 1)
    assert low < (x.numel() - 1) * float(x.var()) / sd**2 < high


@cache
def group(samples: int) -> Rollout:
    """One prompt answered by `samples` rows of different lengths."""
    return made_up_rollout(prompts=1, samples=samples)


def responses(turns: list[list[str]], lengths: list[int] | None = None) -> Rollout:
    """One prompt with these turns, of so many policy tokens each (two unless said otherwise)."""
    lengths = lengths or [2] * len(turns)
    long = replace(group(len(turns)), turns=turns)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    tokens = torch.ones(len(turns), max(lengths) + 1, dtype=torch.int64)
    return replace(
        long, tokens_BL=tokens, attention_BL=tokens > 0, mask_BT=mask, logp_BT=torch.zeros(mask.shape).double()
    )


def every_case(noise: KeyedNoise, clean, rate_B, monkeypatch) -> Iterator[tuple[float, torch.Tensor]]:
    """(probability, observed) for each set of hit samples, sample i being hit with probability rate_B[i]."""
    for hits in itertools.product([True, False], repeat=len(clean)):
        u = torch.tensor([0.0 if hit else 1 - 2.0**-53 for hit in hits], dtype=torch.float64)
        monkeypatch.setattr(KeyedNoise, "uniforms", lambda *_, u=u, **__: u)
        probability = math.prod(rate if hit else 1 - rate for hit, rate in zip(hits, rate_B, strict=True))
        yield probability, noise(clean, group(len(clean)), 0)


def same_rows(noise, clean=CLEAN, rollout=ROLLOUT):
    """Whether any subset of rows in any order is observed as in the whole."""
    some = torch.randperm(len(clean), generator=torch.Generator().manual_seed(2))[:37]
    return torch.equal(noise(clean[some], rows(rollout, some), 7), noise(clean, rollout, 7)[some])
