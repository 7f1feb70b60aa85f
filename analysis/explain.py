"""What is behind a cell: `python -m analysis.explain main algo=dvpo "math OOD"`.

Lists the planned runs of the cell with their folders, files and scores, and computes its numbers anew: for a difference
also those of the row it is taken from, for a share of collapsed runs every run's score and the floor, for a published
value the line of its file.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import mean

import pandas as pd

from analysis import writers
from analysis.cells import COLLAPSED, PAPER, START, Grid, Key, Scored, build, published, results
from analysis.collect import DIVERGED, dotted, load_runs, scores
from analysis.plan import Match, expand, join
from analysis.status import state
from analysis.table_spec import Column, Spec, find_spec
from analysis.tables import Folders
from noisyrl.spec import InputError


def explain(name: str, row: Mapping[str, str], column: str, at: Folders, tier: str | None = None) -> str:
    """The text of the explanation. InputError: no such table, row or column."""
    table = find_spec(at.specs, name, tier)
    runs = [run for run in load_runs(at.runs) if all(dotted(run.manifest, k) == v for k, v in table.filter.items())]
    matches = join(expand(at.sweeps / f"{table.sweep}.yaml", at.conf, tier), runs)
    cell = _cell(build(name, table, matches), table, row, column)
    key = tuple(str(cell[label]) for label in table.rows)
    lines = [f"{name}: {_named(table, key)}; column {column}", ""]
    lines += [f"shown: {writers.plain(next(cell.to_frame().T.itertuples()))}"]
    lines += [f"{number}: {cell[number]}" for number in _NUMBERS if number in cell and pd.notna(cell[number])]
    if cell["kind"] == "reported":
        return "\n".join(lines + _published(table, key))
    behind = _Behind(table, matches, results(table, matches))
    if cell["kind"] == "collapse":
        return "\n".join(lines + behind.collapses(key))
    lines += behind.runs(key, column)
    again = behind.mean(key, column)
    if cell["kind"] == "difference":
        reference = _reference(table, key)
        lines += ["", f"minus {_named(table, reference)}"] + behind.runs(reference, column)
        again = behind.mean(key, column, reference) - behind.mean(reference, column, key)
    return "\n".join(lines if math.isnan(again) else [*lines, "", f"again, from the scores above: {again:.6f}"])


_NUMBERS = (
    "mean", "low", "high", "n", "planned", "diverged", "n_questions", "p", "p_family", "p_seeds", "p_holm",
    "p_seeds_holm", "mark", "spread", "detectable", "p_improve", "bold",
)  # fmt: skip


def _cell(frame: pd.DataFrame, table: Spec, row: Mapping[str, str], column: str) -> pd.Series:
    found = frame[frame["column"] == column]
    if found.empty:
        raise InputError(f"no column {column!r}; there are: {', '.join(map(repr, frame['column'].unique()))}")
    for key, value in row.items():
        if key not in table.rows:
            raise InputError(f"rows are named by {', '.join(table.rows)}, not by {key}")
        found = found[found[key] == value]
    if len(found) != 1:
        rows = frame[list(table.rows)].drop_duplicates().itertuples(index=False, name=None)
        known = [" ".join(f"{key}={value}" for key, value in zip(table.rows, labels, strict=True)) for labels in rows]
        raise InputError(f"{len(found)} rows fit {dict(row)}; there are: " + "; ".join(known))
    return found.iloc[0]


def _named(table: Spec, key: Key) -> str:
    return ", ".join(f"{label}={value}" for label, value in zip(table.rows, key, strict=True))


def _reference(table: Spec, key: Key) -> Key:
    """The row that a row is compared with."""
    return tuple(
        str(table.reference) if label == table.compare else value for label, value in zip(table.rows, key, strict=True)
    )


@dataclass(frozen=True)
class _Behind:
    """The runs and files that the rows of a table rest on."""

    table: Spec
    matches: Sequence[Match]
    grid: Grid

    def columns(self, label: str) -> list[Column]:
        """The columns behind a column, an average, or a difference in one of them."""
        label = label.rpartition(f"Δ {self.table.reference}, ")[2]
        parts = {average.label: average.of for average in self.table.averages}.get(label, [label])
        return [column for column in self.table.columns if column.label in parts]

    def runs(self, key: Key, label: str) -> list[str]:
        """For each column behind `label` the planned runs of the row: where their scores come from, or why not."""
        lines = []
        for part in self.columns(label):
            lines += ["", f"{part.label} ({part.benchmark}):"]
            if START in key:
                found = self.grid[part.label][key].by_seed.values()
                lines += [f"  before training: {_score(scored, self.table)}" for scored in found]
                continue
            wanted = dict(zip(self.table.rows, key, strict=True))
            wanted |= {name: str(value) for name, value in part.where.items()}
            for match in self.matches:
                if all(match.planned.values.get(name) == value for name, value in wanted.items()):
                    lines.append("  " + self.run(match, part, key))
        return lines

    def run(self, match: Match, part: Column, key: Key) -> str:
        """One planned run."""
        run = match.done
        if run is None:
            last = match.attempts[-1] if match.attempts else None
            reason = f": {last.folder}: {last.manifest.get('failure') or last.status}" if last else ""
            return f"seed {match.planned.seed}: {state(match)}{reason}"
        scored = self.grid[part.label][key].by_seed.get(match.planned.seed)
        if scored is None:
            return f"seed {run.seed}: {run.folder}: {run.status}, but no such evaluation"
        return f"seed {run.seed}: {_score(scored, self.table)}" + (" (diverged)" if run.status == DIVERGED else "")

    def mean(self, key: Key, label: str, other: Key | None = None) -> float:
        """The row's mean, run by run and column by column, over the seeds that have all (and that `other` has too)."""
        rows = [key] if other is None else [key, other]
        parts = {row: [self.grid[column.label].get(row) for column in self.columns(label)] for row in rows}
        if any(part is None for found in parts.values() for part in found):
            return math.nan
        seeds = set.intersection(*(set(part.by_seed) for found in parts.values() for part in found if part))
        own = [part for part in parts[key] if part]
        return (
            mean(mean(_right(part.by_seed[seed], self.table) for seed in seeds) for part in own) if seeds else math.nan
        )

    def collapses(self, key: Key) -> list[str]:
        """Every run's score in every column against the floor that is ten points below the start."""
        lines = []
        for label, rows in self.grid.items():
            start = next(iter(rows.values()))
            if key not in rows or not start.by_seed:
                continue
            floor = mean(_right(scored, self.table) for scored in start.by_seed.values()) - COLLAPSED
            lines += ["", f"{label}: collapsed is what ends below {floor:.4f}, ten points under the start"]
            for seed, scored in rows[key].by_seed.items():
                verdict = ": collapsed" if _right(scored, self.table) < floor else ""
                lines.append(f"  seed {seed}: {_score(scored, self.table)}{verdict}")
        return lines


def _right(scored: Scored, table: Spec) -> float:
    return mean(scores(scored.evaluated, str(scored.row["benchmark"]), table.metric).values())


def _score(scored: Scored, table: Spec) -> str:
    """A run's score, computed anew, and the file it comes from."""
    again, stored = _right(scored, table), float(scored.row["value"])
    agrees = "" if abs(again - stored) < 1e-6 else f"; BUT aggregate.jsonl says {stored:.4f}"
    return f"{again:.4f} over {scored.row['n_questions']} questions, {scored.evaluated.folder}/samples.parquet{agrees}"


def _published(table: Spec, key: Key) -> list[str]:
    """The line of the file of published values, with its source."""
    found = published(table, key)
    lines = [f"  {name}: {value}" for _, line in found.iterrows() for name, value in line.items() if pd.notna(value)]
    return ["", f"published, no run of ours: {PAPER.name}", *lines] if lines else ["", f"not in {PAPER.name}"]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="analysis.explain", description=__doc__.split("\n")[0])
    parser.add_argument("table", help="stem of a file in analysis/specs/")
    parser.add_argument("row", nargs="+", help="KEY=VALUE, one for each row parameter; then, last, the column's label")
    parser.add_argument("--tier", help="option of conf/tier; default: testbed")
    for folder in fields(Folders):
        parser.add_argument(f"--{folder.name}", type=Path, default=folder.default, help=f"default: {folder.default}/")
    options = vars(parser.parse_args(arguments))
    name, (*pairs, column), tier = (options.pop(key) for key in ("table", "row", "tier"))
    if wrong := [pair for pair in pairs if "=" not in pair]:
        parser.error(f"{wrong[0]!r} is no KEY=VALUE; the column's label comes last, in quotes if it has a space")
    try:
        print(explain(name, dict(pair.split("=", 1) for pair in pairs), column, Folders(**options), tier))
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
