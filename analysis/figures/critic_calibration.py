"""Is the critic right? What it says before a response, against the returns of many responses by the same policy.

`noisyrl.probes` samples them at each snapshot, for no other purpose: the critic was trained on none. Quantiles are
judged by the share of returns that they cover, single numbers by the mean return.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes

from analysis.collect import Run
from analysis.figures.drawing import PAGES, Drawn, chunks, left_out, sheet, titled
from analysis.figures.groups import Group, Nothing, half_width
from analysis.figures.quantile_functions import levels
from noisyrl.ops.calibration import coverage, coverage_error, pit_histogram
from noisyrl.processor import one_thread

_COLUMNS = 4
_BINS = 10
_NOTE = 5  # lines below a page that name what is not on it; the CSV names all
_LOOK: dict[str, dict[str, Any]] = {
    "observed": {"color": "#0072B2", "ls": "-", "marker": "o"},
    "clean": {"color": "#D55E00", "ls": "--", "marker": "s"},
    "corrected": {"color": "#009E73", "ls": ":", "marker": "^"},
}
_CAPTION = (
    "At the last snapshot of each run, before the first response token of the probe prompts; returns of continuations "
    "by the policy of that step, sampled for this figure alone. Prompts are held out, but where noise labels prompts "
    "beforehand those of the run's first step. Clean: as graded; observed: after the run's noise, which is what a "
    "critic is to foretell, unless a correction comes after it. A quantile of returns such as 0 and 1 lies on one of "
    "them, so coverage is a range: from the share of returns below the quantile to the share up to it. A level is "
    "right where the diagonal runs inside the range; coverage error: mean distance to it, of all prompts together and "
    "of each prompt on its own (errors of different prompts may cancel in the former). PIT: levels at which returns "
    "fall, flat if right. Below: mean of the estimate against the mean return of each prompt, with its 95 % t "
    "interval. Several seeds: mean of their shares; points of all. A critic that is a worst case on purpose is not "
    "meant to lie on the diagonal."
)


@dataclass(frozen=True, eq=False)
class _Probed:
    """One snapshot that has continuations: P prompts, N of each."""

    run: Run
    step: int
    uids: Sequence[str]
    mean_P: np.ndarray
    ensemble_PM: np.ndarray | None  # in order; None = the critic says one number
    returns: Mapping[str, np.ndarray]  # [P, N] by kind; NaN = none
    tolerance: float


@dataclass(frozen=True)
class _Judged:
    """A snapshot against one kind of returns."""

    shot: _Probed
    mean_P: np.ndarray  # return of each prompt
    half_P: np.ndarray  # of its 95 % interval
    count_P: np.ndarray
    below_M: np.ndarray  # coverage; empty where there are no quantiles
    upto_M: np.ndarray
    error: float
    error_by_prompt: float
    pit_K: np.ndarray


def draw(groups: Sequence[Group]) -> Drawn:
    """Nothing: no run has continuations."""
    with one_thread():  # figures are drawn in copies of this process
        found, absent = _found(groups)
    note = _note(absent)
    if not found:
        raise Nothing(f"no run has returns of continuations in probes/*.npz. {note}")
    parts = chunks(list(found), _COLUMNS)  # settings share a page: many have a method or two
    pages = []
    for part in parts[:PAGES]:
        has_quantiles = any(len(each.upto_M) for group in part for kind in found[group].values() for each in kind)
        plots = [_plot_coverage, _plot_pit, _plot_values] if has_quantiles else [_plot_values]
        figure, axes = sheet("Is the critic right about what will come?", len(plots), len(part), size=(3.5, 2.8))
        for place, group in enumerate(part):
            steps = sorted({each.shot.step for kind in found[group].values() for each in kind})
            titled(axes[0, place], f"{group.setting}: {group.method}, step {', '.join(map(str, steps))}")
            for plot, panel in zip(plots, axes[:, place], strict=True):
                plot(panel, found[group], group)
        if note:
            lines = textwrap.wrap(
                note, int(19.5 * figure.get_figwidth()), max_lines=_NOTE, placeholder=" ... (all: CSV)"
            )
            figure.supxlabel("\n".join(lines), fontsize=7, x=0.01, ha="left")
        pages.append(figure)
    rows = [row for group, kinds in found.items() for kind in kinds.items() for row in _rows(group, *kind)]
    fewest = min(each.count_P.sum() for kinds in found.values() for kind in kinds.values() for each in kind)
    exact = f"Shares are of {fewest} returns of a run or more: their standard error is at most {0.5 / fewest**0.5:.3f}."
    caption = f"{_CAPTION} {exact} {note}{left_out(len(parts))}"
    return Drawn(pages, pd.DataFrame([*rows, *absent]), caption.strip())


Kinds = Mapping[str, Sequence[_Judged]]  # kind of returns -> verdict on each run that has some


def _found(groups: Iterable[Group]) -> tuple[dict[Group, Kinds], list[dict[str, Any]]]:
    """What there is of each group; and a row for each run that has nothing, with the reason."""
    found: dict[Group, Kinds] = {}
    absent = []
    for group in groups:
        kinds: dict[str, list[_Judged]] = {}
        for run in group.runs:
            shot = _last(run)
            if isinstance(shot, str):
                absent.append(group.named | {"seed": run.seed, "kind": "nothing", "at": shot})
                continue
            for kind, returns_PN in shot.returns.items():
                kinds.setdefault(kind, []).append(_judge(shot, returns_PN, group))
        if kinds:
            found[group] = {kind: kinds[kind] for kind in _LOOK if kind in kinds}
    return found, absent


def _note(absent: Sequence[Mapping[str, Any]]) -> str:
    """The runs that are not in the figure, by reason."""
    reasons: dict[str, dict[str, list[str]]] = {}
    for row in absent:
        cell = f"{row['method']} ({row['setting']})"
        reasons.setdefault(row["at"], {}).setdefault(cell, []).append(str(row["seed"]))
    said = ""
    for reason, cells in sorted(reasons.items()):
        named = [f"{cell}, seed {' '.join(seeds)}" for cell, seeds in cells.items()]
        said += f" {reason}: {'; '.join(named)}."
    return f"Not shown.{said}" if said else ""


def _last(run: Run) -> _Probed | str:
    """The run's last snapshot, or why there is nothing to judge."""
    files = sorted((run.folder / "probes").glob("step_*.npz"))
    if not files:
        return "No snapshot of a critic"
    with np.load(files[-1]) as arrays:  # allow_pickle is off
        stored = {name: arrays[name] for name in arrays}
    if "clean" not in stored:
        return "No continuations (older run, or trainer.probe_continuations=0)"
    if not np.isfinite(stored["mean"]).all():
        return "Estimates are not finite"
    returns = {name: stored[name] for name in ("observed", "clean")}
    if not np.array_equal(stored["used"], stored["observed"], equal_nan=True):
        returns["corrected"] = stored["used"]
    returns = {kind: returns_PN for kind, returns_PN in returns.items() if np.isfinite(returns_PN).any()}
    if not returns:
        return "No continuation could be graded"
    return _Probed(
        run=run,
        step=int(files[-1].stem.removeprefix("step_")),
        uids=[str(uid) for uid in stored["uid"]],
        mean_P=stored["mean"],
        ensemble_PM=np.sort(stored["ensemble"], axis=-1) if "ensemble" in stored else None,
        returns=returns,
        tolerance=float(stored["tolerance"]),
    )


def _judge(shot: _Probed, returns_PN: np.ndarray, group: Group) -> _Judged:
    known_PN = np.isfinite(returns_PN)
    count_P = known_PN.sum(axis=1)
    sum_P = np.where(known_PN, returns_PN, 0).sum(axis=1)
    mean_P = np.where(count_P > 0, sum_P / np.maximum(count_P, 1), np.nan)
    gap_PN = np.where(known_PN, returns_PN - mean_P[:, None], 0)
    half_P = half_width(np.sqrt((gap_PN**2).sum(axis=1) / np.maximum(count_P - 1, 1)), count_P)
    judged = partial(_Judged, shot, mean_P, half_P, count_P)
    if shot.ensemble_PM is None:
        return judged(np.zeros(0), np.zeros(0), np.nan, np.nan, np.zeros(0))
    prompt_N, sample_N = np.nonzero(known_PN)
    outcome_N = torch.from_numpy(returns_PN[prompt_N, sample_N])
    quantiles_NM = torch.from_numpy(shot.ensemble_PM)[prompt_N]
    error = partial(
        coverage_error, tau_M=torch.from_numpy(levels(quantiles_NM.shape[1], group)), tolerance=shot.tolerance
    )
    below_M, upto_M = coverage(quantiles_NM, outcome_N, tolerance=shot.tolerance)
    of_prompt = [float(error(quantiles_NM[prompt_N == p], outcome_N[prompt_N == p])) for p in np.unique(prompt_N)]
    pit_K = pit_histogram(quantiles_NM, outcome_N, bins=_BINS, tolerance=shot.tolerance)
    return judged(
        below_M.numpy(), upto_M.numpy(), float(error(quantiles_NM, outcome_N)), float(np.mean(of_prompt)), pit_K.numpy()
    )


def _plot_coverage(panel: Axes, kinds: Kinds, group: Group) -> None:
    panel.set(xlim=(0, 1), ylim=(-0.02, 1.02), xlabel="level of the quantile")
    panel.set_ylabel("share of returns:\nbelow the quantile, up to it")
    if _says_no_quantiles(panel, kinds):
        return
    for kind, verdicts in kinds.items():
        below_M, upto_M = (_mean(verdicts, end) for end in ("below_M", "upto_M"))
        tau_M, look = levels(len(upto_M), group), {key: _LOOK[kind][key] for key in ("color", "ls")}
        if kind == "observed":
            panel.fill_between(tau_M, below_M, upto_M, color=look["color"], alpha=0.18, lw=0)
        said = f"{kind}: error {_mean(verdicts, 'error'):.3f}, by prompt {_mean(verdicts, 'error_by_prompt'):.3f}"
        panel.plot(tau_M, upto_M, lw=1.6, label=said, **look)
        panel.plot(tau_M, below_M, lw=0.8, **look)
    panel.plot([0, 1], [0, 1], color="black", lw=0.8)
    _legend(panel, "lower right")


def _plot_pit(panel: Axes, kinds: Kinds, group: Group) -> None:
    panel.set(xlim=(0, 1), xlabel="PIT: level at which a return falls", ylabel="share of returns")
    if _says_no_quantiles(panel, kinds):
        return
    edges = np.linspace(0, 1, _BINS + 1)
    for kind, verdicts in kinds.items():
        pit_K, look = _mean(verdicts, "pit_K"), {key: _LOOK[kind][key] for key in ("color", "ls")}
        if kind == "observed":
            panel.stairs(pit_K, edges, fill=True, color=look["color"], alpha=0.18, lw=0)
        panel.stairs(pit_K, edges, lw=1.6, label=kind, **look)
    panel.axhline(1 / _BINS, color="black", lw=0.8)
    _legend(panel, "best")


def _plot_values(panel: Axes, kinds: Kinds, group: Group) -> None:
    panel.set(xlabel="mean return of a prompt's continuations", ylabel="mean of the estimate")
    for kind, verdicts in kinds.items():
        x, half, y = (np.concatenate(parts) for parts in zip(*((v.mean_P, v.half_P, v.shot.mean_P) for v in verdicts),
                                                             strict=True))  # fmt: skip
        look = {key: _LOOK[kind][key] for key in ("color", "marker")}
        inside = look["color"] if kind == "observed" else "white"
        said = f"{kind}: bias {np.nanmean(y - x):+.3f}"
        panel.errorbar(x, y, xerr=half, ls="none", ms=5, lw=0.7, mfc=inside, label=said, **look)
    ends = min(panel.get_xlim()[0], panel.get_ylim()[0]), max(panel.get_xlim()[1], panel.get_ylim()[1])
    panel.plot(ends, ends, color="black", lw=0.8)
    panel.set(xlim=ends, ylim=ends)
    _legend(panel, "best")


def _legend(panel: Axes, place: Literal["best", "lower right"]) -> None:
    """Of its own for each panel, as it holds the panel's numbers."""
    panel.legend(fontsize=6.5, loc=place, handlelength=2.6, frameon=True, framealpha=0.85, edgecolor="none")


def _mean(verdicts: Sequence[_Judged], name: str) -> Any:
    """Over runs."""
    return np.mean([getattr(verdict, name) for verdict in verdicts], axis=0)


def _says_no_quantiles(panel: Axes, kinds: Kinds) -> bool:
    none = not any(len(verdict.upto_M) for verdicts in kinds.values() for verdict in verdicts)
    if none:
        panel.set_axis_off()
        panel.text(0.5, 0.5, "one number, no quantiles", transform=panel.transAxes, ha="center", color="#555555")
    return none


def _rows(group: Group, kind: str, verdicts: Sequence[_Judged]) -> list[dict[str, Any]]:
    """Of the CSV: coverage by level, PIT by lower end of the bin, errors, and the mean return of each prompt."""
    rows: list[dict[str, Any]] = []
    for each in verdicts:
        about = group.named | {"seed": each.shot.run.seed, "step": each.shot.step, "returns": kind}
        tau_M = levels(max(len(each.upto_M), 1), group)
        rows += [about | {"kind": "coverage", "at": f"{tau:.4f}", "low": low, "high": high}
                 for tau, low, high in zip(tau_M, each.below_M, each.upto_M, strict=False)]  # fmt: skip
        rows += [about | {"kind": "pit", "at": f"{k / _BINS:g}", "value": x} for k, x in enumerate(each.pit_K)]
        if len(each.upto_M):
            errors = {"all prompts": each.error, "each prompt": each.error_by_prompt}
            rows += [about | {"kind": "coverage error", "at": of, "value": x} for of, x in errors.items()]
        for p, uid in enumerate(each.shot.uids):
            mean, half = each.mean_P[p], each.half_P[p]
            found = {"estimate": each.shot.mean_P[p], "value": mean, "low": mean - half, "high": mean + half}
            rows.append(about | {"kind": "mean return", "at": uid, **found, "n": each.count_P[p]})
    return rows
