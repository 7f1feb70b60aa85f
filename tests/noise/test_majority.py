"""Pseudo-labels are what most answers say, and pay who agrees with them."""

import json

import pytest
import torch

from noisyrl.noise.majority import Majority
from noisyrl.ops.advantages import group_relative
from noisyrl.rollout.fast import FastSampler
from noisyrl.spec import InputError
from noisyrl.tasks.jsonl import JsonlTask
from noisyrl.tasks.math import Chains
from noisyrl.types import rows
from tests.evaluation.stage import random_model
from tests.frame import built
from tests.noise.quiz import Quiz, Told, clean_of, rollout_of, setting_for

QUIZ = Quiz(count=3)  # right: a, b, c
PROMPTS = QUIZ.prompts("train")
ANSWERS = {"q0": ["a", "a", "a", "b"], "q1": ["d", "c", "c", "d"], "q2": ["", "", "", ""]}


def prepared(when="start", **changed):
    folder = changed.pop("folder", None)
    noise = Majority(when=when, samples=4, **changed)
    return noise.prepare(setting_for(QUIZ, Told(answers=ANSWERS), folder=folder))


@pytest.mark.parametrize("when", ["start", "step"])
@pytest.mark.parametrize(
    ("right", "alignment"), [("b", -0.5), ("a", 1.0)], ids=["majority is wrong", "majority is right"]
)
def test_golden_n4(when, right, alignment):
    """Answers a, a, b, c: the clean alignment of the centred advantage is -1/2 if b is right, 1 if a is."""
    task = Quiz(count=1 if right == "a" else 2)
    prompt = task.prompts("train")[-1]
    assert prompt.answer == right
    rollout = rollout_of([prompt], {prompt.uid: list("aabc")})
    told = Told(answers={p.uid: list("aabc") for p in task.prompts("train")})
    clean = clean_of(task, rollout)
    observed = Majority(when=when, samples=4).prepare(setting_for(task, told))(clean, rollout, 0)
    assert torch.equal(observed, torch.tensor([1.0, 1.0, 0.0, 0.0]))
    advantage = group_relative(observed, torch.zeros(4, dtype=torch.int64), standardise=False)
    torch.testing.assert_close(advantage, torch.tensor([0.5, 0.5, -0.5, -0.5]))
    assert float((advantage * clean).sum()) == pytest.approx(alignment)


def test_labels_of_the_start_stay_and_ties_go_to_the_smallest():
    rollout = rollout_of(PROMPTS, {"q0": list("abz"), "q1": list("bcd"), "q2": list("abc")})
    noise = prepared()
    observed = noise(clean_of(QUIZ, rollout), rollout, 0)
    expected = [1, 0, 0, 0, 1, 0, float("nan"), float("nan"), float("nan")]  # q2: nothing was answered
    torch.testing.assert_close(observed, torch.tensor(expected, dtype=torch.float32), equal_nan=True)
    part = torch.tensor([5, 4, 0])
    assert torch.equal(noise(clean_of(QUIZ, rollout)[part], rows(rollout, part), 9), observed[part])


@pytest.mark.parametrize(("min_agree", "with_label"), [(0.5, {"q0", "q1"}), (0.6, {"q0"}), (0.76, set())])
@pytest.mark.parametrize("when", ["start", "step"])
def test_too_little_agreement_leaves_a_prompt_without_reward(when, min_agree, with_label):
    rollout = rollout_of(PROMPTS, ANSWERS)
    observed = prepared(when, min_agree=min_agree)(clean_of(QUIZ, rollout), rollout, 0)
    given = {p.uid for p, x in zip(rollout.prompts, observed.tolist(), strict=True) if x == x}
    assert given == with_label


def test_each_step_votes_anew():
    noise = prepared("step")
    for said, expected in (("abb", [0, 1, 1]), ("aab", [1, 1, 0]), ("ba", [0, 1])):
        rollout = rollout_of(PROMPTS[:1], {"q0": list(said)})
        assert noise(clean_of(QUIZ, rollout), rollout, 0).tolist() == expected


def test_row_order_changes_nothing():
    rollout = rollout_of(PROMPTS, {"q0": list("abcab"), "q1": list("bccbz"), "q2": list("zzzaa")})
    clean = clean_of(QUIZ, rollout)
    order = torch.randperm(15, generator=torch.Generator().manual_seed(0))
    for when in ("start", "step"):
        observed = prepared(when)(clean, rollout, 0)
        again = prepared(when)(clean[order], rows(rollout, order), 0)
        torch.testing.assert_close(again, observed[order], equal_nan=True, rtol=0, atol=0)


def test_other_spellings_of_the_label_are_paid(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "x", "answer": "7", "id": "one"}\n')
    task = JsonlTask(path=str(tmp_path / "rows.jsonl"))
    prompt = task.prompts("train")[0]
    boxed = [rf"\boxed{{{text}}}" for text in ("1/2", "1/2", "7", "0.5", r"\frac{1}{2}")]
    noise = Majority(samples=5).prepare(setting_for(task, Told(answers={prompt.uid: boxed})))
    rollout = rollout_of([prompt], {prompt.uid: boxed})
    assert noise(clean_of(task, rollout), rollout, 0).tolist() == [1, 1, 0, 1, 1]


def test_what_cannot_be_graded_has_no_reward():
    rollout = rollout_of(PROMPTS[:1], {"q0": ["?", "a"]})
    assert prepared()(torch.tensor([0.0, 1.0]), rollout, 0).isnan().tolist() == [True, False]


def test_labels_are_kept_and_say_whether_they_are_right(tmp_path):
    first = prepared(folder=tmp_path)
    again = Majority(samples=4).prepare(setting_for(QUIZ, Told(answers={}), folder=tmp_path, main=False))
    assert again.label_of == first.label_of
    lines = [json.loads(line) for line in (tmp_path / "labels.jsonl").read_text().splitlines()][1:]
    assert [(row["label"], row["agreement"], row["tied"], row["used"], row["wrong"]) for row in lines] == [
        ("a", 0.75, False, True, False),
        ("c", 0.5, True, True, True),
        (None, 0.0, False, False, True),
    ]
    assert "of 3 prompts 2 have a label, 1 of these a wrong one; mean agreement 0.42" in again.describe()


def test_voting_at_each_step_asks_nobody_before_the_first(tmp_path):
    noise = Majority(when="step").prepare(setting_for(QUIZ, Told(answers={}), folder=tmp_path))
    assert not list(tmp_path.iterdir()) and "its group's answers" in noise.describe()


def test_a_run_that_was_not_prepared_and_a_prompt_that_was_not_foreseen():
    rollout = rollout_of(PROMPTS, ANSWERS)
    with pytest.raises(InputError, match="noise=majority has to know the run"):
        built("noise", "noise=majority")(torch.zeros(12), rollout, 0)
    noise = Majority(samples=4).prepare(setting_for(QUIZ, Told(answers=ANSWERS), met=PROMPTS[:1]))
    with pytest.raises(InputError, match="q1 is not among those the run was to meet"):
        noise(torch.zeros(12), rollout, 0)


def test_a_real_model_is_asked():
    """One that was never taught to answer: no labels, no rewards."""
    setting = setting_for(Chains(train_items=6), FastSampler(max_tokens=8), lm=random_model())
    noise = Majority(samples=3).prepare(setting)
    assert set(noise.label_of) == {prompt.uid for prompt in setting.met}
    assert "of 6 prompts 0 have a label" in noise.describe()
