"""Tables from committed run folders: byte-equal to committed files; what is missing is shown, what is wrong refused."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import yaml

from analysis import cells as building
from analysis import plan, tables, verify, writers
from analysis.collect import load_runs
from analysis.table_spec import find_spec
from noisyrl.evaluation import rows, store
from noisyrl.evaluation.benchmarks import lm_config
from noisyrl.provenance import identity
from noisyrl.records import SUMS, checksums, config_hash
from noisyrl.spec import InputError
from tests.analysis.html import well_formed
from tests.analysis.made_up_runs import write_evaluation, write_run, write_store

DATA = Path(__file__).parent / "data"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def here(tmp_path):
    """A copy of the store that a test may change."""
    shutil.copytree(DATA / "store", tmp_path / "store")
    return tmp_path


def make(folder: Path, **other) -> dict[str, str]:
    """The table made from folder/store, by ending."""
    where = {name: DATA / name for name in ("specs", "sweeps", "conf")} | {
        "runs": folder / "store",
        "out": folder / "out",
    }
    paths = tables.make("tiny", tables.Folders(**where | other))
    return {path.suffix: path.read_text() for path in paths}


def cells(text: str, *labels: str) -> list[str]:
    """The cells of one row of a Markdown table."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    (found,) = [line[2:] for line in lines if line[:2] == list(labels)]
    return found


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewrite(path: Path, before: str, after: str) -> None:
    """Another text in a file of an evaluation, as if it had been written so."""
    path.write_text(path.read_text().replace(before, after))
    (path.parent / SUMS).write_text(checksums(path.parent))


def test_committed_tables_are_those_of_the_committed_runs(tmp_path, capsys):
    assert verify.changes(DATA, tmp_path) == []
    assert {path.suffix for path in (DATA / "golden").iterdir()} == {".csv", ".html", ".md", ".tex"}
    shutil.copytree(DATA, tmp_path / "data")
    golden = tmp_path / "data/golden/tiny.md"
    golden.write_text(golden.read_text().replace("87.5", "87.6", 1))
    with pytest.raises(SystemExit) as error:
        verify.main(["--data", str(tmp_path / "data")])
    assert "golden/tiny.md" in str(error.value) and "87.6" in str(error.value) and "87.5" in str(error.value)


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="pdflatex is not installed")
def test_committed_tables_compile_and_fit_the_page(tmp_path):
    tables_of = [f"\\input{{{path}}}\\clearpage" for path in sorted((DATA / "golden").glob("*.tex"))]
    head = r"\documentclass{article}\usepackage[utf8]{inputenc}\usepackage{booktabs,graphicx}\begin{document}"
    (tmp_path / "all.tex").write_text("\n".join([head, *tables_of, r"\end{document}"]))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout and "Missing character" not in (tmp_path / "all.log").read_text(
        errors="replace"
    )


@pytest.mark.parametrize("path", sorted((DATA / "golden").glob("*.html")), ids=lambda path: path.stem)
def test_committed_pages_are_well_formed(path):
    well_formed(path.read_text())


def test_the_committed_runs_hold_what_goes_wrong():
    matches = plan.join(plan.expand(DATA / "sweeps/tiny.yaml", DATA / "conf"), load_runs(DATA / "store"))
    states = [match.attempts[0].status if match.attempts else "missing" for match in matches]
    assert {"missing", "infra_failed", "diverged", "running", "completed"} == set(states)
    by_row: dict[str, int] = {}
    for match in matches:
        by_row[match.planned.cell_id] = by_row.get(match.planned.cell_id, 0) + (match.done is not None)
    assert sorted(by_row.values()) == [0, 1, 1, 2]  # unequal seeds


def test_the_made_up_runs_are_what_their_script_writes(tmp_path):
    write_store(tmp_path / "store")
    for path in (DATA / "store").rglob("*.json*"):
        assert path.read_text() == (tmp_path / path.relative_to(DATA)).read_text()
    assert make(tmp_path) == make(tmp_path)


def test_every_planned_cell_is_there_without_any_run(tmp_path):
    (tmp_path / "store").mkdir()
    text = make(tmp_path)[".md"]
    assert text.count("· (0/2)") == 8
    assert "8 planned, 0 finished" in text and "8 not started" in text


def test_a_lost_run_leaves_a_gap(here):
    shutil.rmtree(here / "store/ppo-none-1")
    assert cells(make(here)[".md"], "ppo", "none") == ["100.0 ± 0.0 (1/2)", "50.0 ± 37.5 (1/2)"]


def test_full_tables_are_asked_for_and_refused_by_cell(here, capsys):
    where = [f"--{name}={DATA / name}" for name in ("specs", "sweeps", "conf")] + [f"--out={here / 'out'}"]
    with pytest.raises(SystemExit, match="planned and not there.*\n  tiny: ppo flip0.3, toy\n") as error:
        tables.main(["tiny", "--full", f"--runs={here / 'store'}", *where])
    assert str(error.value).count("tiny:") == 6 and "ppo none" not in str(error.value)  # 3 of 4 rows, two columns
    assert not (here / "out").exists()
    for planned in plan.expand(DATA / "sweeps/tiny.yaml", DATA / "conf"):
        write_run(here / "whole" / str(planned), planned, "completed", {0: (2, 1), 10: (5, 4)})
    tables.main(["tiny", "--full", f"--runs={here / 'whole'}", *where])
    assert len(list((here / "out").iterdir())) == 4


def test_two_finished_runs_of_one_plan_stop_the_table(here):
    shutil.copytree(here / "store/ppo-none-1", here / "store/again")
    with pytest.raises(InputError, match=r"store/again and .*store/ppo-none-1 are both finished runs of algo=ppo"):
        make(here)


def test_a_completed_run_is_judged_at_its_end_only(here):
    shutil.rmtree(here / "store/ppo-none-1/eval/000010000001")
    text = make(here)[".md"]
    assert cells(text, "ppo", "none")[0] == "100.0 ± 0.0 (1/2)"
    assert "finished, but no evaluation with limit=None: ppo-none-1." in text


def test_scores_made_differently_are_refused(here):
    path = here / "store/ppo-none-1/eval/000010000001/aggregate.jsonl"
    rewrite(path, '"scorer_version": "1"', '"scorer_version": "2"')
    with pytest.raises(InputError, match=r"column toy: scorer_version is 1 in .*ppo-none-0.* but 2 in .*ppo-none-1"):
        make(here)


def test_two_evaluations_that_fit_are_refused(here):
    shutil.copytree(here / "store/ppo-none-1/eval/000010000001", here / "store/ppo-none-1/eval/abc")
    with pytest.raises(InputError, match="several evaluations fit"):
        make(here)


def test_half_written_evaluations_are_not_seen(here):
    aside = here / "store/ppo-none-1/eval/.abc-xyz"
    shutil.copytree(here / "store/ppo-none-1/eval/000010000001", aside)
    assert make(here)[".md"] == (DATA / "golden/tiny.md").read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{", "cannot be read"), (b"", "cannot be read"), (b"\xff\xfe", "cannot be read"), (b"null", "is no manifest"),
     (b"{}", "is no manifest of a run .*config_hash"), (b"[]", "is no manifest")],
)  # fmt: skip
def test_a_damaged_manifest_is_named(here, content, message):
    (here / "store/ppo-none-1/manifest.json").write_bytes(content)
    with pytest.raises(InputError, match=f"ppo-none-1/manifest.json {message}"):
        make(here)


@pytest.mark.parametrize("name", ["samples.parquet", "aggregate.jsonl"])
@pytest.mark.parametrize("at", ["first", "middle", "last"])
def test_one_changed_byte_of_an_evaluation_is_named(here, name, at):
    path = here / f"store/ppo-none-1/eval/000010000001/{name}"
    content = bytearray(path.read_bytes())
    content[{"first": 0, "middle": len(content) // 2, "last": -1}[at]] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"ppo-none-1/eval/000010000001/{name} was changed: its sha256"):
        make(here)


def test_an_evaluation_without_checksums_is_named(here):
    (here / "store/ppo-none-1/eval/000010000001/SHA256SUMS").unlink()
    with pytest.raises(InputError, match="ppo-none-1/eval/000010000001/aggregate.jsonl cannot be checked"):
        make(here)


def test_any_changed_byte_of_a_config_is_named(here):
    """Every byte in turn; line ends and indentation may mean the same and then change nothing."""
    run = here / "store/ppo-flip0.3-0"
    (config,) = [each.manifest["config"] for each in load_runs(here / "store") if each.folder == run]
    path = run / "config.yaml"
    content, harmless = path.read_bytes(), 0
    for i in range(len(content)):
        path.write_bytes(content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :])
        try:
            load_runs(here / "store")
        except InputError as error:
            assert "ppo-flip0.3-0/config.yaml" in str(error)
        else:
            harmless += 1
            assert yaml.safe_load(path.read_text()) == config
    assert harmless < len(content) / 10


def test_a_changed_config_in_the_manifest_is_named(here):
    path = here / "store/ppo-flip0.3-0/manifest.json"
    written = path.read_text()
    path.write_text(written.replace('"rate": 0.3', '"rate": 0.2'))
    with pytest.raises(InputError, match="ppo-flip0.3-0/manifest.json was changed: config_hash, cell_id does not fit"):
        make(here)
    path.write_text(written.replace('"seed": 0', '"seed": 1', 1))
    with pytest.raises(InputError, match="ppo-flip0.3-0/manifest.json was changed: seed does not fit"):
        make(here)


def test_a_run_with_another_setting_is_left_out_and_named(here, capsys):
    # Its config, and so its cell_id, is another one.
    path = here / "store/ppo-none-1/manifest.json"
    config = {"algo": {"clip": 0.3}, "noise": {"rate": 0.0}, "trainer": {"steps": 10}, "seed": 1}
    digest = config_hash(config)
    edit(path, cell_id=digest[:12], config_hash=digest, config=config)
    (path.parent / "config.yaml").write_text(yaml.safe_dump(config))
    assert cells(make(here)[".md"], "ppo", "none")[0] == "100.0 ± 0.0 (1/2)"
    told = capsys.readouterr().err
    assert told[6:] == "left out for their config (stored -> planned): ppo-none-1\n  algo.clip: 0.3 -> 0.2\n"


def test_filter_and_banner(here, tmp_path):
    spec = yaml.safe_load((DATA / "specs/tiny.yaml").read_text())
    (tmp_path / "specs").mkdir()
    (tmp_path / "specs/tiny.yaml").write_text(yaml.safe_dump(spec | {"filter": {"tier": "smoke"}}))
    edit(here / "store/ppo-none-0/manifest.json", tier="smoke")
    text = make(here, specs=tmp_path / "specs")[".md"]
    assert "8 planned, 1 finished" in text and "Smoke test, not results" in text


def test_several_commits_are_warned_of(here):
    edit(here / "store/ppo-none-0/manifest.json", git={"sha": "fedcba9876543210", "dirty": True})
    text = make(here)[".md"]
    assert "0123456789, fedcba9876 with uncommitted changes" in text and "more than one commit" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [({"rowz": []}, "rowz"), ({"sweep": "none"}, "no sweep file"), ({"columns": [{"label": "x"}]}, "benchmark")],
)
def test_wrong_specs_are_explained(here, tmp_path, change, message):
    spec = yaml.safe_load((DATA / "specs/tiny.yaml").read_text())
    (tmp_path / "specs").mkdir()
    (tmp_path / "specs/tiny.yaml").write_text(yaml.safe_dump(spec | change))
    with pytest.raises(InputError, match=message):
        make(here, specs=tmp_path / "specs")


def test_command_line_explains_and_exits(capsys, here):
    with pytest.raises(SystemExit, match="no table nothing: .* There are: compared, tiny"):
        tables.main(["nothing", "--specs", str(DATA / "specs")])
    with pytest.raises(SystemExit, match="no run folder"):
        tables.main(["tiny", "--runs", "nowhere", *(f"--{n}={DATA / n}" for n in ("specs", "sweeps", "conf"))])


def test_latex_and_html_are_escaped():
    text = writers.Text("t", "50% of a_b & <c>", ("algo",), ())
    cell = {"algo": "a_b<c>", "column": "x%", "kind": "score", "mean": float("nan")}
    frame = pd.DataFrame([cell | {"n": 0, "planned": 1, "missing": 1, "diverged": 0}])
    latex, html = writers.latex(text, frame), writers.html(text, frame)
    assert r"50\% of a\_b \& $<$c$>$" in latex and r"a\_b" in latex and r"x\%" in latex
    assert "50% of a_b &amp; &lt;c&gt;" in html and "a_b&lt;c&gt;" in html and "http" not in html


def test_markdown_is_escaped():
    text = writers.Text("t", "a | b", ("algo",), ("<x> [y](z)",))
    cell = {"algo": "_a_|b_c\n*", "column": "x|`y`", "kind": "score", "mean": float("nan")}
    written = writers.markdown(text, pd.DataFrame([cell | {"n": 0, "planned": 1, "missing": 1, "diverged": 0}]))
    assert r"**a \| b**" in written and r"- \<x> \[y\](z)" in written
    assert r"| \_a\_\|b_c \* |" in written and r" x\|\`y\` |" in written


def test_published_values_keep_their_digits():
    cell = {"algo": "grpo", "column": "reported", "kind": "reported", "mark": "primary", "n": 1, "mean": 0.2875}
    assert writers.plain(next(pd.DataFrame([cell]).itertuples())) == "28.75"


def test_plan_understands_what_hydra_sweeps(tmp_path):
    (tmp_path / "s.yaml").write_text("hydra: {sweeper: {params: {algo: 'ppo,grpo', seed: 'range(0,3)'}}}")
    planned = plan.expand(tmp_path / "s.yaml", DATA / "conf")
    assert [tuple(p.values.values()) for p in planned] == [(a, s) for a in ("ppo", "grpo") for s in "012"]
    assert len({p.cell_id for p in planned}) == 2 and {p.seed for p in planned} == {0, 1, 2}
    (tmp_path / "s.yaml").write_text("seed: 3\nhydra: {sweeper: {params: {algo: ppo}}}")
    with pytest.raises(InputError, match="put everything it sets under hydra.sweeper.params"):
        plan.expand(tmp_path / "s.yaml", DATA / "conf")
    (tmp_path / "s.yaml").write_text("hydra: {sweeper: {params: {algo: typo}}}")
    with pytest.raises(InputError, match="typo"):
        plan.expand(tmp_path / "s.yaml", DATA / "conf")


SPECS = ROOT / "analysis/specs"


@pytest.mark.parametrize("path", sorted(SPECS.rglob("*.yaml")), ids=lambda path: str(path.relative_to(SPECS)))
def test_shipped_specs_fit_their_sweeps(path):
    tier = None if path.parent == SPECS else path.parent.name
    table = find_spec(SPECS, path.stem, tier)
    planned = plan.expand(ROOT / f"sweeps/{table.sweep}.yaml", ROOT / "conf", tier)
    for column in table.columns:
        assert any(building._fits(plan.Match(each, ()), column) for each in planned), column
        assert lm_config(column.benchmark)["metadata"].get("source"), f"{column.benchmark} is no benchmark"
    assert all(row in planned[0].values for row in table.rows)


def test_a_tier_with_specs_of_its_own_has_all_eight():
    assert {path.stem for path in (SPECS / "full").glob("*.yaml")} == TABLES
    assert {path.stem for path in SPECS.glob("*.yaml")} >= TABLES
    assert find_spec(SPECS, "main", "full").protocol == "avgk" != find_spec(SPECS, "main", "smoke").protocol


TABLES = {
    "main_dialogue", "main", "loss_components", "risk_weight", "quantile_density", "model_size", "noise_stress",
    "controls",
}  # fmt: skip


def test_start_row_counts_models_not_runs(here):
    runs = load_runs(here / "store")
    assert len(runs) == 7
    other = rows.Subject(**identity(runs[0].manifest), step=0, checkpoint_hash="")
    shutil.rmtree(runs[0].folder / "eval" / ("0" * 12))
    write_evaluation(runs[0].folder / "eval", other, (6, 5))
    renamed = runs[0].folder / "eval" / ("1" * 12)
    (runs[0].folder / "eval" / ("0" * 12)).rename(renamed)
    rewrite(renamed / store.AGGREGATE, '"eval_id": "000000000000"', '"eval_id": "111111111111"')
    # Two models, 2 and 6 right of 8.
    assert [cell.split()[0] for cell in cells(make(here)[".md"], "start", "")] == ["50.0", "37.5"]
