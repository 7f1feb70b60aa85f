r"""A corpus of answers and the score a careful reader would give; what cannot be judged is never 0."""

from __future__ import annotations

import threading
import time

import pytest

from noisyrl.tasks import graders, verify
from noisyrl.tasks.graders import GRADERS, VERSIONS, last_box, one_letter

# text, gold, score
MATH = [
    # which box, and is there one
    (r"Thus the answer is \boxed{42}.", "42", 1),
    (r"We get $6\cdot 7$ and so $\boxed{42}$.", "42", 1),
    (r"First \boxed{41}, wait, \boxed{42}.", "42", 1),
    (r"First \boxed{42}, wait, \boxed{41}.", "42", 0),
    (r"\boxed{42} and then \boxed{4", "42", 0),
    (r"\boxed{42} or rather \boxed{}", "42", 0),
    (r"\boxed{42} or rather \boxed 41", "42", 0),
    (r"\boxed{42} sits in a \boxedtext", "42", 1),
    (r"The answer is 42.", "42", 0),
    ("", "42", 0),
    (r"<think>\boxed{42}</think> I give up", "42", 0),
    (r"<think>\boxed{41}</think> \boxed{42}", "42", 1),
    (r"<think>so \boxed{42}", "42", 0),
    (r"a</think>b<think>\boxed{42}", "42", 0),
    (r"maybe \boxed{41}</think> \boxed{42}", "42", 1),
    (r"\boxed {42}", "42", 1),
    (r"\boxed{\boxed{42}}", "42", 1),
    # whole numbers, decimals, fractions
    (r"\boxed{042}", "42", 1),
    (r"\boxed{+42}", "42", 1),
    (r"\boxed{-42}", "42", 0),
    (r"\boxed{42.0}", "42", 1),
    (r"\boxed{42.}", "42", 1),
    (r"\boxed{1,234}", "1234", 1),
    (r"\boxed{1{,}234}", "1234", 1),
    (r"\boxed{12,34}", "1234", 0),
    (r"\boxed{1/2}", r"\frac{1}{2}", 1),
    (r"\boxed{\dfrac{2}{4}}", r"\frac12", 1),
    (r"\boxed{0.5}", r"\frac{1}{2}", 1),
    (r"\boxed{-\frac{3}{4}}", "-0.75", 1),
    (r"\boxed{0.333}", r"\frac13", 0),
    (r"\boxed{1/3}", r"\frac23", 0),
    (r"\boxed{1e-3}", "0.001", 1),
    (r"\boxed{0.001}", "1e-3", 1),
    (r"\boxed{1\times 10^{-3}}", "1e-3", 1),
    (r"\boxed{3/0}", "3", 0),
    (r"\boxed{1e99999999}", "3", 0),
    (r"\boxed{" + "9" * 5000 + "}", "9", 0),
    # formulas
    (r"\boxed{2\sqrt{3}}", r"\sqrt{12}", 1),
    (r"\boxed{(x+1)^2}", "x^2+2x+1", 1),
    (r"\boxed{(x+1)^2}", "x^2+2x+2", 0),
    (r"\boxed{x = 5}", "5", 1),
    (r"\boxed{x=1=2=3}", "3", 0),
    (r"\boxed{x=2,y=3}", "x=2, y=3", 1),
    (r"\boxed{[2,5)}", r"2\le x<5", 1),
    (r"\boxed{2\le x<5}", "[2,5)", 0),  # Math-Verify is not symmetric; the gold comes first
    (r"\boxed{[2,5)}", "[2,5)", 1),
    (r"\boxed{(2,5)}", "[2,5)", 0),
    (r"\boxed{\{2,1\}}", r"\{1,2\}", 1),
    (r"\boxed{(2,1)}", "(1,2)", 0),
    (r"\boxed{\left(1,2\right)}", "(1, 2)", 1),
    (r"\boxed{41, 42}", "42", 0),
    (r"\boxed{1-\sqrt2, 1+\sqrt2}", r"1 \pm \sqrt{2}", 1),
    (r"\boxed{90^\circ}", "90", 1),
    (r"\boxed{10\text{ cm}}", "10", 1),
    (r"\boxed{\$5}", "5", 1),
    (r"\boxed{\infty}", r"-\infty", 0),
    (r"\boxed{\begin{pmatrix}1\\2\end{pmatrix}}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", 1),
    (r"\boxed{abc 42}", "42", 0),
    (r"\boxed{\frac{}{}{}}", "42", 0),
    # words
    (r"\boxed{\text{even}}", "even", 1),
    (r"\boxed{Even}", r"\text{even}", 1),
    (r"\boxed{neve}", "even", 0),
    (r"\boxed{\text{Tuesday}}", r"\text{Monday}", 0),
    (r"\boxed{\text{(C)}}", "C", 1),
    # golds as data sets write them
    (r"\boxed{42}", r"$42$", 1),
    (r"\boxed{42}", r"so it is $\boxed{42}$", 1),
    (r"\boxed{42}", " 42 ", 1),
]

LETTER = [
    ("Answer: C", "C", 1),
    ("answer: c", "C", 1),
    ("**Answer:** C", "C", 1),
    ("**Answer: C**", "C", 1),
    ("Final Answer: (C)", "C", 1),
    ("The answer is: C.", "C", 1),
    ("Answer: C. Paris", "C", 1),
    ("Answer: C) Paris", "(C)", 1),
    (r"Answer: $\boxed{C}$", "C", 1),
    (r"Answer: \text{C}", "C", 1),
    ("Answer: B\nno, wait\nAnswer: C", "C", 1),
    ("Answer: C\nAnswer: B", "C", 0),
    (r"\boxed{C}", "C", 1),
    (r"\boxed{\text{C}}", "C", 1),
    ("Answer: B and \\boxed{C}", "C", 1),
    ("Answer: B\n\\boxed{C}", "C", 0),
    ("C", "C", 0),
    ("I think it is C", "C", 0),
    ("Answer: A good question!", "A", 0),
    ("Answer: AB", "A", 0),
    ("Answer: e.g. D", "E", 0),
    ("Answer:\nC", "C", 0),
    ("<think>Answer: C</think>", "C", 0),
    ("no answer: C", "C", 0),
]

EXACT = [
    ("Paris", "paris", 1),
    ("  New   York. ", "new york", 1),
    ("It is far.\nAnswer: 'Paris'!", "Paris", 1),
    ("Answer: Rome\nAnswer: Paris", "Paris", 1),
    ("Answer:\nParis", "Paris", 1),
    ("The answer is Paris", "Paris", 0),
    ("Answer: Paris\nbecause", "Paris", 1),
    ("-5", "5", 0),
    (".5", "5", 0),
    ("[1,2)", "(1,2]", 0),
    ("5%", "5", 0),
    ("Cafe\u0301", "Caf\u00e9", 1),
    ("call book date=3", "call book date=3", 1),
    ("", "", 0),
    ("<think>Paris", "Paris", 0),
]


@pytest.mark.parametrize(("text", "gold", "score"), MATH)
def test_math(text, gold, score):
    assert graders.math(text, gold).score == score


@pytest.mark.parametrize(("text", "gold", "score"), LETTER)
def test_letter(text, gold, score):
    assert graders.letter(text, gold).score == score


@pytest.mark.parametrize(("text", "gold", "score"), EXACT)
def test_exact(text, gold, score):
    assert graders.exact(text, gold).score == score


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


def test_a_worker_that_dies_is_an_error_and_is_replaced():
    graders.math(r"\boxed{\sqrt{2}}", r"\sqrt 5")
    verify._WORKER.process.kill()
    verify._WORKER.process.wait()
    assert graders.math(r"\boxed{\sqrt{7}}", r"\sqrt{5+2}").score == 1
    ask = verify._WORKER._read
    verify._WORKER._read = lambda *_: (_ for _ in ()).throw(verify.VerifyCrash("gone"))
    try:
        grade = graders.math(r"\boxed{\sqrt{11}}", r"\sqrt{12}")
    finally:
        verify._WORKER._read = ask
    assert (grade.score, grade.status, grade.extracted) == (None, "error", r"\sqrt{11}")


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
    assert VERSIONS == {"math": "math@v1", "letter": "letter@v1", "exact": "exact@v1"} and set(VERSIONS) == set(GRADERS)
