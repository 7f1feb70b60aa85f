"""A long frame of cells as Markdown, LaTeX, HTML and CSV."""

from __future__ import annotations

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
_STYLE = (
    "body{font:16px system-ui,sans-serif;margin:2em;color:#222}table{border-collapse:collapse}"
    "caption{text-align:left;margin-bottom:.6em;max-width:50em}th,td{padding:.3em .9em;text-align:right}"
    "td:nth-child(-n+LABELS),th:nth-child(-n+LABELS){text-align:left}thead th{border-bottom:2px solid}"
    "tbody tr:nth-child(even){background:#f4f4f4}p{max-width:50em;font-size:.85em;color:#555}"
)


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
    """One cell: `82.3 ± 2.1 (1/2)†`, or the gap with what was planned."""
    counts = f" ({cell.n}/{cell.planned})" if cell.missing else ""
    if not cell.n:
        return GAP + counts
    half = (cell.high - cell.low) / 2
    return f"{100 * cell.mean:.1f} ± {100 * half:.1f}{counts}{'†' if cell.diverged else ''}"


def markdown(text: Text, frame: pd.DataFrame) -> str:
    """A heading-free Markdown fragment."""
    table = wide(text, frame)
    align = ["left"] * len(text.rows) + ["right"] * (table.shape[1] - len(text.rows))
    body = table.to_markdown(index=False, disable_numparse=True, colalign=align)
    notes = "\n".join(f"- {note}" for note in text.notes)
    return f"**{text.caption}**\n\n{body}\n\n{notes}\n"


def latex(text: Text, frame: pd.DataFrame) -> str:
    """A floating table with booktabs rules; needs \\usepackage{{booktabs}} and UTF-8."""
    table = wide(text, frame)
    columns = "l" * len(text.rows) + "r" * (table.shape[1] - len(text.rows))
    around = {"caption": _tex(text.caption), "label": f"tab:{text.name}", "position": "ht"}
    body = table.to_latex(index=False, escape=True, column_format=columns, **around)
    notes = "\n".join(rf"\par {_tex(note)}" for note in text.notes)
    end = "\\end{table}"
    return body.replace(end, f"\\footnotesize\n{notes}\n{end}")


def html(text: Text, frame: pd.DataFrame) -> str:
    """A page of its own, nothing loaded from elsewhere."""
    table = wide(text, frame).to_html(index=False, border=0)
    caption = _html(text.caption)
    table = table.replace("<thead>", f"<caption>{caption}</caption>\n  <thead>", 1)
    notes = "\n".join(f"<p>{_html(note)}</p>" for note in text.notes)
    style = _STYLE.replace("LABELS", str(len(text.rows)))
    head = f'<meta charset="utf-8"><title>{_html(text.name)}</title><style>{style}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{table}\n{notes}\n</body></html>\n'


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


def _html(words: str) -> str:
    return words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


WRITERS: dict[str, Callable[[Text, pd.DataFrame], str]] = {"md": markdown, "tex": latex, "html": html, "csv": csv}
