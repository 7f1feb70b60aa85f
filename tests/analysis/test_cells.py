"""Averages, differences, marks, bold type, collapses and published values, on made-up runs of five seeds."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.stats import chi2

from analysis import cells, status, tables, writers
from analysis import power as pilot
from analysis.collect import load_runs
from analysis.explain import explain
from analysis.inference import holm, paired
from analysis.plan import expand, join
from analysis.table_spec import Average, Column, Spec
from noisyrl.records import SUMS, checksums
from noisyrl.spec import InputError
from tests.analysis.made_up_runs import DATA, write_run

START_RIGHT = (4, 2)
# Right answers of 8 on (toy, toy_ood) at the end, seed by seed.
ENDS = {
    "ppo": [(5, 3), (5, 4), (6, 3), (5, 3), (5, 4)],
    "grpo": [(8, 7), (8, 8), (8, 7), (8, 7), (8, 8)],
}


@pytest.fixture
def at(tmp_path):
    """Folders with a store of five seeds, where a spec may be put."""
    for name in ("sweeps", "specs"):
        (tmp_path / name).mkdir()
    params = {"algo": "ppo,grpo", "noise": "flip0.3", "seed": "range(0,5)"}
    (tmp_path / "sweeps/five.yaml").write_text(
        yaml.safe_dump({"hydra": {"mode": "MULTIRUN", "sweeper": {"params": params}}})
    )
    for planned in expand(tmp_path / "sweeps/five.yaml", DATA / "conf"):
        end = ENDS[planned.values["algo"]][planned.seed]
        folder = tmp_path / f"store/{planned.values['algo']}-{planned.seed}"
        write_run(folder, planned, "completed", {0: START_RIGHT, 10: end})
    return tables.Folders(
        runs=tmp_path / "store", out=tmp_path / "out", specs=tmp_path / "specs", sweeps=tmp_path / "sweeps",
        conf=DATA / "conf",
    )  # fmt: skip


TABLE = {
    "caption": "c",
    "sweep": "five",
    "rows": ["algo", "noise"],
    "columns": [{"label": "toy", "benchmark": "toy"}, {"label": "ood", "benchmark": "toy_ood"}],
    "averages": [{"label": "ALL", "of": ["toy", "ood"]}],
    "compare": "algo",
    "reference": "ppo",
    "primary": ["ALL", "toy"],
    "collapse": True,
    "resamples": 500,
}


def made(at, **changes) -> tuple[str, pd.DataFrame]:
    """The Markdown and the long frame of the table."""
    (at.specs / "five.yaml").write_text(yaml.safe_dump(TABLE | changes))
    written = {path.suffix: path for path in tables.make("five", at)}
    return written[".md"].read_text(), pd.read_csv(written[".csv"])


def cell(frame, algo, column):
    return frame[(frame["algo"] == algo) & (frame["column"] == column)].squeeze()


def scores(algo):
    """For each benchmark [S, Q]."""
    rights = np.array(ENDS[algo])
    return [(np.arange(8)[None] < rights[:, [b]]).astype(float) for b in (0, 1)]


def test_differences_are_those_of_the_paired_test(at):
    _, frame = made(at)
    found = cell(frame, "grpo", "Δ ppo, ALL")
    expected = paired(scores("grpo"), scores("ppo"))
    assert found["mean"] == pytest.approx(expected.mean, abs=1e-6)
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high), abs=1e-6)
    alone = paired(scores("grpo")[:1], scores("ppo")[:1])
    adjusted = holm([expected.p_family, alone.p_family])
    assert found["p_holm"] == pytest.approx(adjusted[0], abs=1e-6)
    assert cell(frame, "grpo", "Δ ppo, toy")["p_holm"] == pytest.approx(adjusted[1], abs=1e-6)
    assert cell(frame, "ppo", "Δ ppo, ALL").empty  # nothing is compared with itself


def test_averages_use_the_seeds_that_have_all_columns(at):
    _, frame = made(at)
    assert cell(frame, "grpo", "ALL")["mean"] == pytest.approx(np.mean([s.mean() for s in scores("grpo")]))
    assert cell(frame, "start", "ALL")["mean"] == pytest.approx(3 / 8)
    assert cell(frame, "grpo", "ALL")["n"] == 5


def test_marks_and_bold_follow_the_tests(at):
    text, frame = made(at)
    by_cell = cell(frame, "grpo", "Δ ppo, ALL")
    assert by_cell["p_holm"] < 0.05 and by_cell["mark"] == "**" and r"\*\*" in text
    assert bool(cell(frame, "grpo", "ALL")["bold"]) is True and bool(cell(frame, "ppo", "ALL")["bold"]) is False
    assert "**96.2 ±" in text


def test_what_cannot_be_told_apart_is_bold_together(at):
    for name, mark in (("manifest.json", '"seed": {}'), ("config.yaml", "seed: {}")):  # a gap: four common seeds
        file = at.runs / "grpo-3" / name
        file.write_text(file.read_text().replace(mark.format(3), mark.format(77)))
    _, frame = made(at, primary=["ood"])
    assert cell(frame, "grpo", "Δ ppo, ood")["n"] == 4 and cell(frame, "grpo", "Δ ppo, ood")["missing"] == 1
    tied = cells._tied_for_best  # the same scores on both sides
    grid = {"toy": {("ppo", "x"): _same(0), ("grpo", "x"): _same(1)}}
    spec = Spec(caption="", sweep="s", rows=["algo", "noise"], columns=[Column(label="toy", benchmark="toy")],
                compare="algo", reference="ppo")  # fmt: skip
    assert tied(spec, grid, "toy", [("ppo", "x"), ("grpo", "x")]) == [("ppo", "x"), ("grpo", "x")]


def _same(turn):
    source = np.random.default_rng(turn)

    class Drawn(cells.Results):
        def matrix(self, seeds=None):
            return (np.random.default_rng(7).random((5, 40)) + source.normal(0, 0.01, (5, 40)) < 0.5).astype(float)

    return Drawn(5, dict.fromkeys(range(5)), "toy")


def test_two_seeds_get_no_verdict(at):
    for seed in (2, 3, 4):
        for algo in ENDS:
            (at.runs / f"{algo}-{seed}").rename(at.runs.parent / f"{algo}-{seed}")
    text, frame = made(at)
    assert not frame["bold"].fillna(False).astype(bool).any() and frame["mark"].isna().all()
    assert "+37.5 (2/5)" in text


def test_a_collapse_is_counted_with_an_interval(at):
    path = at.runs / "ppo-0/eval/000010000000"
    assert path.is_dir()
    _, frame = made(at)
    assert cell(frame, "ppo", "collapsed")["mean"] == 0
    shutil.rmtree(at.runs / "ppo-0")
    planned = next(p for p in expand(at.sweeps / "five.yaml", at.conf) if p.values["algo"] == "ppo" and p.seed == 0)
    write_run(at.runs / "ppo-0", planned, "diverged", {0: START_RIGHT, 10: (0, 0)})
    text, frame = made(at)
    assert cell(frame, "ppo", "collapsed")["mean"] == pytest.approx(0.2) and "1/5 (≤ 62 %)" in text


def test_published_values_stand_beside_and_never_rank(at):
    reported = {"label": "Reported (DVPO T1)", "where": {"paper": "DVPO", "table": "T1", "benchmark": BENCHMARK}}
    plain, before = made(at)
    text, frame = made(at, reported=reported)
    ours = frame[frame["kind"] != "reported"].drop(columns="bold").reset_index(drop=True)
    pd.testing.assert_frame_equal(ours, before.drop(columns="bold"), check_like=True)
    assert cell(frame, "ppo", "Reported (DVPO T1)")["mean"] == pytest.approx(0.852) and "*85.2°*" in text
    assert "never ranked" in text and "never ranked" not in plain


BENCHMARK = "honor_dialogue/AVG"


def test_a_changed_published_value_is_refused(at, tmp_path, monkeypatch):
    shutil.copytree(cells.PAPER.parent, tmp_path / "paper")
    monkeypatch.setattr(cells, "PAPER", tmp_path / "paper" / cells.PAPER.name)
    reported = {"label": "Reported", "where": {"paper": "DVPO", "table": "T1", "benchmark": BENCHMARK}}
    made(at, reported=reported)
    cells.PAPER.write_text(cells.PAPER.read_text().replace("85.2", "86.2", 1))
    with pytest.raises(InputError, match=r"paper/paper_values.csv was changed: its sha256 .* sha256sum"):
        made(at, reported=reported)


def test_published_averages_are_those_of_their_parts():
    known = pd.read_csv(cells.PAPER)
    dialogue = known[(known["table"] == "T1") & (known["paper"] == "DVPO")]
    for method, rows in dialogue.groupby("method"):
        parts = rows[rows["benchmark"] != BENCHMARK]["value"]
        if len(parts):
            assert rows[rows["benchmark"] == BENCHMARK]["value"].item() == pytest.approx(parts.mean(), abs=0.011), (
                method
            )


def test_latex_and_html_know_bold_and_italics(at):
    made(at)
    latex, html = (at.out / "five.tex").read_text(), (at.out / "five.html").read_text()
    assert r"\textbf{96.2 ±" in latex and r"$\Delta$ ppo" in latex and "Δ" not in latex
    assert "<b>96.2 ±" in html and 'title="n = 5, 95 % interval' in html and "http" not in html
    assert not any(sign in latex + html for sign in writers._BOLD + writers._ITALIC)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"primary": ["nothing"]}, "name no column"),
        ({"averages": [Average(label="a", of=["x"])]}, "name no column"),
        ({"compare": "seed"}, "must be one of rows"),
        ({"compare": None, "primary": ["toy"]}, "primary needs compare"),
    ],
)
def test_specs_that_contradict_themselves(changes, message):
    given = {"caption": "", "sweep": "s", "rows": ["algo"], "columns": [Column(label="toy", benchmark="toy")]}
    with pytest.raises(ValueError, match=message):
        Spec(**(given | {"compare": "algo", "reference": "ppo"} | changes))


def test_a_cell_is_explained_by_its_runs(at):
    made(at)
    (at.runs / "ppo-2").rename(at.runs.parent / "gone")
    text = explain("five", {"algo": "ppo", "noise": "flip0.3"}, "toy", at)
    assert "shown: 62.5 ±" in text and "seed 2: missing" in text
    assert f"seed 3: 0.6250 over 8 questions, {at.runs}/ppo-3/eval/000010000003/samples.parquet" in text
    assert "again, from the scores above: 0.625000" in text
    manifest = at.runs / "ppo-4/manifest.json"
    manifest.write_text(manifest.read_text().replace('"completed"', '"running"'))
    assert f"seed 4: under way: {at.runs}/ppo-4: running" in explain("five", {"algo": "ppo"}, "toy", at)
    manifest.write_text(manifest.read_text().replace('"running"', '"completed"'))
    both = explain("five", {"algo": "grpo", "noise": "flip0.3"}, "Δ ppo, ALL", at)
    own, reference = both.split("minus algo=ppo, noise=flip0.3")
    assert all(f"{at.runs}/grpo-{seed}/eval" in own for seed in (0, 1, 3, 4)) and "ppo-1/" not in own
    assert "toy (toy):" in reference and "ood (toy_ood):" in reference and f"{at.runs}/ppo-1/eval" in reference
    seeds = [0, 1, 3, 4]  # those that both have
    gap = np.mean([a[seeds].mean() - b[seeds].mean() for a, b in zip(scores("grpo"), scores("ppo"), strict=True)])
    assert f"mean: {gap:.4f}"[:-1] in own and f"again, from the scores above: {gap:.6f}" in reference
    path = at.runs / "ppo-3/eval/000010000003/aggregate.jsonl"
    path.write_text(path.read_text().replace('"value": 0.625', '"value": 0.75'))
    (path.parent / SUMS).write_text(checksums(path.parent))
    assert "BUT aggregate.jsonl says 0.7500" in explain("five", {"algo": "ppo", "noise": "flip0.3"}, "toy", at)


def test_cells_that_are_no_scores_are_explained_too(at):
    made(at, reported={"label": "reported", "where": {"table": "T1", "benchmark": "honor_dialogue/AVG"}})
    start = explain("five", {"algo": "start"}, "ALL", at)
    assert start.count("before training: 0.") == 2 and "eval/000000000000/samples.parquet" in start
    assert "again, from the scores above: 0.375000" in start
    collapsed = explain("five", {"algo": "ppo"}, "collapsed", at)
    assert "toy: collapsed is what ends below 0.4000" in collapsed and collapsed.count(f"{at.runs}/ppo-4/eval") == 2
    ppo = explain("five", {"algo": "ppo"}, "reported", at)
    assert "value: 85.2" in ppo and "status: secondary_checked" in ppo and "source: " in ppo
    assert "not in paper_values.csv" in explain("five", {"algo": "start"}, "reported", at)


@pytest.mark.parametrize(
    ("row", "column", "message"),
    [
        ({"algo": "dvpo"}, "toy", "0 rows fit"),
        ({"algo": "ppo"}, "math", "no column 'math'"),
        ({"x": "1"}, "toy", "not by x"),
    ],
)
def test_an_unknown_cell_lists_the_known_ones(at, row, column, message):
    made(at)
    with pytest.raises(InputError, match=message):
        explain("five", row, column, at)


STATES = [("infra_failed", "RuntimeError: x"), ("running", None)]


def test_power_from_a_pilot(at, capsys):
    made(at)
    words = ["five", "--gain", "10", *(f"--{name}={getattr(at, name)}" for name in ("runs", "specs", "sweeps", "conf"))]
    pilot.main(words)
    line = next(line for line in capsys.readouterr().out.splitlines() if "toy" in line)
    cells_of = [word.strip() for word in line.strip("|").split("|")]
    differences = scores("grpo")[0].mean(axis=1) - scores("ppo")[0].mean(axis=1)
    spread = differences.std(ddof=1)
    assert cells_of[:5] == ["grpo", "flip0.3", "toy", "5", f"{100 * spread:.2f}"]
    assert cells_of[5] == f"{100 * spread * (4 / chi2.ppf(0.2, 4)) ** 0.5:.2f}"
    assert float(cells_of[6]) == pytest.approx(100 * 1.7 * spread, rel=0.02)  # evaluation 4.3: five seeds, 1.7 spreads
    assert 3 <= int(cells_of[7]) <= int(cells_of[8]) <= int(cells_of[9])
    with pytest.raises(SystemExit, match="--gain 0.0: give the difference"):
        pilot.main([*words[:2], "0", *words[3:]])


def test_power_needs_something_to_compare(at):
    made(at, compare=None, primary=[])
    with pytest.raises(SystemExit, match="nothing is compared"):
        pilot.main(["five", *(f"--{name}={getattr(at, name)}" for name in ("runs", "specs", "sweeps", "conf"))])


def test_status_counts_and_estimates(at):
    runs = load_runs(at.runs)
    for run, (word, failure) in zip(runs, STATES, strict=False):
        manifest = dict(run.manifest) | {"status": word, "failure": failure}
        (run.folder / "manifest.json").write_text(json.dumps(manifest))
    shutil.rmtree(at.runs / "ppo-4")
    config = {"trainer": {"steps": 10}, "algo": {}, "data": {}, "model": {}}
    timed = [replace(run, manifest={**run.manifest, "config": config, "seconds": 30.0}) for run in load_runs(at.runs)]
    matches = [
        replace(match, planned=replace(match.planned, config=config))
        for match in join(expand(at.sweeps / "five.yaml", at.conf), timed)
    ]
    line, failures = status.report("five", matches, timed)
    assert [line[kind] for kind in ("planned", "finished", "under way", "failed", "missing")] == [10, 7, 1, 1, 1]
    assert failures == ["failed: grpo-0: infra_failed: RuntimeError: x"]
    assert status.seconds_left(matches, timed) == (pytest.approx(90.0), 0)
    assert status.seconds_left(matches, []) == (0.0, 3)
