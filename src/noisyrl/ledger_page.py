"""A run's ledger on one page: what noise was declared, what it did, what was left for learning, and the alarm."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from noisyrl import ledger
from noisyrl.alarm import WINDOW, Alarm, first_alarm
from noisyrl.ops.masked import correlation
from noisyrl.records import read_manifest

if TYPE_CHECKING:
    from omegaconf import DictConfig

_SPANS = 5  # columns of the course over training


@dataclass(frozen=True)
class Rate:
    """How often noise moved a reward one way, among the responses it could move that way."""

    count: int
    cases: int
    design_effect: float  # variance of the rate with responses to one prompt kept together, over that without; >= 1

    @property
    def value(self) -> float:
        return self.count / self.cases if self.cases else math.nan

    @property
    def exact(self) -> tuple[float, float]:
        """95 % Clopper-Pearson bounds, as if every response had a draw of its own."""
        return ledger.exact_bounds(self.count, self.cases)

    @property
    def by_prompt(self) -> tuple[float, float]:
        """The same for the number of independent responses that would be as uncertain: for draws that are shared."""
        return ledger.exact_bounds(round(self.count / self.design_effect), round(self.cases / self.design_effect))

    def place(self, declared: float) -> str:
        """Where a declared rate lies relative to the bounds `by_prompt`."""
        low, high = self.by_prompt
        return "inside" if low <= declared <= high else "BELOW the bounds" if declared < low else "ABOVE the bounds"


@dataclass(frozen=True)
class Account:
    """What a page and a figure are made of."""

    folder: Path
    manifest: Mapping[str, Any]
    rows: pd.DataFrame  # the ledger
    metrics: pd.DataFrame  # metrics.jsonl, by step; the columns used here are there, NaN if not logged
    alarm: Alarm | None

    @property
    def trained(self) -> pd.DataFrame:
        """The rows of training steps; steps up to 0 are critic warm-up."""
        return self.rows[self.rows["step"] > 0]

    @property
    def warmed(self) -> pd.DataFrame:
        return self.rows[self.rows["step"] <= 0]


ADVANTAGES = ("noise/advantage_correlation", "noise/advantage_sign_agreement")


def account(folder: Path) -> Account:
    """A run's account, finished or not. InputError: no such run (says which there are), no or a damaged ledger."""
    manifest, rows = read_manifest(folder), ledger.read(folder)
    return Account(folder, manifest, rows, _advantages(folder), first_alarm(rows))


def page_from_config(cfg: DictConfig) -> str:
    """What `src/ledger.py` does with conf/ledger.yaml: the page; the figure is in the run folder."""
    from noisyrl.launch import resolve
    from noisyrl.ledger_figure import draw

    config = resolve(cfg)
    found = account(Path(config["runs"]) / config["run"])
    return f"{page(found)}\n{'figure':12} {draw(found)}"


def page(found: Account) -> str:
    """The summary, about 40 lines."""
    main = found.trained if len(found.trained) else found.rows
    return "\n".join(
        [
            *_head(found),
            "",
            *_rates(main, found.manifest),
            "",
            *_causes(main),
            "",
            *_signal(main, found.metrics),
            "",
            *_course(found),
            "",
            _line("alarm", _verdict(found)),
        ]
    )


def scored(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with both a clean and an observed reward."""
    return rows[rows["clean"].notna() & rows["observed"].notna()]


def rates(rows: pd.DataFrame) -> dict[str, Rate]:
    """Realised "false positive" rate of wrong responses (clean at most .5) and "false negative" rate of right ones."""
    rows = scored(rows)
    right = rows["clean"] > 0.5
    positive = _rate(rows[~right], rows["observed"] > rows["clean"])
    negative = _rate(rows[right], rows["observed"] < rows["clean"])
    return dict(zip(ledger.ERRORS, (positive, negative), strict=True))


def group_states(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per prompt and step: step, and whether all clean and all observed rewards are equal."""
    spread = scored(rows).groupby(["step", "uid"], sort=True)[["clean", "observed"]].agg(["min", "max"])
    equal = {name: (spread[name]["min"] == spread[name]["max"]).to_numpy() for name in ("clean", "observed")}
    return pd.DataFrame({"step": spread.index.get_level_values("step"), **equal})


def _rate(cases: pd.DataFrame, moved: pd.Series) -> Rate:
    hit = moved[cases.index].astype(float)
    count, total = int(hit.sum()), len(hit)
    if count in (0, total):
        return Rate(count, total, 1.0)
    share = count / total
    by_prompt = (hit - share).groupby(cases["uid"]).sum()
    return Rate(count, total, max(1.0, float((by_prompt**2).sum()) / (total * share * (1 - share))))


def _head(found: Account) -> Iterator[str]:
    manifest, rows = found.manifest, found.rows
    steps = found.trained["step"].nunique()
    wanted = manifest["config"].get("trainer", {}).get("steps", "?")
    yield f"{found.folder}: {len(found.trained)} rewards of {steps} of {wanted} training steps [{manifest['status']}]"
    yield _line("noise", manifest.get("noise", {}).get("described", "not recorded"))
    both = rows[rows["observed"].notna()]
    used = both["used"].notna()
    moved = (both["used"] - both["observed"])[used]
    name = manifest.get("choices", {}).get("correction", "none")
    said = f"{name}: {_share(int((moved != 0).sum()), len(moved))} of observed rewards changed"
    if (moved != 0).any():
        said += f", by {moved.abs().mean():.3f} in the mean"
    yield _line("correction", f"{said}; {int((~used).sum())} withheld from the algorithm")
    if len(found.warmed):
        warm = rates(found.warmed)
        said = ", ".join(f"{name} {_number(rate.value)}" for name, rate in warm.items())
        apart = "; not counted below" if len(found.trained) else ""
        yield _line(
            "warm-up",
            f"{len(found.warmed)} rewards of steps {rows['step'].min()} to 0 taught the critic only: {said}{apart}",
        )


def _rates(rows: pd.DataFrame, manifest: Mapping[str, Any]) -> Iterator[str]:
    declared = manifest.get("noise", {}).get("declared") or {}
    yield f"{'realised rate':16} {'cases':>13} {'rate':>6}  {'exact 95 %':>14}  {'by prompt 95 %':>14}  declared"
    for name, rate in rates(rows).items():
        bounds = [f"{low:.3f} - {high:.3f}" for low, high in (rate.exact, rate.by_prompt)]
        said = f"{declared[name]:g}, {rate.place(declared[name])}" if name in declared else "-"
        cases = f"{rate.count}/{rate.cases}"
        yield f"{name:16} {cases:>13} {_number(rate.value):>6}  {bounds[0]:>14}  {bounds[1]:>14}  {said}"
    both = scored(rows)
    if not both["observed"].isin((0.0, 1.0)).all():
        yield "(rewards are graded: any rise of a wrong response's and any fall of a right one's is counted)"
    clean, observed = (torch.tensor(both[name].to_numpy()) for name in ("clean", "observed"))
    left, agreement = ledger.youden(clean, observed), correlation(clean, observed)
    yield _line(
        "signal J", f"{_number(left)} of the distance of right and wrong; correlation with clean {agreement:.3f}"
    )


def _causes(rows: pd.DataFrame) -> Iterator[str]:
    causes = rows["cause"].value_counts()
    changed = [f"{name} {_share(count, len(rows))}" for name, count in causes.items() if name]
    yield _line("changed by", ", ".join(changed) or "nothing")
    statuses = rows["status"].value_counts()
    counts = [
        f"{name} {statuses.get(name, 0)}" for name in dict.fromkeys(["scored", "error", "timeout", *statuses.index])
    ]
    missing = int((rows["clean"].notna() & rows["observed"].isna()).sum())
    yield _line("graded", f"{', '.join(counts)}; truncated {int((~rows['finished']).sum())}; no reward given {missing}")


def _signal(rows: pd.DataFrame, metrics: pd.DataFrame) -> Iterator[str]:
    states = group_states(rows)
    total = len(states)
    made = {
        "learnable": int((states["clean"] & ~states["observed"]).sum()),
        "unlearnable": int((~states["clean"] & states["observed"]).sum()),
    }
    equal = [f"{_share(int(states[name].sum()), total)} {name}" for name in ("clean", "observed")]
    yield _line("groups", f"{total} of one prompt at one step; all rewards equal: {', '.join(equal)}")
    shares = {kind: _share(count, total) for kind, count in made.items()}
    yield _line(
        "", f"noise made {shares['learnable']} learnable (equal -> varied), {shares['unlearnable']} unlearnable"
    )
    yield _line("alignment", _alignment(rows))
    means = metrics[metrics["step"] > 0][list(ADVANTAGES)].mean()
    said = [
        f"{text} {_number(means[name])}" for name, text in zip(ADVANTAGES, ("correlation", "same sign"), strict=True)
    ]
    yield _line(
        "advantages", f"against those of clean rewards: {', '.join(said)}" if means.notna().any() else "none logged"
    )


def _alignment(rows: pd.DataFrame) -> str:
    both = scored(rows)
    group = torch.tensor(both.groupby(["step", "uid"]).ngroup().to_numpy())
    clean, observed = (torch.tensor(both[name].to_numpy()) for name in ("clean", "observed"))
    z = ledger.alignments(clean, observed, group)
    if not len(z):
        return "no group with clean spread"
    ratio = ledger.signal_to_noise(z)
    said = {math.inf: "infinite: no group was disturbed"}.get(ratio, _number(ratio))
    return f"mean {float(z.mean()):.3f} over {len(z)} groups with clean spread; signal-to-noise of a group {said}"


def _course(found: Account) -> Iterator[str]:
    """Means over spans of training: is anything drifting?"""
    rows = found.trained
    steps = np.sort(rows["step"].unique())
    if not len(steps):
        yield _line("course", "no training step yet")
        return
    spans = np.array_split(steps, min(_SPANS, len(steps)))
    table: dict[str, list[float]] = {}
    for span in spans:
        part = rows[rows["step"].between(span[0], span[-1])]
        both, metrics = scored(part), found.metrics[found.metrics["step"].between(span[0], span[-1])]
        numbers = {
            "clean reward": both["clean"].mean(),
            "observed reward": both["observed"].mean(),
            "gap": (both["observed"] - both["clean"]).mean(),
            **{name: rate.value for name, rate in rates(part).items()},
            "adv. correlation": metrics[ADVANTAGES[0]].mean(),
        }
        for name, value in numbers.items():
            table.setdefault(name, []).append(float(value))
    yield _cells("steps", [f"{span[0]}-{span[-1]}" if len(span) > 1 else str(span[0]) for span in spans])
    for name, values in table.items():
        yield _cells(name, [_number(value) for value in values])


def _verdict(found: Account) -> str:
    if found.alarm:
        return str(found.alarm)
    if found.trained["step"].max() >= 2 * WINDOW:
        return "silent: no rise of the observed reward without the clean one beyond chance (bound on false alarms: 1 %)"
    return f"none possible before step {2 * WINDOW}"


def _advantages(folder: Path) -> pd.DataFrame:
    file = folder / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.is_file() else []
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return pd.DataFrame(found, columns=["step", *ADVANTAGES]).astype(float).dropna(how="all", subset=list(ADVANTAGES))


def _line(name: str, text: str) -> str:
    return textwrap.fill(f"{name:12} {text}", 118, subsequent_indent=" " * 13, break_on_hyphens=False)


def _cells(name: str, cells: Sequence[str]) -> str:
    return f"{name:16} " + " ".join(f"{cell:>8}" for cell in cells)


def _number(x: float) -> str:
    return "-" if math.isnan(x) else f"{x:.3f}"


def _share(count: int, total: int) -> str:
    return f"{count} ({count / total:.1%})" if total else "0"
