"""Public benchmarks from small files with the columns of the real ones."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lm_eval.tasks import TaskManager

from noisyrl.evaluation import regrade, store
from noisyrl.evaluation.benchmarks import LM_TASKS
from noisyrl.evaluation.harness import Evaluation
from noisyrl.evaluation.rows import text_hash
from noisyrl.spec import InputError
from noisyrl.tasks.hub import SOURCES, HubTask, inventory, public_benchmark
from noisyrl.tasks.jsonl import INSTRUCTIONS
from tests.evaluation.stage import Scripted, Toy, random_model

ROWS = {
    "math500": [
        {"problem": "Half of 1?", "solution": "...", "answer": "\\frac{1}{2}", "subject": "Algebra", "level": 1,
         "unique_id": "test/algebra/1.json"},
    ],
    "aime24": [{"id": 60, "problem": "Sum?", "solution": "...", "answer": "073", "url": "https://", "year": "2024"}],
    "aime25": [{"problem": "Bases?", "answer": "70", "id": "0"}],
    "amc23": [{"id": 0, "question": "How many?", "answer": 27.0, "url": "https://"}],
    "minerva": [{"question": "What charge?", "answer": "1.6e-19"}],
    "gpqa_diamond": [
        {"Record ID": f"rec{i}", "Question": f"Which element {i}?", "Correct Answer": "K ", "Subdomain": "Chemistry",
         "Incorrect Answer 1": "Na", "Incorrect Answer 2": "Li", "Incorrect Answer 3": "Rb"} for i in range(40)
    ],
    "supergpqa": [
        {"uuid": "u1", "question": "Which?", "options": ["one", "two", "three"], "answer": "two", "answer_letter": "B",
         "discipline": "Science", "field": "Physics", "subfield": "Optics", "difficulty": "easy"},
    ],
}  # fmt: skip
SAID = {
    "math500": (r"\boxed{0.5}", r"\boxed{0.6}"), "aime24": (r"\boxed{73}", r"\boxed{74}"),
    "aime25": (r"\boxed{70}", "70"), "amc23": (r"\boxed{27}", r"\boxed{27.5}"),
    "minerva": (r"\boxed{1.602 \times 10^{-19}}", r"\boxed{1.7 \times 10^{-19}}"),
}  # fmt: skip


@pytest.fixture
def root(tmp_path) -> str:
    """A folder with all benchmarks, each in the format of its data set."""
    for name, rows in ROWS.items():
        folder = tmp_path / "data" / name / ("data" if name == "aime24" else ".")
        folder.mkdir(parents=True)
        (folder / "README.md").write_text("not data")
        if name == "aime24":
            pq.write_table(pa.Table.from_pylist(rows), folder / "train-00000-of-00001.parquet")
        elif name == "gpqa_diamond":
            for stem in ("gpqa_diamond", "gpqa_main"):
                with (folder / f"{stem}.csv").open("w", newline="") as file:
                    writer = csv.DictWriter(file, list(rows[0]))
                    writer.writeheader()
                    writer.writerows(rows)
        else:
            (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "data")


@pytest.mark.parametrize("name", SAID)
def test_free_answers(root, name):
    task = HubTask(name=name, root=root)
    (prompt,) = task.prompts("test")
    question = ROWS[name][0].get("problem") or ROWS[name][0]["question"]
    assert prompt.messages == ({"role": "user", "content": f"{question}\n\n{INSTRUCTIONS['math']}"},)
    assert prompt.task == f"hub_{name}" and prompt.uid.startswith(f"hub:{name}:")
    assert [task.grade(prompt, [text]).score for text in SAID[name]] == [1, 0]
    assert task.graded_by(prompt) == ("rounded@v1" if name == "minerva" else "math@v2")


def test_columns_that_name_and_sort_questions(root):
    (math,), (charge,) = (HubTask(name=name, root=root).prompts("test") for name in ("math500", "minerva"))
    assert (math.uid, math.domain) == ("hub:math500:test/algebra/1.json", "Algebra")
    assert len(charge.uid) == len("hub:minerva:") + 16 and charge.domain == "minerva"


def test_choices_are_ordered_by_a_hash(root):
    task = HubTask(name="gpqa_diamond", root=root)
    prompts = task.prompts("test")
    assert len(prompts) == 40 and set(Counter(prompt.answer for prompt in prompts)) == set("ABCD")
    for prompt in prompts:
        text = prompt.messages[0]["content"]
        assert f"\n{prompt.answer}) K\n" in text and text.endswith(INSTRUCTIONS["letter"])
        assert task.grade(prompt, [f"Answer: {prompt.answer}"]).score == 1
    assert prompts == HubTask(name="gpqa_diamond", root=root).prompts("test")
    (prompt,) = HubTask(name="supergpqa", root=root).prompts("test")
    assert f"\n{prompt.answer}) two\n" in prompt.messages[0]["content"] and prompt.domain == "Optics"


def test_a_large_set_is_sampled_by_hash(root, monkeypatch):
    rows = [ROWS["supergpqa"][0] | {"uuid": str(i)} for i in range(50)]
    file = Path(root) / "supergpqa/test.jsonl"
    monkeypatch.setitem(SOURCES, "supergpqa", SOURCES["supergpqa"].__class__("r", "letter", 50, take=10))
    chosen = []
    for order in (rows, rows[::-1]):
        file.write_text("".join(json.dumps(row) + "\n" for row in order))
        chosen.append({prompt.uid for prompt in HubTask(name="supergpqa", root=root).prompts("test")})
    assert chosen[0] == chosen[1] and len(chosen[0]) == 10


def test_what_is_missing_or_damaged_is_named(root):
    with pytest.raises(InputError, match="no data files in nowhere/amc23/.*hf download math-ai/amc23 --repo-type"):
        HubTask(name="amc23", root="nowhere").prompts("test")
    with pytest.raises(InputError, match="no public benchmark 'mmlu'; there are: math500"):
        public_benchmark("mmlu")
    file = Path(root) / "amc23/test.jsonl"
    file.write_text('{"id": 1, "text": "q", "answer": "2"}')
    with pytest.raises(InputError, match="test.jsonl:1: none of the columns problem, question; the row has answer, id"):
        HubTask(name="amc23", root=root).prompts("test")
    file.write_text('{"question": "secret')
    with pytest.raises(InputError, match="test.jsonl cannot be read") as refused:
        HubTask(name="amc23", root=root).prompts("test")
    assert "secret" not in str(refused.value)
    pq.write_table(pa.Table.from_pylist(ROWS["amc23"]), file.with_suffix(".parquet"))
    with pytest.raises(InputError, match="several formats"):
        HubTask(name="amc23", root=root).prompts("test")


def test_inventory(root):
    lines = inventory(root)
    assert [line.split()[0] for line in lines] == list(SOURCES)
    assert lines[5] == f"gpqa_diamond  40 questions in {root}/gpqa_diamond/"
    missing = inventory("nowhere")
    assert all("missing; hf download" in line for line in missing) and "accept its terms" in missing[5]


@pytest.fixture(scope="module")
def lm():
    return random_model()


def occasion(tmp_path):
    identity = {"run_id": "a", "cell_id": "b", "seed": 0, "algo": "ppo", "noise": "flip", "model": "t"}
    identity |= {"train_domain": "toy"}
    return {"run_info": identity, "step": 1, "checkpoint_hash": "c", "out_dir": tmp_path / "eval"}


def test_they_are_asked_beside_the_runs_own(lm, root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evaluation = Evaluation(splits=("test",), hub=("math500", "gpqa_diamond"), keep_text=True)
    said = {"toy": "yes", "hub_math500": r"\boxed{1/2}", "hub_gpqa_diamond": "Answer: A"}
    sampler = Scripted(script=lambda prompt, turns: said[prompt.task])
    scores = evaluation.run(lm, Toy(), sampler, **occasion(tmp_path))
    assert scores["toy/acc"] == scores["hub_math500/acc"] == 1 and 0 < scores["hub_gpqa_diamond/acc"] < 1
    (folder,) = (tmp_path / "eval").iterdir()
    rows = {row["benchmark"]: row for row in store.read_aggregate(folder)}
    assert [rows[name]["scorer_version"] for name in said] == ["1", "math@v2", "letter@v2"]
    # Gated: neither question nor answer is stored, only hashes; so it cannot be graded again.
    assert {text["benchmark"] for text in store.read_texts(folder)} == {"toy", "hub_math500"}
    stored = b"".join(path.read_bytes() for path in folder.iterdir())
    assert b"Which element" not in stored and text_hash("A").encode() in stored
    with pytest.raises(InputError, match="answers to hub_gpqa_diamond may not be stored"):
        regrade.regrade(folder, Toy())


def test_gated_texts_alone_are_not_asked_for_again(lm, root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evaluation = Evaluation(splits=(), hub=("gpqa_diamond",), keep_text=True, limit=3)
    for _ in range(2):
        evaluation.run(lm, Toy(), Scripted(script=lambda prompt, turns: "Answer: A"), **occasion(tmp_path))
    assert [path.name for path in (tmp_path / "eval").iterdir() if path.name == store.SUPERSEDED] == []


def test_lm_evals_own_command_line_finds_them(root):
    fields = {f"hub_{name}": {"root": root} for name in SOURCES}
    manager = TaskManager(include_path=str(LM_TASKS), include_defaults=False, metadata={"fields": fields})
    loaded = manager.load(list(fields))["tasks"]
    assert {name: len(task.dataset["test"]) for name, task in loaded.items()} == {
        f"hub_{name}": len(rows) for name, rows in ROWS.items()
    }
