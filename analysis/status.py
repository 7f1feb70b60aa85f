"""How far a sweep is: `python -m analysis.status main --tier smoke`; without names all sweeps.

Counts planned runs by what the store says of them, names the failed ones with their reasons, and estimates the time
that is left from the runs that were timed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import pandas as pd

from analysis.collect import UNFINISHED, Run, load_runs
from analysis.plan import Match, expand, join
from noisyrl.spec import InputError


def state(match: Match) -> str:
    """finished, failed, under way or missing; the newest attempt counts where none has finished."""
    if match.done:
        return "finished"
    if not match.attempts:
        return "missing"
    return "under way" if match.attempts[-1].status in UNFINISHED else "failed"


def seconds_left(matches: Sequence[Match], runs: Sequence[Run]) -> tuple[float, int]:
    """(estimate, runs that nothing is known about). A run takes as long as the median run most like it in the store.

    Alike: the same algorithm, data and model, else the same data and model. Times are scaled by the number of
    steps, start-up and scoring too, so that short runs are underestimated.
    """
    known = [(run, float(run.manifest["seconds"]) / run.manifest["config"]["trainer"]["steps"]) for run in runs
             if "seconds" in run.manifest]  # fmt: skip
    total, unknown = 0.0, 0
    for match in matches:
        if match.done:
            continue
        config = match.planned.config
        for keys in (("algo", "data", "model"), ("data", "model")):
            wanted = {key: config.get(key) for key in keys}
            alike = [pace for run, pace in known if all(run.manifest["config"].get(k) == v for k, v in wanted.items())]
            if alike:
                total += median(alike) * config["trainer"]["steps"]
                break
        else:
            unknown += 1
    return total, unknown


def report(name: str, matches: Sequence[Match], runs: Sequence[Run]) -> tuple[dict[str, object], list[str]]:
    """One line of the table, and one line for each failed run."""
    states = [state(match) for match in matches]
    left, unknown = seconds_left(matches, runs)
    line: dict[str, object] = {"sweep": name, "planned": len(matches)}
    line |= {kind: states.count(kind) for kind in ("finished", "under way", "failed", "missing")}
    guess = f"{left / 60:.0f} min" if left or not unknown else "?"
    line["left, one core"] = guess + (f" + {unknown} runs never timed" if unknown else "")
    failed = [match.attempts[-1] for match, kind in zip(matches, states, strict=True) if kind == "failed"]
    failures = [
        f"failed: {run.folder.name}: {run.status}: {run.manifest.get('failure') or 'left no reason'}" for run in failed
    ]
    return line, failures


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="analysis.status", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="stems of files in sweeps/; default: all of them")
    parser.add_argument("--tier", help="option of conf/tier; default: testbed")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="default: runs/")
    options = parser.parse_args(arguments)
    sweeps, conf = Path("sweeps"), Path("conf")
    try:
        runs = load_runs(options.runs) if options.runs.is_dir() else []
        if not options.runs.is_dir():
            print(f"note: there is no folder {options.runs}/ yet, so nothing is done", file=sys.stderr)
        lines, failures = [], []
        for name in options.names or sorted(path.stem for path in sweeps.glob("*.yaml")):
            line, failed = report(name, join(expand(sweeps / f"{name}.yaml", conf, options.tier), runs), runs)
            lines.append(line)
            failures += failed
    except InputError as error:
        sys.exit(f"error: {error}")
    print(pd.DataFrame(lines).to_markdown(index=False), *failures, sep="\n")


if __name__ == "__main__":
    main()
