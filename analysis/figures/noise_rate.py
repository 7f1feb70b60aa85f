"""Accuracy against the rate of flipped rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.figures.drawing import Drawn, chunks, legend, sheet, styles, titled
from analysis.figures.groups import Group, Nothing, half_width, mean_accuracy

_FLIP, _NONE = "noisyrl.noise.flip.Flip", "noisyrl.noise.none.NoNoise"
_CAPTION = (
    "Mean accuracy over the benchmarks of a run at its end; bars: 95 % t interval over seeds, dots: single seeds. "
    "Vertical line: J = 1 - 2 rate = 0, nothing is left to learn from; to its right rewards point the wrong way, so "
    "falling below the start there is what is to be expected. Dotted: the model before training."
)


@dataclass(frozen=True)
class _Point:
    group: Group
    panel: str
    rate: float
    scores: tuple[float, ...]


def draw(groups: Sequence[Group]) -> Drawn:
    """Nothing: no two rates with a scored run of one method and setting."""
    points = [point for group in groups if (point := _point(group))]
    rates: dict[tuple[str, str], set[float]] = {}
    for point in points:
        rates.setdefault((point.panel, point.group.method), set()).add(point.rate)
    points = [point for point in points if len(rates[point.panel, point.group.method]) > 1]
    if not points:
        raise Nothing("no method has scored runs at two flip rates (noise=none,flip0.3 and so on)")
    look = styles(group.method for group in groups)
    panels = list(dict.fromkeys(point.panel for point in points))
    pages = []
    for part in chunks(panels, 3):
        figure, axes = sheet("Accuracy against flipped rewards", 1, len(part), sharey=True, size=(4.2, 3.2))
        for panel, name in zip(axes.flat, part, strict=True):
            here = [point for point in points if point.panel == name]
            for method in dict.fromkeys(point.group.method for point in here):
                _plot(panel, [point for point in here if point.group.method == method], look[method])
            _finish(panel, name, here)
        axes[0, 0].set_ylabel("mean accuracy")
        legend(figure, axes.flat)
        pages.append(figure)
    rows = [point.group.named | {"panel": point.panel, "rate": point.rate, "j": 1 - 2 * point.rate, "accuracy": score}
            for point in points for score in point.scores]  # fmt: skip
    return Drawn(pages, pd.DataFrame(rows), _CAPTION)


def _point(group: Group) -> _Point | None:
    noise, scores = group.config.get("noise", {}), mean_accuracy(group)
    if noise.get("_target_") not in (_FLIP, _NONE) or not scores:
        return None
    extra = [f"{key}={noise[key]}" for key in ("unit", "persistence") if key in noise and noise[key] not in _USUAL]
    name = ", ".join([group.world, *extra])
    return _Point(group, name, float(noise.get("rate", 0.0)), tuple(scores.values()))


_USUAL = ("sample", "resample")  # of a flip: a fresh coin for each sample


def _plot(panel: Any, points: Sequence[_Point], look: dict[str, Any]) -> None:
    points = sorted(points, key=lambda point: point.rate)
    rates = [point.rate for point in points]
    means = [np.mean(point.scores) for point in points]
    halves = [float(half_width(np.std(point.scores, ddof=1), len(point.scores))) if len(point.scores) > 1 else 0.0
              for point in points]  # fmt: skip
    panel.errorbar(rates, means, yerr=halves, lw=1.7, ms=5, capsize=3, label=points[0].group.method, **look)
    for point in points:
        panel.plot([point.rate] * len(point.scores), point.scores, ".", color=look["color"], alpha=0.4, ms=4)


def _finish(panel: Any, name: str, points: Sequence[_Point]) -> None:
    starts = [row["value"] for point in points for run in point.group.runs
              for _, row in run.rows({"metric": "acc", "protocol": "greedy", "step": 0})]  # fmt: skip
    if starts:
        panel.axhline(np.mean(starts), color="black", ls=":", lw=1)
    panel.axvline(0.5, color="black", ls="--", lw=1)
    panel.annotate("J = 0", (0.5, 1), xycoords=("data", "axes fraction"), xytext=(3, -10),
                   textcoords="offset points", fontsize=8)  # fmt: skip
    titled(panel, name)
    panel.set(xlabel="share of flipped rewards", ylim=(-0.02, 1.02), xlim=(-0.03, 0.73))
    above = panel.secondary_xaxis("top", functions=(lambda rate: 1 - 2 * rate, lambda j: (1 - j) / 2))
    above.set_xlabel("signal left, J", fontsize=8)
    above.tick_params(labelsize=7)
