"""`logger=wandb`: Weights & Biases, offline unless told otherwise. A mirror of what is on disk, never a source."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from noisyrl.loggers.base import Logger, Value
from noisyrl.spec import InputError, spec

if TYPE_CHECKING:
    import wandb


@spec
class WandbLogger(Logger):
    """One W&B run per run, evaluation or table; offline files in FOLDER/wandb are uploaded by `make wandb-sync`."""

    project: str = "noisyrl"
    """W&B project."""
    entity: str | None = None
    """W&B team or user; null = the account's default."""
    mode: Literal["offline", "online"] = "offline"
    """online needs a login and a network; without them the start waits half a minute, then the run goes on alone."""
    tags: Sequence[str] = ()
    """For tables, tiers and marks such as "invalid"; factors are in the config, where runs can be grouped by them."""

    def check(self) -> None:
        try:
            from wandb import init  # noqa: F401 - a folder named wandb can be imported too, but has none
        except ImportError as error:
            raise InputError(f"W&B cannot be imported ({error}): pip install -e '.[wandb]', or do without") from error

    def backend(self, run_dir: Path, about: Mapping[str, Any]) -> _WandbRun:
        import wandb

        kind = about.get("job_type", "train")
        run = wandb.init(
            project=self.project,
            entity=self.entity,
            mode=self.mode,
            dir=str(run_dir),
            id=re.sub(r"[^A-Za-z0-9_-]+", "-", about["run_id"]),  # W&B refuses / \ # ? % :
            resume="allow",
            reinit="create_new",  # the jobs of a sweep share a process
            name=about["name"],
            group=about.get("cell_id"),
            job_type=kind,
            tags=list(self.tags),
            config={**about["config"], **{key: about[key] for key in ("choices", "tier") if key in about}},
            settings=wandb.Settings(x_disable_stats=True, console="off", silent=True, init_timeout=30),
        )
        if kind != "table":  # which has no steps, and of which a "last" in the summary would leave nothing to show
            run.define_metric("global_step")
            for name in ("*", "eval/*"):  # the last value, never the best: a maximum of test scores is no result
                run.define_metric(name, step_metric="global_step", summary="last")
        return _WandbRun(run)


class _WandbRun:
    def __init__(self, run: wandb.Run) -> None:
        self.run = run

    def log(self, step: int, metrics: Mapping[str, Value]) -> None:
        # W&B's own counter is left alone: it refuses the negative steps of a critic's warm-up, and after a resume.
        self.run.log({**{name: _shown(value) for name, value in metrics.items()}, "global_step": step})

    def finish(self, status: str) -> None:
        self.run.summary["status"] = status
        self.run.finish(exit_code=0 if status == "completed" else 1)


def _shown(value: Value) -> Any:
    """The value as W&B shows it."""
    import wandb

    if isinstance(value, str):
        return wandb.Html(value, inject=False)  # the page as it is
    if isinstance(value, list):
        return wandb.Table(columns=list(value[0]), data=[list(row.values()) for row in value])
    return value
