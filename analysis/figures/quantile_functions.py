"""The critic's estimates on fixed prompts over training: distributions as quantile functions, scalars as lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.figures.drawing import PAGES, Drawn, chunks, left_out, legend, sheet, titled
from analysis.figures.groups import Group, Nothing, by_setting

_COLUMNS, _PROMPTS, _STEPS = 4, 3, 5
_DASHES: tuple[Any, ...] = (":", "-.", "--", (0, (6, 1, 1, 1)), "-")
_CAPTION = (
    "What the critic expects before the first response token, on the first probe prompts, of the run with the lowest "
    "seed. Curves: quantile functions (mean over heads); vertical lines: critics that give one number. The later the "
    "step, the thicker and darker the line."
)


def draw(groups: Sequence[Group]) -> Drawn:
    """Nothing: no run has snapshots of a critic."""
    found = {group: probes for group in groups if (probes := _probes(group))}
    if not found:
        raise Nothing("no run has probes/*.npz: only algorithms with a critic leave them, at each checkpoint")
    columns = [part for shown in by_setting(found).values() for part in chunks(shown, _COLUMNS)]
    pages = []
    for part in columns[:PAGES]:
        rows = min(_PROMPTS, *(len(next(iter(found[group].values()))["mean"]) for group in part))
        title = f"What the critic expects: {part[0].setting}"
        figure, axes = sheet(title, rows, len(part), sharex=True, sharey=True, size=(3.3, 2.1))
        for place, group in enumerate(part):
            titled(axes[0, place], group.method)
            axes[-1, place].set_xlabel("outcome (reward)")
            for number in range(rows):
                _plot(axes[number, place], found[group], number, group)
        for number, uid in enumerate(next(iter(found[part[0]].values()))["uid"][:rows]):
            axes[number, 0].set_ylabel(f"level\n{str(uid)[:18]}", fontsize=8)
            axes[number, 0].set_ylim(-0.02, 1.02)
        legend(figure, axes.flat)
        pages.append(figure)
    data = pd.concat([_table(group, probes) for group, probes in found.items()], ignore_index=True)
    return Drawn(pages, data, _CAPTION + left_out(len(columns)))


def _probes(group: Group) -> dict[int, Mapping[str, np.ndarray]]:
    """Snapshots by step of the group's first run, at most `_STEPS` spread over training."""
    files = sorted((group.runs[0].folder / "probes").glob("step_*.npz"))
    chosen = (
        [files[i] for i in sorted(set(np.linspace(0, len(files) - 1, _STEPS).round().astype(int)))] if files else []
    )
    return {int(path.stem.removeprefix("step_")): _read(path) for path in chosen}


def _read(path: Path) -> Mapping[str, np.ndarray]:
    with np.load(path) as arrays:  # allow_pickle is off
        return {name: arrays[name] for name in ("uid", "mean", "ensemble") if name in arrays}


def levels(count: int, group: Group) -> np.ndarray:
    """[M] of the quantiles of a group's critic."""
    shift = 0.0 if group.config["algo"].get("tau_grid", "midpoint") == "midpoint" else 0.5
    return (np.arange(count) + 0.5 + shift) / count


def _plot(panel: Axes, probes: Mapping[int, Mapping[str, np.ndarray]], prompt: int, group: Group) -> None:
    shades = matplotlib.colormaps["viridis_r"](np.linspace(0.15, 0.95, len(probes)))
    dashes = _DASHES[len(_DASHES) - len(probes) :]
    for place, (step, found) in enumerate(probes.items()):
        look: dict[str, Any] = {"color": shades[place], "ls": dashes[place], "lw": 1 + 1.2 * place / len(probes)}
        look["label"] = f"step {step}"
        if "ensemble" in found:
            values = found["ensemble"][prompt]
            panel.plot(values, levels(len(values), group), **look)
        else:
            panel.axvline(found["mean"][prompt], **look)


def _table(group: Group, probes: Mapping[int, Mapping[str, np.ndarray]]) -> pd.DataFrame:
    rows = []
    for step, found in probes.items():
        for place, uid in enumerate(found["uid"]):
            about = group.named | {"seed": group.runs[0].seed, "step": step, "uid": str(uid)}
            rows.append(about | {"level": "mean", "value": float(found["mean"][place])})
            if "ensemble" in found:
                values = found["ensemble"][place]
                pairs = zip(levels(len(values), group), values, strict=True)
                rows += [about | {"level": f"{level:.4f}", "value": float(value)} for level, value in pairs]
    return pd.DataFrame(rows)
