"""Figures over training: one column of panels per setting, one row per logged number, a line per algorithm."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from analysis.collect import DIVERGED
from analysis.figures.drawing import PAGES, Drawn, chunks, left_out, legend, sheet, styles, titled
from analysis.figures.groups import Group, Nothing, by_setting, half_width, logged

_POINTS = 20  # of a line, at most; longer runs are averaged over several steps per point
_COLUMNS = 4
_LINES = 8  # of a panel, at most
_FEWEST = 3  # seeds of a band: that of two is 13 standard errors wide
STEPS, TOKENS = "steps", "tokens"
_AXES = {STEPS: "training step", TOKENS: "sampled policy tokens, thousands"}


@dataclass(frozen=True)
class Row:
    """One logged number."""

    metric: str
    label: str
    low: float | None = None
    """Ends of the axis where lines may leave it; None = what the runs need."""
    high: float | None = None
    line: float | None = None
    """A horizontal line that means something."""
    scale: str = ""
    """Rows with the same one share their axis."""


@dataclass(frozen=True)
class Course:
    """What a figure shows; it is there if any run logged one of the numbers `needs`."""

    title: str
    rows: Sequence[Row]
    needs: Sequence[str]
    missing: str
    caption: str = ""


COURSES: Mapping[str, Course] = {
    "learning_curves": Course(
        "Reward in training and accuracy on held-out questions",
        (
            Row("reward/clean_mean", "clean reward", scale="reward"),
            Row("reward/observed_mean", "observed reward", scale="reward"),
            Row("accuracy/id", "held-out accuracy", scale="accuracy"),
            Row("accuracy/ood", "accuracy, other\ndistribution", scale="accuracy"),
        ),
        ("reward/clean_mean",),
        "no run has logged a reward",
        "Clean: as graded. Observed: after noise, what the algorithm sees. Accuracy: greedy answers, clean grader; "
        "more of it with eval=curve.",
    ),
    "calibration": Course(
        "Is the critic's distribution right about observed outcomes?",
        (
            Row("critic/coverage_error", "coverage error\n(share of outcomes)", low=0, line=0),
            Row("critic/pit_error", "PIT error\n(total variation)", low=0, line=0),
        ),
        ("critic/coverage_error", "critic/pit_error"),
        "no run logs critic/coverage_error: only distributional critics do (algo=dvpo)",
        "0 = every quantile has the share of outcomes below it that its level says. Judged against outcomes of the "
        "training rollouts before the critic saw them; critic_calibration has continuations sampled for the purpose.",
    ),
    "explained_variance": Course(
        "Does the critic foretell outcomes?",
        (
            Row("critic/explained_variance", "explained variance,\nobserved outcomes", low=-1, high=1, line=0),
            Row("critic/explained_variance_clean", "explained variance,\nclean outcomes", low=-1, high=1, line=0),
        ),
        ("critic/explained_variance",),
        "no run logs critic/explained_variance: no algorithm here has a critic (algo=ppo has)",
        "1 = exactly, 0 = no better than a constant; below -1 is not shown. With zero-mean noise the best value "
        "against observed outcomes is below 1.",
    ),
    "tail_spread": Course(
        "Tails of the critic's distribution",
        (
            Row("critic/lower_spread", "lower tail: median minus\nmean of lowest tenth\n(reward)", low=0),
            Row("critic/upper_spread", "upper tail: mean of highest\ntenth minus median\n(reward)", low=0),
        ),
        ("critic/lower_spread", "critic/upper_spread"),
        "no run logs critic/lower_spread: only distributional critics do (algo=dvpo)",
    ),
    "advantage_noise": Course(
        "How much of the clean advantage is left",
        (
            Row("noise/advantage_correlation", "correlation with\nclean advantages", high=1, line=0),
            Row("noise/advantage_sign_agreement", "share of tokens\nwith the clean sign", low=0, high=1, line=0.5),
            Row("policy/grad_norm", "gradient norm\nof the policy", low=0),
        ),
        ("noise/advantage_correlation",),
        "no run logs noise/advantage_correlation: runs made before it was logged do not",
        "Advantages that the algorithm computed against those of the same rollouts with clean rewards and the same "
        "critic; tokens without a clean advantage are not counted in the share.",
    ),
    "behaviour": Course(
        "What the policy does",
        (
            Row("policy/kl_reference_nats", "KL to the starting\npolicy (nats/token)", low=0),
            Row("policy/entropy_nats", "entropy\n(nats/token)", low=0),
            Row("rollout/length_tokens", "length\n(tokens/response)"),
            Row("rollout/finished_frac", "share of responses\nthat end", high=1),
        ),
        ("policy/entropy_nats",),
        "no run has logged a policy",
        "The KL is logged by runs that need the starting policy (algo.kl_coef > 0, or a critic that reads it) only.",
    ),
}  # fmt: skip
_READING = (
    "Line: mean over seeds, as far as all of them got. Band or bars: 95 % t interval of the mean, from three seeds "
    "on. Thin: single seeds; a cross is where a diverged run ends. Grey: the critic's warm-up."
)


def draw(course: Course, groups: Sequence[Group], x: str = STEPS) -> Drawn:
    """Nothing: no run logged what the figure is about."""
    shown = [group for group in groups if any(_has(group, name) for name in course.needs)]
    if not shown:
        raise Nothing(course.missing)
    rows = [row for row in course.rows if any(_has(group, row.metric) for group in shown)]
    lines = {(group, row): _line(group, row.metric, x) for group in shown for row in rows}
    look = styles(group.method for group in groups)
    columns = [
        (setting if len(found) <= _LINES else f"{setting} ({number})", part)
        for setting, found in by_setting(shown).items()
        for number, part in enumerate(chunks(found, _LINES), start=1)
    ]
    pages = []
    parts = chunks(columns, _COLUMNS)
    for part in parts[:PAGES]:
        figure, axes = sheet(course.title, len(rows), len(part), sharex="col", sharey="row")
        for place, (setting, found) in enumerate(part):
            titled(axes[0, place], setting)
            axes[-1, place].set_xlabel(_AXES[x])
            for panel, row in zip(axes[:, place], rows, strict=True):
                for group in found:
                    _plot(panel, lines[group, row], row, look[group.method], group)
                _finish(panel, row, [lines[group, row] for group in found])
        for panel, row in zip(axes[:, 0], rows, strict=True):
            panel.set_ylabel(row.label)
            alike = [other for other in rows if other == row or other.scale and other.scale == row.scale]
            _limits(panel, row, [lines[group, other] for _, found in part for group in found for other in alike])
        legend(figure, axes.flat)
        pages.append(figure)
    width = max(_width(group) for group in shown)
    each = f" Each point is the mean of up to {width} steps." if width > 1 else ""
    data = pd.concat([line.table for line in lines.values()], ignore_index=True)
    return Drawn(pages, data, f"{course.caption} {_READING}{each}{left_out(len(parts))}".strip())


@dataclass(frozen=True)
class _Line:
    """A number over training."""

    table: pd.DataFrame
    """A row per point and seed, and one per point for the mean."""
    seeds: Sequence[tuple[np.ndarray, np.ndarray]]
    """[N] places and values of each run, in their order."""
    mean: Mapping[str, np.ndarray]
    """[N] each: x, mean, low, high; the ends are NaN with one seed."""


def _has(group: Group, metric: str) -> bool:
    found = [logged(run.folder) for run in group.runs]
    return any(metric in frame and bool(frame[metric].notna().any()) for frame in found)


def _width(group: Group) -> int:
    """Steps per point."""
    last = max((float(logged(run.folder)["step"].max()) for run in group.runs), default=1)
    return max(1, -(-int(np.nan_to_num(last)) // _POINTS))


def _line(group: Group, metric: str, x: str) -> _Line:
    """Points of each seed and of the mean. Few values, as from evaluations, are not averaged over steps."""
    width = 1 if metric.startswith("accuracy/") else _width(group)
    by_seed = {run.seed: _points(logged(run.folder), metric, width) for run in group.runs}
    points = np.unique(np.concatenate([found[0] for found in by_seed.values()]))
    values_SP, places_SP = (np.full((len(by_seed), len(points)), np.nan) for _ in range(2))
    for row, (at, values, steps, tokens) in enumerate(by_seed.values()):
        columns = np.searchsorted(points, at)
        values_SP[row, columns], places_SP[row, columns] = values, tokens / 1000 if x == TOKENS else steps
    known_SP = np.isfinite(values_SP)
    place_P = np.nansum(places_SP, axis=0) / known_SP.sum(axis=0)
    seeds = [(place_P[known_P], values_P[known_P]) for known_P, values_P in zip(known_SP, values_SP, strict=True)]
    # Only where all seeds are: a mean over those that got further would leave out the ones that broke down.
    count, shared = len(by_seed), np.flatnonzero(known_SP.all(axis=0))
    mean_N = np.array([values_SP[:, p].mean() for p in shared])
    spread_N = np.array([values_SP[:, p].std(ddof=1) if count > 1 else np.nan for p in shared])
    half_N = half_width(spread_N, count)
    mean = {"x": place_P[shared], "mean": mean_N, "low": mean_N - half_N, "high": mean_N + half_N}
    names = [str(seed) for seed, (places, _) in zip(by_seed, seeds, strict=True) for _ in places]
    alone = np.full(len(names), np.nan)
    table = pd.DataFrame({
        x: np.concatenate([*(places for places, _ in seeds), mean["x"]]),
        "seed": [*names, *("mean" for _ in shared)],
        "mean": np.concatenate([*(values for _, values in seeds), mean_N]),
        "n": [*(1 for _ in names), *(count for _ in shared)],
        "low": np.concatenate([alone, mean["low"]]),
        "high": np.concatenate([alone, mean["high"]]),
        "metric": metric,
        **group.named,
    })  # fmt: skip
    return _Line(table, seeds, mean)


def _points(frame: pd.DataFrame, metric: str, width: int) -> tuple[np.ndarray, ...]:
    """Number of each point, and its mean value, step and tokens so far; the warm-up has points of its own."""
    values_N = frame[metric].to_numpy() if metric in frame else np.full(len(frame), np.nan)
    tokens_N = frame["trainer/tokens"].ffill().fillna(0).to_numpy() if "trainer/tokens" in frame else values_N * 0
    known_N = np.isfinite(values_N)
    steps_K = frame["step"].to_numpy()[known_N]
    points, place_K = np.unique(np.floor((steps_K - 1) / width), return_inverse=True)
    counts = np.bincount(place_K, minlength=len(points))
    columns = (values_N[known_N], steps_K, tokens_N[known_N])
    return points, *(np.bincount(place_K, weights=column, minlength=len(points)) / counts for column in columns)


def _plot(panel: Axes, line: _Line, row: Row, look: Mapping[str, Any], group: Group) -> None:
    for run, (places, values) in zip(group.runs, line.seeds, strict=True):
        if len(group.runs) > 1:
            panel.plot(places, values, color=look["color"], lw=0.6, alpha=0.45)
        if run.status == DIVERGED and len(values):
            panel.plot(places[-1], values[-1], "x", color=look["color"], ms=7, mew=2)
    x, mean, low, high = line.mean.values()
    if len(group.runs) >= _FEWEST and len(mean):
        if row.metric.startswith("accuracy/"):
            errors = np.abs([mean - low, mean - high])
            panel.errorbar(x, mean, errors, fmt="none", ecolor=look["color"], capsize=3, lw=1)
        else:
            panel.fill_between(x, low, high, color=look["color"], alpha=0.15, lw=0)
    panel.plot(x, mean, lw=1.7, ms=4, markevery=max(1, len(mean) // 6), label=group.method, **look)


def _finish(panel: Axes, row: Row, lines: Sequence[_Line]) -> None:
    if row.line is not None:
        panel.axhline(row.line, color="black", lw=0.8)
    if not any(len(line.table) for line in lines):
        panel.text(0.5, 0.5, "not logged", transform=panel.transAxes, ha="center", va="center", color="#555555")
    first = min((float(line.table.iloc[:, 0].min()) for line in lines if len(line.table)), default=1.0)
    if first < 0:
        panel.axvspan(first - 0.5, 0.5, color="black", alpha=0.08, lw=0)
    panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def _limits(panel: Axes, row: Row, lines: Sequence[_Line]) -> None:
    """The axis shows every seed; bands may leave it."""
    values = np.concatenate([line.table["mean"] for line in lines])
    if not len(values):
        return
    low, high = float(values.min()), float(values.max())
    ends: list[tuple[float | None, float, Callable]] = [(row.low, low, max), (row.high, high, min)]
    low, high = (found if wanted is None else pick(found, wanted) for wanted, found, pick in ends)
    room = 0.06 * (high - low) or 0.05
    panel.set_ylim(low - room, high + room)
