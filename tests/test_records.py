"""The run folder: nothing stored is lost, half-written or mixed up."""

import json
import os
import subprocess
import sys

import pytest

from noisyrl import records
from noisyrl.launch import same_run
from noisyrl.records import RunFolder, config_hash, difference, read_manifest, write_atomic
from noisyrl.spec import InputError
from tests.frame import ROOT

CONFIG = {"seed": 1, "name": "x", "runs": "r", "algo": {"lr": 1.0}, "noise": {"rate": 0.3, "seed": 1}, "logger": {}}


def opened(path, config=CONFIG):
    folder = RunFolder(path, config)
    return folder, folder.open({"status": "running", "config": config})


def test_a_new_folder_then_an_unfinished_one_then_a_finished_one(tmp_path):
    folder, state = opened(tmp_path / "x")
    assert state == "new" and json.loads((tmp_path / "x/manifest.json").read_text())["status"] == "running"
    folder.close()
    folder, state = opened(tmp_path / "x")
    assert state == "unfinished"
    folder.update(status="completed")
    folder.close()
    assert opened(tmp_path / "x")[1] == "completed"


def test_another_config_is_refused_with_the_difference(tmp_path):
    folder, _ = opened(tmp_path / "x")
    folder.log(0, {"reward/clean_mean": 0.5})
    folder.close()
    before = {file: file.read_bytes() for file in (tmp_path / "x").iterdir()}
    with pytest.raises(InputError, match=r"algo.lr: 1.0 -> 2.0"):
        opened(tmp_path / "x", CONFIG | {"algo": {"lr": 2.0}})
    assert before == {file: file.read_bytes() for file in (tmp_path / "x").iterdir()}


def test_an_attempt_that_never_began_is_replaced(tmp_path):
    folder, _ = opened(tmp_path / "x")
    folder.update(status="infra_failed")
    folder.close()
    mended = CONFIG | {"algo": {"lr": 2.0}}
    folder, state = opened(tmp_path / "x", mended)
    assert state == "new" and folder.manifest["config"] == mended and folder.manifest["status"] == "running"


def test_another_logger_is_the_same_run(tmp_path):
    opened(tmp_path / "x")[0].close()
    assert opened(tmp_path / "x", CONFIG | {"logger": {"project": "p"}})[1] == "unfinished"


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x/thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="no manifest.json"):
        opened(tmp_path / "x")


def test_a_folder_in_use_is_refused(tmp_path):
    folder, _ = opened(tmp_path / "x")
    script = (
        "import sys; from noisyrl.records import RunFolder; from pathlib import Path\n"
        "RunFolder(Path(sys.argv[1]), {}).open({})"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", script, str(tmp_path / "x")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode != 0 and "being written by another process" in done.stderr
    folder.close()


def test_an_unwritable_place_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="set runs= to a writable folder"):
        opened(tmp_path / "file" / "x")


def test_a_full_disk_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(records.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 2**20})())
    with pytest.raises(InputError, match="only 1 MiB are free"):
        opened(tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_metrics_are_appended_rewound_and_torn_lines_dropped(tmp_path):
    folder, _ = opened(tmp_path / "x")
    for step in range(4):
        folder.log(step, {"reward/clean_mean": step / 2, "time/step_s": 0.1, "critic/explained_variance": float("nan")})
    metrics = tmp_path / "x/metrics.jsonl"
    with metrics.open("a") as stream:
        stream.write('{"step": 4, "rew')
    folder.rewind(2)
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert lines[2] == {"step": 2, "reward/clean_mean": 1.0, "critic/explained_variance": None}
    assert len((tmp_path / "x/timings.jsonl").read_text().splitlines()) == 3


def test_a_metric_nobody_described_is_a_mistake(tmp_path):
    folder, _ = opened(tmp_path / "x")
    with pytest.raises(KeyError, match="reward/clean_meen"):
        folder.log(0, {"reward/clean_meen": 1.0})


def test_an_interrupted_rewrite_leaves_the_old_text(tmp_path, monkeypatch):
    file = tmp_path / "a.json"
    write_atomic(file, "old")
    monkeypatch.setattr(records.os, "replace", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_atomic(file, "new")
    assert file.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_an_unknown_run_lists_those_there_are(tmp_path):
    opened(tmp_path / "math-tiny-ppo")[0].close()
    with pytest.raises(InputError, match="math-tiny-ppo"):
        read_manifest(tmp_path / "math-tiny-pop")


def test_a_damaged_manifest_is_named(tmp_path):
    opened(tmp_path / "x")[0].close()
    (tmp_path / "x/manifest.json").write_text("{")
    with pytest.raises(InputError, match="manifest.json is damaged"):
        opened(tmp_path / "x")


def test_seeds_share_a_cell_and_nothing_else_does():
    same = CONFIG | {"seed": 2, "noise": {"rate": 0.3, "seed": 2}, "name": "y", "runs": "elsewhere"}
    assert config_hash(same) == config_hash(CONFIG)
    assert config_hash(CONFIG | {"noise": {"rate": 0.3, "seed": 5}}) != config_hash(CONFIG)
    assert config_hash(CONFIG | {"algo": {"lr": 2.0}}) != config_hash(CONFIG)
    chains = [CONFIG | {"seed": seed, "noise": {"first": {"rate": 0.1, "seed": seed}}} for seed in (3, 4)]
    assert config_hash(chains[0]) == config_hash(chains[1])
    worlds = [CONFIG | {"seed": seed, "noise": {}, "model": {"seed": 0}} for seed in (0, 1)]
    assert config_hash(worlds[0]) == config_hash(worlds[1])  # a model's own seed is no run's


def test_a_run_is_known_by_its_config_whatever_it_is_called(tmp_path):
    config = CONFIG | {"runs": str(tmp_path), "name": None}
    assert same_run(config) is None
    folder = RunFolder(tmp_path / "called so", config)
    folder.open({"config_hash": config_hash(config), "seed": 1, "config": config})
    folder.close()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/manifest.json").write_text("{")
    assert same_run(config) == "called so"
    assert same_run(config | {"seed": 2}) is None and same_run(config | {"algo": {"lr": 3.0}}) is None


def test_differences_name_absent_keys():
    assert difference({"a": {"b": 1}}, {"a": {"c": 2}}) == "  a.b: 1 -> (absent)\n  a.c: (absent) -> 2"
