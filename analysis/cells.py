"""The cells of a table: scores, averages over columns, differences from a reference, collapses, published values.

One long data frame, one row per cell; `kind` says what a cell is. Only scores of our own runs are ever compared.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy import ndarray

from analysis.collect import DIVERGED, Evaluated, Run, scores
from analysis.inference import LEVEL, Difference, detectable, holm, improvement, paired, wilson
from analysis.plan import Match, question_limit
from analysis.stats import Bootstrap
from analysis.table_spec import Column, Spec
from noisyrl.records import untouched
from noisyrl.spec import InputError

START = "start"
PAPER = Path(__file__).parent / "paper/paper_values.csv"
_MENDED = "if it was put right by its source: (cd analysis/paper && sha256sum *.csv > SHA256SUMS)"
_MUST_AGREE = (
    "benchmark_version",
    "scorer",
    "scorer_version",
    "prompt_hash",
    "n_questions",
    "k",
    "temperature",
    "max_new_tokens",
)
_FEWEST = 3  # seeds of a mark or of bold type
COLLAPSED = 0.10  # below the starting model
Key = tuple[str, ...]  # a row: the values of the spec's row parameters


@dataclass(frozen=True)
class Scored:
    """A run's result in one column; `row` is the aggregate row it comes from."""

    run: Run
    evaluated: Evaluated
    row: Mapping[str, Any]

    @cached_property
    def questions_Q(self) -> ndarray:
        """[Q] the metric of each question, in the order of their ids."""
        found = scores(self.evaluated, str(self.row["benchmark"]), str(self.row["metric"]))
        return np.array([found[qid] for qid in sorted(found)])


@dataclass(frozen=True)
class Results:
    """What one row has in one column: the planned runs, and the result of each that has one, by seed."""

    planned: int
    by_seed: Mapping[int, Scored]
    benchmark: str

    def matrix(self, seeds: Sequence[int] | None = None) -> ndarray:
        """[S, Q]"""
        return np.array([self.by_seed[seed].questions_Q for seed in (self.by_seed if seeds is None else seeds)])

    def facts(self) -> dict[str, Any]:
        found = list(self.by_seed.values())
        return {
            "benchmark": self.benchmark,
            "n": len(found),
            "planned": self.planned,
            "missing": self.planned - len(found),
            "diverged": sum(scored.run.status == DIVERGED for scored in found),
            "n_questions": found[0].row["n_questions"] if found else 0,
            "run_ids": " ".join(scored.run.run_id for scored in found),
        }


Grid = Mapping[str, Mapping[Key, Results]]  # column label -> row -> results; the rows of a column in planned order


def build(name: str, table: Spec, matches: Sequence[Match]) -> pd.DataFrame:
    """The long frame: one row per cell of the table, planned cells without a result included.

    InputError: two finished runs for one planned run, or scores in a column that were not made alike.
    """
    bootstrap, grid, cells = Bootstrap(name, table.resamples), results(table, matches), []
    for label, rows in grid.items():
        for key, found in rows.items():
            cells.append(_labels(table, key) | {"column": label, "kind": "score"} | _score(found, bootstrap))
    for average in table.averages:
        for key in _keys(grid[part] for part in average.of):
            parts = [grid[part].get(key, Results(0, {}, "")) for part in average.of]
            cells.append(_labels(table, key) | {"column": average.label, "kind": "score"} | _average(parts, bootstrap))
    frame = pd.DataFrame(cells)
    if table.compare:
        frame = _with_bold(frame, table, grid)
        frame = pd.concat([frame, *_differences(table, grid)], ignore_index=True)
    if table.collapse:
        frame = pd.concat([frame, _collapses(table, grid)], ignore_index=True)
    if table.reported:
        frame = pd.concat([frame, _reported(table, grid)], ignore_index=True)
    return frame


def results(table: Spec, matches: Sequence[Match]) -> Grid:
    """What every row has in every column. InputError: scores in a column were not made alike."""
    limit, grid = question_limit(matches), {}
    for column in table.columns:
        planned = [match for match in matches if _fits(match, column)]
        found = {key: _results(group, column, table, limit) for key, group in _by_row(planned, table.rows).items()}
        start = _start(planned, column, table, limit) if table.start_row else []
        _check_alike([*(scored for part in found.values() for scored in part.by_seed.values()), *start], column)
        if table.start_row:
            labels = tuple(START if row == table.rows[0] else "" for row in table.rows)
            found = {labels: Results(len(start), dict(enumerate(start)), column.benchmark)} | found
        grid[column.label] = found
    return grid


def _labels(table: Spec, key: Key) -> dict[str, str]:
    return dict(zip(table.rows, key, strict=True))


def _keys(columns: Iterable[Mapping[Key, Results]]) -> list[Key]:
    return list(dict.fromkeys(key for rows in columns for key in rows))


def _fits(match: Match, column: Column) -> bool:
    return all(match.planned.values.get(key) == str(value) for key, value in column.where.items())


def _by_row(matches: Sequence[Match], rows: Sequence[str]) -> dict[Key, list[Match]]:
    groups: dict[Key, list[Match]] = {}
    for match in matches:
        groups.setdefault(tuple(match.planned.values[row] for row in rows), []).append(match)
    return groups


def _results(group: Sequence[Match], column: Column, table: Spec, limit: int | None) -> Results:
    found = {match.planned.seed: _result(match.done, column, table, limit) for match in group}
    return Results(len(group), {seed: scored for seed, scored in found.items() if scored}, column.benchmark)


def _result(run: Run | None, column: Column, table: Spec, limit: int | None, step: int | None = None) -> Scored | None:
    """The run's score at `step`, or at its end; None if it has none (yet)."""
    at = step if step is not None or run is None else run.last_step
    if run is None or at is None:
        return None
    wanted = {"benchmark": column.benchmark, "metric": table.metric, "protocol": table.protocol, "limit": limit}
    found = run.row(wanted | {"step": at})
    return Scored(run, *found) if found else None


def _start(matches: Sequence[Match], column: Column, table: Spec, limit: int | None) -> list[Scored]:
    """The scores before training: one for each distinct model, for most tables one in all."""
    models: dict[str, Scored] = {}
    for run in (run for match in matches for run in match.attempts):
        scored = _result(run, column, table, limit, step=0)
        if scored:
            models.setdefault(scored.row["eval_id"], scored)
    return list(models.values())


def _check_alike(group: Sequence[Scored], column: Column) -> None:
    for scored in group[1:]:
        for key in _MUST_AGREE:
            one, other = group[0].row.get(key), scored.row.get(key)
            if one != other:
                raise InputError(
                    f"column {column.label}: {key} is {one} in {group[0].evaluated.folder} but "
                    f"{other} in {scored.evaluated.folder}; evaluate both alike, `python src/eval.py run=...`"
                )


def _score(found: Results, bootstrap: Bootstrap) -> dict[str, Any]:
    if not found.by_seed:
        return found.facts() | _NOTHING
    return found.facts() | bootstrap.interval(found.matrix(), found.benchmark)._asdict()


def _average(parts: Sequence[Results], bootstrap: Bootstrap) -> dict[str, Any]:
    """The mean over columns, from the seeds that have a result in all of them."""
    seeds = _common(parts)
    planned = max(part.planned for part in parts)
    facts = {
        "benchmark": "+".join(part.benchmark for part in parts),
        "n": len(seeds),
        "planned": planned,
        "missing": planned - len(seeds),
        "diverged": sum(any(part.by_seed[seed].run.status == DIVERGED for part in parts) for seed in seeds),
        "n_questions": sum(part.facts()["n_questions"] for part in parts),
        "run_ids": " ".join(dict.fromkeys(part.by_seed[seed].run.run_id for part in parts for seed in seeds)),
    }
    if not seeds:
        return facts | _NOTHING
    return facts | bootstrap.average([(part.benchmark, part.matrix(seeds)) for part in parts])._asdict()


_NOTHING = dict.fromkeys(("mean", "low", "high"), float("nan"))


def _common(parts: Iterable[Results]) -> list[int]:
    """Seeds with a result in all of them."""
    return sorted(set.intersection(*(set(part.by_seed) for part in parts)))


def behind(table: Spec, grid: Grid, label: str, key: Key) -> list[Results]:
    """The results behind a column or an average."""
    of = {average.label: average.of for average in table.averages}.get(label, [label])
    return [grid[part].get(key, Results(0, {}, "")) for part in of]


def blocks(table: Spec, grid: Grid) -> list[dict[str, Key]]:
    """Rows that may be compared: alike but for `table.compare`; for each block its keys by that parameter's value."""
    assert table.compare
    at = table.rows.index(table.compare)
    blocks: dict[Key, dict[str, Key]] = {}
    for key in _keys(grid.values()):
        if key[at] != START:
            blocks.setdefault((*key[:at], *key[at + 1 :]), {})[key[at]] = key
    return list(blocks.values())


def difference(first: Sequence[Results], second: Sequence[Results]) -> tuple[Difference | None, list[int]]:
    """First minus second over the seeds both have; None if there are none."""
    seeds = _common([*first, *second])
    if not seeds:
        return None, seeds
    asked = [part.benchmark for part in first]
    return paired([part.matrix(seeds) for part in first], [part.matrix(seeds) for part in second], asked), seeds


def _differences(table: Spec, grid: Grid) -> list[pd.DataFrame]:
    """Cells "difference from the reference" of the primary columns; Holm over all of them in the table."""
    cells = []
    for label in table.primary:
        for block in blocks(table, grid):
            reference = block.get(str(table.reference))
            for key in block.values():
                cell = _labels(table, key) | {"column": f"Δ {table.reference}, {label}", "kind": "difference"}
                if reference is None or key == reference:
                    continue
                first, second = behind(table, grid, label, key), behind(table, grid, label, reference)
                found, seeds = difference(first, second)
                cells.append(cell | _difference_facts(found, first, second, seeds))
    frame = pd.DataFrame(cells)
    if frame.empty:
        return []
    frame["p_holm"], frame["p_seeds_holm"] = holm(frame["p_family"]), holm(frame["p_seeds"])
    frame["mark"] = np.select([frame["p_holm"] < LEVEL, frame["p_seeds_holm"] < LEVEL], ["**", "*"], "")
    return [frame]


def _difference_facts(
    found: Difference | None, first: Sequence[Results], second: Sequence[Results], seeds: Sequence[int]
) -> dict[str, Any]:
    planned = max(part.planned for part in first)
    facts: dict[str, Any] = {"n": len(seeds), "planned": planned, "missing": planned - len(seeds), "diverged": 0}
    facts["benchmark"] = "+".join(part.benchmark for part in first)
    if found is None:
        return facts | _NOTHING | dict.fromkeys(("p", "p_family", "p_seeds"), float("nan"))
    first_S, second_S = (
        np.mean([part.matrix(seeds).mean(axis=1) for part in parts], axis=0) for parts in (first, second)
    )
    return facts | {
        "mean": found.mean,
        "low": found.low,
        "high": found.high,
        "p": found.p,
        "p_family": found.p_family,
        "p_seeds": found.p_seeds,
        "spread": found.spread,
        "detectable": detectable(len(seeds)) * found.spread,
        "p_improve": improvement(first_S, second_S),
        "run_ids": " ".join(part.by_seed[seed].run.run_id for part in first for seed in seeds),
    }


def _with_bold(frame: pd.DataFrame, table: Spec, grid: Grid) -> pd.DataFrame:
    """Bold: the best of a block and whatever is not significantly different from it; from three seeds on."""
    bold = set()
    for label in frame["column"].unique():
        for block in blocks(table, grid):
            bold |= {(label, key) for key in _tied_for_best(table, grid, label, list(block.values()))}
    keys = frame[list(table.rows)].itertuples(index=False, name=None)
    return frame.assign(bold=[pair in bold for pair in zip(frame["column"], keys, strict=True)])


def _tied_for_best(table: Spec, grid: Grid, label: str, keys: Sequence[Key]) -> list[Key]:
    of = {key: behind(table, grid, label, key) for key in keys}
    of = {key: found for key, found in of.items() if len(_common(found)) >= _FEWEST}
    if len(of) < 2:
        return []
    means = {key: np.mean([part.matrix(_common(found)).mean() for part in found]) for key, found in of.items()}
    best = max(means, key=lambda key: means[key])
    # Holm over all pairs, not only those with the best: which one is the best was read off the same data.
    pairs = list(combinations(of, 2))
    found = [difference(of[one], of[other])[0] for one, other in pairs]
    adjusted = holm([each.p_family if each else float("nan") for each in found])
    apart = {pair for pair, p in zip(pairs, adjusted, strict=True) if p < LEVEL}
    return [key for key in of if key == best or not ({(best, key), (key, best)} & apart)]


def _collapses(table: Spec, grid: Grid) -> pd.DataFrame:
    """Share of runs that end more than ten points below the starting model in some column, with Wilson's interval."""
    cells = []
    starts = {label: next(iter(rows.values())) for label, rows in grid.items()} if table.start_row else {}
    for key in _keys(grid.values()):
        if START in key:
            continue
        ends: dict[str, bool] = {}
        for label, rows in grid.items():
            if key not in rows or not starts.get(label) or not starts[label].by_seed:
                continue
            floor = starts[label].matrix().mean() - COLLAPSED
            for scored in rows[key].by_seed.values():
                ends[scored.run.run_id] = ends.get(scored.run.run_id, False) or scored.questions_Q.mean() < floor
        low, high = wilson(sum(ends.values()), len(ends)) if ends else (float("nan"), float("nan"))
        share = sum(ends.values()) / len(ends) if ends else float("nan")
        cells.append(
            _labels(table, key)
            | {"column": "collapsed", "kind": "collapse", "benchmark": "", "mean": share, "low": low, "high": high}
            | {"n": len(ends), "planned": len(ends), "missing": 0, "diverged": 0}
        )
    return pd.DataFrame(cells)


def published(table: Spec, key: Key) -> pd.DataFrame:
    """The lines of the file of published values that fit a row: none or one. InputError: the file was changed."""
    assert table.reported
    known = pd.read_csv(io.BytesIO(untouched(PAPER, _MENDED)), dtype=str)
    named = key[table.rows.index(table.reported.row)]
    for column, value in (table.reported.where | {"method": table.reported.names.get(named, named)}).items():
        known = known[known[column] == value]
    if len(known) > 1:
        raise InputError(f"{PAPER.name}: {len(known)} values of {named} fit {table.reported.where}: narrow it")
    return known


def _reported(table: Spec, grid: Grid) -> pd.DataFrame:
    """Published values beside ours, each with its status; they enter no mean, test or rank."""
    assert table.reported
    cells = []
    for key in _keys(grid.values()):
        found = published(table, key)
        value = float(found["value"].iloc[0]) / 100 if len(found) else float("nan")
        status = str(found["status"].iloc[0]) if len(found) else ""
        cells.append(
            _labels(table, key)
            | {"column": table.reported.label, "kind": "reported", "benchmark": "", "mean": value, "mark": status}
            | {"n": len(found), "planned": 0, "missing": 0, "diverged": 0}
        )
    return pd.DataFrame(cells)
