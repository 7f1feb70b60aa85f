"""Results on disk: one JSON file per part, with machine, versions, date and command, and a page made of all of them."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bench.frame import Part, Ratio, Samples
from noisyrl.provenance import describe_git

_PACKAGES = ("torch", "transformers", "tokenizers", "accelerate", "numpy", "numba", "trl")


def write(part: Part, out: Path, *, quick: bool) -> None:
    """Writes out/NAME.json and renews out/README.md."""
    out.mkdir(parents=True, exist_ok=True)
    record = {"origin": origin(part.name, quick), **part.plain()}
    (out / f"{part.name}.json").write_text(json.dumps(_rounded(record), indent=1) + "\n")
    (out / "README.md").write_text(render(out) + "\n")


def read(out: Path) -> dict[str, Part]:
    """The parts whose results lie in a folder."""
    return {path.stem: Part.read(json.loads(path.read_text())) for path in sorted(out.glob("*.json"))}


def read_origin(out: Path, name: str) -> dict[str, Any]:
    """What `origin` said when the results of a part were written."""
    return json.loads((out / f"{name}.json").read_text())["origin"]


def origin(name: str, quick: bool) -> dict[str, Any]:
    """Where and how the numbers came about."""
    git = describe_git(Path(__file__).parent)
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": f"python -m bench {name}{' --quick' if quick else ''}",
        "quick": quick,
        "machine": machine(),
        "versions": versions,
        "commit": git["sha"],
        "changed_files": git["dirty"],
    }


def machine() -> dict[str, Any]:
    """Processor, memory, and how busy it was."""
    names = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = [int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory[0] / 2**20, 1) if memory else None,
        "system": platform.platform(),
        "load_1min": os.getloadavg()[0],
        "threads": 1,
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def _rounded(x: Any) -> Any:
    if isinstance(x, dict):
        return {key: _rounded(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return [_rounded(value) for value in x]
    return float(f"{x:.5g}") if isinstance(x, float) else x


def render(out: Path) -> str:
    """The Markdown page of a folder of results."""
    blocks = ["# Benchmark", "Made by `make bench`. " + _HOW]
    for path in sorted(out.glob("*.json"), key=lambda path: path.stem):
        record = json.loads(path.read_text())
        blocks += _section(record.pop("origin"), Part.read(record))
    return "\n\n".join(blocks)


_HOW = (
    "Sides take turns in one process tree, on one thread each; numbers are medians over rounds, with quartiles in "
    "brackets. Ratios are taken round by round in CPU time. The JSON files hold every turn."
)


def _section(origin: dict[str, Any], part: Part) -> list[str]:
    machine, versions = origin["machine"], origin["versions"]
    said = ", ".join(f"{name} {version}" for name, version in versions.items())
    blocks = [
        f"## {part.title}",
        f"`{origin['command']}`, {origin['date']}, commit {str(origin['commit'])[:7]}"
        f"{' with changes' if origin['changed_files'] else ''}. {machine['processor']}, {machine['cores']} cores, "
        f"{machine['memory_gib']} GiB, load {machine['load_1min']:.1f}. {said}.",
    ]
    if part.ratios:
        blocks.append(_table(["comparison", "median", "bar", ""], [_ratio_row(x) for x in part.ratios]))
    if part.samples:
        head = ["case", "side", "CPU s", "wall s", "per CPU s", "peak MiB"]
        blocks.append(_table(head, [_sample_row(x) for x in part.samples]))
    return blocks + [f"* {note}" for note in part.notes]


def _ratio_row(ratio: Ratio) -> Sequence[str]:
    low, high = ratio.spread()
    sign = ">=" if ratio.better == "higher" else "<="
    bar = "" if ratio.bar is None else f"{sign} {ratio.bar:g}"
    return (
        ratio.name,
        f"{ratio.value:.3g} [{low:.3g}, {high:.3g}]",
        bar,
        {None: "", True: "held", False: "missed"}[ratio.held],
    )


def _sample_row(x: Samples) -> Sequence[str]:
    rate = f"{median(x.rates()):,.0f} {x.unit}" if x.work else ""
    return (
        x.case,
        x.side,
        _spread(x.cpu_s),
        _spread(x.wall_s),
        rate,
        f"{x.peak_mib:,.0f}" if x.peak_mib is not None else "",
    )


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{middle:.3g} [{low:.3g}, {high:.3g}]"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
