"""Estimates against returns of continuations: shares worked out by hand, and runs that have none are named."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.figures.__main__ import draw
from analysis.figures.groups import Nothing
from tests.analysis.test_figures import add_run, groups

HALF = np.repeat([[0.0, 1.0]], 16, axis=1)  # [1, 32]: right in half of all cases
ONES, ZEROS = np.ones((1, 32)), np.zeros((1, 32))
COIN = np.array([[0.0, 0.0, 1.0, 1.0]])  # quantiles at 1/8, 3/8, 5/8 and 7/8


def add_probed(store, algo="dvpo", noise="flip0.3", step=20, seed=0, **arrays):
    known = list(store.glob(f"{algo}-{noise}-*-s{seed}-completed"))
    folder = (known[0] if known else add_run(store, algo, noise, seed)) / "probes"
    folder.mkdir(exist_ok=True)
    if "observed" in arrays:
        arrays = {"used": arrays["observed"], "clean": arrays["observed"], "tolerance": np.float32(0.05)} | arrays
    if "ensemble" in arrays:
        arrays = {"mean": arrays["ensemble"].mean(axis=1)} | arrays
    uids = np.array([f"toy/{i}" for i in range(len(arrays["mean"]))])
    np.savez(folder / f"step_{step:06d}.npz", uid=uids, **arrays)


def drawn(store):
    return draw("critic_calibration", groups(store))


def picked(data, kind, returns="observed"):
    return data[(data["kind"] == kind) & (data["returns"] == returns)]


def errors(data, returns="observed"):
    return picked(data, "coverage error", returns)["value"].round(6).tolist()  # all prompts, each prompt


def test_coverage_of_zeros_and_ones_is_a_range(tmp_path):
    add_probed(tmp_path, ensemble=COIN, observed=HALF, clean=ONES)
    data = drawn(tmp_path).data
    found = picked(data, "coverage")
    assert found["at"].tolist() == ["0.1250", "0.3750", "0.6250", "0.8750"]
    assert found[["low", "high"]].to_numpy().tolist() == [[0, 0.5], [0, 0.5], [0.5, 1], [0.5, 1]]
    assert errors(data) == [0, 0]
    # Nothing lies at or below the quantiles that say 0: they miss their levels by 1/8 and 3/8.
    assert picked(data, "coverage", "clean")[["low", "high"]].to_numpy().tolist() == [[0, 0], [0, 0], [0, 1], [0, 1]]
    assert errors(data, "clean") == [0.125, 0.125]
    assert np.allclose(picked(data, "pit")["value"], 0.1)
    assert np.allclose(picked(data, "pit", "clean")["value"], [0] * 5 + [0.2] * 5)


def test_errors_of_prompts_may_cancel_and_are_told_apart(tmp_path):
    add_probed(tmp_path, ensemble=np.concatenate([COIN, COIN]), observed=np.concatenate([ONES, ZEROS]))
    assert errors(drawn(tmp_path).data) == [0, 0.125]


def test_levels_are_those_that_the_critic_was_trained_at(tmp_path):
    hyper = {"_target_": "dvpo", "tau_grid": "right"}
    folder = add_run(tmp_path, "dvpo", "none", hyper=hyper) / "probes"
    folder.mkdir()
    returns = {name: HALF for name in ("clean", "observed", "used")}
    np.savez(folder / "step_000020.npz", uid=np.array(["u"]), mean=np.ones(1), ensemble=COIN, tolerance=0.0, **returns)
    assert picked(drawn(tmp_path).data, "coverage")["at"].tolist() == ["0.2500", "0.5000", "0.7500", "1.0000"]


def test_one_number_is_compared_with_the_mean_return_alone(tmp_path):
    some = np.where(np.arange(32) % 4 == 0, np.nan, HALF)  # 12 zeros and 12 ones are left
    add_probed(tmp_path, "ppo", mean=np.array([0.7]), observed=some)
    page = drawn(tmp_path)
    (row,) = picked(page.data, "mean return").to_dict("records")
    assert (row["estimate"], row["value"], row["n"]) == (0.7, 0.5, 24)
    half = 2.0686576 * np.sqrt(6 / 23 / 24)  # t of 23 degrees of freedom, standard error of the mean
    assert row["high"] - row["value"] == pytest.approx(half) == row["value"] - row["low"]
    assert set(page.data["kind"]) == {"mean return"} and len(page.pages[0].axes) == 1


def test_corrected_returns_are_shown_where_there_are_any(tmp_path):
    add_probed(tmp_path, ensemble=COIN, observed=HALF, used=1.75 * HALF - 0.75)
    assert set(drawn(tmp_path).data["returns"]) == {"observed", "clean", "corrected"}


def test_the_last_snapshot_of_each_seed_counts(tmp_path):
    add_probed(tmp_path, step=20, ensemble=COIN, observed=ZEROS)
    add_probed(tmp_path, step=40, ensemble=COIN, observed=HALF)
    add_probed(tmp_path, step=40, seed=1, ensemble=COIN, observed=ONES)
    data = drawn(tmp_path).data
    assert set(data["step"]) == {40}
    assert picked(data, "coverage error").groupby("seed")["value"].first().tolist() == [0, 0.125]


def test_runs_that_cannot_be_judged_are_named(tmp_path):
    add_probed(tmp_path, ensemble=COIN, observed=HALF)
    add_probed(tmp_path, "ppo", mean=np.array([0.5]))
    add_probed(tmp_path, "vrpo", mean=np.array([np.nan]), observed=HALF)
    add_probed(tmp_path, "cql", mean=np.array([0.5]), observed=HALF * np.nan)
    for seed in (0, 1):
        add_run(tmp_path, "grpo", "flip0.3", seed)
    page = drawn(tmp_path)
    absent = page.data[page.data["kind"] == "nothing"].set_index(["method", "seed"])["at"].to_dict()
    assert len(absent) == 5 and absent["grpo", 1] == "No snapshot of a critic"
    assert "No snapshot of a critic: grpo (toy, flip0.3), seed 0 1" in page.caption
    assert "trainer.probe_continuations=0): ppo (toy, flip0.3), seed 0." in page.caption
    assert "Estimates are not finite: vrpo" in page.caption and "could be graded: cql" in page.caption
    assert "ppo (toy, flip0.3)" in page.pages[0].get_supxlabel().replace("\n", " ")


def test_a_store_without_continuations_has_no_such_figure(tmp_path):
    add_probed(tmp_path, "ppo", mean=np.array([0.5]))
    with pytest.raises(Nothing, match=r"no run has returns .*No continuations .*: ppo \(toy, flip0.3\), seed 0"):
        drawn(tmp_path)
