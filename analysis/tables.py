"""One table from run folders: `python -m analysis.tables smoke --runs runs --out tables`.

A spec (analysis/specs/NAME.yaml) says which sweep plans the runs, what makes a row and a column, and which score is
shown. The plan is joined with the store into cells; the cells become one long data frame; writers.py renders it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import writers
from analysis.collect import DIVERGED, Evaluated, Run, dotted, load_runs, scores
from analysis.footer import footer
from analysis.plan import Match, expand, join, near_misses
from analysis.stats import Bootstrap
from analysis.table_spec import Column, Spec, read_spec
from noisyrl.spec import InputError

START = "start"
_MUST_AGREE = ("benchmark_version", "scorer", "scorer_version", "prompt_hash", "n_questions", "max_new_tokens")


@dataclass(frozen=True)
class Scored:
    """A run's result in one column; `row` is the aggregate row it comes from."""

    run: Run
    evaluated: Evaluated
    row: Mapping[str, Any]


def build(name: str, table: Spec, matches: Sequence[Match]) -> pd.DataFrame:
    """The long frame: one row per cell of the table, planned cells without a result included.

    InputError: two finished runs for one planned run, or scores in a column that were not made alike.
    """
    bootstrap = Bootstrap(name, table.resamples)
    cells = []
    for column in table.columns:
        planned = [match for match in matches if _fits(match, column)]
        groups = _by_row(planned, table.rows)
        found = {key: [_result(match.done, column, table) for match in group] for key, group in groups.items()}
        start = _start(planned, column, table) if table.start_row else []
        _check_alike([scored for group in found.values() for scored in group if scored] + start, column)
        if table.start_row:
            labels = {row: START if row == table.rows[0] else "" for row in table.rows}
            cells.append(_cell(labels, column, bootstrap, start) | {"planned": len(start), "missing": 0})
        for key, group in groups.items():
            scored = [result for result in found[key] if result]
            counts = {"planned": len(group), "missing": len(group) - len(scored)}
            cells.append(_cell(dict(zip(table.rows, key, strict=True)), column, bootstrap, scored) | counts)
    return pd.DataFrame(cells)


def _fits(match: Match, column: Column) -> bool:
    return all(match.planned.values.get(key) == str(value) for key, value in column.where.items())


def _by_row(matches: Sequence[Match], rows: Sequence[str]) -> dict[tuple[str, ...], list[Match]]:
    groups: dict[tuple[str, ...], list[Match]] = {}
    for match in matches:
        groups.setdefault(tuple(match.planned.values[row] for row in rows), []).append(match)
    return groups


def _result(run: Run | None, column: Column, table: Spec, step: int | None = None) -> Scored | None:
    """The run's score at `step`, or at its end; None if it has none (yet)."""
    at = step if step is not None or run is None else run.last_step
    if run is None or at is None:
        return None
    wanted = {"benchmark": column.benchmark, "metric": table.metric, "protocol": table.protocol, "limit": table.limit}
    found = run.row(wanted | {"step": at})
    return Scored(run, *found) if found else None


def _start(matches: Sequence[Match], column: Column, table: Spec) -> list[Scored]:
    """The scores before training: one for each distinct model, for most tables one in all."""
    models: dict[str, Scored] = {}
    for run in (run for match in matches for run in match.attempts):
        scored = _result(run, column, table, step=0)
        if scored:
            models.setdefault(scored.row["eval_id"], scored)
    return list(models.values())


def _check_alike(group: Sequence[Scored], column: Column) -> None:
    for scored in group[1:]:
        for key in _MUST_AGREE:
            if scored.row[key] != group[0].row[key]:
                raise InputError(
                    f"column {column.label}: {key} is {group[0].row[key]} in {group[0].evaluated.folder} but "
                    f"{scored.row[key]} in {scored.evaluated.folder}; evaluate both alike, `python src/eval.py run=...`"
                )


def _cell(labels: Mapping[str, str], column: Column, bootstrap: Bootstrap, group: Sequence[Scored]) -> dict[str, Any]:
    facts = {
        **labels,
        "column": column.label,
        "benchmark": column.benchmark,
        **dict.fromkeys(("mean", "low", "high"), float("nan")),
        "n": len(group),
        "diverged": sum(scored.run.status == DIVERGED for scored in group),
        "n_questions": group[0].row["n_questions"] if group else 0,
        "run_ids": " ".join(scored.run.run_id for scored in group),
    }
    if not group:
        return facts
    by_question = [scores(scored.evaluated, column.benchmark) for scored in group]
    # _check_alike has seen that the questions are the same ones; their order in the file need not be.
    matrix_SQ = np.array([[each[qid] for qid in sorted(by_question[0])] for each in by_question])
    interval = bootstrap.interval(matrix_SQ, column.benchmark)
    return facts | interval._asdict()


@dataclass(frozen=True)
class Folders:
    """Where things are, relative to the repository root."""

    runs: Path = Path("runs")
    out: Path = Path("tables")
    specs: Path = Path("analysis/specs")
    sweeps: Path = Path("sweeps")
    conf: Path = Path("conf")


def make(name: str, at: Folders, formats: Sequence[str] = tuple(writers.WRITERS)) -> list[Path]:
    """Build table `name`; the files written. InputError: anything the user can mend."""
    table = read_spec(at.specs / f"{name}.yaml")
    plan = expand(at.sweeps / f"{table.sweep}.yaml", at.conf)
    known_runs = [
        run for run in load_runs(at.runs) if all(dotted(run.manifest, k) == v for k, v in table.filter.items())
    ]
    matches = join(plan, known_runs)
    for change, names in near_misses(matches, known_runs).items():
        print(f"note: left out for their config (stored -> planned): {', '.join(names)}\n{change}", file=sys.stderr)
    strangers = len(known_runs) - sum(len(match.attempts) for match in matches)
    frame = build(name, table, matches)
    text = writers.Text(name, table.caption, table.rows, tuple(footer(table, matches, strangers)))
    at.out.mkdir(parents=True, exist_ok=True)
    return [_write(at.out / f"{name}.{ending}", writers.WRITERS[ending](text, frame)) for ending in formats]


def _write(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; the message of an InputError goes to stderr, exit status 1."""
    parser = argparse.ArgumentParser(prog="analysis.tables", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="stems of files in the specs folder; default: all of them")
    parser.add_argument("--fmt", nargs="+", choices=writers.WRITERS, default=list(writers.WRITERS), help="default: all")
    for folder in fields(Folders):
        parser.add_argument(f"--{folder.name}", type=Path, default=folder.default, help=f"default: {folder.default}/")
    options = vars(parser.parse_args(arguments))
    names, formats = options.pop("names"), options.pop("fmt")
    at = Folders(**options)
    try:
        for name in names or sorted(path.stem for path in at.specs.glob("*.yaml")):
            print(*make(name, at, formats), sep="\n")
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
