"""Public training sets: what is trained on passed decontamination, and nothing else is."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest

from noisyrl.spec import InputError
from noisyrl.tasks import hub_train
from noisyrl.tasks.decontaminate import decontaminate
from noisyrl.tasks.hub import SOURCES, HubTask, is_held_out
from noisyrl.tasks.hub_train import HubTraining, training_inventory
from noisyrl.tasks.jsonl import INSTRUCTIONS
from tests.tasks import made_up_hub
from tests.tasks.made_up_hub import LIGHT_R1, ROWS, light_r1_row


@pytest.fixture(autouse=True)
def no_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path) -> str:
    return made_up_hub.write(tmp_path / "data")


def test_light_r1(root):
    decontaminate("light_r1", root)
    task = HubTraining(name="light_r1", root=root)
    prompts = task.prompts("train")
    assert len(prompts) == len(LIGHT_R1) and task.splits == ("train",) and task.field == "math"
    question = LIGHT_R1[3]["conversations"][0]["value"]
    assert prompts[3].messages == ({"role": "user", "content": f"{question}\n\n{INSTRUCTIONS['math']}"},)
    # The box in the thoughts is not the answer.
    assert prompts[3].answer == "6" and task.graded_by(prompts[3]) == "math@v3"
    assert [task.grade(prompts[3], [said]).score for said in (r"\boxed{6.0}", r"\boxed{0}")] == [1, 0]
    assert prompts[3].uid.startswith("jsonl:train:light_r1:")


def test_questions_without_an_answer_and_questions_that_come_twice(tmp_path):
    rows = [light_r1_row("One?", "1"), light_r1_row("Two?", None), light_r1_row("One?", "1")]
    unfinished = {"conversations": [{"from": "user", "value": "Three?"}, {"from": "gpt", "value": r"<think>\boxed{3}"}]}
    root = made_up_hub.write(tmp_path / "data", light_r1=[*rows, unfinished])
    report = decontaminate("light_r1", root)
    assert [report[key] for key in ("rows", "kept", "no_answer", "duplicates")] == [4, 1, 2, 1]
    assert [prompt.answer for prompt in HubTraining(name="light_r1", root=root).prompts("train")] == ["1"]


def test_supergpqa_trains_on_no_subfield_that_is_tested(root):
    report = decontaminate("supergpqa", root)
    task = HubTraining(name="supergpqa", root=root)
    trained = {prompt.uid.removeprefix("jsonl:train:") for prompt in task.prompts("train")}
    tested = HubTask(name="supergpqa", root=root).prompts("test")
    held_out = {f"hub:supergpqa:{row['uuid']}" for row in ROWS["supergpqa"] if is_held_out(row)}
    assert trained and tested and not trained & held_out and report["held_out"] == len(held_out)
    assert not {prompt.domain for prompt in tested} & {prompt.domain for prompt in task.prompts("train")}
    letters = Counter(prompt.answer for prompt in task.prompts("train"))
    assert set(letters) == set("ABC") and task.graded_by(task.prompts("train")[0]) == "letter@v3"
    for prompt in task.prompts("train")[:20]:
        assert f"\n{prompt.answer}) two\n" in prompt.messages[0]["content"]


def test_long_questions_can_be_left_out(root):
    decontaminate("light_r1", root)
    assert len(HubTraining(name="light_r1", root=root, max_chars=10_000).prompts("train")) == len(LIGHT_R1)
    with pytest.raises(InputError, match="data.max_chars=10 leaves none of the 12 questions"):
        HubTraining(name="light_r1", root=root, max_chars=10).prompts("train")


def test_nothing_is_trained_without_its_report(root, tmp_path):
    def refused(message, root=root):
        with pytest.raises(InputError, match=message):
            HubTraining(name="light_r1", root=root).prompts("train")

    refused("no data files in .*nowhere/light_r1.*hf download qihoo360/Light-R1-SFTData.*make decontaminate", "nowhere")
    refused("light_r1.report.json is missing.*make decontaminate")
    decontaminate("light_r1", root)
    data, report = hub_train.paths("light_r1", root)
    whole, said = data.read_text(), report.read_text()
    for changed in (whole.replace("apples", "plums"), whole.splitlines(keepends=True)[0], whole + whole):
        data.write_text(changed)
        refused(r"light_r1.jsonl is not the file that .*another hash.*make decontaminate")
    data.write_text(whole)
    report.write_text(said.replace('decontaminate@v1"', 'decontaminate@v0"'))
    refused("is of decontaminate@v0, the rules are now decontaminate@v1: run `make decontaminate`")
    report.write_text(said[:50])
    refused("report.json is damaged")
    report.unlink()
    refused("light_r1.report.json is missing")


def test_the_manifest_gets_the_reports_hash(root):
    decontaminate("light_r1", root)
    _, report = hub_train.paths("light_r1", root)
    origin = HubTraining(name="light_r1", root=root).origin
    assert origin["report_sha256"] == hashlib.sha256(report.read_bytes()).hexdigest()
    assert set(origin["tests"]) == set(SOURCES) and json.dumps(origin)


def test_rows_of_another_form_are_named(tmp_path):
    for row in ({"conversations": [{"value": "q"}]}, {"conversations": "q"}, {"question": "q"}):
        root = made_up_hub.write(tmp_path / "data", light_r1=[row])
        with pytest.raises(InputError, match=r"stage2-3k.json:1: .*conversations"):
            decontaminate("light_r1", root)


def test_inventory(root):
    assert training_inventory("nowhere")[0].startswith("light_r1      missing; hf download qihoo360/Light-R1-SFTData")
    assert "not ready" in training_inventory(root)[0] and "make decontaminate" in training_inventory(root)[0]
    decontaminate("light_r1", root)
    assert training_inventory(root)[0] == f"light_r1      12 questions in {Path(root)}/decontaminated/light_r1.jsonl"
