"""What must hold for every noise model; a new file in conf/noise is tested without a new line here."""

import pytest
import torch

from noisyrl.types import rows
from tests.frame import built, made_up_rollout, options


@pytest.fixture(params=options("noise"))
def noise(request):
    return built("noise", f"noise={request.param}", "seed=3")


@pytest.fixture
def clean():
    return (torch.rand(64, generator=torch.Generator().manual_seed(0)) < 0.5).float()


ROLLOUT = made_up_rollout(prompts=8, samples=8)


def test_the_input_is_left_as_it_was(noise, clean):
    before = clean.clone()
    observed = noise(clean, ROLLOUT, 4)
    assert torch.equal(clean, before) and observed.data_ptr() != clean.data_ptr()
    assert observed.shape == clean.shape and observed.dtype == clean.dtype


def test_row_order_changes_nothing(noise, clean):
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(noise(clean[order], rows(ROLLOUT, order), 4), noise(clean, ROLLOUT, 4)[order])


def test_draws_repeat_and_step_and_seed_matter(noise, clean):
    again = noise(clean, ROLLOUT, 4)
    assert torch.equal(noise(clean, ROLLOUT, 4), again)
    if torch.equal(again, clean):
        assert type(noise).__name__ == "NoNoise"
        return
    assert not torch.equal(noise(clean, ROLLOUT, 5), again)


def test_the_line_for_a_person_names_the_model(noise):
    assert noise.describe().split(":")[0].isalpha() and "\n" not in noise.describe()
