"""Verdicts on claims: known answers, and every shipped claim names rows and columns that exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis import cells
from analysis.claims import Claim, frame, judge, judge_all, read_claims
from analysis.plan import expand, join
from analysis.table_spec import Column, Spec
from analysis.tables import Folders
from noisyrl.spec import InputError
from tests.frame import ROOT

TABLE = Spec(caption="", sweep="s", rows=["algo"], columns=[Column(label="toy", benchmark="toy")])


class Made(cells.Results):
    """Five seeds of 40 questions with a given share right, seeds apart by `spread`."""

    def matrix(self, seeds=None):
        share, spread = self.planned
        rights = [round(40 * (share + spread * (i - 2))) for i in range(5)]
        return cells.np.array([[float(q < right) for q in range(40)] for right in rights])


def verdict(first, *others):
    rows = {(str(i),): Made(pair, dict.fromkeys(range(5)), "toy") for i, pair in enumerate([first, *others])}
    claim = Claim(claim="c", source="s", table="t", column="toy", row={"algo": "0"},
                  above=[{"algo": str(i + 1)} for i in range(len(others))])  # fmt: skip
    return judge(claim, TABLE, {"toy": rows})


def test_verdicts():
    assert verdict((0.9, 0.01), (0.2, 0.01)).verdict == "supported"
    assert verdict((0.2, 0.01), (0.9, 0.01)).verdict == "contradicted"
    assert verdict((0.9, 0.01), (0.2, 0.01), (0.95, 0.0)).verdict.startswith("not distinguishable")
    assert verdict((0.5, 0.0), (0.5, 0.1)).verdict == "not distinguishable; more than 1000 seeds would tell"
    shown = frame([verdict((0.9, 0.01), (0.2, 0.01), (0.5, 0.01))]).iloc[0]
    assert shown["smallest difference"].startswith("+40.0 [") and shown["seeds"] == 5


@pytest.mark.parametrize("tier", ["smoke", *(pytest.param(tier, marks=pytest.mark.slow) for tier in (None, "full"))])
def test_without_runs_nothing_is_tested(tmp_path, tier):
    """Every claim names rows and columns that its table has, in every tier."""
    at = Folders(runs=tmp_path, specs=ROOT / "analysis/specs", sweeps=ROOT / "sweeps", conf=ROOT / "conf")
    judged = judge_all(read_claims(tier), at, tier)
    assert len(judged) >= 25 and {each.verdict for each in judged} == {"not tested"}


def test_a_store_that_is_not_there_is_no_untested_claim():
    with pytest.raises(InputError, match="no run folder nowhere/"):
        judge_all([], Folders(runs=Path("nowhere")))


def test_a_claim_about_an_unknown_row_is_refused():
    planned = join(expand(ROOT / "sweeps/risk_weight.yaml", ROOT / "conf", "smoke"), [])
    table = cells.Spec(caption="", sweep="s", rows=["algo.w_risk"], columns=[Column(label="toy", benchmark="toy")])
    grid = cells.results(table, planned)
    claim = Claim(claim="c", source="s", table="t", column="toy", row={"algo.w_risk": "7"}, above=[])
    with pytest.raises(InputError, match="no row"):
        judge(claim, table, grid)
