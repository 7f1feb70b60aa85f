"""What a noise model works out before the first step: once, by one process, and kept in the run folder.

Resuming reads it again, so it is exact even where working it out anew would round differently; and people can audit it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from noisyrl.noise.base import Setting
from noisyrl.records import write_atomic
from noisyrl.spec import InputError

Row = dict[str, Any]


def worked_out(
    setting: Setting, name: str, *, made_for: Mapping[str, Any], work: Callable[[], Sequence[Row]]
) -> list[Row]:
    """The rows of the run folder's file `name`; if there is none yet, `work()` on the main process fills it.

    The first line of the file is {"made_for": ...}; without a run folder nothing is kept and every process works.
    InputError: the file was made for something else, or is damaged.
    """
    if setting.folder is None:
        return list(work())
    file = setting.folder / name
    if setting.main and not file.exists():
        lines = [{"made_for": made_for}, *work()]
        write_atomic(file, "".join(json.dumps(line) + "\n" for line in lines))
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
    return _read(file, made_for)


def _read(file: Path, made_for: Mapping[str, Any]) -> list[Row]:
    try:
        first, *rows = [json.loads(line) for line in file.read_text().splitlines()]
        found = first["made_for"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} cannot be read ({error}); delete the run folder to start again") from error
    if found != json.loads(json.dumps(made_for)):
        raise InputError(f"{file} was made for {found}, not for {dict(made_for)}: set name= to start another run")
    return rows
