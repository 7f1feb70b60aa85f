"""A grader that hangs or fails leaves a response unscored; what the user has to mend stops the run."""

import signal
import time
from dataclasses import replace

import pytest
import torch

from noisyrl.spec import InputError
from noisyrl.tasks import graders
from noisyrl.tasks.base import Task
from noisyrl.tasks.deadline import graded
from noisyrl.types import Grade, Prompt
from tests.frame import built, loop_for, made_up_rollout

PROMPT = Prompt((), "1", "t", "u", "d")


class Moody(Task):
    """Does what the answer says."""

    splits = ("train",)

    def prompts(self, split):
        return [PROMPT]

    def grade(self, prompt, turns):
        said = turns[-1]
        if said == "sleep":
            time.sleep(30)
        while said == "spin":
            try:
                time.monotonic()
            except Exception:  # a careless grader must not swallow the clock
                continue
        if said == "crash":
            raise KeyError("no such slot")
        if said == "set-up":
            raise InputError("install the grader")
        return Grade(1.0)


@pytest.mark.parametrize("said", ["sleep", "spin"])
def test_a_hanging_grader_is_given_up_by_the_clock(said):
    before, began = signal.getsignal(signal.SIGALRM), time.monotonic()
    assert graded(Moody(), PROMPT, [said], 0.2).status == "timeout"
    assert time.monotonic() - began < 5
    assert signal.getsignal(signal.SIGALRM) is before and signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_failing_grader_is_an_error_and_says_so_once():
    with pytest.warns(UserWarning, match="the grader failed on u: KeyError: 'no such slot'"):
        assert graded(Moody(), PROMPT, ["crash"], 5.0).status == "error"
    assert graded(Moody(), PROMPT, ["fine"], 5.0).score == 1.0


def test_what_the_user_has_to_mend_goes_through(monkeypatch):
    with pytest.raises(InputError, match="install the grader"):
        graded(Moody(), PROMPT, ["set-up"], 5.0)

    def missing(gold, answer):
        raise RuntimeError("the math grader cannot start: pip install it")

    monkeypatch.setattr(graders, "equivalent", missing)
    with pytest.raises(InputError, match="cannot start: pip install it"):
        graders.math(r"\boxed{\sqrt{2}}", r"2^{1/2}")


def test_unscored_responses_leave_the_group_and_the_loss_and_are_counted():
    loop = loop_for(built("algo", "algo=grpo"))
    rollout = made_up_rollout(prompts=2, samples=4)
    says = ["fine", "sleep", "crash", "fine", "fine", "fine", "fine", "fine"]
    rollout = replace(rollout, turns=[[said] for said in says])
    loop.collector = replace(
        loop.collector, task=Moody(), sampler=lambda *a, **k: rollout, grader_deadline_s=0.2
    )  # fmt: skip
    with pytest.warns(UserWarning, match="the grader failed"):
        found, grades = loop.collector.sample(list(rollout.prompts), 0)
    assert list(grades.statuses) == ["scored", "timeout", "error", *["scored"] * 5]
    experience = loop.collector.annotate(found, replace(grades, clean_B=grades.clean_B.double()), 0)
    assert experience.batch.reward_B.tolist() == [1.0] * 6 and len(experience.ledger.uids) == 8
    assert torch.bincount(experience.batch.group_B).tolist() == [2, 4]
    assert [entry["clean"] for entry in experience.ledger.entries(1)][:3] == [1.0, None, None]
