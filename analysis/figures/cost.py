"""Seconds per training step by algorithm and size of the critic's distribution."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from statistics import median

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.collect import dotted
from analysis.figures.drawing import PAGES, Drawn, chunks, left_out, legend, sheet
from analysis.figures.groups import Group, Nothing, choices, logged

_PHASES = {
    "time/rollout_s": ("sampling and grading", "#0072B2", ""),
    "time/annotate_s": ("values and reference", "#E69F00", "///"),
    "time/update_s": ("updates", "#009E73", "..."),
}
_SKIPPED = 2  # first training steps, which start things up
_BARS = 14  # of a panel, at most
_CAPTION = (
    "Median over training steps (not the first two, nor the critic's warm-up), then over runs; dots: single runs. "
    "Times are comparable within a panel, which is one machine; how busy it was is not recorded."
)


def draw(groups: Sequence[Group]) -> Drawn:
    """Nothing: no run has timed steps."""
    data = pd.DataFrame([row for group in groups for row in _rows(group)])
    if data.empty:
        raise Nothing("no run has timings.jsonl with more than two training steps")
    parts = [
        (name, part)
        for name, found in data.groupby("panel")
        for part in chunks(list(found.groupby("bar", sort=False)), _BARS)
    ]
    pages = []
    for page in chunks(parts, 4)[:PAGES]:
        bars = [len(part) + 1 for _, part in page]
        figure, axes = sheet("Cost of a training step", len(page), 1, size=(8, 0.32 * sum(bars) / len(bars) + 0.6),
                             height_ratios=bars)  # fmt: skip
        for panel, (name, part) in zip(axes[:, 0], page, strict=True):
            _bars(panel, str(name), part)
        axes[-1, 0].set_xlabel("seconds per step")
        legend(figure, axes.flat)
        pages.append(figure)
    return Drawn(pages, data, _CAPTION + left_out(len(chunks(parts, 4))))


def _rows(group: Group) -> list[dict[str, object]]:
    """One row per run: medians of its phases."""
    rows = []
    for run in group.runs:
        frame = logged(run.folder, "timings.jsonl")
        frame = frame[frame["step"] > _SKIPPED]
        if frame.empty or "time/step_s" not in frame:
            continue
        options, about = choices(group.runs), run.manifest.get("environment", {})
        machine = f"{about.get('device', '?')}, {about.get('threads', '?')} threads"
        quantiles = dotted(group.config, "algo.critic.quantiles")
        critic = f" (M = {quantiles})" if quantiles else ""
        rows.append(
            group.named
            | {"panel": f"{options.get('data')}, {options.get('model')}; {machine}", "bar": group.method + critic}
            | {"quantiles": quantiles, "seed": run.seed, "run_id": run.run_id, "steps": len(frame)}
            | {name: float(frame[name].median()) for name in (*_PHASES, "time/step_s") if name in frame}
        )
    return rows


def _bars(panel: Axes, name: str, part: Sequence[tuple[str, pd.DataFrame]]) -> None:
    places = np.arange(len(part))
    left = np.zeros(len(part))
    for phase, (label, colour, hatch) in _PHASES.items():
        widths = np.array([median(found[phase].fillna(0)) if phase in found else 0.0 for _, found in part])
        panel.barh(places, widths, 0.7, left, color=colour, hatch=hatch, label=label, edgecolor="white", lw=0)
        left += widths
    whole = [median(found["time/step_s"]) for _, found in part]
    panel.barh(places, np.maximum(np.array(whole) - left, 0), 0.7, left, color="#BBBBBB", label="other", lw=0)
    for place, (total, (_, found)) in enumerate(zip(whole, part, strict=True)):
        panel.plot(found["time/step_s"], [place] * len(found), ".", color="black", ms=3)
        panel.annotate(f"{total:.2f}", (found["time/step_s"].max(), place), xytext=(5, 0),
                       textcoords="offset points", va="center", fontsize=8)  # fmt: skip
    panel.set_yticks(places, [textwrap.fill(str(label), 45) for label, _ in part], fontsize=8)
    panel.invert_yaxis()
    panel.set_title(name)
    panel.margins(x=0.08)
