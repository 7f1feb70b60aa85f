"""Inversion of the cumulative distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from noisyrl.rollout.draw import draw


def counts(logits, uniforms, temperature):
    tokens, _ = draw(torch.tensor(logits).expand(len(uniforms), -1), uniforms, temperature)
    return torch.bincount(tokens, minlength=len(logits)).tolist()


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [(1.0, [100, 200, 300, 400]), (0.5, [100 / 3, 400 / 3, 300, 1600 / 3]), (0, [0, 0, 0, 1000])],
)
def test_an_even_grid_of_uniforms_meets_each_token_in_proportion(temperature, expected):
    grid = (np.arange(1000) + 0.5) / 1000
    found = counts(np.log([1.0, 2.0, 3.0, 4.0]).astype(np.float32) + 5, grid, temperature)
    assert found == pytest.approx(expected, abs=1)


def test_tokens_without_mass_are_never_drawn():
    logits = [-torch.inf, 0.0, -torch.inf, 1.0, -torch.inf]
    extremes = np.array([0.0, 1 - 2.0**-53, 0.5])
    assert set(draw(torch.tensor([logits] * 3), extremes, 1.0)[0].tolist()) == {1, 3}


@pytest.mark.parametrize(("temperature", "under"), [(1.0, 1.0), (0.25, 0.25), (0, 1.0)])
def test_log_probability_is_under_the_sampling_distribution(temperature, under):
    logits = torch.randn(64, 50, generator=torch.Generator().manual_seed(0)) * 4
    tokens, logp = draw(logits, np.linspace(0, 0.999, 64), temperature)
    expected = (logits.double() / under).log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    assert logp.dtype == torch.float32
    torch.testing.assert_close(logp.double(), expected, atol=2e-6, rtol=0)


def test_half_precision_logits_are_summed_in_full():
    """A flat distribution over many tokens: sums in bfloat16 would stall at 256 terms."""
    tokens, _ = draw(torch.zeros(2, 4096, dtype=torch.bfloat16), np.array([0.25, 0.75]), 1.0)
    assert tokens.tolist() == [1024, 3072]


def test_the_rarest_last_token_can_still_be_drawn():
    """Its mass, 1e-9, is lost beside 1 in a float32 sum."""
    tokens, _ = draw(torch.tensor([[0.0, -20.7]] * 2), np.array([1 - 2e-9, 1 - 5e-10]), 1.0)
    assert tokens.tolist() == [0, 1]
