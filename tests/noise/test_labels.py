"""Wrong labels: as many as they say, never right, the same at every step, and responses are graded against them."""

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch
from scipy.stats import binomtest

from noisyrl.noise.labels import WrongLabels
from noisyrl.noise.none import NoNoise
from noisyrl.rollout.fast import FastSampler
from noisyrl.spec import InputError
from noisyrl.tasks.dialogue import Bookings
from noisyrl.tasks.jsonl import JsonlTask
from noisyrl.tasks.math import Chains
from noisyrl.tasks.mix import Mix
from noisyrl.tasks.oracle import Oracle
from noisyrl.tasks.science import Facts
from noisyrl.types import Prompt, rows
from tests.evaluation.stage import random_model
from tests.frame import built
from tests.noise.quiz import Quiz, Told, clean_of, rollout_of, setting_for

KINDS = ("uniform", "other_prompt", "attractive")
QUIZ = Quiz()
SAID = {prompt.uid: list("abcd") for prompt in QUIZ.prompts("train")}
ROLLOUT = rollout_of(QUIZ.prompts("train"), SAID)
CLEAN = clean_of(QUIZ, ROLLOUT)


@pytest.mark.parametrize("kind", KINDS)
def test_rate_zero_is_no_noise(kind):
    noise = WrongLabels(rate=0.0, kind=kind).prepare(setting_for(QUIZ))
    assert torch.equal(noise(CLEAN, ROLLOUT, 3), NoNoise()(CLEAN, ROLLOUT, 3))


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5])
def test_the_share_of_prompts_lies_inside_exact_bounds(rate):
    prompts = [Prompt((), "a", "quiz", f"q{i}", "quiz") for i in range(20_000)]
    count = sum(WrongLabels(rate=rate, seed=1).is_corrupted(prompt) for prompt in prompts)
    assert binomtest(count, len(prompts), rate).pvalue > 0.001


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_wrong_label_is_paid_and_at_every_step(kind):
    origin = WrongLabels(rate=0.5, kind=kind, seed=2, samples=4)
    noise = origin.prepare(setting_for(QUIZ, Told(answers=SAID)))
    observed = noise(CLEAN, ROLLOUT, 0)
    corrupted = torch.tensor([origin.is_corrupted(prompt) for prompt in ROLLOUT.prompts])
    assert corrupted.any() and not corrupted.all()
    assert torch.equal(observed[~corrupted], CLEAN[~corrupted])
    assert (observed[corrupted & (CLEAN == 1)] == 0).all()
    assert (observed.view(-1, 4).sum(dim=1) == 1).all()  # each prompt pays one of its four answers
    assert torch.equal(noise(CLEAN, ROLLOUT, 17), observed)
    part = torch.tensor([40, 3, 22, 7])
    assert torch.equal(noise(CLEAN[part], rows(ROLLOUT, part), 5), observed[part])
    assert [cause != "" for cause in noise.causes(CLEAN, ROLLOUT, 0)[1]] == (observed != CLEAN).tolist()


def test_the_seed_decides_which_prompts_and_which_labels():
    def labels(seed):
        return WrongLabels(rate=0.5, seed=seed).prepare(setting_for(QUIZ)).label_of

    assert labels(1) == labels(1) != labels(2)


def test_uniform_takes_distinct_answers_and_other_prompt_frequent_ones():
    prompts = [Prompt((), answer, "quiz", f"q{i}", "quiz") for i, answer in enumerate("a" * 10 + "b" * 80 + "c" * 10)]
    met = [Prompt((), "x", "quiz", f"m{i}", "quiz") for i in range(3000)]
    setting = replace(setting_for(QUIZ), prompts=prompts, met=met)
    for kind, share in (("uniform", 1 / 3), ("other_prompt", 0.8)):
        drawn = Counter(WrongLabels(rate=1.0, kind=kind).prepare(setting).label_of.values())
        assert binomtest(drawn["b"], len(met), share).pvalue > 0.001


def test_attractive_is_the_most_frequent_mistake_and_ties_go_to_the_smallest():
    answers = {"q0": ["a", "a", "a", "c", "c", "b"], "q1": ["d", "c", "", "", "b", "?"], "q2": ["c"] * 6}
    setting = setting_for(Quiz(count=3), Told(answers=answers))
    noise = WrongLabels(rate=1.0, kind="attractive", samples=6).prepare(setting)
    assert noise.label_of["q0"] == "c"  # right is a
    assert noise.label_of["q1"] == "c"  # right is b; c and d were said once
    assert noise.label_of["q2"] in "ab"  # always right: a label drawn instead


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "task",
    [Chains(train_items=60), Facts(train_items=60), Bookings(train_items=60), Oracle(), Mix()],
    ids=lambda task: type(task).__name__,
)
def test_the_right_label_is_never_the_wrong_one(task, kind):
    setting = setting_for(task, met=task.prompts("train")[:60])
    noise = WrongLabels(rate=1.0, kind=kind).prepare(setting)
    domains = {domain: {p.answer for p in setting.prompts if p.domain == domain} for domain in ("math", "dialogue")}
    for prompt in setting.met:
        label = noise.label_of[prompt.uid]
        assert label != prompt.answer
        if kind != "attractive" and prompt.domain in domains:
            assert label in domains[prompt.domain]


def test_a_dialogue_is_graded_against_the_label():
    task = Bookings(train_items=30)
    noise = WrongLabels(rate=1.0).prepare(setting_for(task))
    prompts = task.prompts("train")
    rollout = rollout_of(prompts, {p.uid: [p.answer, noise.label_of[p.uid]] for p in prompts})
    assert torch.equal(noise(clean_of(task, rollout), rollout, 0).view(-1, 2), torch.tensor([[0.0, 1.0]] * 30))


def jsonl(tmp_path, *lines):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return JsonlTask(path=str(file))


def test_files_with_several_graders_and_spellings(tmp_path):
    """A number is no label for a letter, and another spelling of the answer is no wrong label."""
    numbers = [{"prompt": f"{i}?", "answer": a} for i, a in enumerate(["1/2", "0.5", "\\frac{1}{2}", "3"] * 5)]
    letters = [{"prompt": f"{i}!", "answer": a, "grader": "letter"} for i, a in enumerate("ABC" * 5)]
    task = jsonl(tmp_path, *numbers, *letters)
    noise = WrongLabels(rate=1.0).prepare(setting_for(task))
    halves = {"1/2", "0.5", "\\frac{1}{2}"}
    for prompt in task.prompts("train"):
        label = noise.label_of[prompt.uid]
        if prompt.answer in halves:
            assert label not in halves
        if prompt.answer in "ABC":
            assert label in "ABC" and label != prompt.answer
    prompts = task.prompts("train")[-15:]
    rollout = rollout_of(prompts, {p.uid: [f"Answer: {noise.label_of[p.uid]}"] for p in prompts})
    assert (noise(clean_of(task, rollout), rollout, 0) == 1).all()


def test_one_answer_for_all_prompts_is_refused(tmp_path):
    task = jsonl(tmp_path, {"prompt": "x", "answer": "4"}, {"prompt": "y", "answer": "4.0"})
    with pytest.raises(InputError, match="noise=labels: no answer in the domain 'rows'"):
        WrongLabels(rate=1.0).prepare(setting_for(task))


def test_what_cannot_be_graded_against_the_label_has_no_reward():
    rollout = rollout_of(QUIZ.prompts("train")[:1], {"q0": ["?", "b"]})
    noise = WrongLabels(rate=1.0).prepare(setting_for(QUIZ))
    observed = noise(torch.tensor([1.0, 0.0]), rollout, 0)  # as if the right label could be compared
    assert observed.isnan().tolist() == [True, False]


def test_labels_are_kept_and_read_again(tmp_path):
    origin = WrongLabels(rate=0.5, kind="attractive", samples=4)
    first = origin.prepare(setting_for(QUIZ, Told(answers=SAID), folder=tmp_path))
    before = (tmp_path / "labels.jsonl").read_bytes()
    another = Told(answers={}, default="b")  # would lead to other labels
    for main in (True, False):
        again = origin.prepare(setting_for(QUIZ, another, folder=tmp_path, main=main))
        assert again.label_of == first.label_of and again.wrong == first.wrong
    assert (tmp_path / "labels.jsonl").read_bytes() == before
    lines = [json.loads(line) for line in before.decode().splitlines()]
    assert lines[0]["made_for"]["noise"] == "labels" and len(lines) == 1 + len(QUIZ.prompts("train"))
    assert set(lines[1]) == {"uid", "label", "wrong", "drawn", "right"}


def test_labels_of_something_else_are_refused(tmp_path):
    WrongLabels(rate=0.5).prepare(setting_for(QUIZ, folder=tmp_path))
    with pytest.raises(InputError, match="labels.jsonl was made for .*set name="):
        WrongLabels(rate=0.4).prepare(setting_for(QUIZ, folder=tmp_path))
    with pytest.raises(InputError, match="cannot be read"):  # the main process wrote nothing
        WrongLabels(rate=0.5).prepare(setting_for(QUIZ, folder=tmp_path / "elsewhere", main=False))
    (tmp_path / "labels.jsonl").write_text("not json")
    with pytest.raises(InputError, match="cannot be read"):
        WrongLabels(rate=0.5).prepare(setting_for(QUIZ, folder=tmp_path))


def test_a_run_that_was_not_prepared_and_a_prompt_that_was_not_foreseen():
    with pytest.raises(InputError, match="noise=labels has to know the run"):
        built("noise", "noise=labels")(CLEAN, ROLLOUT, 0)
    prepared = WrongLabels(rate=0.5).prepare(setting_for(QUIZ, met=QUIZ.prompts("train")[:2]))
    with pytest.raises(InputError, match="q2 is not among those the run was to meet"):
        prepared(CLEAN, ROLLOUT, 0)


def test_a_real_model_is_asked():
    task = Chains(train_items=6)
    setting = setting_for(task, FastSampler(max_tokens=8), lm=random_model())
    noise = WrongLabels(rate=1.0, kind="attractive", samples=3).prepare(setting)
    assert len(noise.label_of) == 6 == len(noise.wrong)


def test_the_line_for_a_person():
    assert "probability 0.3" in WrongLabels(rate=0.3).describe()
    assert "12 of the 12 prompts" in WrongLabels(rate=1.0).prepare(setting_for(QUIZ)).describe()
