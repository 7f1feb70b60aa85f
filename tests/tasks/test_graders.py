r"""A corpus of answers and the score a careful reader would give; what cannot be judged is never 0."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import threading
import time

import pytest

from noisyrl.tasks import graders, verify
from noisyrl.tasks.graders import GRADERS, VERSIONS, last_box, one_letter, spelling
from tests.tasks.grader_corpus import EXACT, FREETEXT, LETTER, MATH, ROUNDED


@pytest.mark.parametrize(("text", "gold", "score"), MATH)
def test_math(text, gold, score):
    assert graders.math(text, gold).score == score


@pytest.mark.parametrize(("text", "gold", "score"), LETTER)
def test_letter(text, gold, score):
    assert graders.letter(text, gold).score == score


@pytest.mark.parametrize(("text", "gold", "score"), EXACT)
def test_exact(text, gold, score):
    assert graders.exact(text, gold).score == score


@pytest.mark.parametrize(("text", "gold", "score"), ROUNDED)
def test_rounded(text, gold, score):
    assert graders.rounded(text, gold).score == score


@pytest.mark.parametrize(("text", "gold", "score"), FREETEXT)
def test_freetext(text, gold, score):
    assert graders.freetext(text, gold).score == score


def test_no_answer_is_told_from_a_wrong_one():
    assert [graders.math(t, "1").extracted for t in (r"\boxed{2}", "2")] == ["2", None]
    assert [graders.letter(t, "A").extracted for t in ("Answer: b", "b")] == ["B", None]
    assert [graders.exact(t, "A").extracted for t in ("Answer: B.", "Answer: ")] == ["b", None]


def test_whole_numbers_need_no_process(monkeypatch):
    monkeypatch.setattr(graders, "equivalent", lambda *_: pytest.fail("asked the worker"))
    for text, gold in ((r"\boxed{41}", "42"), (r"\boxed{042}", "42"), (r"\boxed{\frac12}", "2/4"), (r"\boxed{x}", "x")):
        graders.math(text, gold)


@pytest.mark.parametrize("text", [r"\boxed{9^{9^{9^{9}}}}", r"\boxed{10000000!}"])
def test_endless_comparison_is_killed_and_is_not_zero(monkeypatch, text):
    monkeypatch.setattr(verify, "DEADLINE_S", 0.5)
    graders.math(r"\boxed{\sqrt{2}}", r"\sqrt 3")  # starting the worker is not part of the deadline
    start = time.monotonic()
    grade = graders.math(text, "3")
    assert (grade.score, grade.status) == (None, "timeout") and time.monotonic() - start < 5
    assert graders.math(r"\boxed{\sqrt{4 + x}}", r"\sqrt{x+4}").score == 1, "the next one finds a fresh worker"


def test_a_worker_that_dies_is_an_error_and_is_replaced(monkeypatch):
    graders.math(r"\boxed{\sqrt{2}}", r"\sqrt 5")
    worker = verify._POOL.idle[-1]
    worker.process.kill()
    worker.process.wait()
    assert graders.math(r"\boxed{\sqrt{7}}", r"\sqrt{5+2}").score == 1
    with monkeypatch.context() as patch:
        patch.setattr(worker, "_read", lambda *_: (_ for _ in ()).throw(verify.VerifyCrash("gone")))
        grade = graders.math(r"\boxed{\sqrt{11}}", r"\sqrt{12}")
    assert (grade.score, grade.status, grade.extracted) == (None, "error", r"\sqrt{11}")


def test_a_hanging_expression_holds_up_nobody_else(monkeypatch):
    monkeypatch.setattr(verify, "DEADLINE_S", 3.0)
    while len(verify._POOL.idle) < 2:
        verify._POOL.idle.append(verify._Worker())
    for worker in verify._POOL.idle:
        worker._started()  # importing sympy is not part of the deadline
    statuses = []
    hanging = threading.Thread(target=lambda: statuses.append(graders.math(r"\boxed{8^{8^{8^{9}}}}", "3").status))
    hanging.start()
    others = 0
    while hanging.is_alive() and others < 3:
        assert graders.math(rf"\boxed{{\sqrt{{{others}+x}}}}", rf"\sqrt{{x+{others}}}").score == 1
        others += 1
    assert others == 3 and hanging.is_alive()
    hanging.join()
    assert statuses == ["timeout"]


def in_another_process(k):
    return [
        graders.math(rf"\boxed{{\sqrt{{{k * 100 + i}}}+y}}", rf"y+\sqrt{{{k * 100 + i + i % 2}}}").score
        for i in range(6)
    ]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_forked_processes_do_not_share_a_worker():
    graders.math(r"\boxed{\sqrt{2}}", r"\sqrt 3")
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(in_another_process, range(1, 3), chunksize=1) == [[1, 0, 1, 0, 1, 0]] * 2
    assert in_another_process(3) == [1, 0, 1, 0, 1, 0]


def test_most_gradings_take_less_than_five_milliseconds():
    taken = []
    graders.math(r"\boxed{\sqrt{2}}", r"\sqrt 3")
    verify.equivalent.cache_clear()
    for text, gold, _ in MATH:
        start = time.perf_counter()
        graders.math(text, gold)
        taken.append(time.perf_counter() - start)
    assert statistics.median(taken) < 0.005


def test_spelling():
    same = [["1/2", "0.50", r"\frac{1}{2}", r"$\frac12$"], ["1,234", "1234"], ["Yes", r"\text{yes}"], ["a  b", "a b"]]
    assert all(len({spelling(text) for text in group}) == 1 for group in same)
    assert len({spelling(group[0]) for group in same}) == len(same)


def test_math_works_in_threads():
    """Math-Verify's own time limit does not."""
    scores = {}

    def run(k):
        scores[k] = graders.math(rf"\boxed{{\sqrt{{{k * k}x}}}}", rf"{k}\sqrt x" if k % 2 else "x").score

    threads = [threading.Thread(target=run, args=(k,)) for k in range(2, 8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert scores == {2: 0, 3: 1, 4: 0, 5: 1, 6: 0, 7: 1}


@pytest.mark.parametrize(
    ("text", "box"),
    [
        (r"\boxed{a}", "a"),
        (r"\boxed{\{1\}}", r"\{1\}"),
        (r"\boxed{\frac{1}{2}} }", r"\frac{1}{2}"),
        (r"\boxed{\left\{ 1 \right.}", r"\left\{ 1 \right."),
        (r"\boxed{a", None),
        (r"\boxed{a}\boxed", None),
        ("a", None),
        ("\\boxed{a\\", None),
    ],
)
def test_last_box(text, box):
    assert last_box(text) == box


def test_letter_refuses_a_gold_that_is_no_letter():
    with pytest.raises(ValueError, match="one letter.*'Paris'"):
        graders.letter("Answer: A", "Paris")
    assert one_letter(r"**\textbf{d}**") == "D"


def test_every_grader_has_a_version():
    assert VERSIONS == {
        "math": "math@v3", "rounded": "rounded@v3", "letter": "letter@v3", "exact": "exact@v1",
        "freetext": "freetext@v2",
    }  # fmt: skip
    assert set(VERSIONS) == set(GRADERS)


def test_the_corpus_is_large_and_says_each_thing_once():
    corpus = (MATH, LETTER, EXACT, ROUNDED, FREETEXT)
    assert sum(len(set(cases)) for cases in corpus) == sum(map(len, corpus)) >= 400


@pytest.mark.parametrize(
    "body", ["1~", "1", "²", "a_1 ", r"\mathbf{", "1 2 ", ".,;", r"1\text{a}", r"\quad ", "9 m/", "1,", "answer "]
)
def test_a_long_answer_takes_no_longer_than_it_is_long(monkeypatch, body):
    """Twenty thousand signs, as a broken policy writes: a pattern that tries every end would take minutes."""
    monkeypatch.setattr(graders, "equivalent", lambda *_: False)
    start = time.process_time()
    for grade, gold in ((graders.math, "42"), (graders.rounded, "42"), (graders.freetext, "42"), (graders.letter, "A")):
        for text in (body * (20_000 // len(body)), body * (20_000 // len(body)) + "x!"):
            assert grade(rf"\boxed{{{text}}}", gold).score == grade(f"Answer: {text}", gold).score == 0
    assert time.process_time() - start < 2
