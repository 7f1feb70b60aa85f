"""Claims of the literature against our tables: `python -m analysis.claims --runs runs`.

Each claim of claims.yaml says that one row of a table is above others in a column. Differences are paired as in the
table, p-values are Holm's over the claim's comparisons. Verdicts: supported (every difference significantly above 0),
contradicted (some significantly below), not distinguishable (with the seeds that would tell, if the differences are as
large as they look), not tested (fewer than three common seeds).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from pydantic import Field, ValidationError

from analysis.cells import Grid, Key, behind, difference, results
from analysis.collect import Run
from analysis.inference import LEVEL, Difference, holm, seeds_needed
from analysis.plan import expand, join
from analysis.table_spec import Spec, find_spec
from analysis.tables import Folders
from noisyrl.spec import InputError, spec

CLAIMS = Path(__file__).parent / "claims.yaml"


@spec
class Claim:
    """One entry of claims.yaml."""

    claim: str
    source: str
    """Who says so."""
    table: str
    column: str
    """Label of a column or an average of the table."""
    row: dict[str, str]
    """The row that is said to be above."""
    above: list[dict[str, str]]
    """The rows it is said to be above; row parameters that are not named are as in `row`."""
    tiers: list[str] = Field(default_factory=list)
    """The tiers whose table has these rows; empty = all."""


@dataclass(frozen=True)
class Judged:
    """A claim with what our runs say."""

    claim: Claim
    differences: tuple[Difference | None, ...]
    verdict: str


def read_claims(tier: str | None = None, path: Path = CLAIMS) -> list[Claim]:
    """The claims about a tier; None = testbed. InputError: a claim has a key or value it may not have."""
    found = []
    for number, entry in enumerate(yaml.safe_load(path.read_text()), start=1):
        try:
            found.append(Claim(**entry))
        except (ValidationError, TypeError) as error:
            raise InputError(f"{path}, claim {number}: {error}") from None
    return [claim for claim in found if not claim.tiers or (tier or "testbed") in claim.tiers]


def judge(claim: Claim, table: Spec, grid: Grid) -> Judged:
    """InputError: the claim names a row or column that the table does not have."""
    rows = [_key(claim, claim.row, table, grid)]
    rows += [_key(claim, claim.row | other, table, grid) for other in claim.above]
    first, *others = (behind(table, grid, claim.column, row) for row in rows)
    found = tuple(difference(first, other)[0] for other in others)
    return Judged(claim, found, _verdict(found))


def _verdict(found: Sequence[Difference | None]) -> str:
    if any(each is None or np.isnan(each.p) for each in found):
        return "not tested"
    known = [each for each in found if each]
    adjusted = holm([each.p_family for each in known])
    if any(p < LEVEL and each.mean < 0 for p, each in zip(adjusted, known, strict=True)):
        return "contradicted"
    if all(p < LEVEL and each.mean > 0 for p, each in zip(adjusted, known, strict=True)):
        return "supported"
    needed = [seeds_needed(each.mean, each.spread, LEVEL / len(known)) for each in known]
    told = "more than 1000" if None in needed else str(max(n for n in needed if n))
    return f"not distinguishable; {told} seeds would tell"


def _key(claim: Claim, row: Mapping[str, str], table: Spec, grid: Grid) -> Key:
    known = [average.label for average in table.averages] + list(grid)
    if claim.column not in known:
        raise InputError(f"claim {claim.claim!r}: table {claim.table} has no column {claim.column!r}, but {known}")
    key = tuple(row.get(name, "") for name in table.rows)
    if not any(key in rows for rows in grid.values()):
        raise InputError(f"claim {claim.claim!r}: table {claim.table} has no row {dict(row)}")
    return key


def frame(judged: Sequence[Judged]) -> pd.DataFrame:
    """One line per claim: estimate and interval of the smallest difference, in points."""
    lines = []
    for each in judged:
        tested = [found for found in each.differences if found]
        least = min(tested, key=lambda found: found.mean, default=None)
        lines.append(
            {
                "claim": each.claim.claim,
                "source": each.claim.source,
                "table": f"{each.claim.table}, {each.claim.column}",
                "smallest difference": _shown(least),
                "seeds": min((found.seeds for found in tested), default=0),
                "verdict": each.verdict,
            }
        )
    return pd.DataFrame(lines)


def _shown(found: Difference | None) -> str:
    if found is None:
        return "·"
    ends = "" if np.isnan(found.low) else f" [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    return f"{100 * found.mean:+.1f}{ends}"


def judge_all(claims: Sequence[Claim], at: Folders, tier: str | None = None) -> list[Judged]:
    """Every claim against the runs in the store. InputError: there is no store, or a claim names what no table has."""
    runs: list[Run] = at.store
    tables: dict[str, tuple[Spec, Grid]] = {}
    for name in dict.fromkeys(claim.table for claim in claims):
        table = find_spec(at.specs, name, tier)
        plan = expand(at.sweeps / f"{table.sweep}.yaml", at.conf, tier)
        tables[name] = table, results(table, join(plan, runs))
    return [judge(claim, *tables[claim.table]) for claim in claims]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="analysis.claims", description=__doc__.split("\n")[0])
    parser.add_argument("--tier", help="option of conf/tier; default: testbed")
    for folder in fields(Folders):
        parser.add_argument(f"--{folder.name}", type=Path, default=folder.default, help=f"default: {folder.default}/")
    options = vars(parser.parse_args(arguments))
    tier = options.pop("tier")
    at = Folders(**options)
    try:
        text = frame(judge_all(read_claims(tier), at, tier)).to_markdown(index=False, disable_numparse=True)
    except InputError as error:
        sys.exit(f"error: {error}")
    at.out.mkdir(parents=True, exist_ok=True)
    (at.out / f"claims{f'-{tier}' if tier else ''}.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
