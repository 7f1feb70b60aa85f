"""Figures from run folders: `python -m analysis.figures learning_curves --runs runs --out figures`; default: all."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from matplotlib import pyplot as plt

from analysis.collect import Run, load_runs
from analysis.cores import each
from analysis.figures import (
    comparison,
    cost,
    courses,
    critic_calibration,
    kept,
    noise_rate,
    quantile_functions,
    token_advantages,
)
from analysis.figures.drawing import FORMATS, LOOK, Drawn, write
from analysis.figures.groups import Group, Nothing, grouped
from analysis.inputs import digest
from analysis.plan import expand, join
from noisyrl.spec import InputError

_COURSES: dict[str, Callable[..., Drawn]] = {
    name: partial(courses.draw, course) for name, course in courses.COURSES.items()
}
FIGURES: dict[str, Callable[..., Drawn]] = {
    "learning_curves": _COURSES.pop("learning_curves"),
    "noise_rate": noise_rate.draw,
    "comparison": comparison.draw,
    **_COURSES,
    "quantile_functions": quantile_functions.draw,
    "critic_calibration": critic_calibration.draw,
    "token_advantages": token_advantages.draw,
    "cost": cost.draw,
}


def make(
    names: Sequence[str],
    runs: Sequence[Run],
    out: Path,
    x: str = courses.STEPS,
    formats: Sequence[str] = FORMATS,
) -> Iterator[tuple[str, str, list[Path]]]:
    """Draws and writes figures, all of them if none is named: (name, caption or what is missing, files).

    InputError: no such figure.
    """
    unknown = [name for name in names if name not in FIGURES]
    if unknown:
        raise InputError(f"no figure {', '.join(unknown)}; there are: {', '.join(FIGURES)}")
    groups = grouped(runs)

    def made(name: str) -> tuple[str, str, list[Path]]:
        try:
            drawn = draw(name, groups, x)
        except Nothing as missing:
            return name, str(missing), []
        return name, drawn.caption, write(name, drawn, out, formats)

    yield from each(made, list(names or FIGURES))


def draw(name: str, groups: Sequence[Group], x: str = courses.STEPS) -> Drawn:
    """Nothing: the runs hold nothing for it."""
    options = {"x": x} if name in courses.COURSES else {}
    with plt.rc_context(LOOK):
        return FIGURES[name](groups, **options)


def planned(runs: Sequence[Run], sweep: str, tier: str | None) -> list[Run]:
    """The runs that a sweep plans."""
    matches = join(expand(Path("sweeps") / f"{sweep}.yaml", Path("conf"), tier), runs)
    return list({run.folder: run for match in matches for run in match.attempts}.values())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="analysis.figures", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all of {', '.join(FIGURES)}")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="default: runs/")
    parser.add_argument("--out", type=Path, default=Path("figures"), help="default: figures/")
    parser.add_argument("--sweep", help="only the runs that sweeps/SWEEP.yaml plans; default: all in the store")
    parser.add_argument("--tier", help="option of conf/tier, with --sweep; default: testbed")
    parser.add_argument("--x", choices=(courses.STEPS, courses.TOKENS), default=courses.STEPS,
                        help="what training is measured in; default: steps")  # fmt: skip
    options = parser.parse_args(arguments)
    chosen = (options.x, options.sweep, str(options.tier)) if options.sweep else (options.x,)
    try:
        made_of = digest(options.runs, options=chosen)  # before they are read: they may change meanwhile
        runs = load_runs(options.runs)
        if options.sweep:
            runs = planned(runs, options.sweep, options.tier)
        for name, said, files in make(options.names, runs, options.out, options.x):
            print("\n".join(map(str, files)) or f"skipped {name}: {said}", flush=True)
            kept.note(options.out, made_of, name, said, files)
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
