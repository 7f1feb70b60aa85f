"""A built table as a W&B run of job type "table": its cells as a table of W&B's, and its HTML page.

A mirror, as those of runs are: its settings are those of conf/logger/wandb.yaml, offline unless that says otherwise,
and nothing is read from it. Offline files lie beside the tables, where `make wandb-sync` finds them.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pandas as pd
import yaml

from analysis import writers
from noisyrl.loggers.base import Logger
from noisyrl.spec import InputError


def logger_in(conf: Path) -> Logger:
    """What conf/logger/wandb.yaml describes. InputError: there is no such file, or the package is missing."""
    from noisyrl.launch import build  # imports much: tables without a mirror do without

    file = conf / "logger/wandb.yaml"
    if not file.is_file():
        raise InputError(f"--wandb takes its settings from {file}, which does not exist: pass --conf")
    logger: Logger = build({"logger": yaml.safe_load(file.read_text())})["logger"]
    logger.check()
    return logger


def mirror(logger: Logger, text: writers.Text, frame: pd.DataFrame, out: Path, *, stem: str, tier: str | None) -> None:
    """Logs one table. Its id is made of its content: the same table again is the same W&B run. Never raises.

    out   folder of the tables
    stem  name of their files; the versions of one table are a group
    """
    page = writers.html(text, frame)
    about = {
        "name": stem,
        "run_id": f"table-{stem}-{hashlib.sha256(page.encode()).hexdigest()[:16]}",
        "cell_id": stem,
        "job_type": "table",
        "config": {"table": text.name, "caption": text.caption, "notes": list(text.notes)},
        **({"tier": tier} if tier else {}),
    }
    cells = frame.astype(object).where(frame.notna(), None).to_dict("records")
    tracker = logger.start(out, about)
    tracker.log(0, {"cells": cells, "page": page})
    tracker.finish("completed")
