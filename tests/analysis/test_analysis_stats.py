"""The two-level bootstrap: known answers, coverage, and what it must not depend on."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.stats import Bootstrap


def test_mean_and_interval_of_one_run():
    # One run, 400 questions, half right: the binomial standard error is 0.025, a 95 % interval 0.049 to each side.
    scores = np.tile([0.0, 1.0], 200)[None]
    found = Bootstrap("t").interval(scores, "b")
    assert found.mean == 0.5
    assert found.low == pytest.approx(0.451, abs=0.004) and found.high == pytest.approx(0.549, abs=0.004)


def test_runs_count_as_a_source_of_doubt():
    # Every question alike within a run: the questions say nothing, so the interval is that of the runs alone.
    alike = np.array([[0.2] * 50, [0.8] * 50])
    found = Bootstrap("t").interval(alike, "b")
    # Weights (2, 0), (1, 1), (0, 2) with chances 1/4, 1/2, 1/4.
    assert (found.mean, found.low, found.high) == pytest.approx((0.5, 0.2, 0.8))
    one = Bootstrap("t").interval(alike[:1], "b")
    assert (one.low, one.high) == pytest.approx((0.2, 0.2))


def test_only_the_tables_name_decides_the_draws():
    scores = np.random.default_rng(0).random((3, 40))
    first = Bootstrap("t", 500).interval(scores, "b")
    used = Bootstrap("t", 500)
    used.interval(scores, "other benchmark"), used.interval(scores[:2], "b")
    assert used.interval(scores, "b") == first
    assert Bootstrap("u", 500).interval(scores, "b") != first


def test_one_draw_of_run_weights_serves_all_benchmarks():
    # A score that is the run's own on every benchmark has the same interval on all of them.
    own = np.array([0.1, 0.4, 0.7, 0.9])[:, None]
    found = Bootstrap("t", 501)
    first, second = found.interval(np.tile(own, 7), "b"), found.interval(np.tile(own, 30), "c")
    assert first == pytest.approx(second, abs=1e-6)


def test_coverage_on_a_binomial_toy():
    # 5 runs of differing skill x 60 questions of differing difficulty; the truth is the mean over both populations.
    rng = np.random.default_rng(0)
    bootstrap, hits, repetitions = Bootstrap("t", 400), 0, 300
    for _ in range(repetitions):
        chance = np.clip(0.5 + rng.normal(0, 0.08, (5, 1)) + rng.uniform(-0.3, 0.3, (1, 60)), 0, 1)
        found = bootstrap.interval((rng.random((5, 60)) < chance).astype(float), "b")
        hits += found.low <= 0.5 <= found.high
    # Nominal 0.95; the standard error of this estimate is 0.013. Question-only intervals cover about 0.6 here.
    assert 0.90 <= hits / repetitions <= 0.995


def test_the_bootstrap_against_loops():
    """Runs drawn once for all columns and questions once for each benchmark, one by one, without weights."""
    source = np.random.default_rng(3)
    skill = source.normal(0, 0.15, (7, 1))  # more than five runs, so that no t widens the interval
    columns = [
        (name, (source.random((7, n)) < 0.5 + skill).astype(float)) for name, n in (("m", 12), ("s", 30), ("m", 12))
    ]
    means, draws = [], np.random.default_rng(4)
    for _ in range(4000):
        runs = draws.integers(0, 7, 7)
        questions = {name: draws.integers(0, x.shape[1], x.shape[1]) for name, x in columns}
        means.append(np.mean([np.mean([x[run][questions[name]].mean() for run in runs]) for name, x in columns]))
    found = Bootstrap("t").average(columns)
    assert found.mean == pytest.approx(np.mean([x.mean() for _, x in columns]))
    assert (found.low, found.high) == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.006)


def test_nothing_to_average():
    with pytest.raises(ValueError, match="0 runs x 3 questions"):
        Bootstrap("t").interval(np.zeros((0, 3)), "b")
