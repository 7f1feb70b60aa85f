"""Several sampled answers to a question: the draws depend on nothing but their key, and the metrics on nothing else."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from pydantic import ValidationError

from analysis.collect import Evaluated, scores
from noisyrl.evaluation import store
from noisyrl.evaluation.harness import Evaluation
from noisyrl.evaluation.repeats import majority, metrics, pass_at, per_question
from noisyrl.rollout.fast import FastSampler
from noisyrl.rollout.hf import GenerateSampler
from noisyrl.spec import InputError
from noisyrl.tasks.dialogue import Bookings
from noisyrl.tasks.math import Chains
from noisyrl.types import Rollout
from tests.evaluation.stage import Scripted, Toy

FEW = {"train_items": 4, "heldout_items": 5}
AVG3 = {"protocol": "avgk", "k": 3, "temperature": 1.0}
FILES = ("aggregate.jsonl", "samples.parquet")


def only(folder):
    (found,) = (path for path in folder.iterdir() if path.name != store.SUPERSEDED)
    return found


class InTurns(Scripted):
    """Answer number i to every question is script(prompt, [])[i]."""

    def __call__(self, lm, task, prompts, *, seed, step) -> Rollout:
        parts = list(itertools.chain.from_iterable([prompt] * self.samples for prompt in prompts))
        said = iter([text for prompt in prompts for text in self.script(prompt, [])[: self.samples]])
        plain = Scripted(script=lambda prompt, turns: next(said), unfinished=self.unfinished)
        return plain(lm, task, parts, seed=seed, step=step)


SAID = {"toy/test/0": ["yes", "no", "yes"], "toy/test/1": ["no", "", "no"], "toy/test/2": ["yes", "no", ""]}


def run_in_turns(lm, occasion, **options):
    sampler = InTurns(script=lambda prompt, turns: SAID[prompt.uid], unfinished=("toy/test/2",))
    evaluation = Evaluation(splits=("test",), **AVG3, **options)
    return evaluation.run(lm, Toy(count=3), sampler, **occasion)


def test_hand_computed_metrics(lm, occasion):
    found = run_in_turns(lm, occasion)
    # Right answers of three: 2, 0, 1. pass@2: 1, 0, 1 - C(2,2)/C(3,2) = 2/3. Votes: yes; no; yes and no tied.
    expected = {"acc": 3 / 9, "pass@2": 5 / 9, "pass@3": 2 / 3, "maj@3": (1 + 0 + 0.5) / 3, "no_answer": 2 / 9}
    assert found == pytest.approx({f"toy/{name}": value for name, value in (expected | {"truncated": 1 / 3}).items()})
    folder = only(occasion["out_dir"])
    rows = {row["metric"]: row for row in store.read_aggregate(folder)}
    facts = {"protocol": "avgk", "k": 3, "temperature": 1.0, "n_questions": 3, "n_no_answer": 2, "n_truncated": 3}
    assert all({key: row[key] for key in facts} == facts for row in rows.values())
    # Over three questions: 1, 0, 1/2 has variance 1/4.
    assert rows["maj@3"]["stderr_question"] == pytest.approx((1 / 4 / 3) ** 0.5)
    samples = store.read_samples(folder).to_pylist()
    assert [(row["qid"][-1], row["repeat"], row["score"]) for row in samples] == [
        ("0", 0, 1), ("0", 1, 0), ("0", 2, 1), ("1", 0, 0), ("1", 1, 0), ("1", 2, 0), ("2", 0, 1), ("2", 1, 0),
        ("2", 2, 0),
    ]  # fmt: skip
    assert len({row["gen_seed"] for row in samples}) == 9


def test_tables_read_any_metric_per_question_and_refuse_unknown_ones(lm, occasion):
    run_in_turns(lm, occasion)
    folder = only(occasion["out_dir"])
    evaluated = Evaluated(folder, tuple(store.read_aggregate(folder)))
    for row in evaluated.rows:
        by_question = scores(evaluated, "toy", row["metric"])
        assert list(by_question) == list(SAID) and sum(by_question.values()) / 3 == pytest.approx(row["value"])
    assert scores(evaluated, "toy", "maj@3")["toy/test/2"] == 0.5
    with pytest.raises(InputError, match="no metric 'pass@8' with 3 answers.*there are: acc, pass@2, pass@3, maj@3"):
        scores(evaluated, "toy", "pass@8")


def test_which_metrics_there_are():
    assert metrics(1) == ("acc", "no_answer", "truncated")
    assert metrics(2) == ("acc", "pass@2", "maj@2", "no_answer", "truncated")
    assert [name for name in metrics(12) if "@" in name] == ["pass@2", "pass@4", "pass@8", "pass@12", "maj@12"]


@pytest.mark.parametrize(("j", "k", "right"), [(1, 8, 3), (2, 8, 3), (4, 8, 3), (8, 8, 1), (3, 5, 0), (3, 5, 4)])
def test_pass_at_is_the_mean_over_all_subsets(j, k, right):
    answers = [i < right for i in range(k)]
    subsets = list(itertools.combinations(answers, j))
    assert pass_at(j, k, right) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize(
    ("answers", "score"),
    [
        ([("a", 1.0), ("a", 1.0), ("b", 0.0)], 1),
        ([("a", 1.0), ("b", 0.0)], 1 / 2),
        ([("a", 1.0), ("b", 0.0), ("c", 0.0)], 1 / 3),
        ([(None, 0.0), (None, 0.0), ("a", 1.0)], 1),
        ([(None, 0.0)], 0),
        ([("a", 1.0), ("a", 0.0), ("b", 0.0)], 1 / 2),  # they end alike and score differently, as dialogues may
    ],
)
def test_majority(answers, score):
    assert majority(answers) == pytest.approx(score)


def test_votes_agree_whatever_their_spelling():
    said = [("1/2", 1.0), ("0.50", 1.0), (r"\frac12", 1.0), ("3", 0.0), ("3", 0.0), (None, 0.0)]
    rows = [
        {"qid": "q", "repeat": i, "score": score, "extracted": text, "no_answer": text is None, "truncated": False}
        for i, (text, score) in enumerate(said)
    ]
    assert per_question("maj@6", rows) == {"q": 1.0}


def texts(folder):
    return {(row["benchmark"], row["qid"], row["repeat"]): row["turns"] for row in store.read_texts(folder)}


@pytest.mark.parametrize("sampler", [FastSampler, GenerateSampler])
def test_samples_depend_on_neither_batch_nor_order(lm, occasion, sampler):
    class Shuffled(Bookings):
        def prompts(self, split):
            found = super().prompts(split)
            return [found[i] for i in (3, 0, 4, 2, 1)]

    found = []
    for number, (task, rows) in enumerate([(Bookings, 64), (Bookings, 1), (Shuffled, 4)]):
        where = occasion | {"out_dir": occasion["out_dir"] / str(number)}
        evaluation = Evaluation(**AVG3, keep_text=True)
        evaluation.run(lm, task(**FEW), sampler(max_tokens=10, batch_rows=rows), **where)
        found.append(only(where["out_dir"]))
    said = texts(found[0])
    assert len(said) == 2 * 5 * 3 and len(set(map(str, said.values()))) > 20
    assert said == texts(found[1]) == texts(found[2])
    assert all((found[0] / name).read_bytes() == (found[1] / name).read_bytes() for name in FILES)


def test_an_answer_does_not_depend_on_how_many_there_are(lm, occasion):
    said = []
    for k in (2, 5):
        where = occasion | {"out_dir": occasion["out_dir"] / str(k)}
        evaluation = Evaluation(protocol="avgk", k=k, temperature=1.0, keep_text=True)
        evaluation.run(lm, Chains(**FEW), FastSampler(max_tokens=8), **where)
        said.append(texts(only(where["out_dir"])))
    assert said[0].items() <= said[1].items()


def test_parameters_are_part_of_the_id(lm, occasion):
    def fail(prompt, turns):
        raise RuntimeError("asked again")

    for change in ({}, {"k": 2}, {"temperature": 0.5}, {"seed": 1}):
        Evaluation(**AVG3 | change).run(lm, Toy(), FastSampler(max_tokens=2), **occasion)
    Evaluation().run(lm, Toy(), FastSampler(max_tokens=2), **occasion)
    assert len(list(occasion["out_dir"].iterdir())) == 5
    Evaluation(**AVG3).run(lm, Toy(), Scripted(script=fail, max_tokens=2), **occasion)


def test_texts_that_were_not_kept_are_made_again(lm, occasion):
    kept = {}
    for keep_text in (False, True, True):
        run_in_turns(lm, occasion, keep_text=keep_text)
        folder = only(occasion["out_dir"])
        kept[keep_text] = [(folder / name).read_bytes() for name in FILES]
    assert kept[False] == kept[True] and len(texts(folder)) == 9
    assert [path.name for path in (occasion["out_dir"] / store.SUPERSEDED).iterdir()] == [folder.name]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 2}, "greedy gives one answer"),
        ({"temperature": 0.5}, "greedy gives one answer"),
        ({"protocol": "avgk", "k": 8}, "the same answer k times"),
        ({"protocol": "avgk", "k": 0, "temperature": 1.0}, "greater than or equal to 1"),
    ],
)
def test_contradictions_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        Evaluation(**options)


def test_avg8_is_what_it_says():
    with initialize_config_dir(str(Path(__file__).parents[2] / "conf"), version_base="1.3"):
        built = instantiate(compose("eval", ["eval=avg8", "eval.temperature=0.6", "run=x"]).eval)
    assert (built.protocol, built.k, built.temperature, built.keep_text) == ("avgk", 8, 0.6, True)
