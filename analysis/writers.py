"""A long frame of cells as Markdown, LaTeX, HTML and CSV."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

GAP = "·"
NOTES = (
    "Cells: mean in percent ± half of a 95 % interval (bootstrap over runs and questions; over questions only where "
    "there is one run; ± 0.0 at 0 or 100 only says that all answers were alike). "
    f"{GAP} = no result. (1/2) = one of two planned runs has a result. "
    "† = includes diverged runs, scored at their last evaluation.",
)
STYLE = (
    "body{font:16px system-ui,sans-serif;margin:2em;color:#222}table{border-collapse:collapse}"
    "caption{text-align:left;margin-bottom:.6em;max-width:50em}th,td{padding:.3em .9em;text-align:right}"
    ".label{text-align:left}thead th{border-bottom:2px solid;cursor:pointer}"
    "tbody tr:nth-child(even){background:#f4f4f4}p{max-width:50em;font-size:.85em;color:#555}"
)
# Sorts a table's rows by a column: numbers by value, labels by name, gaps last; another click turns the order round.
SORT = """<script>
document.querySelectorAll("thead th").forEach(head => head.addEventListener("click", () => {
  const i = head.cellIndex, body = head.closest("table").tBodies[0];
  const turn = head.dataset.turn = head.dataset.turn === "1" ? "-1" : "1";
  const key = row => row.cells[i].dataset.v ?? row.cells[i].textContent;
  const order = (a, b) => isNaN(a) || isNaN(b) ? String(a).localeCompare(b) : a - b;
  const gaps = (a, b) => (a === "") - (b === "");
  [...body.rows].sort((a, b) => gaps(key(a), key(b)) || turn * order(key(a), key(b))).forEach(row => body.append(row));
}));
</script>"""


@dataclass(frozen=True)
class Text:
    """What stands around the numbers; `rows` are the frame's columns that label a row."""

    name: str
    caption: str
    rows: Sequence[str]
    footer: tuple[str, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        return self.footer + NOTES


def wide(text: Text, frame: pd.DataFrame) -> pd.DataFrame:
    """The table as it is read, all cells text, rows and columns in the order of the frame."""
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for labels, cell in zip(frame[list(text.rows)].itertuples(index=False, name=None), frame.itertuples(), strict=True):
        lines.setdefault(labels, dict(zip(text.rows, labels, strict=True)))[cell.column] = show(cell)
    # A column that the sweep does not plan for a row stays empty.
    columns = [*text.rows, *frame["column"].drop_duplicates()]
    return pd.DataFrame(lines.values(), columns=columns).fillna("")


def show(cell: Any) -> str:
    """One cell: `82.3 ± 2.1 (1/2)†`, or the gap with what was planned; bold and italics between private signs."""
    return _SHOWN[cell.kind](cell)


def plain(cell: Any) -> str:
    """One cell without bold and italics."""
    return _styled(show(cell), ("", ""), ("", ""))


def _score(cell: Any) -> str:
    if not cell.n:
        return GAP + _counts(cell)
    value = f"{100 * cell.mean:.1f} ± {_half(cell)}"
    if getattr(cell, "bold", False) is True:
        value = _BOLD[0] + value + _BOLD[1]
    return f"{value}{_counts(cell)}{'†' if cell.diverged else ''}"


def _difference(cell: Any) -> str:
    if not cell.n:
        return GAP + _counts(cell)
    half = "" if math.isnan(cell.low) else f" ± {_half(cell)}"
    return f"{100 * cell.mean:+.1f}{half}{cell.mark}{_counts(cell)}"


def _collapse(cell: Any) -> str:
    return f"{round(cell.mean * cell.n)}/{cell.n} (≤ {100 * cell.high:.0f} %)" if cell.n else GAP


def _reported(cell: Any) -> str:
    if not cell.n:
        return ""
    # As it was printed: 28.75 stays 28.75.
    return f"{_ITALIC[0]}{100 * cell.mean:.6g}{'' if cell.mark == 'primary' else '°'}{_ITALIC[1]}"


def _half(cell: Any) -> str:
    return f"{100 * (cell.high - cell.low) / 2:.1f}"


def _counts(cell: Any) -> str:
    return f" ({cell.n}/{cell.planned})" if cell.missing else ""


_SHOWN: dict[str, Callable[[Any], str]] = {
    "score": _score, "difference": _difference, "collapse": _collapse, "reported": _reported
}  # fmt: skip
# Signs that no text contains; each writer puts its own words for bold and italics in their place.
_BOLD, _ITALIC = ("\ue000", "\ue001"), ("\ue002", "\ue003")


def _styled(written: str, bold: tuple[str, str], italic: tuple[str, str]) -> str:
    for signs, words in ((_BOLD, bold), (_ITALIC, italic)):
        for sign, word in zip(signs, words, strict=True):
            written = written.replace(sign, word)
    return written


def markdown(text: Text, frame: pd.DataFrame) -> str:
    """A heading-free Markdown fragment."""
    table = wide(text, frame).map(lambda cell: _styled(_md(cell), ("**", "**"), ("*", "*"))).rename(columns=_md)
    align = ["left"] * len(text.rows) + ["right"] * (table.shape[1] - len(text.rows))
    body = table.to_markdown(index=False, disable_numparse=True, colalign=align)
    notes = "\n".join("- " + _md(note) for note in text.notes)
    return f"**{_md(text.caption)}**\n\n{body}\n\n{notes}\n"


def latex(text: Text, frame: pd.DataFrame) -> str:
    """A floating table with booktabs rules, shrunk to the line where wider; needs booktabs, graphicx and UTF-8."""
    table = wide(text, frame)
    columns = "l" * len(text.rows) + "r" * (table.shape[1] - len(text.rows))
    around = {"caption": _tex(text.caption), "label": f"tab:{text.name}", "position": "ht"}
    body = table.to_latex(index=False, escape=True, column_format=columns, **around)
    notes = "\n".join(rf"\par {_tex(note)}" for note in text.notes)
    end = "\\end{table}"
    written = body.replace(end, f"\\footnotesize\n{notes}\n{end}")
    written = _styled(written, (r"\textbf{", "}"), (r"\textit{", "}"))
    # Not in LaTeX's own tables, or other signs in its oldest font.
    for sign, word in {"Δ": r"$\Delta$", "≤": r"$\leq$", "Φ": r"$\Phi$", "<": "$<$", ">": "$>$"}.items():
        written = written.replace(sign, word)
    wide_or_not = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%" + "\n"
    return written.replace(r"\begin{tabular}", wide_or_not + r"\begin{tabular}").replace(
        r"\end{tabular}", "\\end{tabular}}"
    )


def html(text: Text, frame: pd.DataFrame) -> str:
    """A page of its own, nothing loaded from elsewhere: a click on a heading sorts, a pointer on a cell explains it."""
    notes = "\n".join(f"<p>{escaped(note)}</p>" for note in text.notes)
    top = f'<meta charset="utf-8"><title>{escaped(text.name)}</title><style>{STYLE}</style>'
    body = f"{html_table(text, frame)}\n{notes}\n{SORT}"
    return f'<!doctype html>\n<html lang="en"><head>{top}</head><body>\n{body}\n</body></html>\n'


def html_table(text: Text, frame: pd.DataFrame) -> str:
    """The table with its caption, for a page that has `STYLE` and `SORT`."""
    columns = [*text.rows, *frame["column"].drop_duplicates()]
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for labels, cell in zip(frame[list(text.rows)].itertuples(index=False, name=None), frame.itertuples(), strict=True):
        named = {row: f'<td class="label">{escaped(x)}</td>' for row, x in zip(text.rows, labels, strict=True)}
        shown = _styled(escaped(show(cell)), ("<b>", "</b>"), ("<i>", "</i>"))
        value = "" if math.isnan(cell.mean) else f"{cell.mean:.6f}"
        explained = f'<td data-v="{value}" title="{escaped(_explained(cell))}">{shown}</td>'
        lines.setdefault(labels, named)[cell.column] = explained
    heads = [("label" if column in text.rows else "number", escaped(column)) for column in columns]
    head = "".join(f'<th class="{kind}">{column}</th>' for kind, column in heads)
    body = "\n".join(
        "<tr>" + "".join(line.get(column, "<td></td>") for column in columns) + "</tr>" for line in lines.values()
    )
    caption = f"<caption>{escaped(text.caption)}</caption>"
    return f"<table>\n{caption}\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def _explained(cell: Any) -> str:
    """What a pointer on a cell shows."""
    if cell.kind == "reported":
        return f"published, {cell.mark}" if cell.n else ""
    if not cell.n:
        return f"{cell.n} of {cell.planned} planned runs" if cell.planned else ""
    said = f"n = {cell.n}, 95 % interval {100 * cell.low:.1f} to {100 * cell.high:.1f}"
    if cell.kind == "difference" and not math.isnan(cell.p):
        said += f", p = {cell.p:.3g}, after Holm {cell.p_holm:.3g}"
    ids = getattr(cell, "run_ids", None)  # NaN where a cell has none
    return f"{said}\n{ids}" if isinstance(ids, str) else said


def csv(text: Text, frame: pd.DataFrame) -> str:
    """The long frame itself, for machines: one line per cell, fractions, empty where there is no result."""
    named = frame.round(6)
    named.insert(0, "table", text.name)
    return named.to_csv(index=False, lineterminator="\n")


def _tex(words: str) -> str:
    # Only what pandas escapes in cells; the signs used here are in LaTeX's own UTF-8 tables.
    escapes = {"\\": r"\textbackslash ", "~": r"\textasciitilde ", "^": r"\textasciicircum "}
    escapes |= {sign: f"\\{sign}" for sign in "&%$#_{}"}
    return "".join(escapes.get(sign, sign) for sign in words)


def _md(words: str) -> str:
    """Text for Markdown, in a table too; an underscore inside a word is none of its signs."""
    return re.sub(r"([\\|*`\[\]<]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", " ".join(words.split("\n")))


def escaped(words: str) -> str:
    """Text for HTML, attributes included."""
    return words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")


WRITERS: dict[str, Callable[[Text, pd.DataFrame], str]] = {"md": markdown, "tex": latex, "html": html, "csv": csv}
