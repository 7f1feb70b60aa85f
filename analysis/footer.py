"""What stands under a table: how many runs it rests on, who made them when, and what the reader must beware of."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from analysis.collect import DIVERGED, UNFINISHED, Run, dotted
from analysis.plan import Match, question_limit
from analysis.table_spec import Spec


def footer(table: Spec, matches: Sequence[Match], strangers: int, frame: pd.DataFrame) -> list[str]:
    """What the reader must know of the runs behind a table, from the store and from the table's own cells."""
    limit = question_limit(matches)
    done = [match.done for match in matches if match.done]
    undone = [match.attempts for match in matches if match.done is None]
    absent = sum(not attempts for attempts in undone)
    failed = sum(any(run.status not in UNFINISHED for run in attempts) for attempts in undone)
    diverged = sum(run.status == DIVERGED for run in done)
    shas = sorted({str(dotted(run.manifest, "git.sha"))[:10] for run in done})
    dirty = any(dotted(run.manifest, "git.dirty") for run in done)
    tiers = sorted({str(run.manifest.get("tier")) for run in done})
    days = sorted({str(run.manifest["ended"])[:10] for run in done})
    period = " to ".join(dict.fromkeys([days[0], days[-1]])) if days else "never"
    lines = [
        f"Runs: {len(matches)} planned, {len(done)} finished ({diverged} of them diverged), {failed} failed, "
        f"{len(undone) - absent - failed} under way, {absent} not started. Others in the store: {strangers}.",
        f"Tier: {', '.join(tiers) or 'none'}. Ended: {period}. "
        f"Commit: {', '.join(shas) or 'none'}{' with uncommitted changes' if dirty else ''}.",
    ]
    if "smoke" in tiers or limit:
        lines.insert(0, "Smoke test, not results: short runs, few questions.")
    return lines + _comparison(table, frame) + _warnings(table, done, shas, limit)


def _comparison(table: Spec, frame: pd.DataFrame) -> list[str]:
    """What was tested, and what such a test can find at all."""
    lines = []
    differences = frame[frame["kind"] == "difference"]
    if len(differences):
        lines.append(
            f"Δ: difference from {table.reference} in points ± half of a 95 % interval, runs paired by seed. Tested by "
            f"a two-way clustered t over runs and questions, Holm over the {len(differences)} differences of this "
            "table: ** = holds for other trainings and other questions (adjusted p < .05), * = on these questions "
            "only. No test with fewer than three seeds."
        )
        found = differences.get("detectable", pd.Series(dtype=float)).dropna()  # absent: no pair of results yet
        if len(found):
            lines.append(
                f"A difference is found in 80 % of all cases from {100 * found.min():.1f} to {100 * found.max():.1f} "
                "points on, depending on the row (paired t over these seeds, before Holm)."
            )
    if table.compare:
        lines.append(
            "Bold: the best of the rows that differ in "
            f"{table.compare} alone, and all that cannot be told from it (Holm over all pairs); from three seeds on."
        )
    if table.collapse:
        lines.append("Collapsed: runs that end more than ten points below the start in a column.")
    if table.reported:
        lines.append(
            "Italics: published numbers, made with other models, data and protocols, without an interval; never "
            "ranked or tested here. ° = not read in the paper itself but in a digest of it."
        )
    return lines


def _warnings(table: Spec, done: Sequence[Run], shas: Sequence[str], limit: int | None) -> list[str]:
    wanted = {"metric": table.metric, "protocol": table.protocol, "limit": limit}
    unscored = [run.folder.name for run in done if not run.rows(wanted | {"step": run.last_step})]
    lines = ["Warning: the runs were made by more than one commit."] if len(shas) > 1 else []
    if unscored:
        lines.append(f"Warning: finished, but no evaluation with limit={limit}: {', '.join(unscored)}.")
    return lines
