"""What made a run: the contents of its manifest."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from accelerate import PartialState

from noisyrl import checkpoint
from noisyrl.alarm import first_alarm
from noisyrl.ledger import ERRORS, exact_bounds, read
from noisyrl.models.base import LanguageModel
from noisyrl.noise.base import Noise
from noisyrl.peak_memory import peak_bytes
from noisyrl.records import RunFolder, config_hash
from noisyrl.spec import InputError
from noisyrl.tasks.base import Task
from noisyrl.trainer import Loop, Progress
from noisyrl.types import Prompt

if TYPE_CHECKING:
    from noisyrl.experiment import Experiment

_PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "hydra-core",
    "lm_eval",
    "math-verify",
    "numpy",
    "pydantic",
)


def refuse_other_data(manifest: Mapping[str, Any], inputs: Mapping[str, Any]) -> None:
    """InputError: a run that is resumed began with other training data."""
    before = manifest.get("inputs", {}).get("data", {}).get("data_sha256")
    now = inputs.get("data", {}).get("data_sha256")
    if before is not None and before != now:
        raise InputError(
            f"run folder {manifest['folder']} began with other training data (sha256 {before[:12]}..., now "
            f"{str(now)[:12]}...): put them back, or set name= to start another run"
        )


@runtime_checkable
class Originated(Protocol):
    """A task whose data came from elsewhere, and which can say from where and what was done to them."""

    @property
    def origin(self) -> Mapping[str, Any]:
        """JSON values for the manifest."""


def describe_run(experiment: Experiment, config: Mapping[str, Any], choices: Mapping[str, str]) -> dict[str, Any]:
    """The manifest of a run that begins."""
    digest = config_hash(config)
    cell, seed = digest[:12], experiment.seed
    return {
        "status": "running",
        "failure": None,
        "name": experiment.name,
        "folder": str(Path(experiment.runs) / experiment.name),
        "run_id": f"{cell}-s{seed}-a1",
        "cell_id": cell,
        "seed": seed,
        "choices": dict(choices),
        "config_hash": digest,
        "config": dict(config),
        "tier": experiment.tier,
        "noise": declared_noise(experiment.noise),
        "command": sys.argv,
        "git": describe_git(Path(__file__).parent),
        "environment": describe_environment(),
        "started": _now(),
        "scores": {},
        "resumed": 0,
    }


def declared_noise(noise: Noise) -> dict[str, Any]:
    """What noise says of itself: a line for a person, and its error rates where it declares some."""
    rates = noise.error_rates
    return {"described": noise.describe()} | ({"declared": dict(zip(ERRORS, rates, strict=True))} if rates else {})


def identity(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Whose scores these are: the columns that every row of an evaluation carries."""
    choices = manifest["choices"]
    own = {key: manifest[key] for key in ("run_id", "cell_id", "seed")}
    own |= {key: choices[key] for key in ("algo", "noise", "model")} | {"train_domain": choices["data"]}
    return own | {"correction": choices.get("correction", "none")}  # runs older than corrections have none


def finish_run(folder: RunFolder, loop: Loop, *, seconds: float, cpu_seconds: float) -> None:
    """Marks a run completed. seconds: of this attempt; those of killed attempts are lost with them.

    Peak memory is that of the process so far: in a multirun, of the jobs before it too.
    """
    newest = checkpoint.saved(folder.path / "checkpoints")[-1]
    alarm = first_alarm(read(folder.path))
    folder.update(
        status="completed",
        failure=None,
        ended=_now(),
        checkpoint=str(newest),
        checkpoint_sha256=hashlib.sha256((newest / "trainer/checksums.json").read_bytes()).hexdigest(),
        checkpoint_rule="last",
        seconds=round(seconds, 3),
        cpu_seconds=round(cpu_seconds, 3),
        peak_memory_mb=peak_bytes() >> 20,
        peak_gpu_memory_mb=torch.cuda.max_memory_reserved() >> 20 if torch.cuda.is_available() else None,
        rewards=folder.reward_course(),
        noise=folder.manifest["noise"] | realised_noise(loop.progress),
        alarm=None if alarm is None else {"step": alarm.step, "said": str(alarm)},
        **{key: value for key, value in asdict(loop.progress).items() if key not in ("memory", "correction")},
    )


def realised_noise(progress: Progress) -> dict[str, Any]:
    """What noise did over the whole run: how often right and wrong responses were misjudged; null = no case.

    Bounds are exact ones of 95 % for errors that hit every response by itself. Any lowered reward of a right response
    and any raised one of a wrong response counts, so only rates of rewards 0 and 1 make a J; else see src/ledger.py.
    """
    wrong = progress.rollouts - progress.right
    negative = progress.right_lowered / progress.right if progress.right else None
    positive = progress.wrong_raised / wrong if wrong else None
    youden = None if negative is None or positive is None else 1 - positive - negative
    changed = (progress.right_lowered + progress.wrong_raised) / progress.rollouts if progress.rollouts else None
    return {
        "realised_false_negative_rate": negative,
        "realised_false_positive_rate": positive,
        "realised_j": youden,
        "realised_false_negative_bounds": exact_bounds(progress.right_lowered, progress.right),
        "realised_false_positive_bounds": exact_bounds(progress.wrong_raised, wrong),
        "corrupted_frac": changed,
    }


def describe_inputs(lm: LanguageModel, prompts: Sequence[Prompt], task: Task) -> dict[str, Any]:
    """Where model and data came from, and hashes of the tokenizer, the chat template and the training questions."""

    def digest(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()

    tokenizer = lm.tokenizer
    return {
        "model": dict(lm.origin),
        "tokenizer_sha256": digest(str(sorted(tokenizer.get_vocab().items()))),
        "chat_template_sha256": digest(str(tokenizer.chat_template)),
        "train_prompts": len(prompts),
        "train_prompts_sha256": digest("\n".join(prompt.uid for prompt in prompts)),
        **({"data": dict(task.origin)} if isinstance(task, Originated) else {}),
    }


@contextmanager
def failure_recorded(folder: RunFolder) -> Iterator[None]:
    """Whatever ends the block early is written into the manifest, and goes on."""
    try:
        yield
    except BaseException as error:
        if PartialState().is_main_process:
            status = {KeyboardInterrupt: "killed", MemoryError: "oom", torch.OutOfMemoryError: "oom"}
            failure = f"{type(error).__name__}: {error}"
            with suppress(OSError):  # a full disk may be the failure itself
                folder.update(status=status.get(type(error), "infra_failed"), failure=failure, ended=_now())
        raise


def describe_git(where: Path) -> dict[str, Any]:
    """Commit and state of the checkout the package runs from; nulls where it is none."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(where), *words], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout if done.returncode == 0 else None

    sha, changes = git("rev-parse", "HEAD"), git("diff", "HEAD")
    return {
        "sha": sha.strip() if sha else None,
        "dirty": bool(changes) if changes is not None else None,
        "diff_hash": hashlib.sha256(changes.encode()).hexdigest()[:12] if changes else None,
    }


def describe_environment() -> dict[str, Any]:
    """Versions and hardware."""
    cuda = torch.cuda.is_available()
    installed = sorted(map(_installed, importlib.metadata.distributions()))
    return {
        "lock_sha256": hashlib.sha256("\n".join(installed).encode()).hexdigest(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "cuda": torch.version.cuda if cuda else None,
        "world_size": PartialState().num_processes,
        "threads": torch.get_num_threads(),
    }


def _installed(package: importlib.metadata.Distribution) -> str:
    """NAME==VERSION. `package.metadata` reads its long description too, which takes nearly all of the time."""
    text = package.read_text("METADATA") or package.read_text("PKG-INFO") or ""
    fields = dict(line.split(":", 1) for line in text.split("\n\n", 1)[0].splitlines() if ":" in line)
    return "==".join(fields.get(name, "").strip() for name in ("Name", "Version"))


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
