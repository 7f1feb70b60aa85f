"""What figures are made of: runs that differ in their seed alone, named by what sets them apart from the others."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from analysis.collect import COMPLETED, DIVERGED, Run
from noisyrl.records import seedless

_PLACE = ("data", "model", "noise", "correction")  # the options that make a setting
_MOST = 3  # settings that a name spells out
_SCORES = {"metric": "acc", "protocol": "greedy"}


@dataclass(frozen=True, eq=False)
class Group:
    """Runs of one config, one for each seed, in the order of their seeds."""

    runs: tuple[Run, ...]
    method: str
    """The algorithm, with its hyperparameters where they set it apart."""
    setting: str
    """Data, noise and all else, as far as it sets the runs apart."""
    world: str
    """The setting without its noise."""

    @property
    def config(self) -> Mapping[str, Any]:
        return self.runs[0].manifest["config"]

    @cached_property
    def named(self) -> dict[str, str]:
        """The columns of a CSV that say which group a row is of."""
        return {"setting": self.setting, "method": self.method, "cell_id": self.runs[0].cell_id}


class Nothing(Exception):
    """A figure that the store holds nothing for; the message says what is missing."""


def grouped(runs: Iterable[Run]) -> list[Group]:
    """All groups, by setting and method.

    Finished runs alone, diverged ones among them, where a config has some; else whatever has been started.
    """
    cells: dict[str, list[Run]] = {}
    for run in runs:
        if "choices" in run.manifest:
            cells.setdefault(run.cell_id, []).append(run)
    chosen = [_one_per_seed(found) for found in cells.values()]
    methods = _names([_Part(choices(c).get("algo", "?"), _leaves(_config(c).get("algo", {}))) for c in chosen])
    several = len({choices(c).get("model") for c in chosen}) > 1
    settings, worlds = (
        _names([_Part(_place(choices(c), options), _leaves(_without(_config(c), left))) for c in chosen])
        for options, left in (
            ([key for key in _PLACE if key != "model" or several], ("algo",)),
            ([key for key in _PLACE if key != "noise" and (key != "model" or several)], ("algo", "noise")),
        )
    )
    found = [Group(*parts) for parts in zip(chosen, methods, settings, worlds, strict=True)]
    return sorted(found, key=lambda group: (group.setting, group.method))


def choices(runs: Sequence[Run]) -> Mapping[str, str]:
    """The options of the config groups that the runs were started with."""
    return runs[0].manifest["choices"]


def by_setting(groups: Iterable[Group]) -> dict[str, list[Group]]:
    found: dict[str, list[Group]] = {}
    for group in groups:
        found.setdefault(group.setting, []).append(group)
    return found


@cache
def logged(folder: Path, file: str = "metrics.jsonl") -> pd.DataFrame:
    """What a run logged, one row per step, NaN where a step did not log a number; a torn last line is not read.

    `accuracy/id` and `accuracy/ood` are the means over benchmarks of the evaluations that the run logged.
    """
    path = folder / file
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    rows: dict[int, dict[str, float]] = {}
    for line in lines:
        if line.endswith("\n"):
            entry = json.loads(line)
            rows.setdefault(entry["step"], {}).update(entry)
    frame = pd.DataFrame(list(rows.values()), columns=None if rows else ["step"]).astype(float)
    scores = [name for name in frame if str(name).startswith("eval/") and str(name).endswith("/acc")]
    parts = {"accuracy/id": [name for name in scores if not name.endswith("_ood/acc")]}
    parts["accuracy/ood"] = [name for name in scores if name.endswith("_ood/acc")]
    return frame.assign(**{name: frame[of].mean(axis=1) for name, of in parts.items() if of})


def accuracies(run: Run) -> dict[str, float]:
    """Accuracy of the run's result by benchmark; empty if it has none yet."""
    limit = run.manifest["config"].get("eval", {}).get("limit")
    wanted = _SCORES | {"step": run.last_step, "limit": limit}
    names = sorted({str(row["benchmark"]) for _, row in run.rows(wanted)}) if run.last_step is not None else []
    found = {name: run.row(wanted | {"benchmark": name}) for name in names}
    return {name: float(row[1]["value"]) for name, row in found.items() if row}


def mean_accuracy(group: Group) -> dict[int, float]:
    """Mean accuracy over benchmarks by seed, of the runs that have a result."""
    scored = {run.seed: accuracies(run) for run in group.runs}
    return {seed: float(np.mean(list(found.values()))) for seed, found in scored.items() if found}


def half_width(spread: Any, count: Any) -> Any:
    """Half of the 95 % t interval of a mean, from standard deviation and number; NaN for fewer than two."""
    many = np.maximum(np.asarray(count), 2)
    return np.where(np.asarray(count) > 1, stats.t.ppf(0.975, many - 1) * spread / np.sqrt(many), np.nan)


def _one_per_seed(runs: Sequence[Run]) -> tuple[Run, ...]:
    finished = [run for run in runs if run.status in (COMPLETED, DIVERGED)]
    return tuple(run for _, run in sorted({run.seed: run for run in finished or runs}.items()))


def _config(runs: Sequence[Run]) -> Mapping[str, Any]:
    return seedless(runs[0].manifest["config"])


def _without(config: Mapping[str, Any], left: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in left}


def _place(options: Mapping[str, str], keys: Sequence[str]) -> str:
    known = {key: options.get(key) for key in keys}
    words = [value for key, value in known.items() if value and (key, value) != ("correction", "none")]
    return ", ".join("no noise" if word == "none" else word for word in words) or "?"


@dataclass(frozen=True)
class _Part:
    """A name that may be shared, and the settings behind it."""

    name: str
    leaves: Mapping[str, Any]


def _names(parts: Sequence[_Part]) -> list[str]:
    """A name for each part, alike only where name and settings are: what differs is added in brackets."""
    shared: dict[str, list[_Part]] = {}
    for part in parts:
        shared.setdefault(part.name, []).append(part)
    return [part.name + _apart(part, shared[part.name]) for part in parts]


def _apart(part: _Part, others: Sequence[_Part]) -> str:
    """The fewest settings that tell the parts apart, those that all of them have first; "..." = more differ."""
    distinct = list({json.dumps(other.leaves, sort_keys=True): other.leaves for other in others}.values())
    known = {key for leaves in distinct for key in leaves}
    differing = [key for key in sorted(known) if len({_values(leaves, [key]) for leaves in distinct}) > 1]
    keys = sorted(differing, key=lambda key: any(key not in leaves for leaves in distinct))
    if not keys:
        return ""
    chosen: list[str] = []
    while len({_values(leaves, chosen) for leaves in distinct}) < len(distinct):
        chosen.append(max(keys, key=lambda key: len({_values(leaves, [*chosen, key]) for leaves in distinct})))
    said = [_said(part.leaves, key) for key in chosen]
    if len(chosen) > _MOST:
        return f" [variant {1 + distinct.index(part.leaves)}]"
    return f" [{', '.join(said)}{', ...' if len(keys) > len(chosen) else ''}]"


def _said(leaves: Mapping[str, Any], key: str) -> str:
    """key=value, of the key its last two parts, of a class its own name."""
    value = str(_value(leaves, key))
    return f"{'.'.join(key.split('.')[-2:])}={value.rpartition('.')[2] if key.endswith('_target_') else value}"


def _values(leaves: Mapping[str, Any], keys: Sequence[str]) -> str:
    return json.dumps([_value(leaves, key) for key in keys])


def _value(leaves: Mapping[str, Any], key: str) -> Any:
    return leaves.get(key, "unset")


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat
