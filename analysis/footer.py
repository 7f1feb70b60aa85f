"""What stands under a table: how many runs it rests on, who made them when, and what the reader must beware of."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.collect import DIVERGED, UNFINISHED, Run, dotted
from analysis.plan import Match
from analysis.table_spec import Spec


def footer(table: Spec, matches: Sequence[Match], strangers: int) -> list[str]:
    """What the reader must know of the runs behind a table, from the store."""
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
    if "smoke" in tiers or table.limit:
        lines.insert(0, "Smoke test, not results: short runs, few questions.")
    return lines + _warnings(table, done, shas)


def _warnings(table: Spec, done: Sequence[Run], shas: Sequence[str]) -> list[str]:
    wanted = {"metric": table.metric, "protocol": table.protocol, "limit": table.limit}
    unscored = [run.folder.name for run in done if not run.rows(wanted | {"step": run.last_step})]
    lines = ["Warning: the runs were made by more than one commit."] if len(shas) > 1 else []
    if unscored:
        lines.append(f"Warning: finished, but no evaluation with limit={table.limit}: {', '.join(unscored)}.")
    return lines
