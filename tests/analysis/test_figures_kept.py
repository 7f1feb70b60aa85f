"""Figures that were drawn are taken for the report only while they are what it would draw."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest

from analysis import report as reporting
from analysis.collect import load_runs
from analysis.figures import kept
from analysis.figures.__main__ import FIGURES, draw, main, make
from analysis.figures.courses import STEPS, TOKENS
from analysis.figures.drawing import write
from analysis.figures.groups import grouped, logged
from analysis.inputs import digest
from analysis.tables import Folders
from tests.analysis.made_up_runs import DATA
from tests.analysis.test_figures import add_run


@pytest.fixture
def store(tmp_path):
    for seed in (0, 1):
        probes = add_run(tmp_path / "runs", seed=seed) / "probes"
        probes.mkdir()
        np.savez(probes / "step_000010.npz", uid=np.array(["toy/0"]), mean=np.array([0.45]))
    logged.cache_clear()
    return tmp_path / "runs"


def found(store, figures, *options):
    return set(kept.find(figures, digest(store, options=options or (STEPS,)), ".png"))


def test_one_changed_byte_and_nothing_is_found(store, tmp_path):
    figures, names = tmp_path / "figures", ["learning_curves", "cost"]
    main([*names, "--runs", str(store), "--out", str(figures)])
    assert found(store, figures) == set(names) and not found(store, figures, TOKENS)
    for pattern in ("metrics.jsonl", "timings.jsonl", "manifest.json", "config.yaml", "probes/*.npz",
                    "eval/*/samples.parquet", "eval/*/aggregate.jsonl"):  # fmt: skip
        file = next(store.glob(f"*/{pattern}"))
        content = file.read_bytes()
        if file.suffix == ".npz":
            np.savez(file, uid=np.array(["toy/0"]), mean=np.array([0.46]))
        else:
            file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert not found(store, figures), pattern
        file.write_bytes(content)
    assert found(store, figures) == set(names)
    shutil.copytree(next(store.iterdir()), store / "another")
    assert not found(store, figures)
    shutil.rmtree(store / "another")
    picture = figures / "cost.png"
    picture.write_bytes(picture.read_bytes() + b"?")
    assert found(store, figures) == {"learning_curves"}


def test_figures_of_other_runs_leave_the_record(store, tmp_path):
    figures = tmp_path / "figures"
    main(["learning_curves", "--runs", str(store), "--out", str(figures)])
    add_run(store, seed=2)
    logged.cache_clear()
    main(["cost", "--runs", str(store), "--out", str(figures)])
    assert found(store, figures) == {"cost"}
    (figures / ".figures.json").write_text("{")
    assert not found(store, figures)


def test_the_report_is_the_same_with_and_without_them(store, tmp_path, monkeypatch):
    at = Folders(runs=store, out=tmp_path, **{name: DATA / name for name in ("specs", "sweeps", "conf")})
    alone = reporting.report(reporting.read(at))
    main(["--runs", str(store), "--out", str(tmp_path / "figures")])
    monkeypatch.setattr(reporting, "make", lambda *_, **__: pytest.fail("drawn again"))
    assert reporting.report(reporting.read(at, figures=tmp_path / "figures")) == alone
    assert alone.count("data:image/png") == len(list((tmp_path / "figures").glob("*.png"))) > 3


def test_pages_do_not_depend_on_cores_or_on_formats(store, tmp_path, monkeypatch):
    runs = load_runs(store)
    for cores in (1, 2):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)), raising=False)
        assert [name for name, *_ in make([], runs, tmp_path / str(cores))] == list(FIGURES)
    one, two = ({file.name: file.read_bytes() for file in (tmp_path / cores).iterdir()} for cores in "12")
    assert one == two and {"cost.png", "cost.pdf", "cost.csv", "learning_curves.png"} <= set(one)
    write("cost", draw("cost", grouped(runs)), tmp_path, ["png"])
    draw("cost", grouped(runs)).pages[0].savefig(tmp_path / "plain.png", metadata={"Software": None})
    assert one["cost.png"] == (tmp_path / "cost.png").read_bytes() == (tmp_path / "plain.png").read_bytes()
