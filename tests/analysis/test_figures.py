"""Figures from made-up run folders: the numbers behind them, and what is skipped."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from analysis.collect import load_runs
from analysis.figures.__main__ import FIGURES, draw, main
from analysis.figures.comparison import largest_block
from analysis.figures.groups import Nothing, grouped, logged
from analysis.plan import Planned
from noisyrl.records import config_hash
from tests.analysis.made_up_runs import write_run

STEPS = 6


def add_run(store, algo="ppo", noise="none", seed=0, **other):
    """A run with metrics that are easy to foretell: at step s the clean reward is s + seed."""
    options = {"status": "completed", "last": STEPS, "hyper": {"_target_": algo}, "right": 6} | other
    status, last = options["status"], options["last"]
    config = {
        "algo": options["hyper"],
        "noise": {"_target_": "noisyrl.noise.none.NoNoise"} if noise == "none" else
                 {"_target_": "noisyrl.noise.flip.Flip", "rate": float(noise.removeprefix("flip")), "unit": "sample"},
        "trainer": {"steps": 10},
        "seed": seed,
    }  # fmt: skip
    cell = config_hash(config)[:12]
    folder = store / f"{algo}-{noise}-{cell}-s{seed}-{status}"
    write_run(
        folder,
        Planned({"algo": algo, "noise": noise}, cell, seed, config),
        status,
        {0: (2, 1), 10: (options["right"], 2)},
    )
    lines = [{"step": s, "reward/clean_mean": s + seed, "reward/observed_mean": 0.5, "policy/entropy_nats": 1.0,
              "trainer/tokens": 1000 * s} for s in range(1, last + 1)]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 99, "rew')
    times = [{"step": s, "time/step_s": 10.0 if s < 3 else 2.0, "time/update_s": 1.0} for s in range(1, last + 1)]
    (folder / "timings.jsonl").write_text("".join(json.dumps(line) + "\n" for line in times))
    return folder


def groups(store):
    logged.cache_clear()
    return grouped(load_runs(store))


def test_runs_of_one_config_are_one_group(tmp_path):
    for seed in (0, 1):
        add_run(tmp_path, seed=seed)
    add_run(tmp_path, seed=2, status="running")
    (group,) = groups(tmp_path)
    assert [run.seed for run in group.runs] == [0, 1] and (group.method, group.setting) == ("ppo", "toy, no noise")


def test_names_say_what_sets_configs_apart(tmp_path):
    for rate in (0.1, 0.2):
        add_run(tmp_path, hyper={"_target_": "ppo", "lr": rate, "clip": 1})
    assert [group.method for group in groups(tmp_path)] == ["ppo [lr=0.1]", "ppo [lr=0.2]"]


def test_learning_curves_hold_mean_band_and_seeds(tmp_path):
    for seed in (0, 1, 2):
        add_run(tmp_path, seed=seed)
    data = draw("learning_curves", groups(tmp_path)).data
    clean = data[data["metric"] == "reward/clean_mean"]
    mean = clean[clean["seed"] == "mean"]
    assert mean["mean"].tolist() == [s + 1 for s in range(1, STEPS + 1)] and set(mean["n"]) == {3}
    assert np.allclose(mean["high"] - mean["mean"], 4.302652729911275 / 3**0.5)  # t of two degrees of freedom, sd 1
    assert clean[clean["seed"] == "2"]["mean"].tolist() == [s + 2 for s in range(1, STEPS + 1)]


def test_tokens_instead_of_steps(tmp_path):
    add_run(tmp_path)
    data = draw("learning_curves", groups(tmp_path), "tokens").data
    assert data[data["seed"] == "0"]["tokens"].tolist()[:STEPS] == [1, 2, 3, 4, 5, 6]


def test_a_mean_stops_where_a_run_broke_down(tmp_path):
    add_run(tmp_path, seed=0)
    add_run(tmp_path, seed=1, status="diverged", last=2)
    data = draw("learning_curves", groups(tmp_path)).data
    clean = data[data["metric"] == "reward/clean_mean"]
    assert clean[clean["seed"] == "mean"]["steps"].tolist() == [1, 2]
    assert clean[clean["seed"] == "0"]["steps"].max() == STEPS


def test_accuracy_against_flips(tmp_path):
    for noise, right in (("none", 8), ("flip0.3", 4)):
        add_run(tmp_path, noise=noise, right=right)
    data = draw("noise_rate", groups(tmp_path)).data.sort_values("rate")
    assert data[["rate", "j", "accuracy"]].round(9).to_numpy().tolist() == [[0.0, 1.0, 0.625], [0.3, 0.4, 0.375]]


def test_one_rate_alone_is_no_figure(tmp_path):
    add_run(tmp_path)
    with pytest.raises(Nothing, match="two flip rates"):
        draw("noise_rate", groups(tmp_path))


def test_algorithms_are_compared_where_all_of_them_ran(tmp_path):
    one = np.ones(1)
    found = {"a": {"x": one, "y": one}, "b": {"x": one, "y": one, "z": one}, "c": {"z": one}}
    assert largest_block(found) == (["x", "y"], ["a", "b"])
    add_run(tmp_path, "ppo", right=8)
    add_run(tmp_path, "grpo", right=4)
    data = draw("comparison", groups(tmp_path)).data
    chance = data[data["kind"] == "improvement"].set_index(["method", "at"])["value"]
    assert chance["ppo", "grpo"] == 1 and chance["grpo", "ppo"] == 0
    profile = data[(data["kind"] == "profile") & (data["method"] == "ppo")].set_index("at")["value"]
    assert profile[0.5] == 1 and profile[0.75] == 0  # one run with 10 of 16 right


def test_quantile_functions_and_scalars(tmp_path):
    for algo, extra in (("dvpo", {"ensemble": np.array([[0.1, 0.2, 0.6, 0.9]])}), ("ppo", {})):
        probes = add_run(tmp_path, algo) / "probes"
        probes.mkdir()
        np.savez(probes / "step_000020.npz", uid=np.array(["toy/0"]), mean=np.array([0.45]), **extra)
    data = draw("quantile_functions", groups(tmp_path)).data
    assert data[data["method"] == "ppo"][["level", "value"]].to_numpy().tolist() == [["mean", 0.45]]
    levels = data[(data["method"] == "dvpo") & (data["level"] != "mean")]
    assert levels["level"].tolist() == ["0.1250", "0.3750", "0.6250", "0.8750"]
    assert levels["value"].tolist() == [0.1, 0.2, 0.6, 0.9]


def test_token_advantages_are_those_that_were_stored(tmp_path):
    folder = add_run(tmp_path)
    words = Tokenizer(WordLevel({"p": 0, "yes": 1, "no": 2, "user": 3}, unk_token="p"))
    (folder / "checkpoints/step_000006").mkdir(parents=True)
    words.save(str(folder / "checkpoints/step_000006/tokenizer.json"))
    (folder / "rollouts").mkdir()
    np.savez(
        folder / "rollouts/step_000006.npz", uid=np.array(["u", "u", "v"]), clean_B=np.array([0.0, 1.0, 1.0]),
        group_B=np.array([0, 0, 1]), tokens_BL=np.array([[0, 2, 3, 1], [0, 1, 1, 0], [0, 1, 1, 1]]),
        mask_BT=np.array([[1, 0, 1], [1, 1, 0], [1, 1, 1]], bool),
        advantage_BT=np.array([[-1.0, 0.0, -2.0], [1.0, 2.0, 0.0], [9.0, 9.0, 9.0]]),
    )  # fmt: skip
    data = draw("token_advantages", groups(tmp_path)).data
    right, wrong = data[data["clean"] == 1], data[data["clean"] == 0]
    assert right["token"].tolist() == ["yes", "yes"] and right["advantage"].tolist() == [1.0, 2.0]
    assert wrong["token"].tolist() == ["no", "user", "yes"]
    assert wrong["advantage"].isna().tolist() == [False, True, False]


def test_cost_leaves_out_the_first_steps(tmp_path):
    add_run(tmp_path, hyper={"_target_": "x", "critic": {"quantiles": 50}})
    data = draw("cost", groups(tmp_path)).data
    assert data["time/step_s"].tolist() == [2.0] and data["bar"].tolist() == ["ppo (M = 50)"]


def test_command_line(tmp_path, capsys):
    runs, out = tmp_path / "runs", tmp_path / "out"
    add_run(runs)
    add_run(runs, "grpo", "flip0.3")
    out.mkdir()
    (out / "learning_curves-7.png").write_text("old")
    logged.cache_clear()
    main(["--runs", str(runs), "--out", str(out)])
    said = capsys.readouterr().out
    assert "skipped explained_variance: no run logs critic/explained_variance" in said
    for name in FIGURES:
        written = {path.suffix for path in out.glob(f"{name}.*")}
        assert written == (set() if f"skipped {name}:" in said else {".pdf", ".png", ".csv"})
    assert {path.stem for path in out.iterdir()} == {"learning_curves", "behaviour", "cost", ".figures"}
    before = {path: path.read_bytes() for path in out.glob("cost.*")}
    main(["cost", "--runs", str(runs), "--out", str(out)])
    assert {path: path.read_bytes() for path in out.glob("cost.*")} == before
    assert len(pd.read_csv(out / "cost.csv")) == 2
    with pytest.raises(SystemExit, match="no figure heat; there are: learning_curves"):
        main(["heat", "--runs", str(runs)])
