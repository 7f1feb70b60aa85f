"""How figures look, and how they are written: PDF and PNG of every page, one CSV for all of them."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito 2008 without the yellow, which paper swallows; lines differ in dashes and markers too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000", "#56B4E9", "#777777")
_DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (3, 1)), (0, (1, 1)))
_MARKERS = "osD^vPX"
PAGES = 6  # of a figure, at most; the CSV has everything
LOOK: dict[Any, Any] = {
    "font.size": 9, "axes.titlesize": 9, "axes.grid": True, "grid.alpha": 0.25, "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False, "figure.titlesize": 12, "figure.titleweight": "bold",
    "pdf.fonttype": 42, "savefig.dpi": 110, "legend.frameon": False,
}  # fmt: skip


@dataclass(frozen=True)
class Drawn:
    """One figure: its pages, the numbers behind it, and what a reader must know."""

    pages: Sequence[Figure]
    data: pd.DataFrame
    caption: str


def styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour, dashes and marker of each name. Given all names of a store, a method looks alike in all its figures."""
    return {
        name: {
            "color": _COLOURS[i % len(_COLOURS)],
            "ls": _DASHES[(i + i // len(_COLOURS)) % len(_DASHES)],
            "marker": _MARKERS[i % len(_MARKERS)],
        }
        for i, name in enumerate(sorted(set(names)))
    }


def sheet(title: str, rows: int, columns: int, **options: Any) -> tuple[Figure, Any]:
    """A page of rows x columns panels with a title; axes are always a matrix."""
    size = options.pop("size", (3.3, 2.5))
    width = max(5.0, size[0] * columns + 0.4)
    figure, axes = plt.subplots(
        rows, columns, figsize=(width, size[1] * rows + 1.2), layout="constrained", squeeze=False, **options
    )
    figure.suptitle(textwrap.fill(title, int(8.5 * width)))
    return figure, axes


def titled(panel: Axes, title: str) -> None:
    """A title that keeps to the width of a panel."""
    panel.set_title(textwrap.fill(title, 44, break_long_words=False))


def legend(figure: Figure, axes: Iterable[Axes]) -> None:
    """One legend below all panels."""
    handles: dict[str, Any] = {}
    for panel in axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        longest = max(map(len, handles))
        columns = max(1, int(figure.get_figwidth() * 14 / (longest + 8)))
        figure.legend(
            handles.values(), handles, loc="outside lower center", ncols=min(columns, len(handles)), handlelength=3.2
        )


def chunks(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """Parts of at most `size`, in order."""
    return [items[first : first + size] for first in range(0, len(items), size)]


def left_out(pages: int) -> str:
    """What a caption says where a figure would have had more pages."""
    if pages <= PAGES:
        return ""
    return f" {pages - PAGES} further pages are not drawn: choose runs with --sweep; the CSV has them all."


def _lay_out(page: Figure) -> None:
    """Once: otherwise every format would draw the page twice, the first time to measure it."""
    engine = page.get_layout_engine()
    if engine is not None:
        engine.execute(page)
        page.set_layout_engine(None)


_METADATA: dict[str, dict[str, Any]] = {"pdf": {"CreationDate": None}, "png": {"Software": None}}
FORMATS = tuple(_METADATA)


def write(name: str, drawn: Drawn, out: Path, formats: Sequence[str] = FORMATS) -> list[Path]:
    """out/NAME.pdf, .png and .csv, with further pages as NAME-2.pdf ...; older pages of the name are deleted."""
    out.mkdir(parents=True, exist_ok=True)
    for old in [*out.glob(f"{name}.*"), *out.glob(f"{name}-[0-9]*.*")]:
        old.unlink()
    files = []
    for number, page in enumerate(drawn.pages, start=1):
        stem = name if number == 1 else f"{name}-{number}"
        _lay_out(page)
        for ending in formats:
            file = out / f"{stem}.{ending}"
            aside = file.with_name(f".writing-{file.name}")
            page.savefig(aside, format=ending, metadata=_METADATA[ending])
            os.replace(aside, file)
            files.append(file)
        plt.close(page)
    table = out / f"{name}.csv"
    drawn.data.to_csv(table, index=False, float_format="%.6g", lineterminator="\n")
    return [*files, table]
