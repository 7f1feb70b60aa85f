"""A misspelt key is refused with the right spelling, before Hydra advises to append it with "+".

Nothing heavy is imported here: it runs at every start.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

_ASSIGNMENT = re.compile(r"^([A-Za-z_][\w.]*)=")
_CHOICE = re.compile(r"^([a-z_]+)(@[\w.]+)?=")  # noise=flip, noise@noise.first=flip


def refuse_unknown_keys(config_dir: Path, config_name: str, words: Sequence[str]) -> None:
    """Exits with status 1 and one message if a word `a.b=value` assigns a key that the chosen config does not have."""
    assigned = {match[1]: word for word in words if (match := _ASSIGNMENT.match(word))}
    groups = {key for key in assigned if (config_dir / key).is_dir()}
    if assigned.keys() <= groups | set(OmegaConf.load(config_dir / f"{config_name}.yaml")):
        return  # and the config need not be composed
    choices = [word for word in words if (match := _CHOICE.match(word)) and (config_dir / match[1]).is_dir()]
    config = _composed(config_dir, config_name, [word.split(",")[0] for word in choices])
    if config is None:
        return  # the choice of a group is at fault, which Hydra explains well
    plain = OmegaConf.to_container(config, resolve=False)
    known = sorted(_keys(plain))
    for key in assigned:
        if key not in groups and key not in known and not key.startswith("hydra."):
            sys.exit(f"error: config key {key} does not exist; {_advice(key, known)}")


def _composed(config_dir: Path, config_name: str, choices: list[str]) -> DictConfig | None:
    try:
        with initialize_config_dir(str(config_dir), version_base="1.3"):
            return compose(config_name, choices)
    except HydraException:
        return None
    finally:
        GlobalHydra.instance().clear()


def _keys(tree: object, prefix: str = "") -> Iterable[str]:
    """Every dotted key of nested dictionaries, inner nodes included."""
    if isinstance(tree, dict):
        for name, inner in tree.items():
            yield f"{prefix}{name}"
            yield from _keys(inner, f"{prefix}{name}.")


def _advice(key: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    parent = key.rpartition(".")[0]
    beside = [name for name in known if name.rpartition(".")[0] == parent and not name.endswith("_target_")]
    return f"did you mean {near[0]}?" if near else f"known there: {', '.join(beside) or ', '.join(known[:20])}"
