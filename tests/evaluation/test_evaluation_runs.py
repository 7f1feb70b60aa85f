"""Scoring a finished run from nothing but its folder, as `python src/eval.py run=NAME` does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from noisyrl.checkpoint import checksums, weights_hash
from noisyrl.evaluation import store
from noisyrl.evaluation.harness import Evaluation
from noisyrl.evaluation.run_folder import score_run
from noisyrl.loggers.jsonl import JsonlLogger
from noisyrl.loggers.wandb import WandbLogger
from noisyrl.rollout.fast import FastSampler
from noisyrl.spec import InputError
from noisyrl.tasks.math import Chains
from tests.loggers.offline import configured, files, history, read_back, started

ROOT = Path(__file__).parents[2]
FEW = {"train_items": 4, "heldout_items": 6}


def save_checkpoint(lm, folder: Path) -> None:
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    (folder / "trainer").mkdir()
    (folder / "trainer/checksums.json").write_text(json.dumps(checksums(folder)))


@pytest.fixture
def run_dir(lm, occasion, tmp_path) -> Path:
    folder = tmp_path / "runs/first"
    for step in (5, 10):
        save_checkpoint(lm, folder / f"checkpoints/step_{step:06d}")
    config = {
        "data": {"_target_": "noisyrl.tasks.math.Chains", **FEW},
        "rollout": {"_target_": "noisyrl.rollout.fast.FastSampler", "max_tokens": 8},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    info = occasion["run_info"]
    choices = {"algo": info["algo"], "noise": info["noise"], "model": info["model"], "data": info["train_domain"]}
    manifest = {"status": "completed", "choices": choices, "config": config | {"seed": 0}, "tier": "smoke"}
    (folder / "manifest.json").write_text(json.dumps(manifest | info))
    return folder


def test_a_folder_scores_as_the_run_did(lm, occasion, run_dir):
    # What the trainer does with the model in memory, and what eval.py does with the folder, is one evaluation.
    during = occasion | {"out_dir": run_dir / "eval", "checkpoint_hash": weights_hash(lm.model)}
    scores = Evaluation().run(lm, Chains(**FEW), FastSampler(max_tokens=8), **during)
    before = [path.stat().st_mtime_ns for path in run_dir.glob("eval/*/*")]
    assert score_run(run_dir, Evaluation()) == scores
    assert [path.stat().st_mtime_ns for path in run_dir.glob("eval/*/*")] == before


def test_other_evaluations_go_beside(run_dir):
    score_run(run_dir, Evaluation(limit=3))
    score_run(run_dir, Evaluation(limit=2))
    assert sorted(
        json.loads(path.read_text().splitlines()[0])["n_questions"] for path in run_dir.glob("eval/*/aggregate.jsonl")
    ) == [2, 3]


def test_noise_never_reaches_an_evaluation(run_dir):
    """One checkpoint, trained without noise or with half the rewards flipped: the same rows but for the names."""
    config, manifest = ((run_dir / name).read_text() for name in ("config.yaml", "manifest.json"))
    found = []
    for name, noise in (("none", "noisyrl.noise.none.NoNoise"), ("flip0.5", "noisyrl.noise.flip.Flip")):
        settings = {"noise": {"_target_": noise} | ({"rate": 0.5} if name == "flip0.5" else {})}
        (run_dir / "config.yaml").write_text(config + yaml.safe_dump(settings))
        written = json.loads(manifest)
        written["choices"]["noise"] = name
        (run_dir / "manifest.json").write_text(json.dumps(written))
        score_run(run_dir, Evaluation(protocol="avgk", k=2, temperature=1.0, keep_text=True))
        (folder,) = run_dir.glob("eval/*")
        rows = store.read_aggregate(folder)
        assert {row.pop("noise") for row in rows} == {name}
        found.append((folder.name, rows, store.read_samples(folder).to_pylist(), store.read_texts(folder)))
        folder.rename(run_dir / f"eval-{name}")
    assert found[0] == found[1]


def test_its_scores_are_mirrored_beside_the_training_run(run_dir, private_wandb):
    evaluation = Evaluation(limit=2)
    scores = score_run(run_dir, evaluation, logger=WandbLogger())
    (folder,) = run_dir.glob("eval/*")
    records = read_back(run_dir)
    run, config = started(records), configured(records)
    assert (run.job_type, run.run_group, run.display_name) == ("eval", "abc", "first-eval")
    assert run.run_id == f"abc-s0-a1-{folder.name}"
    assert config["eval"]["limit"] == 2 and config["data"]["train_items"] == 4 and config["eval_id"] == folder.name
    assert (config["tier"], config["choices"]["algo"]) == ("smoke", "ppo")
    (row,) = history(records)
    assert row["global_step"] == 10 and {f"eval/{name}" for name in scores} < set(row)
    assert all(row[f"eval/{name}"] == value for name, value in scores.items())
    # The same evaluation again goes on with the same run, another one is a run of its own.
    seen = []

    class Noting(JsonlLogger):
        def backend(self, run_dir, about):
            seen.append(about["run_id"])

    score_run(run_dir, evaluation, logger=Noting())
    score_run(run_dir, Evaluation(limit=3), logger=Noting())
    assert seen[0] == run.run_id != seen[1]


def test_unknown_and_unfinished_runs_are_explained(run_dir):
    with pytest.raises(InputError, match="no run at .*second; runs there: first"):
        score_run(run_dir.parent / "second", Evaluation())
    with pytest.raises(InputError, match="asks for ood, but the run's data has train, test: nothing is held out"):
        data = {"_target_": "noisyrl.tasks.jsonl.JsonlTask", "path": "a.jsonl", "eval_path": "b.jsonl"}
        config = yaml.safe_load((run_dir / "config.yaml").read_text())
        (run_dir / "config.yaml").write_text(yaml.safe_dump(config | {"data": data}))
        score_run(run_dir, Evaluation(splits=("ood",)))
    (run_dir / "checkpoints").rename(run_dir / "lost")
    with pytest.raises(InputError, match="holds no checkpoint"):
        score_run(run_dir, Evaluation())


def test_damaged_weights_are_refused(run_dir):
    (run_dir / "checkpoints/step_000010/config.json").write_text("{}")
    with pytest.raises(InputError, match="step_000010 is damaged: config.json"):
        score_run(run_dir, Evaluation())


@pytest.mark.parametrize("name", [path.stem for path in (ROOT / "conf/eval").glob("*.yaml")])
def test_every_eval_option_builds(name):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        assert isinstance(instantiate(compose("eval", [f"eval={name}", "run=x"]).eval), Evaluation)


def test_scoring_has_the_mirrors_of_training():
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        found = [instantiate(compose("eval", ["run=x", *words]).logger) for words in ([], ["logger=wandb"])]
        assert found == [JsonlLogger(), WandbLogger()] and found[1].mode == "offline"


def test_the_command(run_dir, private_wandb):
    def command(*arguments):
        return subprocess.run(
            [sys.executable, str(ROOT / "src/eval.py"), f"runs={run_dir.parent}", *arguments], text=True,
            capture_output=True, cwd=run_dir.parent, env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        )  # fmt: skip

    done = command("run=first", "eval=smoke", "eval.limit=2", "logger=wandb")
    assert done.returncode == 0, done.stderr
    assert len(files(run_dir)) == 1 and "warning" not in done.stderr
    assert "testbed_math_ood/truncated" in done.stdout and "4/4 answered" in done.stderr
    assert len(list(run_dir.glob("eval/*/samples.parquet"))) == 1
    assert sorted(path.name for path in run_dir.parent.iterdir()) == ["first"]
    wrong = command("run=other")
    assert wrong.returncode != 0 and "runs there: first" in wrong.stderr and "Traceback" not in wrong.stderr
