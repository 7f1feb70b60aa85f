"""Mirrors write what they are given, and never stop a run."""

from __future__ import annotations

import builtins
import json
import sys
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from noisyrl.loggers.base import Logger
from noisyrl.loggers.jsonl import JsonlLogger
from noisyrl.loggers.wandb import WandbLogger
from noisyrl.spec import InputError
from tests.loggers.offline import configured, files, history, read, read_back, started, summary

CONF = Path(__file__).parents[2] / "conf"
ABOUT = {
    "name": "grpo-flip0.3-s0",
    "run_id": "sweep/grpo:0",
    "cell_id": "cell-1",
    "choices": {"algo": "grpo", "noise": "flip0.3"},
    "config": {"algo": {"name": "grpo", "clip": 0.2}, "seed": 0},
}
STEPS = (-1, 0, 0, 1)  # a critic's warm-up comes before step 0; an evaluation shares its step


class Recording(Logger):
    """A backend that fails at the stages named in `fails`, and remembers the others."""

    def __init__(self, *fails):
        object.__setattr__(self, "fails", fails)
        object.__setattr__(self, "seen", [])

    def backend(self, run_dir, about):
        self.note("start", about["name"])
        return self

    def note(self, stage, what):
        if stage in self.fails:
            raise OSError(f"no {stage} today")
        self.seen.append((stage, what))

    def log(self, step, metrics):
        self.note("log", (step, dict(metrics)))

    def finish(self, status):
        self.note("finish", status)


def drive(logger, run_dir):
    tracker = logger.start(run_dir, ABOUT)
    for step in STEPS:
        tracker.log(step, {"reward/clean_mean": step / 2})
    tracker.finish("completed")
    tracker.finish("completed")


def test_everything_arrives_once_and_in_order(tmp_path):
    logger = Recording()
    drive(logger, tmp_path)
    logs = [("log", (step, {"reward/clean_mean": step / 2})) for step in STEPS]
    assert logger.seen == [("start", "grpo-flip0.3-s0"), *logs, ("finish", "completed")]


@pytest.mark.parametrize("stage", ["start", "log", "finish"])
def test_a_failing_mirror_warns_once_and_stops_nothing(tmp_path, capsys, stage):
    logger = Recording(stage)
    drive(logger, tmp_path)
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("warning") == 1
    assert f"Recording failed at {stage} (OSError: no {stage} today)" in said.err
    assert len(logger.seen) == {"start": 0, "log": 2, "finish": 5}[stage]


def test_an_interrupt_is_not_swallowed(tmp_path):
    logger = Recording()
    tracker = logger.start(tmp_path, ABOUT)
    object.__setattr__(logger, "note", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        tracker.log(0, {})


def test_jsonl_adds_nothing(tmp_path):
    drive(JsonlLogger(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_wandb_that_is_not_installed_stops_nothing(tmp_path, capsys, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "wandb":
            raise ImportError("No module named 'wandb'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    drive(WandbLogger(), tmp_path)
    assert "WandbLogger failed at start (ImportError: No module named 'wandb')" in capsys.readouterr().err


def test_wandb_writes_what_it_was_given(tmp_path, private_wandb):
    drive(WandbLogger(tags=["T1"]), tmp_path)
    records = read_back(tmp_path)
    run, config, rows = started(records), configured(records), history(records)
    assert (run.run_id, run.display_name, run.run_group) == ("sweep-grpo-0", "grpo-flip0.3-s0", "cell-1")
    assert (run.project, run.job_type, list(run.tags)) == ("noisyrl", "train", ["T1"])
    assert config["algo"] == {"name": "grpo", "clip": 0.2} and config["choices"]["noise"] == "flip0.3"
    assert [(row["global_step"], row["reward/clean_mean"]) for row in rows] == [(-1, -0.5), (0, 0), (0, 0), (1, 0.5)]
    axes = [r.metric for r in records if r.WhichOneof("record_type") == "metric"]
    assert {axis.glob_name for axis in axes if axis.step_metric == "global_step"} == {"*", "eval/*"}
    assert all(axis.summary.last and not axis.summary.max for axis in axes if axis.glob_name)
    ends = [r.exit.exit_code for r in records if r.WhichOneof("record_type") == "exit"]
    assert ends == [0]


def test_two_runs_of_one_process_do_not_mix(tmp_path, private_wandb):
    for job in ("a", "b"):
        (tmp_path / job).mkdir()
        tracker = WandbLogger().start(tmp_path / job, ABOUT | {"run_id": job})
        tracker.log(0, {job: 1.0})
        tracker.finish("failed" if job == "b" else "completed")
    for job, code in (("a", 0), ("b", 1)):
        records = read_back(tmp_path / job)
        (row,) = history(records)
        assert set(row) & {"a", "b"} == {job}
        assert [r.exit.exit_code for r in records if r.WhichOneof("record_type") == "exit"] == [code]


def test_tables_and_pages_arrive_as_they_are(tmp_path, private_wandb):
    cells = [{"row": "ppo", "mean": 0.5, "run_ids": "a b"}, {"row": "grpo", "mean": None, "run_ids": None}]
    page = "<!doctype html>\n<p>ü</p>\n"
    about = ABOUT | {"job_type": "table"}
    tracker = WandbLogger().start(tmp_path, about)
    tracker.log(0, {"cells": cells, "page": page})
    tracker.finish("completed")
    records = read_back(tmp_path)
    (row,) = history(records)
    folder = files(tmp_path)[0].parent / "files"
    assert started(records).job_type == "table" and row["cells/nrows"] == 2
    table = json.loads((folder / row["cells/path"]).read_text())
    assert [dict(zip(table["columns"], line, strict=True)) for line in table["data"]] == cells
    assert (folder / row["page/path"]).read_text() == page
    # W&B shows the value that the summary holds.
    assert summary(records)["cells/_type"] == "table-file" and summary(records)["page/_type"] == "html-file"


def test_the_same_run_again_is_not_another_one(tmp_path, private_wandb):
    for _ in range(2):
        drive(WandbLogger(), tmp_path)
        time.sleep(1.1)  # W&B names its folders by the second
    assert len(files(tmp_path)) == 2 and {started(read(file)).run_id for file in files(tmp_path)} == {"sweep-grpo-0"}


def test_what_is_not_installed_is_said_beforehand(monkeypatch):
    JsonlLogger().check()
    WandbLogger().check()
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r"W&B cannot be imported .*pip install -e '.\[wandb\]'"):
        WandbLogger().check()


@pytest.mark.parametrize(("name", "kind"), [("jsonl", JsonlLogger), ("wandb", WandbLogger)])
def test_every_file_of_the_group_builds(name, kind):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert instantiate(compose(overrides=[f"+logger={name}"]).logger) == kind()
