r"""Metrics over several answers to one question; the rows of samples.parquet are all they need.

acc        mean score of the answers
pass@j     probability that at least one of j answers is right, drawn from the k given without replacement:
           1 - C(k - c, j) / C(k, j) with c right ones (Chen et al. 2021, arXiv:2107.03374), which is unbiased
maj@k      score of the answer given most often; a tie counts as the mean over the tied answers, what a fair draw
           among them would score on average. Answers without content do not vote; if no one votes the score is 0
no_answer, truncated   share of the answers

Votes agree if they are the same number or the same text, whatever the spelling (1/2, 0.50 and \frac12; case and white
space). Answers that agree may differ in score, as dialogues that end alike do: their mean counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import comb, fsum
from typing import Any

from noisyrl.spec import InputError
from noisyrl.tasks.graders import spelling

NEEDED = ("qid", "repeat", "score", "extracted", "no_answer", "truncated")
"""The columns of a sample row that metrics are made of."""

Row = Mapping[str, Any]


def metrics(k: int) -> tuple[str, ...]:
    """The metrics of a benchmark with `k` answers per question: pass@j for the powers of two below k, and for k."""
    if k == 1:
        return ("acc", "no_answer", "truncated")
    below = [2**i for i in range(1, k.bit_length()) if 2**i < k]
    return ("acc", *(f"pass@{j}" for j in (*below, k)), f"maj@{k}", "no_answer", "truncated")


def per_question(metric: str, rows: Sequence[Row]) -> dict[str, float]:
    """The metric for each question id, questions in the order of `rows`. InputError: k answers do not have it."""
    by_question: dict[str, list[Row]] = {}
    for row in rows:
        by_question.setdefault(row["qid"], []).append(row)
    found = {}
    for qid, answers in by_question.items():
        if metric not in metrics(len(answers)):
            raise InputError(
                f"no metric {metric!r} with {len(answers)} answers to a question; there are: "
                + ", ".join(metrics(len(answers)))
            )
        found[qid] = _value(metric, answers)
    return found


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


def _vote(extracted: str | None) -> str | None:
    return None if extracted is None else spelling(extracted)


def _mean(values: Sequence[float]) -> float:
    return fsum(values) / len(values)
