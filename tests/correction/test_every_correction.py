"""What must hold for every correction; a new file in conf/correction is tested without a new line here."""

import json
import math
from dataclasses import asdict, replace
from functools import cache

import pytest
import torch

from noisyrl.correction.rates import trusted
from noisyrl.experience import Grades
from noisyrl.metrics import METRICS
from noisyrl.noise.flip import Flip
from noisyrl.spec import InputError
from noisyrl.trainer import Progress
from noisyrl.types import Range, rows
from tests.frame import built as build
from tests.frame import loop_for, made_up_rollout, options

built = cache(build)  # composing a config takes longer than most of what is tested here
ALGORITHMS = ("ppo", "grpo", "dr_grpo", "dvpo", "vrpo", "robust_bellman")
ROLLOUT = made_up_rollout(prompts=8, samples=8)
CLEAN = (torch.rand(64, generator=torch.Generator().manual_seed(0)) < 0.5).double()
NOISE = Flip(rate=0.3, seed=1)


@pytest.fixture(params=options("correction"))
def correction(request):
    return built("correction", f"correction={request.param}")


def corrected(correction, observed, rollout, memory):
    """The corrected rewards as they were handed over, with NaN as a number so that they compare."""
    return correction(observed, rollout, memory).nan_to_num(nan=-9.0)


def remembered(correction, steps=3):
    memory = {}
    for step in range(steps):
        memory = correction.remember(CLEAN, NOISE(CLEAN, ROLLOUT, step), ROLLOUT, memory)
    return memory


@cache
def loop_of(algo):
    return loop_for(built("algo", f"algo={algo}"), micro_rows=16)


@pytest.mark.parametrize("algo", ALGORITHMS)
@pytest.mark.parametrize("option", options("correction"))
def test_every_algorithm_takes_a_step_under_it(option, algo):
    loop = loop_of(algo)
    loop.collector = replace(loop.collector, correction=built("correction", f"correction={option}"), noise=NOISE)
    experience = loop.collector.annotate(made_up_rollout(), Grades(CLEAN[:16]), 0)
    loop.progress.correction = dict(experience.memory)
    before = [p.detach().clone() for p in loop.collector.agent.parameters()]
    metrics = loop.learn(experience.batch, 0, step=0, credit=loop.credit(experience.batch))
    assert experience.batch.reward_B.isfinite().all() and 2 <= len(experience.batch.reward_B) <= 16
    assert all(math.isfinite(value) for value in metrics.values()) and loop.progress.skipped_updates == 0
    assert any(not torch.equal(a, b) for a, b in zip(before, loop.collector.agent.parameters(), strict=True))


def test_the_input_is_left_as_it_was_and_missing_rewards_stay_missing(correction):
    observed = NOISE(CLEAN, ROLLOUT, 0)
    observed[::5] = torch.nan
    before = observed.clone()
    memory = remembered(correction)
    found = correction(observed, ROLLOUT, memory)
    assert torch.equal(observed.nan_to_num(nan=-9.0), before.nan_to_num(nan=-9.0))
    assert found.shape == observed.shape and found.dtype == observed.dtype and found[::5].isnan().all()
    others = before.isfinite()
    assert found[others].isfinite().any()
    present = rows(ROLLOUT, others.nonzero().flatten())  # what is missing changes nothing for the others
    assert torch.equal(corrected(correction, before[others], present, memory), found[others].nan_to_num(nan=-9.0))
    assert correction(before.float(), ROLLOUT, memory).dtype == torch.float32


def test_row_order_and_sharding_change_nothing(correction):
    observed, memory = NOISE(CLEAN, ROLLOUT, 4), remembered(correction)
    found = corrected(correction, observed, ROLLOUT, memory)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    shuffled = rows(ROLLOUT, order)
    assert torch.equal(corrected(correction, observed[order], shuffled, memory), found[order])
    assert correction.remember(CLEAN[order], observed[order], shuffled, memory) == correction.remember(
        CLEAN, observed, ROLLOUT, memory
    )
    shards = [torch.arange(24), torch.arange(24, 64)]  # whole groups
    assert torch.equal(
        torch.cat([corrected(correction, observed[part], rows(ROLLOUT, part), memory) for part in shards]), found
    )
    counted = memory
    for part in shards:
        counted = correction.remember(CLEAN[part], observed[part], rows(ROLLOUT, part), counted)
    assert counted == correction.remember(CLEAN, observed, ROLLOUT, memory)


def test_its_memory_survives_a_checkpoint(correction):
    memory = remembered(correction)
    stored = json.loads(json.dumps(asdict(Progress(correction=dict(memory)))))
    again = Progress(**stored).correction
    observed = NOISE(CLEAN, ROLLOUT, 3)
    assert again == memory
    assert correction.remember(CLEAN, observed, ROLLOUT, again) == correction.remember(CLEAN, observed, ROLLOUT, memory)
    assert torch.equal(
        corrected(correction, observed, ROLLOUT, again), corrected(correction, observed, ROLLOUT, memory)
    )
    assert correction.metrics(again) == correction.metrics(memory)


def test_no_clean_score_of_another_sample_has_any_effect(correction):
    """Poison every clean score that is not trusted: no bit changes. Nor does a trusted one become a reward."""
    observed = NOISE(CLEAN, ROLLOUT, 0)
    known = trusted(ROLLOUT, 0.05)
    assert 0 < known.sum() < 16
    memory = correction.remember(CLEAN, observed, ROLLOUT, {})
    for poison in (0.37, torch.nan, torch.inf):
        assert correction.remember(torch.where(known, CLEAN, poison), observed, ROLLOUT, {}) == memory
    found = corrected(correction, observed, ROLLOUT, memory)
    # Of one group and one observed reward, right and wrong responses are treated alike.
    for group in range(8):
        for value in (0, 1):
            alike = found[(ROLLOUT.group_B == group) & (observed == value)]
            assert (alike == alike[:1]).all()


def test_the_declared_range_holds_what_becomes_of_0_and_1(correction):
    low, high = correction.corrected_range(Range()).low, correction.corrected_range(Range()).high
    found = correction(NOISE(CLEAN, ROLLOUT, 0), ROLLOUT, {})
    found = found[found.isfinite()]
    assert found.min() == pytest.approx(low) and found.max() == pytest.approx(high)


def test_its_metrics_are_registered_and_finite(correction):
    for memory in ({}, remembered(correction)):
        metrics = correction.metrics(memory)
        assert set(metrics) <= set(METRICS) and all(0 <= value < 64 * 3 for value in metrics.values())


def test_the_line_for_a_person_names_it(correction):
    assert correction.describe().startswith(correction.name) and "\n" not in correction.describe()


def test_a_reward_that_is_not_0_or_1_is_refused(correction):
    if correction.name == "none":
        return
    with pytest.raises(InputError, match=rf"correction={correction.name} needs rewards 0 or 1, got 0.25.*noise=flip"):
        correction(torch.full((64,), 0.25), ROLLOUT, {})
