"""Public benchmarks and training sets from made-up files, from decontamination to graded answers."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import pytest

from noisyrl.evaluation import regrade, store
from noisyrl.evaluation.harness import Evaluation
from noisyrl.evaluation.run_folder import score_run
from noisyrl.labelling import Labelling
from noisyrl.launch import build, resolve
from noisyrl.models.pretrained import Pretrained
from noisyrl.rollout.fast import FastSampler
from noisyrl.spec import InputError
from noisyrl.tasks import graders
from noisyrl.tasks.decontaminate import decontaminate
from noisyrl.tasks.hub import SOURCES
from noisyrl.tasks.hub_train import HubTraining
from tests.evaluation.stage import Scripted, Toy, random_model
from tests.frame import ROOT, composed
from tests.short_run import save_model
from tests.tasks import made_up_hub


@pytest.fixture
def root(tmp_path, monkeypatch) -> str:
    """Where a user would stand: `data` below the working directory, nothing else fetched."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    made_up_hub.write(tmp_path / "data")
    return "data"


def words_of(prompt, turns):
    """Right answers in one spelling or another."""
    return {"toy": "yes", "hub_math500": r"\boxed{1/2}"}.get(
        prompt.task, f"\\boxed{{{prompt.answer}}}\nAnswer: {prompt.answer}"
    )


def test_they_are_asked_beside_the_runs_own(lm, root, occasion, monkeypatch):
    evaluation = Evaluation(splits=("test",), hub=("math500", "gpqa_diamond"), keep_text=True)
    said = {"toy": "yes", "hub_math500": r"\boxed{1/2}", "hub_gpqa_diamond": "Answer: A"}
    scores = evaluation.run(lm, Toy(), Scripted(script=lambda prompt, turns: said[prompt.task]), **occasion)
    assert scores["toy/acc"] == scores["hub_math500/acc"] == 1 and 0 < scores["hub_gpqa_diamond/acc"] < 1
    (folder,) = occasion["out_dir"].iterdir()
    rows = {row["benchmark"]: row for row in store.read_aggregate(folder)}
    assert [rows[name]["scorer_version"] for name in said] == ["1", "math@v3", "letter@v3"]
    assert {text["benchmark"] for text in store.read_texts(folder)} == {"toy", "hub_math500"}
    # Gated answers keep their scores while their rule stays as it is; they cannot be graded by another one.
    assert regrade.regrade(folder, Toy()).after == folder
    monkeypatch.setitem(graders.VERSIONS, "math", "math@v9")
    moved = regrade.regrade(folder, Toy()).after
    again = {row["benchmark"]: row for row in store.read_aggregate(moved)}
    assert {name: again[name]["value"] for name in said} == {name: rows[name]["value"] for name in said}
    assert again["hub_math500"]["scorer_version"] == "math@v9" and moved != folder
    monkeypatch.setitem(graders.VERSIONS, "letter", "letter@v9")
    with pytest.raises(InputError, match="answers to hub_gpqa_diamond may not be stored.*new rules.*src/eval.py"):
        regrade.regrade(moved, Toy())


def test_of_gated_sets_hashes_are_stored_and_nothing_else(lm, root, occasion):
    gated = tuple(name for name, source in SOURCES.items() if source.files.gated)
    assert gated == ("gpqa_diamond", "gpqa_open", "hle_text")
    evaluation = Evaluation(
        splits=("test",), hub=gated, keep_text=True, protocol="avgk", k=2, temperature=1.0, enable_thinking=False
    )
    sampler = Scripted(script=words_of)

    def twice(self, lm, task, prompts, *, seed, step):
        doubled = [prompt for prompt in prompts for _ in range(2)]
        return original(self, lm, task, doubled, seed=seed, step=step)

    original = Scripted.__call__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scripted, "__call__", twice)
        scores = evaluation.run(lm, Toy(), sampler, **occasion)
    assert all(scores[f"hub_{name}/acc"] == scores[f"hub_{name}/maj@2"] == 1 for name in gated), scores
    (folder,) = occasion["out_dir"].iterdir()
    stored = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file()).lower()
    for secret in (b"which element", b"kalium", b"deep question", b"both", b"frac", b"canary", b"because"):
        assert secret not in stored, secret
    columns = store.read_samples(folder)
    extracted = {row["extracted"] for row in columns.to_pylist() if row["benchmark"] == "hub_gpqa_open"}
    (only,) = extracted
    assert only == f"sha256:{hashlib.sha256(b'kalium').hexdigest()[:16]}"


def test_gated_texts_alone_are_not_asked_for_again(lm, root, occasion):
    evaluation = Evaluation(splits=(), hub=("gpqa_diamond",), keep_text=True, limit=3)
    for _ in range(2):
        evaluation.run(lm, Toy(), Scripted(script=lambda prompt, turns: "Answer: A"), **occasion)
    assert [path.name for path in occasion["out_dir"].iterdir() if path.name == store.SUPERSEDED] == []


def test_what_was_trained_on_decides_what_is_out_of_distribution(root):
    decontaminate("light_r1", root)
    evaluation = Evaluation(splits=("test",), hub=("math500", "supergpqa", "simpleqa"))
    suites = {each.name: each.suite for each in evaluation.benchmarks(HubTraining(name="light_r1", root=root))}
    assert suites == {"hub_math500": "ID", "hub_supergpqa": "OOD", "hub_simpleqa": "OOD"}
    decontaminate("supergpqa", root)
    suites = {each.name: each.suite for each in evaluation.benchmarks(HubTraining(name="supergpqa", root=root))}
    assert suites == {"hub_math500": "OOD", "hub_supergpqa": "ID", "hub_simpleqa": "ID"}
    assert {each.suite for each in evaluation.benchmarks(Toy())} == {"ID"}


def test_an_evaluation_has_its_own_limit_and_mode(lm, root, occasion):
    seen = []

    def script(prompt, turns):
        return "yes"

    class Seen(Scripted):
        def __call__(self, *given, **keys):
            seen.append((self.max_tokens, self.enable_thinking))
            return super().__call__(*given, **keys)

    for changed in ({}, {"max_tokens": 30}, {"enable_thinking": False}, {"enable_thinking": True}):
        Evaluation(splits=("test",), **changed).run(lm, Toy(), Seen(script=script, max_tokens=20), **occasion)
    assert seen == [(20, False), (30, False), (20, False), (20, True)]
    assert len(list(occasion["out_dir"].iterdir())) == 4, "each is an evaluation of its own"


def test_an_answer_that_does_not_fit_the_context_is_refused(lm, root, occasion):
    with pytest.raises(InputError, match="hub:math500:test/algebra/1.json has .* tokens.*512.*eval.max_tokens=500"):
        Evaluation(splits=(), hub=("math500",), max_tokens=500).run(lm, Toy(), Scripted(script=words_of), **occasion)


@pytest.fixture
def model(tmp_path) -> str:
    save_model(tmp_path / "model")
    return str(tmp_path / "model")


GROUPS = ("algo", "correction", "data", "eval", "logger", "model", "noise", "rollout", "trainer")
SMALL = ["data=light_r1", "eval=hub", "eval.k=2", "eval.max_tokens=6", "rollout.max_tokens=6", "rollout.samples=2"]
SMALL += ["trainer.prompts=2", "trainer.steps=2", "model=pretrained", "name=x", "runs=runs"]


def train(*overrides):
    config = resolve(composed(*SMALL, *overrides))
    return build(config).run(config, {group: "made-up" for group in GROUPS})


def test_from_files_to_graded_answers(root, model, tmp_path, monkeypatch):
    """Fetched files -> decontaminate -> labels -> train -> eval=hub -> regrade."""
    with pytest.raises(InputError, match="light_r1.report.json is missing.*make decontaminate"):
        train(f"model.path={model}")
    assert not (tmp_path / "runs/x").exists()
    decontaminate("light_r1", root)
    labels = Labelling(
        data=HubTraining(name="light_r1"), model=Pretrained(path=model), rollout=FastSampler(max_tokens=6), votes=2
    ).run(tmp_path / "labels.jsonl")
    assert len(labels) == len(made_up_hub.LIGHT_R1) and {label.text for label in labels} == {None}
    # The random model never answers: labels are put in its mouth, and its answers are graded by chance.
    said = (tmp_path / "labels.jsonl").read_text().replace('"label": null', '"label": "-1"')
    (tmp_path / "labels.jsonl").write_text(said.replace('"share": 0.0', '"share": 1.0'))
    train(f"model.path={model}", "noise=majority_labels", "noise.path=labels.jsonl")
    run = tmp_path / "runs/x"
    manifest = json.loads((run / "manifest.json").read_text())
    report = tmp_path / "data/decontaminated/light_r1.report.json"
    assert manifest["inputs"]["data"]["report_sha256"] == hashlib.sha256(report.read_bytes()).hexdigest()
    assert manifest["status"] == "completed" and manifest["inputs"]["train_prompts"] == 12
    assert {name for name in manifest["scores"] if name.endswith("/acc")} == {
        f"eval/hub_{name}/acc" for name in ("math500", "aime24", "amc23", "minerva")
    }
    rows = [json.loads(line) for line in (run / "labels.jsonl").read_text().splitlines()[1:]]
    assert {row["label"] for row in rows} == {"-1"} and all(row["right"] != "-1" for row in rows)
    monkeypatch.setitem(graders.VERSIONS, "math", "math@v9")
    done = regrade.regrade_run(run)
    assert len(done) == 2 and all(each.before != each.after and each.changed == 0 for each in done)


def test_a_report_that_does_not_fit_stops_the_run(root, model, tmp_path):
    decontaminate("light_r1", root)
    data = tmp_path / "data/decontaminated/light_r1.jsonl"
    data.write_text(data.read_text().replace("apples", "plums"))
    with pytest.raises(InputError, match="is not the file that"):
        train(f"model.path={model}")
    assert not (tmp_path / "runs/x").exists()


def test_an_unfinished_run_refuses_other_data(root, model, tmp_path):
    decontaminate("light_r1", root)
    train(f"model.path={model}", "eval.hub=[amc23]", "eval.at_start=false")
    manifest = tmp_path / "runs/x/manifest.json"
    manifest.write_text(manifest.read_text().replace('"completed"', '"killed"'))
    made_up_hub.write(tmp_path / "data", light_r1=made_up_hub.LIGHT_R1[:8])
    decontaminate("light_r1", root)
    with pytest.raises(InputError, match="runs/x began with other training data"):
        train(f"model.path={model}", "eval.hub=[amc23]", "eval.at_start=false")


def test_a_benchmark_fetched_after_decontamination_stops_the_run_and_its_scoring(root, model, tmp_path):
    aside = tmp_path / "data/math500/test.jsonl"
    aside.rename(tmp_path / "aside")
    decontaminate("light_r1", root)
    train(f"model.path={model}", "eval.hub=[amc23]", "eval.at_start=false")
    (tmp_path / "aside").rename(aside)
    with pytest.raises(InputError, match="none of its questions of math500"):
        train(f"model.path={model}", "eval.hub=[math500]", "name=y")
    assert not (tmp_path / "runs/y").exists()
    # Comparing afterwards does not help the run that was trained before.
    decontaminate("light_r1", root)
    with pytest.raises(InputError, match="none of its questions of math500"):
        score_run(tmp_path / "runs/x", Evaluation(splits=(), hub=("math500",), max_tokens=6))
    assert score_run(tmp_path / "runs/x", Evaluation(splits=(), hub=("amc23",), max_tokens=6))


@pytest.mark.parametrize("name", ["light_r1", "supergpqa"])
def test_the_option_composes_without_files(name, tmp_path):
    command = [sys.executable, str(ROOT / "src/train.py"), f"data={name}", "--cfg", "job"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and f"name: {name}" in done.stdout and not list(tmp_path.iterdir())


def test_random_models_have_room(lm):
    assert lm.max_context == random_model().max_context == 512
