"""What the statistics promise, on simulated runs with known truth: coverage, false findings, false marks.

    python -m pytest -m slow -s tests/analysis/test_errors.py

Questions are logit-normal (sd 2), runs differ by `seed_sd` in logits, and each run by .5 more on each question. Where
methods differ, `taste` is how much, question by question, and 0 on the whole: what a test must find to be chance.
The last test shows that these bars tell right from wrong: question-only and seed-only tests miss them.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from analysis import cells
from analysis.inference import LEVEL, holm, paired
from analysis.stats import Bootstrap
from analysis.table_spec import Column, Spec

pytestmark = pytest.mark.slow
SETTINGS = pytest.mark.parametrize(("seed_sd", "seeds", "questions"), [(0.1, 5, 200), (0.3, 5, 500)])
REPLICATES = 1000


def scores(source, logit_Q, seed_sd, seeds):
    """[S, Q] of one method; equal methods share the questions' difficulty."""
    luck_SQ = source.normal(0, seed_sd, (seeds, 1)) + source.normal(0, 0.5, (seeds, len(logit_Q)))
    return (source.random(luck_SQ.shape) < 1 / (1 + np.exp(-logit_Q - luck_SQ))).astype(float)


@SETTINGS
def test_coverage_of_cells(seed_sd, seeds, questions):
    source, bootstrap, hits = np.random.default_rng(0), Bootstrap("t", 400), 0
    for _ in range(REPLICATES):
        found = bootstrap.interval(scores(source, source.normal(0, 2, questions), seed_sd, seeds), "b")
        hits += found.low <= 0.5 <= found.high  # the mean over all questions and runs, by symmetry
    print(f"coverage of cells, seed sd {seed_sd}: {hits / REPLICATES:.3f}")
    assert 0.92 <= hits / REPLICATES <= 0.98


def equals(source, seed_sd, seeds, questions, taste):
    """Two methods that are equally good over all questions, and prefer different ones."""
    logit_Q = source.normal(0, 2, questions)
    return [scores(source, logit_Q + source.normal(0, taste, questions), seed_sd, seeds) for _ in range(2)]


@SETTINGS
@pytest.mark.parametrize("taste", [0.0, 1.0])
def test_coverage_and_size_of_differences(seed_sd, seeds, questions, taste):
    source, hits, false = np.random.default_rng(1), 0, 0
    for _ in range(REPLICATES):
        first, second = equals(source, seed_sd, seeds, questions, taste)
        found = paired([first], [second])
        hits += found.low <= 0 <= found.high
        false += found.p < LEVEL
    print(f"differences, seed sd {seed_sd}: coverage {hits / REPLICATES:.3f}, false {false / REPLICATES:.3f}")
    assert hits / REPLICATES >= 0.92 and false / REPLICATES <= 0.06


def test_wrong_methods_miss_these_bars():
    source, questions_only, seeds_only = np.random.default_rng(6), 0, 0
    for _ in range(REPLICATES):
        first, second = equals(source, 0.3, 5, 500, 0.0)
        questions_only += ttest_1samp((first - second).mean(0), 0).pvalue < LEVEL
        first, second = equals(source, 0.1, 5, 200, 1.0)
        seeds_only += paired([first], [second]).p_seeds < LEVEL
    print(f"false findings, questions only {questions_only / REPLICATES:.3f}, seeds only {seeds_only / REPLICATES:.3f}")
    assert questions_only / REPLICATES > 0.12 and seeds_only / REPLICATES > 0.08


@pytest.mark.parametrize(("seed_sd", "seeds", "questions"), [(0.1, 5, 200), (0.3, 5, 200), (0.3, 3, 200)])
def test_family_error_of_marks_and_bold(seed_sd, seeds, questions):
    """Seven equal methods: how often is any of them marked against the first, or left out of the best?"""
    source, marked, unbold, replicates = np.random.default_rng(2), 0, 0, 500
    table = Spec(caption="", sweep="s", rows=["algo"], columns=[Column(label="toy", benchmark="toy")],
                 compare="algo", reference="0")  # fmt: skip
    for _ in range(replicates):
        logit_Q = source.normal(0, 2, questions)
        drawn = [scores(source, logit_Q, seed_sd, seeds) for _ in range(7)]
        p_values = [paired([drawn[0]], [other]).p_family for other in drawn[1:]]
        marked += any(p < LEVEL for p in holm(p_values))
        grid = {"toy": {(str(i),): Fixed(seeds, dict.fromkeys(range(seeds)), "toy") for i in range(7)}}
        for results, matrix in zip(grid["toy"].values(), drawn, strict=True):
            MATRICES[id(results)] = matrix
        unbold += len(cells._tied_for_best(table, grid, "toy", list(grid["toy"]))) < 7
        MATRICES.clear()
    print(f"seed sd {seed_sd}, S {seeds}: false marks {marked / replicates:.3f}, false bold {unbold / replicates:.3f}")
    assert marked / replicates <= 0.06 and unbold / replicates <= 0.06


MATRICES: dict[int, np.ndarray] = {}


class Fixed(cells.Results):
    """Results with given scores."""

    def matrix(self, seeds=None):
        return MATRICES[id(self)]
