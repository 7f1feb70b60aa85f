"""The store: every run folder with its manifest and its evaluations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import yaml

from noisyrl.evaluation import repeats, store
from noisyrl.records import config_hash, difference
from noisyrl.spec import InputError

COMPLETED, DIVERGED = "completed", "diverged"
UNFINISHED = ("queued", "running")
"""Every status other than these four is a failure of some kind."""


@dataclass(frozen=True)
class Evaluated:
    """One evaluation folder and its aggregate rows."""

    folder: Path
    rows: tuple[Mapping[str, Any], ...]

    @property
    def step(self) -> int:
        return int(self.rows[0]["step"])


@dataclass(frozen=True)
class Run:
    """One run folder."""

    folder: Path
    manifest: Mapping[str, Any]

    @cached_property
    def evaluations(self) -> tuple[Evaluated, ...]:
        """In the order of their ids. Folders that are still being written have names of their own and are not seen."""
        found = []
        for path in sorted(self.folder.glob("eval/*/" + store.AGGREGATE)):
            if path.parent.name.startswith("."):
                continue
            found.append(Evaluated(path.parent, tuple(store.read_aggregate(path.parent))))
        return tuple(found)

    @property
    def run_id(self) -> str:
        return str(self.manifest["run_id"])

    @property
    def cell_id(self) -> str:
        return str(self.manifest["cell_id"])

    @property
    def seed(self) -> int:
        return int(self.manifest["seed"])

    @property
    def status(self) -> str:
        return str(self.manifest["status"])

    @property
    def last_step(self) -> int | None:
        """The step whose evaluation is the run's result; None if it has none.

        A completed run is judged at its planned end and nowhere else. A diverged one stays in the mean, judged at the
        last step that could be evaluated: leaving it out would reward methods that break down.
        """
        if self.status == COMPLETED:
            return int(self.manifest["config"]["trainer"]["steps"])
        steps = [evaluated.step for evaluated in self.evaluations]
        return max(steps) if self.status == DIVERGED and steps else None

    def rows(self, wanted: Mapping[str, Any]) -> list[tuple[Evaluated, Mapping[str, Any]]]:
        """The aggregate rows whose fields are as `wanted`, each with its evaluation."""
        return [
            (evaluated, row)
            for evaluated in self.evaluations
            for row in evaluated.rows
            if all(row.get(key) == value for key, value in wanted.items())
        ]

    def row(self, wanted: Mapping[str, Any]) -> tuple[Evaluated, Mapping[str, Any]] | None:
        """The one row that is as `wanted`; None if there is none. InputError: several evaluations fit; names them."""
        fits = self.rows(wanted)
        if len(fits) > 1:
            folders = ", ".join(str(evaluated.folder) for evaluated, _ in fits)
            raise InputError(f"several evaluations fit {dict(wanted)}: {folders}. Delete all but one")
        return fits[0] if fits else None


def load_runs(folder: Path) -> list[Run]:
    """Every run under `folder`, by name. InputError: there is no such folder, or a manifest or config was changed."""
    if not folder.is_dir():
        raise InputError(f"no run folder {folder}/: train first (`python src/train.py`), or pass --runs")
    runs = [Run(path.parent, _read_json(path)) for path in sorted(folder.glob("*/manifest.json"))]
    for run in runs:
        _check_config(run)
    return runs


def scores(evaluated: Evaluated, benchmark: str, metric: str = "acc") -> dict[str, float]:
    """The metric for each question of a benchmark, by question id. InputError: its answers do not have the metric."""
    table = store.read_samples(evaluated.folder)
    measured = [name for name in repeats.MEASURES if name in table.column_names]
    table = table.select(["benchmark", *repeats.NEEDED, *measured])
    return repeats.per_question(metric, table.filter(pc.field("benchmark") == benchmark).to_pylist())


def dotted(tree: Any, key: str) -> Any:
    """The value at `a.b.c` in nested mappings, None if there is none."""
    for part in key.split("."):
        if not isinstance(tree, Mapping) or part not in tree:
            return None
        tree = tree[part]
    return tree


def _check_config(run: Run) -> None:
    """InputError: what the run says of itself does not follow from its config, or config.yaml says something else."""
    manifest, file = run.folder / "manifest.json", run.folder / "config.yaml"
    config = run.manifest["config"]
    digest = config_hash(config)
    own = {"config_hash": digest, "cell_id": digest[:12], "seed": config.get("seed")}
    wrong = [key for key, value in own.items() if run.manifest.get(key) != value]
    if wrong:
        raise InputError(f"{manifest} was changed: {', '.join(wrong)} does not fit its config. {_REMEDY}")
    try:
        written = yaml.load(file.read_text(), Loader=_YAML)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{file} cannot be read ({error}). {_REMEDY}") from None
    if written != config:
        told = f"\n{difference(config, written)}\n" if isinstance(written, Mapping) else " "
        raise InputError(f"{file} was changed, or the config in manifest.json was:{told}{_REMEDY}")


_NEEDED = ("run_id", "cell_id", "config_hash", "seed", "status", "choices", "config")
_REMEDY = "Undo that, or move the run folder out of the way and run it again"
_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast where libyaml is there


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): repair it, or move its folder out of the way") from None
    lacking = [key for key in _NEEDED if key not in found] if isinstance(found, dict) else list(_NEEDED)
    if lacking or not isinstance(found["config"], dict):
        raise InputError(f"{path} is no manifest of a run ({', '.join(lacking) or 'config'}). {_REMEDY}")
    return found
