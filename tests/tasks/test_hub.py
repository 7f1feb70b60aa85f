"""Public benchmarks from small files with the columns of the real ones."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from lm_eval.tasks import TaskManager

from noisyrl.evaluation import benchmarks
from noisyrl.evaluation.benchmarks import LM_TASKS
from noisyrl.spec import InputError
from noisyrl.tasks import hub_files
from noisyrl.tasks.hub import SOURCES, HubTask, inventory, is_held_out, public_benchmark
from noisyrl.tasks.hub_files import text_hash
from noisyrl.tasks.jsonl import INSTRUCTIONS
from tests.tasks import made_up_hub
from tests.tasks.made_up_hub import ROWS

SAID = {
    "math500": (r"\boxed{0.5}", r"\boxed{0.6}"), "aime24": (r"\boxed{73}", r"\boxed{74}"),
    "aime25": (r"\boxed{70}", "70"), "amc23": (r"\boxed{27}", r"\boxed{27.5}"),
    "minerva": (r"\boxed{1.61 \times 10^{-19} \text{ C}}", r"\boxed{1.7 \times 10^{-19}}"),
    "simpleqa": ("Answer: 20 July 1969", "Answer: July 1969"),
}  # fmt: skip
ASKED = {name: 1 for name in SAID} | {"gpqa_diamond": 40, "gpqa_open": 40, "hle_text": 3, "mmlu_pro": 80}


@pytest.fixture(autouse=True)
def no_cache(tmp_path, monkeypatch):
    """What this machine has fetched before is not to be found."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path) -> str:
    return made_up_hub.write(tmp_path / "data")


@pytest.mark.parametrize("name", SAID)
def test_free_answers(root, name):
    task = HubTask(name=name, root=root)
    (prompt,) = task.prompts("test")
    question = ROWS[name][0].get("problem") or ROWS[name][0]["question"]
    rule = {"minerva": "rounded@v3", "simpleqa": "freetext@v2"}.get(name, "math@v3")
    asked = f"{question}\n\n{INSTRUCTIONS[rule.partition('@')[0]]}"
    assert prompt.messages == ({"role": "user", "content": asked},)
    assert prompt.task == f"hub_{name}" and prompt.uid.startswith(f"hub:{name}:")
    assert [task.grade(prompt, [text]).score for text in SAID[name]] == [1, 0]
    assert task.graded_by(prompt) == rule


def test_columns_that_name_and_sort_questions(root):
    (math,), (charge,) = (HubTask(name=name, root=root).prompts("test") for name in ("math500", "minerva"))
    assert (math.uid, math.domain) == ("hub:math500:test/algebra/1.json", "Algebra")
    assert len(charge.uid) == len("hub:minerva:") + 16 and charge.domain == "minerva"


@pytest.mark.parametrize("name", ["gpqa_diamond", "mmlu_pro", "supergpqa"])
def test_choices_are_ordered_by_a_hash(root, name):
    task = HubTask(name=name, root=root)
    prompts = task.prompts("test")
    right, count = {"gpqa_diamond": ("Kalium", 4), "mmlu_pro": ("c", 3), "supergpqa": ("two", 3)}[name]
    assert len(prompts) > 30 and set(Counter(prompt.answer for prompt in prompts)) == set("ABCD"[:count])
    for prompt in prompts:
        text = prompt.messages[0]["content"]
        assert f"\n{prompt.answer}) {right}\n" in text and text.endswith(INSTRUCTIONS["letter"])
        assert f"{'ABCDE'[count]})" not in text
        assert task.grade(prompt, [f"Answer: {prompt.answer}"]).score == 1
    assert prompts == HubTask(name=name, root=root).prompts("test")


def test_the_order_of_options_is_that_of_their_hashes(root):
    prompt = HubTask(name="gpqa_diamond", root=root).prompts("test")[5]
    options = ["Kalium", "Na", "Li", "Rb"]
    order = sorted(range(4), key=lambda i: text_hash(f"hub:gpqa_diamond:rec5:{i}"))
    listed = [line[3:] for line in prompt.messages[0]["content"].splitlines() if line[1:3] == ") "]
    assert listed == [options[i] for i in order]


def test_gpqa_without_its_options(root):
    task = HubTask(name="gpqa_open", root=root)
    prompt = task.prompts("test")[0]
    assert prompt.messages[0]["content"] == f"Which element 0?\n\n{INSTRUCTIONS['freetext']}"
    assert [task.grade(prompt, [said]).score for said in ("Answer: kalium", "Answer: Na")] == [1, 0]
    assert task.gated and task.graded_by(prompt) == "freetext@v2"


def test_hle_is_graded_by_type_and_leaves_pictures_out(root):
    task = HubTask(name="hle_text", root=root)
    prompts = task.prompts("test")
    assert [prompt.uid for prompt in prompts] == ["hub:hle_text:h0", "hub:hle_text:h1", "hub:hle_text:h3"]
    # A choice whose answer is no letter is compared as a text.
    assert [task.graded_by(prompt) for prompt in prompts] == ["letter@v3", "freetext@v2", "freetext@v2"]
    said = (("Answer: B", "Answer: A"), ("Answer: 0.5", "Answer: 0.6"), ("Answer: Both", "Answer: one"))
    for prompt, pair in zip(prompts, said, strict=True):
        assert [task.grade(prompt, [text]).score for text in pair] == [1, 0]
    (found,) = benchmarks.find(task, ("test",))
    assert found.graders == ("freetext@v2", "letter@v3") and found.gated


def test_supergpqa_asks_held_out_subfields_only(root):
    asked = {prompt.uid for prompt in HubTask(name="supergpqa", root=root).prompts("test")}
    held_out = {f"hub:supergpqa:{row['uuid']}" for row in ROWS["supergpqa"] if is_held_out(row)}
    subfields = {row["subfield"] for row in ROWS["supergpqa"]}
    of_subfield = {
        name: {is_held_out(row) for row in ROWS["supergpqa"] if row["subfield"] == name} for name in subfields
    }
    assert asked == held_out and all(len(parts) == 1 for parts in of_subfield.values())
    # The split is fixed for ever: these hashes must not move.
    assert sorted(name for name, parts in of_subfield.items() if parts == {True}) == HELD_OUT_SUBFIELDS


HELD_OUT_SUBFIELDS = ["Optics 12", "Optics 24", "Optics 25", "Optics 26", "Optics 27", "Optics 30", "Optics 36"]


@pytest.mark.parametrize("reverse", [False, True])
def test_a_large_set_is_sampled_by_hash_each_domain_its_share(tmp_path, monkeypatch, reverse):
    rows = ROWS["mmlu_pro"]
    root = made_up_hub.write(tmp_path / "data", mmlu_pro=rows[::-1] if reverse else rows)
    monkeypatch.setitem(SOURCES, "mmlu_pro", replace(SOURCES["mmlu_pro"], take=16))
    prompts = HubTask(name="mmlu_pro", root=root).prompts("test")
    assert Counter(prompt.domain for prompt in prompts) == {"law": 12, "physics": 4}
    numbers = sorted(int(prompt.uid.rpartition(":")[2]) for prompt in prompts)
    assert numbers == CHOSEN, "the choice is fixed for ever"


CHOSEN = [2, 3, 5, 6, 9, 17, 23, 32, 33, 36, 38, 49, 52, 57, 68, 77]


def test_what_is_missing_or_damaged_is_named(root):
    with pytest.raises(InputError, match="no data files in nowhere/amc23/.*hf download math-ai/amc23 --repo-type"):
        HubTask(name="amc23", root="nowhere").prompts("test")
    with pytest.raises(InputError, match="no public benchmark 'mmlu'; there are: math500, .*, sgd5"):
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
    file.unlink()
    file.with_suffix(".parquet").write_bytes(b"PAR1 secret")
    with pytest.raises(InputError, match="test.parquet cannot be read") as refused:
        HubTask(name="amc23", root=root).prompts("test")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("change", [{"answer_letter": "secret"}, {"answer_letter": "D"}, {"options": []}])
def test_errors_do_not_show_questions(tmp_path, change):
    held_out = next(row for row in ROWS["supergpqa"] if is_held_out(row))
    secret = held_out | {"question": "secret", "answer": "secret"} | change
    root = made_up_hub.write(tmp_path / "data", supergpqa=[secret])
    with pytest.raises(InputError, match="SuperGPQA-all.jsonl:1") as refused:
        HubTask(name="supergpqa", root=root).prompts("test")
    assert "secret" not in str(refused.value)


def test_the_hubs_own_cache_will_do(tmp_path, monkeypatch):
    snapshot = tmp_path / "cache/datasets--math-ai--amc23/snapshots/abc"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs/main").write_text("abc")
    (snapshot / "test.jsonl").write_text(json.dumps(ROWS["amc23"][0]))
    assert len(HubTask(name="amc23", root=str(tmp_path / "data")).prompts("test")) == 1


@pytest.mark.parametrize("chunk", [1, 7, 2**20])
def test_a_long_json_list_is_read_in_pieces(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(hub_files, "_CHUNK", chunk)
    items = [{"a": "]}, {"}, {"A": [1, {"b": "ü\n"}]}, {}]
    for text in (
        json.dumps(items, indent=1),
        json.dumps(items),
        " " * (chunk > 7) + json.dumps(items, ensure_ascii=False),
    ):
        (tmp_path / "x.json").write_text(text)
        found = list(hub_files.rows(tmp_path / "x.json"))
        assert [row for _, row in found] == [{"a": "]}, {"}, {"a": [1, {"b": "ü\n"}]}, {}]
    for damaged in ('{"a": 1}', '[{"a": 1}, {"a"', '[{"a": 1}', "", "[3]"):
        (tmp_path / "x.json").write_text(damaged)
        with pytest.raises(InputError, match="x.json cannot be read"):
            list(hub_files.rows(tmp_path / "x.json"))


def test_inventory(root):
    lines = inventory(root)
    assert [line.split()[0] for line in lines] == [*SOURCES, "sgd5"]
    assert lines[0] == f"math500       1 questions in {root}/math500/, 500 were expected"
    missing = inventory("nowhere")
    assert all("missing; hf download" in line for line in missing[:-1]) and "accept its terms" in missing[6]
    assert "sgd5          missing; git clone" in missing[-1] and missing[-1].endswith(" nowhere/sgd (CC-BY-SA-4.0)")


def test_lm_evals_own_command_line_finds_them(root):
    fields = {f"hub_{name}": {"root": root} for name in SOURCES}
    manager = TaskManager(include_path=str(LM_TASKS), include_defaults=False, metadata={"fields": fields})
    loaded = manager.load(list(fields))["tasks"]
    asked = ASKED | {"supergpqa": sum(map(is_held_out, ROWS["supergpqa"]))}
    assert {name: len(task.dataset["test"]) for name, task in loaded.items()} == {
        f"hub_{name}": count for name, count in asked.items()
    }


@pytest.mark.parametrize("name", SOURCES)
def test_every_benchmark_has_a_task_file_with_room_to_answer(name):
    config = benchmarks.lm_config(f"hub_{name}")
    assert config["metadata"]["given"] == {"name": name} and config["task"] == f"hub_{name}"
    assert config["generation_kwargs"] == {"until": [], "do_sample": False, "max_gen_toks": 4096}
    gated = "--log_samples" in (LM_TASKS / f"hub_{name}.yaml").read_text()
    assert gated == SOURCES[name].files.gated
    assert yaml.safe_load((LM_TASKS.parents[3] / "conf/eval/hub.yaml").read_text())["max_tokens"] == 4096
