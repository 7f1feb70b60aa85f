"""Checkpoints: a Hugging Face folder that plain transformers opens, with the trainer's state beside the weights.

    checkpoints/step_000060/
        config.json model.safetensors tokenizer.json chat_template.jinja ...    the policy
        trainer/critic.safetensors trainer/optimizer.safetensors                what resuming needs besides
        trainer/state.json                                                      progress and optimizer scalars
        trainer/checksums.json                                                  sha256 of every other file

Written aside and renamed, so a folder named step_* is complete; nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from noisyrl.models.base import LanguageModel
from noisyrl.spec import InputError
from noisyrl.trainer import Loop, Progress


def save(loop: Loop, lm: LanguageModel, folder: Path, *, step: int, keep_last: int) -> Path:
    """Writes the checkpoint of training step `step`, then deletes all but the newest `keep_last`.

    To be called on every process.

    OSError: the disk is full or read-only; earlier checkpoints are as they were.
    """
    # Takes a second to import: not for every command that only reads a checkpoint.
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_model_state_dict,
        get_optimizer_state_dict,
    )

    accelerator = loop.collector.accelerator
    agent = accelerator.unwrap_model(loop.collector.agent)
    optimizer = getattr(loop.optimizer, "optimizer", loop.optimizer)
    full = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(agent, options=full)
    optimizer_state = get_optimizer_state_dict(agent, optimizer, options=full)
    target = folder / f"step_{step:06d}"
    if accelerator.is_main_process:
        aside = folder / f".writing-step_{step:06d}"
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(target, ignore_errors=True)
        try:
            _write(aside, lm, _split(weights, "policy.model."), _split(weights, "critic."), optimizer_state)
            state = {"step": step, "progress": asdict(loop.progress), "param_groups": optimizer_state["param_groups"]}
            _write_json(aside / "trainer/state.json", state)
            _write_json(aside / "trainer/checksums.json", checksums(aside))
            os.replace(aside, target)
        except (OSError, SafetensorError) as error:  # safetensors reports a full disk in its own way
            shutil.rmtree(aside, ignore_errors=True)
            raise OSError(f"{error}") from error
        prune(folder, keep_last)
    accelerator.wait_for_everyone()
    return target


def restore(loop: Loop, path: Path) -> None:
    """Puts weights, optimizer and progress of checkpoint `path` into the loop. InputError: a file is damaged."""
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        set_model_state_dict,
        set_optimizer_state_dict,
    )

    verify(path)
    agent = loop.collector.accelerator.unwrap_model(loop.collector.agent)
    weights: dict[str, Any] = {
        f"critic.{name}": tensor for name, tensor in _load(path / "trainer/critic.safetensors").items()
    }
    weights |= {f"policy.model.{name}": tensor for name, tensor in load_policy(path).items()}
    options = StateDictOptions(full_state_dict=True, strict=False)
    outcome = set_model_state_dict(agent, weights, options=options)
    # Tied weights are stored under one of their names, so `strict` would be too strict.
    stored = {parameter.data_ptr() for name, parameter in agent.named_parameters() if name in weights}
    absent = [name for name in outcome.missing_keys if agent.get_parameter(name).data_ptr() not in stored]
    if absent or outcome.unexpected_keys:
        raise InputError(f"checkpoint {path} is of another model: {[*absent, *outcome.unexpected_keys][:3]}; {_REMEDY}")
    state = json.loads((path / "trainer/state.json").read_text())
    nested: dict[str, Any] = {"state": {}, "param_groups": state["param_groups"]}
    for name, tensor in _load(path / "trainer/optimizer.safetensors").items():
        parameter, _, quantity = name.rpartition("/")
        nested["state"].setdefault(parameter, {})[quantity] = tensor
    optimizer = getattr(loop.optimizer, "optimizer", loop.optimizer)
    # After critic warm-up the policy has no moments yet: `strict` would refuse that, and loading makes some up.
    set_optimizer_state_dict(agent, optimizer, nested, options=options)
    for name, parameter in agent.named_parameters():
        if name not in nested["state"]:
            optimizer.state.pop(parameter, None)
    loop.progress = Progress(**state["progress"])


def prune(folder: Path, keep_last: int) -> None:
    """Deletes all but the newest `keep_last` checkpoints, and what a killed process left half-written."""
    for old in saved(folder)[:-keep_last]:
        old.rename(folder / f".deleting-{old.name}")  # in one move: a kill leaves no half-deleted checkpoint
    for leftover in [*folder.glob(".deleting-*"), *folder.glob(".writing-*")]:
        shutil.rmtree(leftover)


def saved(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step_*") if (path / "trainer/checksums.json").is_file())


def verify(path: Path) -> None:
    """InputError: a file of the checkpoint is missing or not as it was written."""
    try:
        expected = json.loads((path / "trainer/checksums.json").read_text())
        found = checksums(path)
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"checkpoint {path} cannot be read ({error}); {_REMEDY}") from error
    for name, digest in expected.items():
        if found.get(name) != digest:
            what = "is missing" if name not in found else "is not what was written"
            raise InputError(f"checkpoint {path} is damaged: {name} {what}; {_REMEDY}")


_REMEDY = "delete that folder to go on from the checkpoint before it, or the whole run folder to start again"


def checksums(path: Path) -> dict[str, str]:
    """sha256 of every file of a checkpoint but the list of checksums itself."""
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name != "checksums.json")
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def weights_hash(model: torch.nn.Module) -> str:
    """sha256 over names and bytes of a model's weights: the same in memory and in the checkpoint saved from it."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load_policy(path: Path) -> dict[str, Tensor]:
    """The policy's weights by name, from one safetensors file or several."""
    return {name: tensor for file in sorted(path.glob("*.safetensors")) for name, tensor in _load(file).items()}


def _write(aside: Path, lm: LanguageModel, policy: dict, critic: dict, optimizer_state: Mapping[str, Any]) -> None:
    (aside / "trainer").mkdir(parents=True)
    lm.model.save_pretrained(aside, state_dict=policy)
    lm.tokenizer.save_pretrained(aside)
    moments = {
        f"{parameter}/{quantity}": tensor.contiguous()
        for parameter, quantities in optimizer_state["state"].items()
        for quantity, tensor in quantities.items()
    }
    save_file(critic, aside / "trainer/critic.safetensors")
    save_file(moments, aside / "trainer/optimizer.safetensors")


def _split(weights: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t.contiguous() for name, t in weights.items() if name.startswith(prefix)}


def _load(file: Path) -> dict[str, Tensor]:
    return load_file(file) if file.is_file() else {}


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=1, sort_keys=True))
