"""Rollouts kept on disk: enough to work out every reward and advantage again, without a model.

runs/NAME/rollouts/step_000020.npz              what training step 20 saw, and the advantages it used
runs/NAME/rollouts/bank_000000_judge_0003.npz   rollouts of the policy of step 0, sampled by `src/probe.py`

Each file holds the fields of `Stored` as arrays. Prompts are kept as uids and looked up in the task's training split;
texts and numbers are JSON in UTF-8 bytes; nothing is pickled. What the advantages of the run's algorithm do not read of
the critic's value and of the reference, quantiles above all, is stored as NaN, which takes no room once compressed.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from noisyrl.algos.base import Algorithm
from noisyrl.correction.base import Correction
from noisyrl.critics import values
from noisyrl.experience import Evidence, rewarded
from noisyrl.noise.base import Noise
from noisyrl.spec import InputError
from noisyrl.types import Credit, Prompt, Rollout, Scores, Value

_TENSORS = ("tokens_BL", "attention_BL", "mask_BT", "logp_BT", "group_B", "sample_B", "finished_B", "key_B")
_KINDS = {name: kind for name, kind in vars(values).items() if isinstance(kind, type) and issubclass(kind, Value)}


@dataclass(frozen=True)
class Stored:
    """One batch of rollouts before any noise, and beside it what the step's advantages were made of."""

    evidence: Evidence
    stream: int  # number in the data stream, which keys the noise
    memory: Mapping[str, float] = field(default_factory=dict)  # handed to the algorithm's credit
    correction: Mapping[str, float] = field(default_factory=dict)  # memory of the correction before this step
    advantage_BT: Tensor | None = None  # of the rows that the algorithm saw


def replayed(stored: Stored, noise: Noise, correction: Correction, algo: Algorithm) -> Tensor:
    """[B, T] the advantages that these rollouts give; with the run's own parts, the very bits it trained on."""
    experience = rewarded(stored.evidence, noise, correction, stored.stream, stored.correction)
    batch = replace(experience.batch, memory=stored.memory)
    advantage_BT = algo.advantages(batch)
    credit = Credit(advantage_BT=advantage_BT, target=advantage_BT.new_zeros(len(advantage_BT), 0))
    return correction.credit(credit, batch, experience.memory).advantage_BT


def trimmed(stored: Stored, noise: Noise, correction: Correction, algo: Algorithm) -> Stored:
    """The same without what the replay does not read of value and reference: it still gives the very same bits."""
    wanted_BT, mask_BT = stored.advantage_BT, stored.evidence.rollout.mask_BT
    assert wanted_BT is not None, "a training step has advantages"
    for part in ("value", "reference"):
        found = getattr(stored.evidence, part)
        for name, x in _tensors(found)[1:]:  # the first is the mean, or the log-probability: small
            for less in (_blank(x), _masked(x, mask_BT)):
                shorter = replace(getattr(stored.evidence, part), **{name: less})
                candidate = replace(stored, evidence=replace(stored.evidence, **{part: shorter}))
                if torch.equal(replayed(candidate, noise, correction, algo), wanted_BT):
                    stored = candidate
                    break
    return stored


def write(path: Path, stored: Stored) -> None:
    """Writes one file aside and renames it; the same rollouts give the same bytes."""
    rollout, evidence = stored.evidence.rollout, stored.evidence
    arrays: dict[str, Any] = {
        "uid": np.array([prompt.uid for prompt in rollout.prompts]),
        "turns": _text([list(turns) for turns in rollout.turns]),
        "clean_B": _array(evidence.clean_B),
        "status": np.array(list(evidence.statuses)),
        "evidence.logp_BT": _array(evidence.logp_BT),
        **{name: _array(x) for name in _TENSORS if (x := getattr(rollout, name)) is not None},
        **_flat("value", evidence.value),
        **_flat("reference", evidence.reference),
        "about": _text(
            {
                "stream": stored.stream,
                "memory": dict(stored.memory),
                "correction": dict(stored.correction),
                "value": type(evidence.value).__name__,
            }
        ),
    }
    if stored.advantage_BT is not None:
        arrays["advantage_BT"] = _array(stored.advantage_BT)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".writing-{path.name}")
    np.savez_compressed(aside, **arrays)
    os.replace(aside, path)


def read(path: Path, prompts: Mapping[str, Prompt]) -> Stored:
    """What `write` stored. prompts: the task's training split by uid. InputError: damaged, or of other data."""
    try:
        with np.load(path) as file:  # allow_pickle is off
            arrays = dict(file)
        about = json.loads(arrays["about"].tobytes())
        turns = json.loads(arrays["turns"].tobytes())
        tensors = {name: torch.from_numpy(x) for name, x in arrays.items() if x.dtype.kind in "fib"}
        value = _KINDS[about["value"]](**_under("value", tensors))
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read ({error}): delete it") from error
    uids = arrays["uid"].tolist()
    if unknown := [uid for uid in uids if uid not in prompts]:
        raise InputError(f"{path} holds prompts that the run's data lacks, {unknown[0]} first: the data was changed")
    rollout = Rollout(
        prompts=[prompts[uid] for uid in uids],
        turns=[tuple(texts) for texts in turns],
        **{name: tensors[name] for name in _TENSORS if name in tensors},
    )
    return Stored(
        Evidence(
            rollout=rollout,
            clean_B=tensors["clean_B"],
            statuses=arrays["status"].tolist(),
            logp_BT=tensors["evidence.logp_BT"],
            reference=Scores(**reference) if (reference := _under("reference", tensors)) else None,
            value=value,
        ),
        stream=about["stream"],
        memory=about["memory"],
        correction=about["correction"],
        advantage_BT=tensors.get("advantage_BT"),
    )


def unannotated(rollout: Rollout, clean_B: Tensor, statuses: Sequence[str], stream: int) -> Stored:
    """Graded rollouts that no critic and no reference has seen."""
    value = Value(mean_BT=torch.zeros_like(rollout.logp_BT))
    return Stored(Evidence(rollout, clean_B, statuses, rollout.logp_BT, None, value), stream)


def step_file(run_dir: Path, step: int) -> Path:
    """Where the rollouts of training step `step` lie."""
    return run_dir / "rollouts" / f"step_{step:06d}.npz"


def step_files(run_dir: Path) -> dict[int, Path]:
    """Files of training steps by step, ascending."""
    return {int(path.stem.removeprefix("step_")): path for path in sorted((run_dir / "rollouts").glob("step_*.npz"))}


def rewind(run_dir: Path, step: int) -> None:
    """Deletes the files of steps after `step`, and what a killed process left half-written."""
    late = [path for stored, path in step_files(run_dir).items() if stored > step]
    for path in [*late, *(run_dir / "rollouts").glob(".writing-step_*")]:
        path.unlink()


def _blank(x: Tensor) -> Tensor:
    return torch.full_like(x, float("nan")) if x.is_floating_point() else torch.zeros_like(x)


def _masked(x: Tensor, mask_BT: Tensor) -> Tensor:
    return torch.where(mask_BT.view(*mask_BT.shape, *[1] * (x.dim() - 2)), x, 0)


def _tensors(x: Value | Scores | None) -> list[tuple[str, Tensor]]:
    """Name and tensor of each field that has one."""
    found = [] if x is None else [(f.name, getattr(x, f.name)) for f in fields(x)]
    return [(name, tensor) for name, tensor in found if tensor is not None]


def _flat(prefix: str, x: Value | Scores | None) -> dict[str, np.ndarray]:
    return {f"{prefix}.{name}": _array(tensor) for name, tensor in _tensors(x)}


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}."): x for name, x in tensors.items() if name.startswith(f"{prefix}.")}


def _array(x: Tensor) -> np.ndarray:
    return x.detach().cpu().numpy()


def _text(x: Any) -> np.ndarray:
    return np.frombuffer(json.dumps(x, ensure_ascii=False).encode(), np.uint8)
