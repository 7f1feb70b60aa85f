"""The same task files under lm-eval's own model and command line give the scores of our harness."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lm_eval.tasks import TaskManager

from noisyrl.evaluation.benchmarks import LM_TASKS
from noisyrl.evaluation.harness import Evaluation
from noisyrl.evaluation.sampler_lm import SamplerLM
from noisyrl.evaluation.store import read_samples, read_texts
from noisyrl.models.base import LanguageModel
from noisyrl.rollout.hf import GenerateSampler
from noisyrl.spec import InputError
from noisyrl.tasks.dialogue import Bookings
from noisyrl.tasks.math import Chains
from noisyrl.tasks.science import Facts
from tests.evaluation.stage import random_model

ROOT = Path(__file__).parents[2]
SUMS = {"min_steps": 1, "max_steps": 1, "ood_max_steps": 2, "max_operand": 1, "train_items": 5, "heldout_items": 5}
SMALL = {"train_items": 4, "heldout_items": 6}
FIELDS = {
    "testbed_math": SUMS, "testbed_science": SMALL, "testbed_dialogue": SMALL, "testbed_dialogue_step": {}
}  # fmt: skip


@pytest.fixture(scope="module")
def learner() -> LanguageModel:
    """A model that has learnt some sums, so that right and wrong answers both occur."""
    lm = random_model(64, spread=0.05)
    texts = []
    for prompt in [*Chains(**SUMS).prompts("train"), *Chains(**SUMS).prompts("test")[:3]]:
        turns = [*prompt.messages, {"role": "assistant", "content": f"so ans {prompt.answer}"}]
        texts.append(lm.tokenizer.apply_chat_template(turns, tokenize=False))
    batch = lm.tokenizer(texts, return_tensors="pt", padding=True)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.Adam(lm.model.parameters(), lr=3e-3)
    for _ in range(150):
        lm.model(batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return lm


def harness_answers(lm, occasion, task, benchmark) -> dict[str, tuple[float, str]]:
    """{question: (score, text)} by our harness."""
    where = occasion | {"out_dir": occasion["out_dir"] / benchmark}
    Evaluation(splits=("test",), keep_text=True).run(lm, task, GenerateSampler(max_tokens=64), **where)
    (folder,) = where["out_dir"].iterdir()
    texts = read_texts(folder)
    scores = {row["qid"]: row["score"] for row in read_samples(folder).to_pylist()}
    return {row["qid"]: (scores[row["qid"]], " | ".join(row["turns"])) for row in texts}


def lm_eval_answers(samples) -> dict[str, tuple[float, str]]:
    return {sample["doc"]["uid"]: (sample["acc"], sample["resps"][0][0].strip()) for sample in samples}


def test_same_answers_from_lm_evals_own_model(learner, occasion):
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    names = ["testbed_math", "testbed_science"]
    ours = {
        "testbed_math": harness_answers(learner, occasion, Chains(**SUMS), "testbed_math"),
        "testbed_science": harness_answers(learner, occasion, Facts(**SMALL), "testbed_science"),
    }
    manager = TaskManager(include_path=str(LM_TASKS), include_defaults=False, metadata={"fields": FIELDS})
    model = HFLM(pretrained=learner.model, tokenizer=learner.tokenizer, batch_size=4)
    results = simple_evaluate(
        model, tasks=names, task_manager=manager, apply_chat_template=True, bootstrap_iters=0, log_samples=True
    )
    assert {name: lm_eval_answers(results["samples"][name]) for name in names} == ours
    assert {score for score, _ in ours["testbed_math"].values()} == {0.0, 1.0}
    accuracy = sum(score for score, _ in ours["testbed_math"].values()) / len(ours["testbed_math"])
    assert results["results"]["testbed_math"]["acc,none"] == accuracy


class OneShot:
    """Stands for any model of lm-eval: it has a chat template, and cannot be told what comes."""

    def apply_chat_template(self, messages, add_generation_prompt=True):
        return str(messages)


def load(name, **fields):
    manager = TaskManager(include_path=str(LM_TASKS), include_defaults=False, metadata={"fields": {name: fields}})
    return manager.load([name])["tasks"][name]


@pytest.mark.parametrize("name", ["testbed_dialogue", "testbed_dialogue_ood"])
def test_played_dialogue_refuses_models_that_are_asked_once(name):
    with pytest.raises(InputError, match=f"{name} is played turn by turn, but OneShot can be asked only once"):
        load(name, **SMALL).build_all_requests(chat_template=OneShot().apply_chat_template, apply_chat_template=True)


def test_missing_chat_template_is_refused():
    with pytest.raises(InputError, match="add --apply_chat_template"):
        load("testbed_math", **SMALL).build_all_requests(chat_template=None)


def test_foreign_tasks_are_refused(lm):
    class Request:
        task_name, doc = "gsm8k", {"uid": "1"}

    with pytest.raises(InputError, match="for gsm8k use --model hf"):
        SamplerLM(lm, GenerateSampler()).generate_until([Request()])


def command_line(module: list[str], out: Path, *arguments: str) -> dict[str, dict[str, tuple[float, str]]]:
    """Run lm-eval in a process of its own; the answers it logged, by task."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHONPATH": str(ROOT / "src")}
    command = [
        *module, "run", *arguments, "--include_path", str(LM_TASKS), "--apply_chat_template", "--log_samples",
        "--output_path", str(out), "--metadata", json.dumps({"fields": FIELDS}), "--batch_size", "4", "--device", "cpu",
    ]  # fmt: skip
    done = subprocess.run(command, env=os.environ | offline, capture_output=True, text=True, cwd=out.parent)
    assert done.returncode == 0, done.stderr[-2000:]
    found = {}
    for path in out.rglob("samples_*.jsonl"):
        name = path.name.removeprefix("samples_").rsplit("_", 1)[0]
        found[name] = lm_eval_answers([json.loads(line) for line in path.read_text().splitlines()])
    return found


@pytest.mark.slow
def test_same_answers_from_the_command_line(learner, occasion, tmp_path):
    exported = tmp_path / "exported"
    learner.model.save_pretrained(exported)
    learner.tokenizer.save_pretrained(exported)
    math = harness_answers(learner, occasion, Chains(**SUMS), "testbed_math")
    dialogue = harness_answers(learner, occasion, Bookings(**SMALL), "testbed_dialogue")
    lm_eval = [str(Path(sys.executable).with_name("lm_eval"))]
    plain = command_line(
        lm_eval, tmp_path / "hf", "--model", "hf", "--model_args", f"pretrained={exported},dtype=float32",
        "--tasks", "testbed_math,testbed_dialogue_step", "--limit", "5",
    )  # fmt: skip
    assert plain["testbed_math"] == math and len(plain["testbed_dialogue_step"]) == 5
    ours = command_line(
        [sys.executable, "-m", "noisyrl.evaluation"], tmp_path / "ours", "--model", "noisyrl",
        "--model_args", f"pretrained={exported}", "--tasks", "testbed_math,testbed_dialogue",
    )  # fmt: skip
    assert ours["testbed_math"] == math
    played = {uid: (score, " | ".join(json.loads(text))) for uid, (score, text) in ours["testbed_dialogue"].items()}
    assert played == dialogue
