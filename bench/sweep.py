"""Start-up: a sweep of short runs with the joblib launcher against the same runs one by one, and command to first step.

Everything is a command as a person types it, in a process of its own. The warm start is in the cache when the clock
starts. CPU time counts the children. The bar of the sweep is on wall-clock: it means something on a free machine only.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from bench import frame, stage

FIRST_STEP = ("as shipped", "algo=grpo"), ("without the evaluation before it", "algo=grpo", "eval.at_start=false")


def measure(quick: bool) -> frame.Part:
    """The sweep, its single runs, and the first step."""
    part = frame.Part("sweep", "Start-up, and a sweep against its single runs")
    with TemporaryDirectory() as at:
        common = [f"runs={at}/runs", "eval=smoke", f"trainer.steps={1 if quick else 10}", "data=math"]
        if quick:  # any warm start will do
            common += ["model.warm_start.steps=1", f"model.cache_dir={at}/cache"]
        made = stage.experiment(*(word for word in common if word.startswith(("data", "model"))))
        made.model.load(made.data)
        _first_step(part, [word for word in common if not word.startswith(("runs", "trainer"))], Path(at), quick)
        swept = {"algo": ["grpo", "ppo"], "noise": ["none", "flip0.3"], "seed": ["0", "1", "2"]}
        if quick:
            swept = {"algo": ["grpo"], "noise": ["none", "flip0.3"], "seed": ["0"]}
        _sweep(part, common, swept, at)
    return part


def _sweep(part: frame.Part, common: Sequence[str], swept: dict[str, list[str]], at: str) -> None:
    runs = [
        [f"{key}={value}" for key, value in zip(swept, cell, strict=True)]
        for cell in itertools.product(*swept.values())
    ]
    case = f"{len(runs)} runs"
    record = frame.Record(case, ["one by one", "joblib, 2 jobs"], warmups=0)
    choices = [f"{key}={','.join(values)}" for key, values in swept.items()]
    # Half of the single runs before the sweep and half after it: what the machine does besides meets both sides.
    with record.turn("one by one"):
        for words in runs[::2]:
            _train(*common, *words)
    with record.turn("joblib, 2 jobs"):
        _train("-m", *common, f"runs={at}/swept", *choices, "launcher=joblib")
    with record.turn("one by one"):
        for words in runs[1::2]:
            _train(*common, *words)
    single = record.sides["one by one"]
    single.cpu_s, single.wall_s = [sum(single.cpu_s)], [sum(single.wall_s)]
    both = record.list()
    finished = len(list(Path(at).glob("swept/*/manifest.json")))
    if finished != len(runs):
        raise RuntimeError(f"the sweep left {finished} run folders, not {len(runs)}")
    part.add(both)
    part.compare(
        f"sweep of {case} / the same one by one, wall-clock", [both[1].wall_s[0] / single.wall_s[0]], "lower", bar=0.6
    )
    part.compare(f"sweep of {case} / the same one by one, CPU time", [both[1].cpu_s[0] / single.cpu_s[0]], "lower")


def _train(*words: str) -> None:
    done = subprocess.run([*_COMMAND, *words], cwd=stage.ROOT, env=_ENVIRONMENT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} failed:\n{done.stderr[-2000:]}")


_COMMAND = [sys.executable, str(stage.ROOT / "src/train.py")]
# As a person types it: modules are not compiled anew at each start, even where the benchmark's own are.
_ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def _first_step(part: frame.Part, common: Sequence[str], at: Path, quick: bool) -> None:
    found: dict[str, frame.Samples] = {}
    for label, *words in FIRST_STEP:
        samples = frame.Samples("command to the end of the first step", label)
        evaluation = [] if quick else ["eval=testbed"]
        for number in range(1 if quick else 5):  # the first one makes the starting scores
            name = f"first-{len(found)}-{number}"
            cpu, wall = _until_first_step(at, name, *common, *evaluation, *words)
            samples.cpu_s.append(cpu)
            samples.wall_s.append(wall)
        found[label] = samples
    part.add(list(found.values()))
    for label, samples in found.items():
        part.compare(f"command to the end of the first step, {label}: CPU s", samples.cpu_s, "lower", bar=5.0)


def _until_first_step(at: Path, name: str, *words: str) -> tuple[float, float]:
    """CPU and wall seconds until the first step of a run is on disk; the run is ended then."""
    start = time.perf_counter()
    command = [*_COMMAND, *words, f"runs={at}/first", f"name={name}"]
    with (at / "log").open("w") as log:
        run = subprocess.Popen(command, cwd=stage.ROOT, env=_ENVIRONMENT, stdout=log, stderr=log)
    written = at / "first" / name / "timings.jsonl"  # a line per step
    try:
        while not (written.exists() and written.stat().st_size):
            if run.poll() is not None:
                raise RuntimeError(
                    f"{' '.join(words)} ended before its first step:\n{(at / 'log').read_text()[-2000:]}"
                )
            time.sleep(0.02)
        wall, used = time.perf_counter() - start, psutil.Process(run.pid).cpu_times()
    finally:
        run.terminate()
        run.wait()
    return used.user + used.system + used.children_user + used.children_system, wall
