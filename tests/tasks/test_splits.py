"""Promises every task of the testbed makes about its splits and its demonstrations."""

import os
import subprocess
import sys
from dataclasses import replace
from itertools import islice

import pytest
from pydantic import ValidationError

from noisyrl.spec import InputError
from noisyrl.tasks.dialogue import Bookings
from noisyrl.tasks.math import Chains
from noisyrl.tasks.mix import Mix
from noisyrl.tasks.science import Facts

TASKS = pytest.mark.parametrize("task", [Chains(), Facts(), Bookings()], ids=lambda task: task.name)


def questions(prompts):
    return [prompt.messages[0]["content"] for prompt in prompts]


@TASKS
def test_each_split_has_the_promised_number_of_distinct_questions(task):
    for split, size in {"train": 2000, "test": 1000, "ood": 1000}.items():
        prompts = task.prompts(split)
        assert len(prompts) == len(set(questions(prompts))) == len({prompt.uid for prompt in prompts}) == size
        assert {(prompt.task, prompt.domain) for prompt in prompts} == {(task.name, task.name)}


@TASKS
def test_no_heldout_question_is_in_the_training_prompts_or_in_the_demonstrations(task):
    heldout = set(questions(task.prompts("test"))) | set(questions(task.prompts("ood")))
    assert len(heldout) == 2000
    taught = {conversation[0]["content"] for conversation in islice(task.demonstrations(), 20_000)}
    assert not heldout & (taught | set(questions(task.prompts("train"))))


@TASKS
def test_demonstrations_contain_a_few_out_of_distribution_shapes(task):
    never, always = (replace(task, ood_demo_frac=frac).demonstrations() for frac in (0.0, 1.0))
    usual = {conversation[0]["content"] for conversation in islice(never, 5000)}
    unusual = {conversation[0]["content"] for conversation in islice(always, 5000)}
    assert not usual & unusual
    mixed = [conversation[0]["content"] for conversation in islice(task.demonstrations(), 5000)]
    marks = {"math": lambda q: q.count(",") > 5, "dialogue": None, "science": lambda q: is_ood_science(q)}
    if is_ood := marks[task.name]:
        assert 0.03 < sum(map(is_ood, mixed)) / len(mixed) < 0.07
        assert all(map(is_ood, unusual)) and not any(map(is_ood, usual))


def is_ood_science(question):
    return (
        " of the " in question
        or (question.startswith("which") and " e " in question)
        or (question.startswith(("heaviest", "lightest")) and question.count(",") > 2)
    )


@TASKS
def test_a_uid_depends_on_the_question_not_on_the_size_of_the_split(task):
    few = replace(task, train_items=50, heldout_items=50)
    assert [few.prompts(split) for split in few.splits] == [task.prompts(split)[:50] for split in task.splits]


@TASKS
def test_another_world_is_another_task(task):
    other = replace(task, world=1, train_items=200, heldout_items=200)
    assert set(questions(other.prompts("test"))) != set(questions(task.prompts("test")[:200]))
    assert next(other.demonstrations()) != next(task.demonstrations())


@TASKS
def test_a_split_that_cannot_be_filled_is_refused(task):
    with pytest.raises(InputError, match="distinct questions"):
        replace(task, heldout_frac=0.0, train_items=1, heldout_items=2).prompts("train")
    with pytest.raises(InputError, match="no split 'dev'"):
        task.prompts("dev")


@TASKS
def test_an_error_rate_outside_the_unit_interval_is_refused(task):
    with pytest.raises(ValidationError, match="lower bug_spread"):
        replace(task, bug_rate=0.1, bug_spread=0.2)


FINGERPRINT = """
import hashlib, itertools
from noisyrl.tasks.mix import Mix
mix = Mix()
seen = [prompt for split in mix.splits for prompt in mix.prompts(split)]
seen += itertools.islice(mix.demonstrations(), 2000)
print(hashlib.sha256(repr(seen).encode()).hexdigest())
"""


def test_everything_is_the_same_in_another_process():
    prints = {
        subprocess.run(
            [sys.executable, "-c", FINGERPRINT],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(prints) == 1


def test_the_mix_serves_every_item_of_its_parts_in_turns():
    mix = Mix(math=Chains(train_items=10), science=Facts(train_items=10), dialogue=Bookings(train_items=20))
    for split in mix.splits:
        expected = [prompt for part in mix.parts for prompt in part.prompts(split)]
        assert sorted(map(repr, mix.prompts(split))) == sorted(map(repr, expected))
    assert [prompt.domain for prompt in mix.prompts("train")[:4]] == ["math", "science", "dialogue", "math"]
    assert [prompt.domain for prompt in mix.prompts("train")[30:]] == ["dialogue"] * 10


def test_the_mix_hands_every_answer_to_its_own_task():
    mix = Mix()
    math, science, dialogue = mix.prompts("test")[:3]
    assert mix.grade(math, [f"ans {math.answer}"]).score == 1
    assert mix.grade(science, [f"ans {science.answer}"]).score == 1
    assert mix.grade(dialogue, [dialogue.answer]).score == 1
    assert mix.reply(math, ["ask city"]) is None and mix.reply(dialogue, ["hello"]) == "sorry ?"


def test_the_weights_of_the_mix_are_shares_of_its_demonstrations():
    mix = Mix(math_weight=3, science_weight=1, dialogue_weight=0.001)
    taught = [conversation[0]["content"] for conversation in islice(mix.demonstrations(), 4000)]
    assert 0.72 < sum(question.startswith("start ") for question in taught) / 4000 < 0.78
