from collections import Counter
from itertools import islice

import pytest
from pydantic import ValidationError

from noisyrl.tasks.math import Chains, calculate
from noisyrl.types import Prompt

PROMPT = Prompt(messages=(), answer="3", task="math", uid="x", domain="math")


@pytest.mark.parametrize(
    ("text", "score", "extracted"),
    [
        ("7 + 4 = 1 ; 1 * 3 = 3 ; ans 3", 1, "3"),
        ("ans   3 ", 1, "3"),
        ("ans 4 ; ans 3", 1, "3"),  # the last word counts
        ("ans 3 ; ans 4", 0, "4"),
        ("ans 3 4", 0, "3 4"),  # naming several is naming none
        ("ans 0 1 2 3 4 5 6 7 8 9", 0, "0 1 2 3 4 5 6 7 8 9"),
        ("ans 13", 0, "13"),
        ("ans -3", 0, "-3"),
        ("ans 3.0", 0, "3.0"),
        ("ans \u0663", 0, "\u0663"),  # an Arabic three
        ("the result is 3", 0, None),
        ("trans 3", 0, None),
        ("ANS 3", 0, None),
        ("ans3", 0, None),
        ("3 ans", 0, None),
        ("ans 3 ans", 0, None),
        ("ans", 0, None),
        ("", 0, None),
    ],
)
def test_only_what_follows_the_last_ans_counts(text, score, extracted):
    grade = Chains().grade(PROMPT, [text])
    assert (grade.score, grade.status, grade.extracted) == (score, "scored", extracted)


def test_a_response_without_a_turn_has_no_answer():
    assert Chains().grade(PROMPT, []).extracted is None


def test_facts_are_taken_modulo_ten():
    assert [calculate(fact) for fact in [(7, "+", 4), (1, "-", 5), (8, "*", 3)]] == [1, 6, 4]


def test_answers_follow_from_the_questions():
    words = {"add": "+", "minus": "-", "times": "*"}
    for split, lengths in {"test": {3, 4, 5}, "ood": {6, 7, 8}}.items():
        seen = set()
        for prompt in Chains().prompts(split):
            start, *steps = prompt.messages[0]["content"].removesuffix(" . result ?").split(" , ")
            value = int(start.split()[1])
            for step in steps:
                word, operand = step.split()
                value = eval(f"({value} {words[word]} {operand}) % 10")
            assert prompt.answer == str(value)
            seen.add(len(steps))
        assert seen == lengths


def test_the_teacher_errs_on_the_documented_facts_at_the_documented_rate():
    task = Chains()
    assert len(task.buggy) == 60 and Counter(task.buggy.values()) == {
        task.bug_rate - task.bug_spread: 30,
        task.bug_rate + task.bug_spread: 30,
    }
    steps, wrong, known = Counter(), Counter(), Counter()
    for conversation in islice(task.demonstrations(), 20_000):
        for line in conversation[1]["content"].split(" ; ")[:-1]:
            left, symbol, right, _, result = line.split()
            fact = (int(left), symbol, int(right))
            rate = task.buggy.get(fact, 0.0)
            steps[rate] += 1
            wrong[rate] += int(result) != calculate(fact)
            known[rate] += int(result) == task.wrong(fact)
    for rate, count in steps.items():
        # a slip (2 %) is any digit, the right one and the known wrong one among them
        assert wrong[rate] / count == pytest.approx(0.98 * rate + 0.02 * 0.9, abs=0.015)
        if rate:
            assert known[rate] / count == pytest.approx(0.98 * rate + 0.02 * 0.1, abs=0.015)


def test_the_teacher_goes_on_from_its_own_results():
    for conversation in islice(Chains().demonstrations(), 500):
        *lines, last = conversation[1]["content"].split(" ; ")
        results = [line.split()[-1] for line in lines]
        assert [line.split()[0] for line in lines[1:]] == results[:-1] and last == f"ans {results[-1]}"


def test_a_teacher_without_bugs_is_always_right():
    task = Chains(buggy_frac=0, slip_rate=0)
    for conversation in islice(task.demonstrations(), 500):
        for line in conversation[1]["content"].split(" ; ")[:-1]:
            left, symbol, right, _, result = line.split()
            assert int(result) == calculate((int(left), symbol, int(right)))


def test_lengths_out_of_order_are_refused():
    with pytest.raises(ValidationError, match="min_steps <= max_steps < ood_max_steps"):
        Chains(min_steps=4, max_steps=3)
