"""RL learns in the testbed, and learns from rewards: runs of sweeps/learning.yaml, judged.

    python -m pytest -m slow -s tests/test_learning.py --runs runs

About 25 minutes on two cores; finished runs in the folder `--runs` are used, missing ones are made.
"""

import json
import subprocess
import sys
from collections import defaultdict

import pytest

from tests.frame import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]
ALGOS = ("grpo", "ppo")
# The part of the sweep that is judged; flipped rewards on math only.
JUDGED = (("noise=none,shuffle", "data=math,dialogue,science"), ("noise=flip0.3", "data=math"))


@pytest.fixture(scope="module")
def scores(request):
    """{(data, noise, algo): [(start, end) per seed]}, greedy accuracy on the 1000 held-out questions in domain."""
    runs = (ROOT / request.config.getoption("--runs")).resolve()
    command = [sys.executable, "src/train.py", "launcher=joblib", f"runs={runs}", "algo=grpo,ppo", "seed=0,1,2"]
    for words in JUDGED:
        assert subprocess.run([*command, *words, "-m"], cwd=ROOT).returncode == 0
    found = defaultdict(dict)
    for path in sorted(runs.glob("*/manifest.json")):
        manifest = json.loads(path.read_text())
        choices = manifest["choices"]
        name = f"{choices['data']}-tiny-{choices['algo']}-{choices['noise']}-s{manifest['seed']}"
        if path.parent.name == name and manifest["status"] == "completed":
            pair = manifest["scores"][f"eval/testbed_{choices['data']}/acc"]
            found[choices["data"], choices["noise"], choices["algo"]][manifest["seed"]] = (pair["start"], pair["end"])
    for key, by_seed in sorted(found.items()):
        print(*key, {seed: f"{start:.3f} -> {end:.3f}" for seed, (start, end) in sorted(by_seed.items())})
    return {key: [by_seed[seed] for seed in (0, 1, 2)] for key, by_seed in found.items()}


@pytest.mark.parametrize("algo", ALGOS)
@pytest.mark.parametrize(("data", "start", "end"), [("math", 0.55, 0.90), ("dialogue", 0.65, 0.78)])
def test_clean_rewards_teach(scores, algo, data, start, end):
    assert all(before <= start and after >= end for before, after in scores[data, "none", algo])


@pytest.mark.parametrize("algo", ALGOS)
def test_clean_rewards_teach_science(scores, algo):
    assert all(after - before >= 0.15 for before, after in scores["science", "none", algo])


@pytest.mark.parametrize("algo", ALGOS)
@pytest.mark.parametrize("data", ["math", "dialogue", "science"])
def test_shuffled_rewards_teach_nothing(scores, algo, data):
    """On average: one run is a random walk, and moves accuracy by several points either way (analysis/LOG.md)."""
    gains = [after - before for before, after in scores[data, "shuffle", algo]]
    assert sum(gains) / len(gains) <= 0.03


@pytest.mark.parametrize("algo", ALGOS)
def test_flipped_rewards_teach_less(scores, algo):
    noisy = [after for _, after in scores["math", "flip0.3", algo]]
    clean = [after for _, after in scores["math", "none", algo]]
    assert max(noisy) < min(clean)
