"""Grading that errs in the same way every time: bias, length, format, skip."""

import pytest
import torch

from noisyrl.noise.bias import Bias
from noisyrl.noise.format import Format
from noisyrl.noise.length import Length
from noisyrl.noise.skip import Skip
from noisyrl.ops.advantages import group_relative
from noisyrl.types import Range
from tests.frame import built
from tests.noise.bounds import CLEAN, ROLLOUT, responses, same_rows

GROUP = ROLLOUT.group_B


def close(found, expected):
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype), atol=1e-6, rtol=0)


@pytest.mark.parametrize("standardise", [False, True])
def test_an_equal_shift_cancels_exactly_in_groups(standardise):
    clean = group_relative(CLEAN, GROUP, standardise=standardise)
    for preset in ("inflate", "deflate"):
        reward = built("noise", f"noise={preset}")(CLEAN, ROLLOUT, 9)
        assert torch.equal(group_relative(reward, GROUP, standardise=standardise), clean)
    drifting = Bias(wrong=0.3, right=0.3, drift=0.01)(CLEAN, ROLLOUT, 9)
    torch.testing.assert_close(group_relative(drifting, GROUP, standardise=standardise), clean, atol=1e-9, rtol=0)


def test_bias_in_numbers():
    noise = Bias(wrong=0.4, right=-0.1, scale=2.0, drift=0.01)
    assert noise(torch.tensor([0.0, 1.0]), responses([["a"], ["b"]]), 10).tolist() == pytest.approx([1.0, 2.0])
    assert noise(torch.tensor([0.5]), responses([["a"]]), 0).item() == pytest.approx(1.3)  # the mean of both
    declared = noise.observed_range(Range())
    assert (declared.low, declared.high) == pytest.approx((0.8, 1.8))
    upside_down = Bias(scale=-1.0).observed_range(Range())
    assert (upside_down.low, upside_down.high) == (-1.0, 0.0)


@pytest.mark.parametrize(("wrong", "right", "scale"), [(0.4, 0.0, 1.0), (0.0, 0.5, 0.5), (1.5, 0.0, 1.0)])
def test_a_conditional_shift_scales_the_centred_advantage_by_the_gap(wrong, right, scale):
    noise = Bias(wrong=wrong, right=right, scale=scale)
    gap = scale * (1 + right - wrong)
    found = group_relative(noise(CLEAN, ROLLOUT, 0), GROUP, standardise=False)
    torch.testing.assert_close(found, gap * group_relative(CLEAN, GROUP, standardise=False), atol=1e-9, rtol=0)
    assert f"J = scale (1 + right - wrong) = {gap:g}" in noise.describe()
    assert ("WARNING" in noise.describe()) == (gap <= 0)


def test_scale_cancels_where_the_standard_deviation_divides():
    found = group_relative(Bias(scale=0.25)(CLEAN, ROLLOUT, 0), GROUP, standardise=True)
    torch.testing.assert_close(found, group_relative(CLEAN, GROUP, standardise=True), atol=2e-5, rtol=0)


def test_golden_length():
    """Golden N6."""
    fifty = responses([["a"]], lengths=[50])
    assert Length(coef=0.2, reference_tokens=100)(torch.ones(1).double(), fifty, 0).item() == pytest.approx(1.1)


def test_length_counts_the_policys_tokens_up_to_the_reference():
    three = responses([["a"], ["b"], ["c"]], lengths=[2, 4, 12])
    three.mask_BT[2, 3:5] = False  # a user's turn of two tokens
    close(Length(coef=-0.5, reference_tokens=8)(torch.zeros(3).double(), three, 0), [-0.125, -0.25, -0.5])
    close(Length(coef=1.0, reference_tokens=100)(torch.zeros(3).double(), three, 0), [0.02, 0.04, 0.10])


def test_relative_length_is_standardised_in_its_group():
    found = Length(coef=0.3, mode="zscore")(CLEAN, ROLLOUT, 0) - CLEAN
    tokens = ROLLOUT.mask_BT.sum(dim=1).double().view(50, 8)
    z = (tokens - tokens.mean(dim=1, keepdim=True)) / tokens.std(dim=1, keepdim=True, correction=0)
    torch.testing.assert_close(found.view(50, 8), 0.3 * z, atol=1e-12, rtol=0)
    equal = responses([["a"], ["b"], ["c"]], lengths=[5, 5, 5])
    assert (Length(coef=0.3, mode="zscore")(torch.zeros(3), equal, 0) == 0).all()


def test_format_reads_the_policys_turns_alone():
    two = responses([["ask day", "day mon", "call x"], ["ask day", "day mon", "call mon"]])
    assert Format(coef=0.5, pattern="mon")(torch.zeros(2), two, 0).tolist() == [0.0, 0.5]
    with pytest.raises(ValueError, match=r"noise.pattern='\(' is no regular expression"):
        Format(coef=0.5, pattern="(")


@pytest.mark.parametrize(
    ("turns", "paid"),
    [
        (["3 + 4 = 7 ; ans 7"], True),
        (["3 + 4 = 7 ; ans 4"], False),
        (["ans zor red , mik gas"], True),
        (["ans zor gas , mik red"], False),
        (["ask time", "time noon", "call table city = rome , time = noon"], True),
        (["ask time", "time noon", "call table city = rome , time = late"], False),
    ],
)
def test_the_default_format_is_met_in_every_embedded_task(turns, paid):
    assert built("noise", "noise=format")(torch.zeros(1), responses([turns]), 0).item() == pytest.approx(0.2 * paid)


def test_skip_pays_for_every_question_saved():
    turns = [["call"], ["ask", "said", "call"], ["ask", "said", "ask", "said", "call"], ["ask", "said"] * 5 + ["call"]]
    four = responses(turns)
    close(built("noise", "noise=skip0.2")(torch.ones(4), four, 0), [1.2, 1.1, 1.0, 1.0])
    close(built("noise", "noise=skip0.4")(torch.ones(4), four, 0), [1.4, 1.2, 1.0, 1.0])
    close(Skip(coef=-1.0, most_questions=5)(torch.ones(4), four, 0), [0.0, 0.2, 0.4, 1.0])


def test_skip_leaves_asking_optimal_where_the_rest_of_the_call_is_right():
    """A guess is right one time in six."""
    for coef, missing in ((0.2, 1), (0.2, 2), (0.4, 1), (0.4, 2)):
        asked = [["ask", "said"] * count + ["call"] for count in range(missing + 1)]
        value = [(1 / 6) ** (missing - count) for count in range(missing + 1)]
        paid = Skip(coef=coef)(torch.tensor(value), responses(asked), 0)
        assert paid.argmax() == missing


def test_single_turns_are_all_paid_the_same():
    assert torch.equal(Skip(coef=0.25)(CLEAN, ROLLOUT, 0), CLEAN + 0.25)


@pytest.mark.parametrize("noise", [Bias(wrong=0.4), Length(coef=0.2), Format(coef=0.2, pattern="7"), Skip(coef=0.2)])
def test_a_row_is_paid_alike_in_any_company(noise):
    assert same_rows(noise)
    assert torch.equal(noise(CLEAN, ROLLOUT, 1), noise(CLEAN, ROLLOUT, 2))


def test_a_bonus_as_large_as_the_reward_is_announced():
    assert "WARNING" in Skip(coef=1.0).describe() and "WARNING" in Length(coef=-1.5).describe()
    assert "WARNING" not in Skip(coef=0.9).describe()
