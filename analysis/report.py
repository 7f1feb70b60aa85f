"""Everything about a store on one page that opens from disk: `python -m analysis.report --runs runs`.

Claims, tables, figures, sweeps, what noise did to the rewards, and where the runs come from. Nothing is loaded from
elsewhere: styles, script and pictures are in the file.
"""

from __future__ import annotations

import argparse
import base64
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import status, writers
from analysis.cells import results
from analysis.claims import Judged, frame, judge, read_claims
from analysis.collect import COMPLETED, DIVERGED, UNFINISHED, Run, dotted
from analysis.figures import kept
from analysis.figures.__main__ import FIGURES, make
from analysis.figures.courses import STEPS
from analysis.inputs import digest
from analysis.plan import Planned, expand, join
from analysis.table_spec import Spec, find_spec
from analysis.tables import Folders, Table, prepare
from analysis.writers import escaped
from noisyrl.ledger import ERRORS
from noisyrl.ledger_page import account, page
from noisyrl.records import write_atomic
from noisyrl.spec import InputError

_LEDGERS = 60  # pages, at most: each takes about a third of a second
_STYLE = (
    "body{max-width:80em;margin:1em auto;padding:0 1em;line-height:1.45}h2{margin-top:2em;border-bottom:1px solid #bbb}"
    ".wide{overflow-x:auto}img{max-width:100%;height:auto}img.whole{max-width:none}figure{margin:1em 0}"
    "pre{overflow-x:auto;font-size:.8em;background:#f7f7f7;padding:.6em}table{font-size:.9em}td,th{white-space:nowrap}"
    ".text td,.text th{text-align:left;white-space:normal;vertical-align:top}.text td:last-child{min-width:6em}"
    "nav li{margin:.2em 0}summary{cursor:pointer}"
    "@media print{.wide{overflow:visible}}"
)
_ZOOM = """<script>
document.querySelectorAll("img").forEach(image =>
  image.addEventListener("click", () => image.classList.toggle("whole")));
</script>"""


@dataclass(frozen=True)
class Store:
    """The runs, and what the sweeps plan of them; every plan is composed once."""

    at: Folders
    tier: str | None
    runs: Sequence[Run]
    plans: Mapping[str, Sequence[Planned]]
    specs: Mapping[str, Spec]
    drawn: Mapping[str, tuple[str, Sequence[bytes]]]
    """Figures that need not be drawn: caption, and its pages as PNG."""


def read(at: Folders, tier: str | None = None, figures: Path | None = None) -> Store:
    """figures: a folder of figures, used where they were made of these runs by this code.

    InputError: no runs, or a spec, sweep or manifest is wrong.
    """
    drawn = kept.find(figures, digest(at.runs, options=(STEPS,)), ".png") if figures else {}
    runs = at.store
    plans = {path.stem: expand(path, at.conf, tier) for path in sorted(at.sweeps.glob("*.yaml"))}
    specs = {path.stem: find_spec(at.specs, path.stem, tier) for path in sorted(at.specs.glob("*.yaml"))}
    return Store(at, tier, runs, plans, dict(sorted(specs.items(), key=_place)), drawn)


def _place(named: tuple[str, Spec]) -> tuple[int, str]:
    """T1 to T8, as their captions are numbered, before all others."""
    number = re.match(r"T(\d+),", named[1].caption)
    return (int(number[1]) if number else 99, named[0])


def report(store: Store) -> str:
    """The page."""
    sections = {
        "Claims": _claims(store),
        "Tables": _tables(store),
        "Figures": _figures(store),
        "Sweeps": _sweeps(store),
        "Rewards and noise": _rewards(store),
        "Where the runs come from": _provenance(store),
    }
    parts = {title: "\n".join(lines) for title, lines in sections.items()}
    contents = "\n".join(f'<li><a href="#{_anchor(title)}">{escaped(title)}</a>{_inner(part)}</li>'
                         for title, part in parts.items())  # fmt: skip
    body = "\n".join(f'<h2 id="{_anchor(title)}">{escaped(title)}</h2>\n{part}' for title, part in parts.items())
    top = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>noisyrl: {escaped(store.at.runs.name)}</title><style>{writers.STYLE}{_STYLE}</style>"
    )
    return (
        f'<!doctype html>\n<html lang="en"><head>{top}</head><body>\n<h1>Training under noisy rewards</h1>\n'
        f"{_summary(store)}\n<nav><ul>\n{contents}\n</ul></nav>\n{body}\n{writers.SORT}{_ZOOM}\n</body></html>\n"
    )


def _inner(part: str) -> str:
    """Links to the headings of a section, in one line."""
    found = re.findall(r'<h3 id="([^"]*)">(.*?)</h3>', part)
    return ": " + ", ".join(f'<a href="#{anchor}">{title}</a>' for anchor, title in found) if found else ""


def _summary(store: Store) -> str:
    counts = Counter(run.status if run.status in (COMPLETED, DIVERGED) else
                     "under way" if run.status in UNFINISHED else "failed" for run in store.runs)  # fmt: skip
    said = ", ".join(f"{count} {kind}" for kind, count in counts.most_common()) or "none"
    days = sorted(str(run.manifest["ended"])[:10] for run in store.runs if run.manifest.get("ended"))
    period = " to ".join(dict.fromkeys([days[0], days[-1]])) if days else "never"
    tiers = sorted({str(run.manifest.get("tier")) for run in store.runs})
    lines = [f"Runs: {len(store.runs)} ({said}). Ended: {period}. Tier: {', '.join(tiers) or 'none'}."]
    if "smoke" in tiers or store.tier == "smoke":
        lines.append("Smoke runs are short and asked few questions: they show that everything works, and nothing else.")
    lines.append("A click on a heading of a table sorts it; a pointer on a cell explains it; a click on a figure "
                 "shows it in full size.")  # fmt: skip
    return "\n".join(f"<p>{escaped(line)}</p>" for line in lines)


def _claims(store: Store) -> Iterator[str]:
    judged: list[Judged] = []
    grids: dict[str, Any] = {}
    for claim in read_claims(store.tier):
        table = store.specs.get(claim.table)
        if table is None:
            continue
        if claim.table not in grids:
            runs = [run for run in store.runs if all(dotted(run.manifest, k) == v for k, v in table.filter.items())]
            grids[claim.table] = results(table, join(store.plans[table.sweep], runs))
        judged.append(judge(claim, table, grids[claim.table]))
    if not judged:
        yield _said("No claim is about a table that there is.")
        return
    counts = Counter(each.verdict.split(";")[0] for each in judged)
    said = ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())
    yield _said(f"{len(judged)} claims of the literature against these runs: {said}. Differences are in points, with "
                "95 % intervals, paired by seed; Holm over the comparisons of a claim.")  # fmt: skip
    yield _table(frame(judged))


def _tables(store: Store) -> Iterator[str]:
    yield from map(_said, writers.NOTES)
    empty = []
    for name, spec in store.specs.items():
        table = prepare(name, spec, store.plans[spec.sweep], store.runs)
        if not (table.frame[table.frame["kind"] == "score"]["n"] > 0).any():
            empty.append(f"{name} ({len(store.plans[spec.sweep])} runs, make sweep-{spec.sweep})")
            continue
        yield from _one_table(name, table)
    if empty:
        yield _said(f"Without any result: {', '.join(empty)}.")


def _one_table(name: str, table: Table) -> Iterator[str]:
    yield f'<h3 id="table-{escaped(name)}">{escaped(name)}</h3>'
    yield f'<div class="wide">{writers.html_table(table.text, table.frame)}</div>'
    yield from map(_said, table.text.footer)
    if table.left_out:
        names = sorted({name for names in table.left_out.values() for name in names})
        changes = "\n".join(f"{', '.join(names)}\n{change}" for change, names in table.left_out.items())
        yield _folded(f"{len(names)} runs left out for their config (stored -> planned)", changes)


def _figures(store: Store) -> Iterator[str]:
    skipped = []
    drawn = {**store.drawn, **_draw([name for name in FIGURES if name not in store.drawn], store.runs)}
    for name in FIGURES:
        caption, pictures = drawn[name]
        if not pictures:
            skipped.append(f"{name}: {caption}")
            continue
        yield f'<h3 id="figure-{name}">{name.replace("_", " ").capitalize()}</h3>'
        for picture in pictures:
            data = base64.b64encode(picture).decode()
            yield f'<figure><img alt="{escaped(name)}" src="data:image/png;base64,{data}"></figure>'
        yield _said(caption)
    if skipped:
        yield _said("Not drawn: " + "; ".join(skipped) + ".")
    yield _said("python -m analysis.figures writes each as PDF and PNG, with the numbers behind it as CSV.")


def _draw(names: Sequence[str], runs: Sequence[Run]) -> dict[str, tuple[str, list[bytes]]]:
    """{name: (caption, pages as PNG)}"""
    if not names:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        return {
            name: (caption, [file.read_bytes() for file in files if file.suffix == ".png"])
            for name, caption, files in make(names, runs, Path(folder), formats=["png"])
        }


def _sweeps(store: Store) -> Iterator[str]:
    lines, failures = [], []
    for name, plan in store.plans.items():
        line, failed = status.report(name, join(plan, store.runs), store.runs)
        lines.append(line)
        failures += failed
    yield _table(pd.DataFrame(lines))
    if failures:
        yield _folded(f"{len(failures)} failed", "\n".join(failures))


def _rewards(store: Store) -> Iterator[str]:
    """One line per run, from manifests; below it the pages of the runs that have a ledger."""
    lines = [_reward_line(run) for run in store.runs if "noise" in run.manifest]
    if lines:
        yield _said(
            "What noise was declared and what it did over a whole run: FPR = share of wrong responses whose reward was "
            "raised, FNR = share of right ones whose reward was lowered, J = signal left."
        )
        yield _table(pd.DataFrame(lines))
    kept = [run for run in store.runs if (run.folder / "ledger.jsonl").is_file()]
    if not kept:
        yield _said("No run has a ledger of its rewards.")
        return
    silent = 0
    for run in kept[:_LEDGERS]:
        try:
            found = account(run.folder)
        except InputError as error:
            yield _said(str(error))
            continue
        silent += found.alarm is None
        yield _folded(run.folder.name + ("" if found.alarm is None else f": ALARM, {found.alarm}"), page(found))
    yield _said(f"Alarm for reward hacking: {min(len(kept), _LEDGERS) - silent} of {min(len(kept), _LEDGERS)} runs.")
    if len(kept) > _LEDGERS:
        yield _said(f"{len(kept) - _LEDGERS} further runs have a ledger: python src/ledger.py run=NAME.")


def _reward_line(run: Run) -> dict[str, str]:
    noise = run.manifest["noise"]
    declared = noise.get("declared") or {}
    line = {"run": run.folder.name, "status": run.status}
    for short, name in zip(("FPR", "FNR"), ERRORS, strict=True):
        line[f"declared {short}"] = _number(declared.get(name))
        line[f"realised {short}"] = _number(noise.get(f"realised_{name.replace(' ', '_')}_rate"))
    line["J"] = _number(noise.get("realised_j"))
    line["changed"] = _number(noise.get("corrupted_frac"))
    for name in ("clean", "observed"):
        ends = dotted(run.manifest, f"rewards.{name}") or {}
        said = [_number(ends.get(end)) for end in ("start", "end")]
        line[f"{name} reward"] = " → ".join(said) if all(said) else ""
    return line


def _provenance(store: Store) -> Iterator[str]:
    """Runs by commit and machine, versions, and the commands that started them."""
    lines: dict[tuple[str, ...], list[Run]] = {}
    for run in store.runs:
        about = run.manifest.get("environment", {})
        sha = str(dotted(run.manifest, "git.sha"))[:10]
        changed = " with changes" if dotted(run.manifest, "git.dirty") else ""
        machine = f"{about.get('device')}, {about.get('threads')} threads, {about.get('world_size')} processes"
        key = (f"{sha}{changed}", machine, str(about.get("platform")), f"Python {about.get('python')}")
        lines.setdefault(key, []).append(run)
    rows = []
    for (commit, machine, system, python), runs in lines.items():
        days = sorted(str(run.manifest.get("started", ""))[:16] for run in runs)
        hours = sum(float(run.manifest.get("seconds") or 0) for run in runs) / 3600
        rows.append(
            {"commit": commit, "runs": len(runs), "hours": f"{hours:.1f}", "first": days[0], "last": days[-1],
             "machine": machine, "system": system, "python": python}
        )  # fmt: skip
    if len({row["commit"] for row in rows}) > 1:
        yield _said("Warning: these runs were made by more than one state of the code.")
    yield _table(pd.DataFrame(rows))
    packages = Counter("\n".join(f"{name} {version}" for name, version in sorted(found.items()))
                       for run in store.runs if (found := dotted(run.manifest, "environment.packages")))  # fmt: skip
    for versions, count in packages.most_common():
        yield _folded(f"Versions of {count} runs", versions)
    commands = Counter(" ".join(map(str, run.manifest.get("command", ["unknown"]))) for run in store.runs)
    listed = "\n".join(f"{count:4} x {command}" for command, count in commands.most_common())
    yield _folded(f"{len(commands)} commands", listed)


def _said(words: str) -> str:
    return f"<p>{escaped(words)}</p>"


def _folded(title: str, text: str) -> str:
    return f"<details><summary>{escaped(title)}</summary><pre>{escaped(text)}</pre></details>"


def _table(rows: pd.DataFrame) -> str:
    """A table of words."""
    text = rows.to_html(index=False, border=0, classes="text", escape=True)
    return f'<div class="wide">{text}</div>'


def _number(x: Any) -> str:
    return "" if x is None or np.isnan(x) else f"{x:.3f}"


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="analysis.report", description=__doc__.split("\n")[0])
    parser.add_argument("--tier", help="option of conf/tier that the sweeps are read with; default: testbed")
    for folder in fields(Folders):
        default = Path("report") if folder.name == "out" else folder.default
        parser.add_argument(f"--{folder.name}", type=Path, default=default, help=f"default: {default}/")
    parser.add_argument("--figures", type=Path, default=Path("figures"),
                        help="taken from here where they are as they would be drawn; default: figures/")  # fmt: skip
    options = vars(parser.parse_args(arguments))
    tier, figures = options.pop("tier"), options.pop("figures")
    at = Folders(**options)
    try:
        store = read(at, tier, figures)
        if store.drawn:
            print(f"{len(store.drawn)} of {len(FIGURES)} figures as they are in {figures}/, made of the same runs")
        text = report(store)
    except InputError as error:
        sys.exit(f"error: {error}")
    file = at.out / f"report{f'-{tier}' if tier else ''}.html"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, text)
    print(file)


if __name__ == "__main__":
    main()
