"""How long products take: the largest table, and all that is made of the smoke tier of the eight sweeps."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from analysis import tables
from analysis.figures.courses import COURSES
from analysis.plan import Planned, expand
from noisyrl.evaluation import rows, store
from noisyrl.evaluation.benchmarks import Benchmark
from noisyrl.evaluation.sampler_lm import Generation
from noisyrl.records import config_hash
from noisyrl.types import Grade, Prompt
from tests.analysis.made_up_runs import Toy

ROOT = Path(__file__).parents[2]
QUESTIONS = 1000


def evaluation(folder: Path, step: int, number: int, *, data: str, limit: int | None) -> Path:
    """Answers drawn at random to the questions of both benchmarks; whose they are is not what is measured."""
    draws = np.random.default_rng(number)
    subject = rows.Subject(
        run_id="r", cell_id="c", seed=0, algo="a", noise="n", model="m", train_domain="d", step=step, checkpoint_hash=""
    )
    protocol = rows.Protocol(
        eval_id=f"{data}-{step}-{number}", name="greedy", limit=limit, max_new_tokens=4, lm_eval_version="0"
    )
    questions, samples, aggregate = limit or QUESTIONS, [], []
    for split, name in (("test", f"testbed_{data}"), ("ood", f"testbed_{data}_ood")):
        prompts = [Prompt((), "yes", "toy", f"{split}/{i}", "toy") for i in range(questions)]
        benchmark = Benchmark(name, split, Toy(), prompts)
        said = [rows.Answered(Generation(["yes"], "stop", 3, 1, 7), Grade(float(right), extracted="yes"), "?")
                for right in draws.random(questions) < 0.5 + 0.1 * (step > 0)]  # fmt: skip
        part = rows.sample_rows(subject, protocol, benchmark, said)
        samples += part
        aggregate += rows.aggregate_rows(subject, protocol, benchmark, part)
    store.write(folder / protocol.eval_id, aggregate=aggregate, samples=samples, meta={})
    return folder / protocol.eval_id


def write_run(folder: Path, planned: Planned, tier: str, evaluations: Sequence[Path]) -> None:
    """A finished run with these evaluations."""
    noise = dict(planned.config["noise"]) | ({"seed": planned.seed} if "seed" in planned.config["noise"] else {})
    config = dict(planned.config) | {"seed": planned.seed, "noise": noise}
    digest = config_hash(config)
    usual = {"algo": "dvpo", "noise": "none", "model": "tiny", "data": "math"}
    manifest = {"status": "completed", "run_id": f"{digest[:12]}-s{planned.seed}-a1", "cell_id": digest[:12],
                "config_hash": digest, "seed": planned.seed, "config": config, "choices": usual | dict(planned.values),
                "tier": tier, "ended": "2026-01-01", "git": {"sha": "0", "dirty": False}}  # fmt: skip
    for evaluated in evaluations:
        shutil.copytree(evaluated, folder / "eval" / evaluated.name)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


@pytest.mark.slow
def test_480_runs_in_under_a_minute(tmp_path):
    planned = expand(ROOT / "sweeps/noise_stress.yaml", ROOT / "conf")
    assert len(planned) == 480
    asked: dict = {"data": "dialogue", "limit": None}
    start = evaluation(tmp_path / "made", 0, 0, **asked)
    ends = [evaluation(tmp_path / "made", 60, number, **asked) for number in range(16)]
    for number, each in enumerate(planned):
        write_run(tmp_path / f"runs/{number:03d}", each, "testbed", [start, ends[number % 16]])
    at = tables.Folders(tmp_path / "runs", tmp_path / "out", ROOT / "analysis/specs", ROOT / "sweeps", ROOT / "conf")
    began = time.process_time()
    made = tables.make("noise_stress", at, full=True)
    took = time.process_time() - began
    print(f"{len(planned)} runs, {2 * QUESTIONS} questions: {took:.1f} s of CPU")
    assert len(made) == 4 and took < 60


EIGHT = ("main", "main_dialogue", "risk_weight", "quantile_density", "noise_stress", "loss_components", "controls",
         "model_size")  # fmt: skip
WARM_UP, STEPS, ROWS, TOKENS, QUANTILES = 8, 3, 32, 24, 200  # of a run of the smoke tier


def log_run(folder: Path, seed: int) -> None:
    """What a run of the smoke tier leaves beside its evaluations, with every number that a figure shows."""
    draws = np.random.default_rng(seed)
    names = [row.metric for course in COURSES.values() for row in course.rows if not row.metric.startswith("accuracy/")]
    ends = ("eval/testbed_x/acc", "eval/testbed_x_ood/acc")
    steps = range(1 - WARM_UP, STEPS + 1)
    metrics = [{"step": step} | dict(zip(names, draws.random(len(names)), strict=True)) for step in steps]
    metrics += [{"step": step} | dict.fromkeys(ends, draws.random()) for step in (0, STEPS)]
    times = ("time/step_s", "time/rollout_s", "time/annotate_s", "time/update_s")
    ledger = [{"step": step, "uid": f"q/{row // 8}", "sample": row % 8, "clean": float(clean), "observed": float(seen),
               "used": float(seen), "cause": "", "status": "scored", "finished": True}
              for step in steps for row, (clean, seen) in enumerate(draws.random((ROWS, 2)).round())]  # fmt: skip
    for name, lines in (("metrics", metrics), ("ledger", ledger),
                        ("timings", [{"step": step} | dict.fromkeys(times, 1.0) for step in steps])):  # fmt: skip
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in ("probes", "rollouts", f"checkpoints/step_{STEPS:06d}"):
        (folder / name).mkdir(parents=True)
    uid = np.array([f"q/{i}" for i in range(8)])
    for step in (0, STEPS):
        np.savez(folder / f"probes/step_{step:06d}.npz", uid=uid, mean=draws.random(8),
                 ensemble=np.sort(draws.random((8, QUANTILES))))  # fmt: skip
    np.savez(
        folder / f"rollouts/step_{STEPS:06d}.npz", uid=uid.repeat(ROWS // 8), clean_B=np.arange(ROWS) % 2.0,
        group_B=np.arange(ROWS) // 8, tokens_BL=draws.integers(0, 9, (ROWS, 2 * TOKENS)),
        mask_BT=np.ones((ROWS, TOKENS), bool), advantage_BT=draws.normal(size=(ROWS, TOKENS)),
    )  # fmt: skip
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(9)}, unk_token="w0"))
    words.save(str(folder / f"checkpoints/step_{STEPS:06d}/tokenizer.json"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_four_products_of_all_smoke_sweeps_in_under_two_minutes(tmp_path):
    planned = {(each.cell_id, each.seed): each for name in EIGHT
               for each in expand(ROOT / f"sweeps/{name}.yaml", ROOT / "conf", "smoke")}  # fmt: skip
    made = {}
    for number, each in enumerate(planned.values()):
        data, folder = each.values["data"], tmp_path / f"runs/{number:03d}"
        for step in (0, STEPS):
            place = (data, step, number % 8 if step else 0)
            made[place] = made.get(place) or evaluation(tmp_path / "made", *place[1:], data=data, limit=100)
        write_run(folder, each, "smoke", [made[data, 0, 0], made[data, STEPS, number % 8]])
        log_run(folder, number)
    environment = os.environ | {"NOISYRL_CACHE": str(tmp_path / "cache"), "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    shared = ["--runs", str(tmp_path / "runs"), "--tier", "smoke"]
    more = {
        "tables": ["--full", *EIGHT],
        "figures": ["--out", str(tmp_path / "figures")],
        "claims": [],
        "report": ["--figures", str(tmp_path / "figures")],
    }
    wall = {}
    for name, options in more.items():
        out = [] if "--out" in options else ["--out", str(tmp_path / name)]
        began = time.monotonic()
        subprocess.run([sys.executable, "-m", f"analysis.{name}", *options, *shared, *out], cwd=ROOT, env=environment,
                       check=True, stdout=subprocess.DEVNULL)  # fmt: skip
        wall[name] = time.monotonic() - began
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = used.ru_utime + used.ru_stime
    told = ", ".join(f"{name} {took:.0f} s" for name, took in wall.items())
    print(f"{len(planned)} runs: {told}, {sum(wall.values()):.0f} s in turn, {seconds:.0f} s of CPU")
    assert len(planned) == 256 and (tmp_path / "report/report-smoke.html").stat().st_size > 10**6
    assert seconds < 120, "on one core; two take little more than half"


def test_tables_and_claims_are_made_without_torch():
    """It takes a second to import, and so does transformers."""
    heavy = {"torch", "transformers", "matplotlib", "hydra"}
    code = f"import sys, analysis.claims; print(sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True,
                           env=os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"})  # fmt: skip
    assert found.stdout == "[]\n", found.stdout
