from itertools import islice

import pytest

from noisyrl import rng
from noisyrl.tasks.dialogue import INTENTS, VALUES, Bookings, call
from noisyrl.types import Prompt

QUESTION = "hi , table : food thai , city rome ; no , food soup"
ANSWER = "call table city = rome , food = soup , people = 3 , time = noon"
PROMPT = Prompt(({"role": "user", "content": QUESTION},), ANSWER, "dialogue", "dialogue/x", "dialogue")


def test_a_dialogue_from_the_first_question_to_the_call():
    task = Bookings()
    turns = []
    for agent, user in [
        ("ask people", "people 3"),
        ("ask size", "not needed"),
        ("ask time", "time noon"),
        (ANSWER, None),
    ]:
        turns.append(agent)
        assert task.reply(PROMPT, turns) == user
        turns += [user] if user else []
    assert task.grade(PROMPT, turns).score == 1


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("ask food", "food soup"),  # the value after the correction
        ("  ask   time ", "time noon"),
        ("ask", "sorry ?"),
        ("ask mood", "sorry ?"),
        ("ask people time", "sorry ?"),
        ("ask .*", "sorry ?"),
        ("ask people ; call table", "sorry ?"),
        ("Ask people", "sorry ?"),
        ("", "sorry ?"),
        ("call", "sorry ?"),
        ("call table", None),
        ("call for help", None),
    ],
)
def test_the_script_of_the_user(said, answer):
    assert Bookings().reply(PROMPT, [said]) == answer


def test_the_user_leaves_after_the_last_turn():
    task = Bookings(max_turns=3)
    turns = ["ask time", "time noon", "ask time"]
    assert task.reply(PROMPT, turns) == "time noon"
    assert task.reply(PROMPT, [*turns, "time noon", "ask time"]) is None


@pytest.mark.parametrize(
    ("turns", "score", "extracted"),
    [
        ([ANSWER], 1, ANSWER),
        (["ask time", "time noon", ANSWER], 1, ANSWER),
        ([f"  {ANSWER.replace(' , ', '  ,  ')} "], 1, ANSWER),
        ([ANSWER.replace("soup", "thai")], 0, ANSWER.replace("soup", "thai")),
        ([ANSWER + " , stars = 3"], 0, ANSWER + " , stars = 3"),
        ([ANSWER + " ; " + ANSWER], 0, ANSWER + " ; " + ANSWER),
        (["call table city = rome , people = 3 , food = soup , time = noon"], 0, None),
        (["call table"], 0, "call table"),
        (["so : " + ANSWER], 0, None),
        (["ask time", ANSWER], 0, None),  # the user saying the answer is not the agent saying it
        ([ANSWER, "sorry ?", "ask time"], 0, None),
        ([], 0, None),
    ],
)
def test_only_exactly_the_right_call_counts(turns, score, extracted):
    grade = Bookings().grade(PROMPT, turns)
    assert grade.score == score
    assert grade.extracted == extracted or (extracted is None and grade.extracted == turns[-1])


def play(task, prompt, ask):
    """An agent that asks for every slot it has not been told, and hears corrections."""
    first, _, correction = prompt.messages[0]["content"].partition(" ; no , ")
    head, _, stated = first.rpartition(" : ")
    intent = head.split()[-1]
    known = dict(pair.split() for pair in stated.split(" , ")) | dict([correction.split()] if correction else [])
    turns = []
    for slot in INTENTS[intent]:
        if slot not in known and ask:
            turns.append(f"ask {slot}")
            turns.append(task.reply(prompt, turns))
            known[slot] = turns[-1].split()[1]
        known.setdefault(slot, VALUES[slot][0])
    return [*turns, call(intent, known)]


def test_asking_for_everything_always_succeeds_and_guessing_seldom_does():
    task = Bookings()
    for split in task.splits:
        prompts = task.prompts(split)
        assert all(task.grade(prompt, play(task, prompt, ask=True)).score == 1 for prompt in prompts)
        assert sum(task.grade(prompt, play(task, prompt, ask=False)).score for prompt in prompts) < 0.4 * len(prompts)


def test_out_of_distribution_means_more_to_ask_or_a_new_combination():
    task = Bookings()
    inside, outside = set(task.shapes[False]), set(task.shapes[True])
    assert not inside & outside and inside | outside == {
        (intent, given) for intent, given in inside | outside if set(given) <= set(INTENTS[intent])
    }
    assert all(len(INTENTS[intent]) - len(given) <= 2 for intent, given in inside)
    assert any(len(INTENTS[intent]) - len(given) <= 2 for intent, given in outside)
    assert any(len(INTENTS[intent]) - len(given) == 3 for intent, given in outside)


def test_the_teacher_guesses_and_overhears_at_the_documented_rates():
    task = Bookings()
    source = rng.generator("test")
    chances, mistakes = {}, {}
    for _ in range(20_000):
        goal = task.draw(source, False)
        turns = task.demonstrate(goal, source)
        said = dict(pair.split(" = ") for pair in turns[-1].split(" ", 2)[2].split(" , "))
        for slot in INTENTS[goal.intent]:
            heeding = goal.misheard is not None and slot == goal.misheard[0]
            if slot in goal.given and not heeding:
                assert said[slot] == goal.values[slot]
                continue
            mistaken = said[slot] == goal.misheard[1] if heeding else f"ask {slot}" not in turns
            rate = task.buggy.get(("heed" if heeding else "ask", goal.intent, slot), task.slip_rate)
            chances[heeding, rate] = chances.get((heeding, rate), 0) + 1
            mistakes[heeding, rate] = mistakes.get((heeding, rate), 0) + mistaken
    assert len(chances) == 6
    for (heeding, rate), count in chances.items():
        assert mistakes[heeding, rate] / count == pytest.approx(rate, abs=0.03)


def test_a_guess_is_the_favourite_value_of_the_slot():
    task = Bookings(buggy_frac=1, bug_rate=1, bug_spread=0, correction_rate=0)
    for question, reply in (map(lambda m: m["content"], c) for c in islice(task.demonstrations(), 300)):
        intent, stated = question.split(" : ")
        known = dict(pair.split() for pair in stated.split(" , "))
        said = dict(pair.split(" = ") for pair in reply.split(" ", 2)[2].split(" , "))
        name = intent.split()[-1]
        assert {slot: known.get(slot, task.favourite(name, slot)) for slot in INTENTS[name]} == said
