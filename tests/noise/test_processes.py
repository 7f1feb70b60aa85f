"""What is observed does not hang on how many processes the work is shared by: whole runs, with torchrun."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.frame import ROOT
from tests.short_run import save_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

RUN = """
import sys
from pathlib import Path

from noisyrl.tasks.math import Chains
from tests.short_run import by_chance, start

Chains.grade = by_chance
start(Path(sys.argv[1]), *sys.argv[2:])
"""
# Draws of response texts, samples and groups, the worst of a whole step, and rewards that go missing in between.
NOISE = ["noise=chain", "noise@noise.first=flip0.3", "noise.first.unit=response"]
NOISE += ["noise@noise.second=adversarial", "noise.second.scope=step"]
NOISE += ["noise@noise.third=dropout", "noise@noise.fourth=gaussian", "noise.fourth.unit=group"]


def rewards(place, processes):
    """The ledger, and the returns of the last snapshot's continuations: of three prompts, for four processes too."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    runs = place / f"by-{processes}"
    command += [str(place / "run.py"), str(runs), str(place / "model"), "algo=ppo", *NOISE]
    command += ["trainer.prompts=8", "trainer.steps=3", "algo.critic.warmup_steps=1", "data.heldout_items=3"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(runs / "x/probes/step_000003.npz") as stored:
        returns = {name: stored[name] for name in ("uid", "clean", "observed", "used")}
    return (runs / "x/ledger.jsonl").read_bytes(), returns


def test_one_two_and_four_processes_write_the_same_ledger_and_returns(tmp_path):
    (tmp_path / "run.py").write_text(RUN)
    save_model(tmp_path / "model")
    alone, returns = rewards(tmp_path, 1)
    rows = [json.loads(line) for line in alone.splitlines()]
    assert len(rows) == 4 * 8 * 4 and {row["clean"] for row in rows} == {0.0, 1.0}
    said = {name for row in rows for name in row["cause"].split("+")}
    assert {"flip", "adversarial", "dropout", "gaussian"} <= said
    assert returns["observed"].shape == (3, 32) and np.isnan(returns["observed"]).any()
    for processes in (2, 4):
        shared, found = rewards(tmp_path, processes)
        assert shared == alone
        for name, x in returns.items():
            assert np.array_equal(x, found[name], equal_nan=name != "uid"), name
