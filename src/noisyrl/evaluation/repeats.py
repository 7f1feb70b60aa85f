r"""Metrics over several answers to one question; the rows of samples.parquet are all they need.

acc        mean score of the answers
pass@j     probability that at least one of j answers is right, drawn from the k given without replacement:
           1 - C(k - c, j) / C(k, j) with c right ones (Chen et al. 2021, arXiv:2107.03374), which is unbiased
maj@k      score of the answer given most often; a tie counts as the mean over the tied answers, what a fair draw
           among them would score on average. Answers without content do not vote; if no one votes the score is 0
no_answer, truncated   share of the answers
tcr, acr, gcr, format_error_rate   of dialogues (tasks/sgd/score.py), means over the answers; acr is that of the
           dialogues in which there is something to ask
davg       mean of the benchmark's tcr, acr and gcr, as shares of the questions: their mean is that of the three

Votes agree if they are the same number or the same text, whatever the spelling (1/2, 0.50 and \frac12; case and white
space). Answers that agree may differ in score, as dialogues that end alike do: their mean counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import comb, fsum
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from noisyrl.spec import InputError

if TYPE_CHECKING:
    from noisyrl.types import Prompt

NEEDED = ("qid", "repeat", "score", "extracted", "no_answer", "truncated")
"""The columns of a sample row that metrics are made of."""
MEASURES = ("tcr", "acr", "gcr", "format_error_rate")
"""Further columns where a task measures more than a score; there only if some benchmark has them."""
_AVERAGED = ("tcr", "acr", "gcr")

Row = Mapping[str, Any]


@runtime_checkable
class Measured(Protocol):
    """A task that says more of a response than its grade."""

    def measure(self, prompt: Prompt, turns: Sequence[str]) -> Mapping[str, float | None]:
        """A figure in [0, 1] for each of MEASURES; None = the response has nothing it could be about."""


def metrics(k: int, *, measured: bool = False) -> tuple[str, ...]:
    """The metrics of a benchmark with `k` answers per question: pass@j for the powers of two below k, and for k.

    measured: its rows have MEASURES.
    """
    more = ("davg", *MEASURES) if measured else ()
    if k == 1:
        return ("acc", *more, "no_answer", "truncated")
    below = [2**i for i in range(1, k.bit_length()) if 2**i < k]
    return ("acc", *more, *(f"pass@{j}" for j in (*below, k)), f"maj@{k}", "no_answer", "truncated")


def is_measured(rows: Sequence[Row]) -> bool:
    """Whether the rows of a benchmark have MEASURES."""
    return any(row.get(name) is not None for row in rows for name in MEASURES)


def per_question(metric: str, rows: Sequence[Row]) -> dict[str, float]:
    """The metric for each question id, questions in the order of `rows`. InputError: k answers do not have it.

    Questions it has nothing to say of are left out.
    """
    by_question: dict[str, list[Row]] = {}
    for row in rows:
        by_question.setdefault(row["qid"], []).append(row)
    measured = is_measured(rows)
    for answers in by_question.values():
        known = metrics(len(answers), measured=measured)
        if metric not in known:
            raise InputError(
                f"no metric {metric!r} with {len(answers)} answers to a question; there are: " + ", ".join(known)
            )
    if metric == "davg":
        return _average(by_question)
    if metric in MEASURES:
        return _measure(metric, by_question)
    return {qid: _value(metric, answers) for qid, answers in by_question.items()}


def pass_at(j: int, k: int, right: int) -> float:
    """Probability that j of k answers, `right` of them right, hold a right one."""
    return 1 - comb(k - right, j) / comb(k, j)


def majority(answers: Sequence[tuple[str | None, float]]) -> float:
    """Expected score of the most frequent vote; (vote, score) each, None = does not vote."""
    scores: dict[str, list[float]] = {}
    for vote, score in answers:
        if vote is not None:
            scores.setdefault(vote, []).append(score)
    most = max(map(len, scores.values()), default=0)
    return _mean([_mean(tied) for tied in scores.values() if len(tied) == most]) if most else 0.0


def _value(metric: str, answers: Sequence[Row]) -> float:
    name, _, count = metric.partition("@")
    if name == "pass":
        return pass_at(int(count), len(answers), sum(row["score"] == 1.0 for row in answers))
    if name == "maj":
        return majority([(_vote(row["extracted"]), float(row["score"])) for row in answers])
    return _mean([float(row["score" if name == "acc" else name]) for row in answers])


def _measure(metric: str, by_question: Mapping[str, Sequence[Row]]) -> dict[str, float]:
    """Of the questions that have it."""
    given = {qid: [row[metric] for row in rows if row[metric] is not None] for qid, rows in by_question.items()}
    return {qid: _mean(values) for qid, values in given.items() if values}


def _average(by_question: Mapping[str, Sequence[Row]]) -> dict[str, float]:
    """Each question's share of the mean of the three; {} if one of them has no question at all."""
    parts = [_measure(metric, by_question) for metric in _AVERAGED]
    if not all(parts):
        return {}
    weights = [len(by_question) / len(part) for part in parts]
    return {
        qid: _mean([part.get(qid, 0.0) * weight for part, weight in zip(parts, weights, strict=True)])
        for qid in by_question
    }


def _vote(extracted: str | None) -> str | None:
    from noisyrl.tasks.graders import spelling  # imports torch: tables of other metrics are made without

    return None if extracted is None else spelling(extracted)


def _mean(values: Sequence[float]) -> float:
    return fsum(values) / len(values)
