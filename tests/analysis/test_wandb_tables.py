"""A table mirrored to W&B is the one in the files, once for the same content, and never stops them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from analysis import tables, wandb_tables
from noisyrl.spec import InputError
from tests.loggers.offline import configured, files, history, read_back, started

DATA, ROOT = Path(__file__).parent / "data", Path(__file__).parents[2]


@pytest.fixture
def desk(tmp_path, private_wandb) -> Path:
    """The committed store and what belongs to it, where W&B's own settings are those of the project."""
    for name in ("store", "specs", "sweeps", "conf"):
        shutil.copytree(DATA / name, tmp_path / name)
    (tmp_path / "conf/logger").mkdir()
    shutil.copy(ROOT / "conf/logger/wandb.yaml", tmp_path / "conf/logger")
    return tmp_path


def build(desk: Path, *words: str) -> None:
    folders = {"runs": "store", "out": "out", "specs": "specs", "sweeps": "sweeps", "conf": "conf"}
    tables.main(["tiny", *words, *(word for key, name in folders.items() for word in (f"--{key}", str(desk / name)))])


def test_the_mirror_shows_what_the_files_say(desk):
    build(desk, "--wandb")
    records = read_back(desk / "out")
    run, config, (row,) = started(records), configured(records), history(records)
    assert (run.job_type, run.run_group, run.display_name) == ("table", "tiny", "tiny")
    assert run.run_id.startswith("table-tiny-") and run.project == "noisyrl"
    assert config["table"] == "tiny" and config["caption"] in (desk / "out/tiny.md").read_text()
    folder = files(desk / "out")[0].parent / "files"
    assert (folder / row["page/path"]).read_text() == (desk / "out/tiny.html").read_text()
    mirrored = json.loads((folder / row["cells/path"]).read_text())
    shown = pd.DataFrame(mirrored["data"], columns=mirrored["columns"]).round(6)
    shown.insert(0, "table", "tiny")
    assert shown.to_csv(index=False, lineterminator="\n") == (desk / "out/tiny.csv").read_text()


def test_without_the_option_there_is_none(desk):
    build(desk)
    assert sorted(path.name for path in (desk / "out").iterdir()) == ["tiny.csv", "tiny.html", "tiny.md", "tiny.tex"]


def test_its_id_is_that_of_the_content(desk, monkeypatch):
    seen = []

    class Recording:
        def start(self, folder, about):
            seen.append(about)
            return self

        def log(self, step, metrics): ...

        def finish(self, status): ...

    monkeypatch.setattr(tables, "logger_in", lambda conf: Recording())
    build(desk, "--wandb", "--fmt", "md")
    build(desk, "--wandb", "--fmt", "csv")
    shutil.rmtree(desk / "store/ppo-none-1")
    build(desk, "--wandb")
    first, again, other = (about["run_id"] for about in seen)
    assert first == again != other and len({about["cell_id"] for about in seen}) == 1


def test_what_is_missing_is_said_before_anything_is_built(desk, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(SystemExit, match=r"error: W&B cannot be imported .*pip install -e '.\[wandb\]'"):
        build(desk, "--wandb")
    (desk / "conf/logger/wandb.yaml").unlink()
    with pytest.raises(InputError, match="takes its settings from .*conf/logger/wandb.yaml, which does not exist"):
        wandb_tables.logger_in(desk / "conf")
    assert not (desk / "out").exists()


def test_a_mirror_that_fails_leaves_the_tables(desk, monkeypatch, capsys):
    import wandb

    def fail(**_):
        raise OSError("no W&B today")

    monkeypatch.setattr(wandb, "init", fail)
    build(desk, "--wandb")
    said = capsys.readouterr()
    assert "WandbLogger failed at start (OSError: no W&B today)" in said.err and "out/tiny.md" in said.out


def test_make_wandb_sync_finds_runs_and_tables(tmp_path):
    """With a stand-in for the program that uploads."""
    for folder in ("runs/a/wandb/offline-run-1-x", "runs/b/wandb/run-2-y", "tables/wandb/offline-run-3-z"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/wandb"
    program.write_text('#!/bin/sh\necho "$@"\n')
    program.chmod(0o755)
    (tmp_path / "bin/.noisyrl").touch()  # the environment is set up

    def sync(**folders):
        words = [f"{key}={tmp_path / name}" for key, name in folders.items()]
        command = ["make", "-s", "-C", str(ROOT), "wandb-sync", f"BIN={tmp_path}/bin", *words]
        return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"MAKEFLAGS": ""})

    done = sync(RUNS="runs", OUT="tables")
    assert done.returncode == 0, done.stderr
    found = {str(Path(word).relative_to(tmp_path)) for word in done.stdout.split()[1:]}
    assert found == {"runs/a/wandb/offline-run-1-x", "tables/wandb/offline-run-3-z"}
    assert len(sync(RUNS="runs", OUT="nowhere").stdout.split()) == 2
    assert "no offline W&B runs" in sync(RUNS="runs/b", OUT="nowhere").stdout
