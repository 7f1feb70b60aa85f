"""The paired test, Holm's correction and power: hand-worked values, and the errors they promise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from analysis.inference import detectable, holm, improvement, interquartile_mean, paired, seeds_needed, wilson


def test_a_hand_worked_example():
    # D has rows (1, 0), (1, 1), (0, 0): mean 1/2, seed means .5, 1, 0, question means 2/3, 1/3.
    first, second = np.array([[1.0, 0], [1, 1], [0, 0]]), np.zeros((3, 2))
    found = paired([first], [second])
    of_seeds, of_questions = 0.25 / 3, (1 / 18) / 2
    of_both = 6 * 0.25 / 36
    variance = of_seeds + of_questions - of_both  # below of_seeds, so of_seeds it is
    assert variance < of_seeds
    freedom = max(2, of_seeds**2 / (of_seeds**2 / 2 + of_questions**2 / 1))
    assert found.mean == pytest.approx(0.5) and found.spread == pytest.approx(0.5) and found.seeds == 3
    assert found.p == pytest.approx(2 * stats.t.sf(0.5 / of_seeds**0.5, freedom))
    assert found.high - found.low == pytest.approx(2 * stats.t.ppf(0.975, freedom) * of_seeds**0.5)
    assert found.p_seeds == pytest.approx(stats.ttest_1samp([0.5, 1, 0], 0).pvalue)


def test_the_terms_of_the_variance_where_all_three_count():
    noise = np.random.default_rng(0).normal(size=(4, 6)) * 0.1
    d = np.array([0.0, 1, 1, 2])[:, None] + np.array([0.0, 1, 2, 0, 1, 2])[None] + noise
    centred, size = d - d.mean(), d.size
    of_seeds = 4 / 3 * (centred.sum(axis=1) ** 2).sum() / size**2
    of_questions = 6 / 5 * (centred.sum(axis=0) ** 2).sum() / size**2
    variance = of_seeds + of_questions - (centred**2).sum() / size**2
    assert variance > max(of_seeds, of_questions)
    freedom = max(3, variance**2 / (of_seeds**2 / 3 + of_questions**2 / 5))
    found = paired([d], [np.zeros_like(d)])
    assert found.p == pytest.approx(2 * stats.t.sf(abs(d.mean()) / variance**0.5, freedom))


def test_order_of_runs_questions_and_benchmarks_changes_nothing():
    source = np.random.default_rng(1)
    first, second = [source.random((4, 9)), source.random((4, 5))], [source.random((4, 9)), source.random((4, 5))]
    expected = paired(first, second)
    seeds, questions = source.permutation(4), source.permutation(9)
    turned = [[x[0][seeds][:, questions], x[1][seeds]] for x in (first, second)]
    assert paired(*turned) == pytest.approx(expected)
    assert paired(first[::-1], second[::-1]) == pytest.approx(expected)
    assert paired(second, first).mean == pytest.approx(-expected.mean) and paired(second, first).p == pytest.approx(
        expected.p
    )


def test_two_way_clustering_against_loops():
    """Cameron, Gelbach and Miller's sums, run by run and question by question, of the averages' influences."""
    source = np.random.default_rng(5)
    shapes, names = [(4, 7), (4, 3), (4, 7)], ["m", "s", "m"]  # two columns ask the same seven questions
    first, second = ([source.random(shape) for shape in shapes] for _ in range(2))
    cells = {}  # (seed, benchmark, question) -> what it adds to the mean difference
    for a, b, (seeds, questions), name in zip(first, second, shapes, names, strict=True):
        gap = (a - b).mean()
        for s in range(seeds):
            for q in range(questions):
                share = (a[s, q] - b[s, q] - gap) / (3 * seeds * questions)
                cells[s, name, q] = cells.get((s, name, q), 0) + share
    of_seeds = 4 / 3 * sum(sum(x for key, x in cells.items() if key[0] == s) ** 2 for s in range(4))
    of_questions = sum(
        questions / (questions - 1)
        * sum(sum(x for key, x in cells.items() if key[1:] == (name, q)) ** 2 for q in range(questions))
        for name, questions in (("m", 7), ("s", 3))
    )  # fmt: skip
    variance = max(of_seeds + of_questions - sum(x**2 for x in cells.values()), of_seeds, of_questions)
    freedom = max(3, variance**2 / (of_seeds**2 / 3 + of_questions**2 / (6 + 2)))
    found = paired(first, second, names)
    assert found.p == pytest.approx(2 * stats.t.sf(abs(found.mean) / variance**0.5, freedom))
    assert found.high - found.mean == pytest.approx(stats.t.ppf(0.975, freedom) * variance**0.5)
    assert found.mean == paired(first, second).mean and found.p != pytest.approx(paired(first, second).p)


def test_too_few_seeds_give_a_mean_and_no_verdict():
    found = paired([np.ones((2, 5))], [np.zeros((2, 5))])
    assert found.mean == 1 and np.isnan(found.p) and np.isnan(found.low)
    with pytest.raises(ValueError, match="one number of seeds"):
        paired([np.ones((3, 5)), np.ones((2, 5))], [np.ones((3, 5)), np.ones((2, 5))])


def test_no_spread_at_all():
    same = np.ones((3, 4))
    assert paired([same], [same]).p == 1 and paired([same], [0 * same]).p == 0
    right = np.array([1.0, 0, 1, 0])
    equal = paired([np.tile(right, (3, 1))], [np.tile([0.0, 0, 1, 0], (3, 1))])  # each run has one more right
    assert equal.spread == 0 and np.isnan(equal.p_seeds) and equal.p > 0.3
    assert np.isnan(paired([0.1 + np.tile(right, (3, 1))], [np.tile(right, (3, 1))]).p_seeds)  # 1e-17 is no spread


def test_one_question_says_nothing_of_others():
    found = paired([np.ones((3, 1))], [np.zeros((3, 1))])
    assert found.mean == 1 and np.isnan([found.p, found.p_family, found.p_seeds, found.low]).all()
    assert paired([np.ones((3, 1)), np.ones((3, 4))], [np.zeros((3, 1)), np.zeros((3, 4))]).p == 0


@pytest.mark.parametrize("seed_sd", [0.1, 0.3])
def test_false_positives_and_coverage(seed_sd):
    """5 seeds x 200 questions under a true null, logit-normal questions: at most .06 false findings, .92 covered."""
    source, found, covered, repetitions = np.random.default_rng(2), 0, 0, 500
    for _ in range(repetitions):
        logit = source.normal(0, 2, (1, 200))
        scores = []
        for _ in range(2):
            luck = source.normal(0, seed_sd, (5, 1)) + source.normal(0, 0.5, (5, 200))
            scores.append((source.random((5, 200)) < 1 / (1 + np.exp(-logit - luck))).astype(float))
        result = paired(scores[:1], scores[1:])
        found += result.p < 0.05
        covered += result.low <= 0 <= result.high
    assert found / repetitions <= 0.06 and covered / repetitions >= 0.92


def test_holm_against_hand_values():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    partly = holm([0.02, float("nan"), 0.01])
    assert partly[0] == pytest.approx(0.02) and np.isnan(partly[1]) and partly[2] == pytest.approx(0.02)


@pytest.mark.parametrize(("seeds", "effect"), [(3, 3.3), (4, 2.1), (5, 1.7), (6, 1.4), (8, 1.2), (10, 1.0)])
def test_detectable_differences(seeds, effect):
    assert detectable(seeds) == pytest.approx(effect, abs=0.06)


def test_power_is_what_detectable_says():
    source = np.random.default_rng(3)
    draws = source.normal(detectable(5), 1, (4000, 5))
    assert abs((stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05).mean() - 0.8) < 0.03
    assert detectable(5, 0.01) == pytest.approx(2.6, abs=0.06) and np.isnan(detectable(2))


def test_seeds_needed():
    assert seeds_needed(1.7, 1) == 5 and seeds_needed(1e-9, 1) is None
    assert seeds_needed(0.1, 0) == 3 and seeds_needed(0, 0) is None


def test_small_summaries():
    assert improvement(np.array([1.0, 2]), np.array([1.0, 0])) == pytest.approx(3.5 / 4)
    assert interquartile_mean(np.array([0.0, 1, 2, 100])) == pytest.approx(1.5)
    low, high = wilson(0, 10)
    assert low == 0 and high == pytest.approx(0.2775, abs=1e-3)
