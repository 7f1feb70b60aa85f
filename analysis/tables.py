"""One table from run folders: `python -m analysis.tables smoke --runs runs --out tables`.

A spec (analysis/specs/NAME.yaml) says which sweep plans the runs, what makes a row and a column, and which score is
shown. The plan is joined with the store into cells (cells.py), one long data frame; writers.py renders it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import pandas as pd

from analysis import writers
from analysis.cells import build
from analysis.collect import Run, dotted, load_runs
from analysis.footer import footer
from analysis.plan import Planned, expand, join, near_misses
from analysis.table_spec import Spec, find_spec
from analysis.wandb_tables import logger_in, mirror
from noisyrl.loggers.base import Logger
from noisyrl.spec import InputError


@dataclass(frozen=True)
class Folders:
    """Where things are, relative to the repository root."""

    runs: Path = Path("runs")
    out: Path = Path("tables")
    specs: Path = Path("analysis/specs")
    sweeps: Path = Path("sweeps")
    conf: Path = Path("conf")

    @cached_property
    def store(self) -> list[Run]:
        """The runs as they are when first asked for."""
        return load_runs(self.runs)


@dataclass(frozen=True)
class Table:
    """A table that is ready to be written."""

    text: writers.Text
    frame: pd.DataFrame
    left_out: Mapping[str, Sequence[str]]
    """Runs with the options of a missing one but another config, by the difference."""


def prepare(name: str, table: Spec, plan: Sequence[Planned], runs: Sequence[Run]) -> Table:
    """Join the plan with the runs of the store. InputError: anything the user can mend."""
    known_runs = [run for run in runs if all(dotted(run.manifest, k) == v for k, v in table.filter.items())]
    matches = join(plan, known_runs)
    strangers = len(known_runs) - sum(len(match.attempts) for match in matches)
    frame = build(name, table, matches)
    text = writers.Text(name, table.caption, table.rows, tuple(footer(table, matches, strangers, frame)))
    return Table(text, frame, near_misses(matches, known_runs))


def lacking(table: Table) -> list[str]:
    """The cells that have no number, or not that of every planned run; published values aside."""
    frame = table.frame[table.frame["kind"] != "reported"]
    poor = frame[frame["mean"].isna() | (frame["missing"] > 0)]
    labels = poor[list(table.text.rows)].itertuples(index=False, name=None)
    return [f"{table.text.name}: {' '.join(row)}, {column}" for row, column in zip(labels, poor["column"], strict=True)]


def make(
    name: str,
    at: Folders,
    formats: Sequence[str] = tuple(writers.WRITERS),
    tier: str | None = None,
    *,
    full: bool = False,
    logger: Logger | None = None,
) -> list[Path]:
    """Build table `name`; the files written, with the tier in their names.

    full    refuse a table with a cell that lacks a planned run
    logger  gets the table too, once its files are written
    InputError: anything the user can mend.
    """
    table = find_spec(at.specs, name, tier)
    plan = expand(at.sweeps / f"{table.sweep}.yaml", at.conf, tier)
    found = prepare(name, table, plan, at.store)
    for change, names in found.left_out.items():
        print(f"note: left out for their config (stored -> planned): {', '.join(names)}\n{change}", file=sys.stderr)
    if full and (poor := lacking(found)):
        raise InputError("planned and not there (make status says why):\n  " + "\n  ".join(poor))
    stem = f"{name}-{tier}" if tier else name
    at.out.mkdir(parents=True, exist_ok=True)
    files = [_write(at.out / f"{stem}.{end}", writers.WRITERS[end](found.text, found.frame)) for end in formats]
    if logger is not None:
        mirror(logger, found.text, found.frame, at.out, stem=stem, tier=tier)
    return files


def _write(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; the message of an InputError goes to stderr, exit status 1."""
    parser = argparse.ArgumentParser(prog="analysis.tables", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="stems of files in the specs folder; default: all of them")
    parser.add_argument("--fmt", nargs="+", choices=writers.WRITERS, default=list(writers.WRITERS), help="default: all")
    parser.add_argument("--tier", help="option of conf/tier, e.g. smoke; default: testbed")
    parser.add_argument("--full", action="store_true", help="refuse tables with a cell that lacks a planned run")
    parser.add_argument("--wandb", action="store_true", help="mirror them to W&B as conf/logger/wandb.yaml says")
    for folder in fields(Folders):
        parser.add_argument(f"--{folder.name}", type=Path, default=folder.default, help=f"default: {folder.default}/")
    options = vars(parser.parse_args(arguments))
    names, formats, tier, full, wandb = (options.pop(key) for key in ("names", "fmt", "tier", "full", "wandb"))
    at = Folders(**options)
    try:
        logger = logger_in(at.conf) if wandb else None
        for name in names or sorted(path.stem for path in at.specs.glob("*.yaml")):
            print(*make(name, at, formats, tier, full=full, logger=logger), sep="\n")
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
