"""What lies between the command and its first training step."""

import email
import gc
import hashlib
import importlib.metadata
import inspect
import os
import subprocess
import sys

from noisyrl import launch, provenance
from noisyrl.evaluation import store
from noisyrl.spec import Count, spec
from tests.frame import ROOT

# Stops where the first step would begin and says what has been imported until then.
UNTIL_THE_FIRST_STEP = """if True:
    import gc, os, runpy, sys
    import noisyrl.trainer

    def stop(*_):
        print("imported:", *sorted({name.partition(".")[0] for name in sys.modules}), "collecting" * gc.isenabled())
        sys.stdout.flush()
        os._exit(0)

    noisyrl.trainer.Loop._step = stop
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
"""
NOT_YET = [
    "pandas",
    "pyarrow",
    "datasets",
    "lm_eval",
    "sacrebleu",
    "sklearn",
    "matplotlib",
    "wandb",
    "joblib",
    "math_verify",
    "trl",
    "vllm",
]


def test_only_what_the_first_step_needs_is_imported(tmp_path):
    words = ["model.warm_start.steps=1", "eval.at_start=false", "runs=runs", "algo=dvpo", "noise=flip0.3"]
    done = subprocess.run(
        [sys.executable, "-c", UNTIL_THE_FIRST_STEP, str(ROOT / "src/train.py"), *words],
        cwd=tmp_path,
        env=os.environ | {"NOISYRL_CACHE": "cache", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    imported = set(next(line for line in done.stdout.splitlines() if line.startswith("imported:")).split())
    assert {"torch", "transformers", "noisyrl"} <= imported
    assert not imported & set(NOT_YET)
    assert "collecting" in imported, "building switches it off for a while"


def test_jobs_of_one_process_leave_garbage_that_is_found():
    """What is frozen is never collected, so only the first job may freeze anything."""
    launch.build({"_target_": "noisyrl.noise.flip.Flip", "rate": 0.1})
    frozen = gc.get_freeze_count()
    assert frozen > 0 and gc.isenabled()
    kept = [[] for _ in range(1000)]
    launch.build({"_target_": "noisyrl.noise.flip.Flip", "rate": 0.2})
    assert len(kept) == 1000 and gc.get_freeze_count() <= frozen and gc.isenabled()


# Prints whether a library was imported by the way.
ADOPT = """if True:
    import sys
    from pathlib import Path
    from noisyrl.evaluation import store
    from noisyrl.evaluation.rows import Subject

    made, folder = map(Path, sys.argv[1:])
    names = ("run_id", "cell_id", "algo", "noise", "model", "train_domain", "checkpoint_hash")
    store.adopt(made, folder, Subject(**dict.fromkeys(names, "ä-7"), seed=0, step=0))
    print("pandas" in sys.modules, store.read_samples(folder)["run_id"].to_pylist())
"""


def test_scores_of_the_starting_policy_are_taken_over_without_pandas(tmp_path):
    """Which pyarrow imports for any value of Python's own."""
    store.write(tmp_path / "made", aggregate=[], samples=[{"run_id": "", "qid": q} for q in "abc"], meta={})
    words = [sys.executable, "-c", ADOPT, str(tmp_path / "made"), str(tmp_path / "adopted")]
    done = subprocess.run(
        words, env=os.environ | {"PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "False ['ä-7', 'ä-7', 'ä-7']"


def counted(monkeypatch, owner, name):
    """A list with an entry for each later call of a function."""
    calls, real = [], getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args, **kwargs: calls.append(args) or real(*args, **kwargs))
    return calls


def test_declaring_a_config_class_reads_no_source(monkeypatch):
    """Pydantic would look up the string below each field: .14 s at every start, for thirty classes."""
    read = counted(monkeypatch, inspect, "getmodule")

    @spec
    class Small:
        size: Count = 3
        """Of a thing."""

    assert Small().size == 3 and not read


def test_packages_are_listed_without_their_descriptions(monkeypatch):
    whole = [found.metadata for found in importlib.metadata.distributions()]
    lines = sorted(f"{metadata['Name']}=={metadata['Version']}" for metadata in whole)
    parsed = counted(monkeypatch, email, "message_from_string")
    described = provenance.describe_environment()
    assert described["lock_sha256"] == hashlib.sha256("\n".join(lines).encode()).hexdigest()
    assert len(parsed) <= len(described["packages"]) < len(whole)
