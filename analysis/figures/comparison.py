"""Algorithms over all settings they share: a performance profile, and who beats whom how often."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.figures.drawing import Drawn, legend, sheet, styles
from analysis.figures.groups import Group, Nothing, by_setting, mean_accuracy
from analysis.inference import improvement
from analysis.stats import Bootstrap

_GRID = np.linspace(0, 1, 201)
_RESAMPLES = 2000
Scores = Mapping[str, Mapping[str, np.ndarray]]  # setting -> method -> [S]


def draw(groups: Sequence[Group]) -> Drawn:
    """Nothing: no two algorithms have scored runs in one setting."""
    found: Scores = {
        setting: {group.method: np.array(list(scores.values())) for group in shown if (scores := mean_accuracy(group))}
        for setting, shown in by_setting(groups).items()
    }
    methods, settings = largest_block(found)
    if not methods:
        raise Nothing("no two algorithms have scored runs with the same data and noise")
    look = styles(group.method for group in groups)
    wide = max(4.4, 2 + 0.6 * len(methods))
    figure, axes = sheet("Algorithms over all settings they share", 1, 2, size=(wide, wide - 1.1))
    rows = []
    for method in methods:
        parts = [found[setting][method] for setting in settings]
        mean, low, high = _profile(parts, settings)
        axes[0, 0].fill_between(_GRID, low, high, color=look[method]["color"], alpha=0.15, lw=0)
        axes[0, 0].plot(_GRID, mean, lw=1.7, ms=4, markevery=25, label=method, **look[method])
        rows += [{"kind": "profile", "method": method, "at": x, "value": y, "low": a, "high": b}
                 for x, y, a, b in zip(_GRID, mean, low, high, strict=True)]  # fmt: skip
    axes[0, 0].set(title="Performance profile", xlabel="mean accuracy", ylabel="share of runs above it")
    matrix = np.array(
        [[np.mean([improvement(found[s][a], found[s][b]) for s in settings]) for b in methods] for a in methods]
    )
    _matrix(axes[0, 1], matrix, methods)
    rows += [{"kind": "improvement", "method": a, "at": b, "value": matrix[i, j]}
             for i, a in enumerate(methods) for j, b in enumerate(methods) if i != j]  # fmt: skip
    legend(figure, [axes[0, 0]])
    runs = sum(len(found[setting][method]) for setting in settings for method in methods)
    return Drawn([figure], pd.DataFrame(rows), _caption(methods, settings, runs, len(groups)))


def largest_block(found: Scores) -> tuple[list[str], list[str]]:
    """(methods, settings) that are all there with each other, as many cells as there can be; empty if nothing is."""
    best: tuple[list[str], list[str]] = ([], [])
    for methods in {frozenset(scores) for scores in found.values() if len(scores) > 1}:
        settings = [setting for setting, scores in found.items() if methods <= set(scores)]
        if (len(methods) * len(settings), sorted(methods)) > (len(best[0]) * len(best[1]), best[0]):
            best = sorted(methods), settings
    return best


def _profile(parts: Sequence[np.ndarray], settings: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Share of runs above each value of the grid, settings counting alike, with a bootstrap over runs."""
    draws = []
    for scores_S, setting in zip(parts, settings, strict=True):
        above_SG = (scores_S[:, None] > _GRID).astype(float)
        draws.append(Bootstrap(f"profile {setting}", _RESAMPLES).run_weights(len(scores_S)) @ above_SG)
    mean = np.mean([(scores_S[:, None] > _GRID).mean(axis=0) for scores_S in parts], axis=0)
    low, high = np.percentile(np.mean(draws, axis=0), [2.5, 97.5], axis=0)
    return mean, low, high


def _matrix(panel: Axes, matrix: np.ndarray, methods: Sequence[str]) -> None:
    panel.imshow(matrix, cmap="PuOr", vmin=0, vmax=1)
    for i in range(len(methods)):
        for j in range(len(methods)):
            if i != j:
                dark = abs(matrix[i, j] - 0.5) > 0.3
                panel.text(j, i, f"{matrix[i, j]:.2f}", ha="center", va="center", color="white" if dark else "black")
    places = range(len(methods))
    panel.set_xticks(places, methods, rotation=30, ha="right")
    panel.set_yticks(places, methods)
    panel.set(title="Chance that a run of the row\nbeats one of the column", xlabel="", ylabel="")
    panel.grid(False)


def _caption(methods: Sequence[str], settings: Sequence[str], runs: int, groups: int) -> str:
    named = "; ".join(settings)
    rest = groups - len(methods) * len(settings)
    return (
        f"{runs} runs of {len(methods)} algorithms in {len(settings)} settings that all of them have: {named}. "
        f"Left out: {rest} other combinations. Every setting counts alike; accuracy is the mean over a run's "
        "benchmarks; ties count half; bands: 95 % bootstrap over runs. A chance of beating says nothing of by how much."
    )
