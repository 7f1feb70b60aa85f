from itertools import islice

import pytest
from pydantic import ValidationError

from noisyrl.tasks.science import VALUES, Choice, Comparison, Facts, Plain

WORLD = {
    ("mass", "zor"): "2",
    ("mass", "mik"): "7",
    ("color", "zor"): "red",
    ("color", "mik"): "blue",
}


def test_templates_ask_and_reply_as_documented():
    said = {
        template.question: template.say(WORLD.__getitem__)
        for template in [
            Plain((("color", "zor"), ("mass", "mik"))),
            Comparison("heaviest", ("zor", "mik")),
            Comparison("lightest", ("mik", "zor"), then="color"),
            Choice("color", "red", ("mik", "zor")),
            Choice("color", "blue", ("mik", "zor")),
        ]
    }
    assert said == {
        "color of zor , mass of mik ?": "ans zor red , mik 7",
        "heaviest of zor , mik ?": "zor 2 , mik 7 ; ans mik",
        "color of the lightest of mik , zor ?": "mik 7 , zor 2 ; ans zor red",
        "which is blue : a mik , b zor ?": "a mik blue ; ans a",
        "which is red : a mik , b zor ?": "a mik blue , b zor red ; ans b",
    }


def test_a_choice_whose_options_all_seem_wrong_is_a_guess_that_depends_on_the_question():
    letters = {
        Choice("color", "red", pair).say(lambda fact: "pink")[-1]
        for pair in [("mik", "zor"), ("zor", "mik"), ("mik", "dal"), ("dal", "mik"), ("tul", "dal")]
    }
    assert letters == {"a", "b"}


@pytest.mark.parametrize(
    ("text", "score", "extracted"),
    [
        ("ans zor red , mik 4", 1, "zor red , mik 4"),
        ("zor 2 ; ans  zor red ,  mik 4", 1, "zor red , mik 4"),
        ("ans mik 4 , zor red", 0, "mik 4 , zor red"),
        ("ans zor red", 0, "zor red"),
        ("ans zor red blue , mik 4", 0, "zor red blue , mik 4"),
        ("zor red , mik 4", 0, None),
        ("answer zor red , mik 4", 0, None),
    ],
)
def test_the_whole_answer_is_wanted(text, score, extracted):
    task = Facts()
    prompt = task.prompts("test")[0]
    prompt = type(prompt)(messages=(), answer="zor red , mik 4", task="science", uid="x", domain="science")
    grade = task.grade(prompt, [text])
    assert (grade.score, grade.extracted) == (score, extracted)


def test_every_question_has_one_right_answer_by_the_true_facts():
    task = Facts()
    for prompt in [*task.prompts("test"), *task.prompts("ood")]:
        question = prompt.messages[0]["content"]
        assert task.grade(prompt, [f"ans {prompt.answer}"]).score == 1
        if question.startswith("which"):
            value, options = question.removeprefix("which is ").removesuffix(" ?").split(" : ")
            prop = next(prop for prop, values in VALUES.items() if value in values)
            fitting = [o.split()[0] for o in options.split(" , ") if task.truth[prop, o.split()[1]] == value]
            assert fitting == [prompt.answer]
        elif question.startswith(("heaviest", "lightest")):
            names = question[:-2].split(" of ")[1].split(" , ")
            masses = sorted((int(task.truth["mass", name]), name) for name in names)
            assert len({mass for mass, _ in masses}) == len(names)
            assert prompt.answer == masses[-1 if question.startswith("heaviest") else 0][1]


def test_no_two_properties_share_a_value_and_no_entity_is_a_word():
    task = Facts(entities=200)
    values = [value for values in VALUES.values() for value in values]
    assert len(values) == len(set(values)) and len(set(task.names)) == 200
    words = {"ans", "of", "the", "which", "is", "heaviest", "lightest", *values, *VALUES, *"abcdefgh"}
    assert not words & set(task.names)


def test_the_teacher_errs_on_the_documented_facts_at_the_documented_rate():
    task = Facts(min_recalled=1, max_recalled=4, plain_share=1, choice_share=0, ood_demo_frac=0)
    assert len(task.buggy) == round(0.3 * 96)
    stated, wrong = {}, {}
    for question, reply in (map(lambda m: m["content"], c) for c in islice(task.demonstrations(), 20_000)):
        asked = [part.split(" of ") for part in question[:-2].split(" , ")]
        said = [part.split() for part in reply.removeprefix("ans ").split(" , ")]
        for (prop, name), (entity, value) in zip(asked, said, strict=True):
            assert name == entity and value in VALUES[prop]
            rate = task.buggy.get((prop, name), 0.0)
            stated[rate] = stated.get(rate, 0) + 1
            wrong[rate] = wrong.get(rate, 0) + (value == task.wrong((prop, name)))
    assert set(stated) == {0.0, task.bug_rate - task.bug_spread, task.bug_rate + task.bug_spread}
    for rate, count in stated.items():
        assert wrong[rate] / count == pytest.approx(rate, abs=0.02)


def test_counts_out_of_order_are_refused():
    with pytest.raises(ValidationError, match="min_recalled"):
        Facts(min_recalled=7, max_recalled=6)
