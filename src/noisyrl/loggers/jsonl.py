"""`logger=jsonl`: no mirror. metrics.jsonl in the run folder, always written, is all there is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noisyrl.loggers.base import Logger
from noisyrl.spec import spec


@spec
class JsonlLogger(Logger):
    """Nothing beside the run folder's own files."""

    def backend(self, run_dir: Path, about: Mapping[str, Any]) -> None:
        return None
