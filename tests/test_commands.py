"""What a user types, in a subprocess: the main command, again, resumed, refused, scored, tabulated."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.frame import ROOT

# A model that has learned next to nothing is enough to see that every command works.
QUICK = ["model.warm_start.steps=20", "trainer.steps=3", "trainer.prompts=4", "trainer.checkpoint_every=1"]
QUICK += ["algo.critic.warmup_steps=1", "eval=smoke", "eval.limit=8", "name=x"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a warm start of its own, shared by the tests of this module."""
    folder = tmp_path_factory.mktemp("commands")
    done = command(folder, "algo=ppo", "runs=first")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def environment(folder):
    return os.environ | {
        "NOISYRL_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT / "src"),
    }


def arguments(folder, *overrides):
    quick = [word for word in QUICK if not (word.startswith("algo.critic") and "algo=grpo" in overrides)]
    return [sys.executable, str(ROOT / "src/train.py"), *quick, *overrides]


def command(folder, *overrides):
    return subprocess.run(
        arguments(folder, *overrides), cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=240
    )


def contents(run):
    """Everything of a run that must not depend on when and how often it was started."""
    kept = ("metrics.jsonl", "checkpoints", "eval")
    files = sorted(file for name in kept for file in [run / name, *(run / name).rglob("*")] if file.is_file())
    return {str(file.relative_to(run)): file.read_bytes() for file in files}


def test_the_main_command_leaves_a_complete_run_folder(place):
    run = place / "first/x"
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["status"] == "completed" and set(manifest["scores"]["eval/testbed_math/acc"]) == {"start", "end"}
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [0, 0, 1, 2, 3, 3]  # start scores, critic warm-up, three steps, end scores
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_000003"]


def test_the_same_command_again_skips(place):
    before = contents(place / "first/x") | {"manifest": (place / "first/x/manifest.json").read_bytes()}
    done = command(place, "algo=ppo", "runs=first")
    assert done.returncode == 0 and "is complete with this very config" in done.stdout
    assert "testbed_math" in done.stdout
    assert before == contents(place / "first/x") | {"manifest": (place / "first/x/manifest.json").read_bytes()}


def test_another_config_is_refused(place):
    before = contents(place / "first/x")
    done = command(place, "algo=ppo", "runs=first", "algo.lr=1e-5")
    assert done.returncode == 1 and "algo.lr: 0.00035 -> 1e-05" in done.stderr and "Traceback" not in done.stderr
    assert before == contents(place / "first/x")


def test_a_second_run_and_one_without_evaluation_repeat_the_bytes(place):
    assert command(place, "algo=ppo", "runs=second").returncode == 0
    assert contents(place / "second/x") == contents(place / "first/x")
    assert command(place, "algo=ppo", "runs=blind", "eval.at_start=false", "eval.limit=1").returncode == 0
    weights = "checkpoints/step_000003/model.safetensors"
    assert (place / "blind/x" / weights).read_bytes() == (place / "first/x" / weights).read_bytes()


def killed(place, moment, *overrides):
    """Starts the command and kills it when `moment(run)` first holds. False if it ended before."""
    run = place / overrides[-1].removeprefix("runs=") / "x"
    process = subprocess.Popen(
        arguments(place, *overrides),
        cwd=place,
        env=environment(place),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None:
        if moment(run):
            process.send_signal(signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.002)
    return False


def lines(run):
    file = run / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.is_file() else 0


def test_a_killed_run_ends_as_if_never_killed(place):
    """Killed while a checkpoint is being written, then started again."""
    assert killed(
        place, lambda run: any((run / "checkpoints").glob(".writing-*")) and lines(run) >= 3, "algo=ppo", "runs=torn"
    )
    done = command(place, "algo=ppo", "runs=torn")
    assert done.returncode == 0 and "resuming" in done.stderr
    assert contents(place / "torn/x") == contents(place / "first/x")


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["ppo", "grpo"])
def test_five_kills_change_no_byte(place, algo):
    assert command(place, f"algo={algo}", f"runs={algo}-whole").returncode == 0
    moments = [
        lambda run: (run / "manifest.json").is_file(),
        lambda run: lines(run) >= 1,
        lambda run: any((run / "checkpoints").glob(".writing-*")),
        lambda run: lines(run) >= 3,
        lambda run: (run / "checkpoints/step_000003").is_dir(),
    ]
    kills = sum(killed(place, moment, f"algo={algo}", f"runs={algo}-killed") for moment in moments)
    assert kills >= 4
    assert command(place, f"algo={algo}", f"runs={algo}-killed").returncode == 0
    assert contents(place / f"{algo}-killed/x") == contents(place / f"{algo}-whole/x")


def test_a_damaged_checkpoint_is_named_and_nothing_is_touched(place):
    shutil.copytree(place / "first", place / "damaged")
    run = place / "damaged/x"
    weights = run / "checkpoints/step_000003/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    manifest = json.loads((run / "manifest.json").read_text()) | {"status": "running"}
    manifest["config"]["runs"] = "damaged"
    (run / "manifest.json").write_text(json.dumps(manifest))
    before = contents(run)
    done = command(place, "algo=ppo", "runs=damaged")
    assert done.returncode == 1 and "model.safetensors is not what was written; delete that folder" in done.stderr
    assert before == contents(run)


def test_two_processes_make_the_rollouts_and_rewards_of_one(place):
    # A small rate: Adam's first steps are as large for a gradient of rounding errors as for any other.
    same = ["algo=ppo", "noise=flip0.3", "data=dialogue", "algo.critic.lr=5e-4", "algo.lr=2.5e-4"]
    assert command(place, *same, "runs=one").returncode == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words = arguments(place, *same, "runs=two")[1:]
    done = subprocess.run([*torchrun, *words], cwd=place, env=environment(place), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (
        [json.loads(line) for line in (place / name / "x/metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert len(one) == len(two)
    exact = [key for key in one[2] if key.split("/")[0] in ("reward", "noise", "group", "rollout")] + ["trainer/tokens"]
    exact = [key for key in exact if not key.startswith("noise/advantage")]  # these hang on the critic's rounding
    for a, b in zip(one, two, strict=True):
        assert {key: a.get(key) for key in exact} == {key: b.get(key) for key in exact}
        for key in ("policy/grad_norm", "noise/advantage_correlation"):
            assert a.get(key, 0) == pytest.approx(b.get(key, 0), rel=1e-4)


def test_a_failing_job_does_not_stop_its_siblings(place):
    words = ["algo=grpo", "rollout.samples=1,2", "runs=siblings", "name=null", "-m"]
    done = command(place, *words)
    assert done.returncode == 1 and "rollout.samples=1 must be 2 or more" in done.stderr
    runs = [path for path in (place / "siblings").iterdir() if (path / "manifest.json").is_file()]
    assert [json.loads((run / "manifest.json").read_text())["status"] for run in runs] == ["completed"]


def test_jobs_side_by_side(place):
    done = command(place, "algo=grpo", "seed=0,1", "launcher=joblib", "runs=parallel", "name=null", "-m")
    assert done.returncode == 0, done.stderr[-2000:]
    runs = sorted(path.name for path in (place / "parallel").iterdir() if (path / "manifest.json").is_file())
    assert [name[:22] for name in runs] == ["math-tiny-grpo-flip0.3", "math-tiny-grpo-flip0.3"]


def test_a_finished_run_is_scored_and_tabulated(place):
    words = [sys.executable, str(ROOT / "src/eval.py"), "run=x", "runs=first", "eval=smoke", "eval.limit=8"]
    done = subprocess.run(words, cwd=place, env=environment(place), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "testbed_math_ood" in done.stdout
    assert len(list((place / "first/x/eval").iterdir())) == 2  # found in the store, not done again
    missing = subprocess.run(
        [*words[:2], "run=y", "runs=first"], cwd=place, env=environment(place), capture_output=True, text=True
    )
    assert missing.returncode == 1 and "no run at first/y; runs there: x" in missing.stderr
    words = [
        sys.executable,
        "-m",
        "analysis.tables",
        "smoke",
        "--runs",
        str(place / "first"),
        "--out",
        str(place / "tables"),
    ]
    done = subprocess.run(
        words,
        cwd=ROOT,
        env=environment(place) | {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert {path.name for path in (place / "tables").iterdir()} >= {
        f"smoke.{suffix}" for suffix in ("md", "tex", "csv", "html")
    }


def test_help_is_quick_and_loads_nothing_heavy(tmp_path):
    train = str(ROOT / "src/train.py")
    code = f"""if True:
        import sys, runpy
        sys.argv = ["train.py", "--help"]
        try:
            runpy.run_path({train!r}, run_name="__main__")
        except SystemExit:
            pass
        heavy = set(sys.modules) & set("torch transformers accelerate wandb lm_eval pandas".split())
        sys.exit(f"loaded: {{heavy}}" if heavy else 0)
    """
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(tmp_path), capture_output=True, text=True, cwd=tmp_path
    )
    took = time.perf_counter() - began
    assert done.returncode == 0, done.stderr
    assert "noise" in done.stdout and "Ten overrides" in done.stdout and took < 5  # 1.5 s on a quiet machine


def test_the_config_is_printed_without_running(tmp_path):
    words = [sys.executable, str(ROOT / "src/train.py"), "algo=grpo", "noise=flip0.3", "--cfg", "job"]
    done = subprocess.run(words, env=environment(tmp_path), capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and "rate: 0.3" in done.stdout and not list(Path(tmp_path).iterdir())
