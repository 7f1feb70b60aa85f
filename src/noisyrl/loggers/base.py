"""An extra tracker that mirrors what is on disk. metrics.jsonl, evaluations and tables are written whatever it does.

A mirror must never stop what it mirrors: whatever a tracker raises is said once on standard error, and that is all.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from noisyrl.spec import spec

Value = float | str | list[dict[str, Any]]
"""A number; a page of HTML; the rows of a table, each by column."""


class Backend(Protocol):
    """What a tracker does; it may raise."""

    def log(self, step: int, metrics: Mapping[str, Value]) -> None: ...

    def finish(self, status: str) -> None: ...


class Tracker:
    """A started mirror, safe to call: failures are reported once and swallowed."""

    def __init__(self, name: str) -> None:
        self._name, self._warned = name, False
        self._backend: Backend | None = None

    def open(self, make: Callable[[], Backend | None]) -> Tracker:
        """Itself, with the backend that `make` returns, or with none if it fails."""
        self._guard("start", lambda: setattr(self, "_backend", make()))
        return self

    def log(self, step: int, metrics: Mapping[str, Value]) -> None:
        """All metrics of one step, in one call: a step logged in parts loses its axis in some trackers."""
        backend = self._backend
        if backend is not None:
            self._guard("log", lambda: backend.log(step, metrics))

    def finish(self, status: str) -> None:
        """Close, with the run's status ("completed" = success). Closing twice does nothing."""
        backend, self._backend = self._backend, None
        if backend is not None:
            self._guard("finish", lambda: backend.finish(status))

    def _guard(self, stage: str, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # any: a mirror must not stop a run
            if not self._warned:
                message = f"warning: {self._name} failed at {stage} ({type(error).__name__}: {error})"
                print(f"{message}; it is only a mirror, what is on disk is complete", file=sys.stderr, flush=True)
            self._warned = True


@spec
class Logger(ABC):
    """What `logger=` configures."""

    def start(self, run_dir: Path, about: Mapping[str, Any]) -> Tracker:
        """Open the mirror of one run, of its evaluation or of a table; never raises.

        run_dir: where offline files go. about: the run's manifest, or the like; trackers read "name", "run_id" (the
        same one again goes on with what there is), "cell_id" (groups the seeds of one cell), "config" and, if there,
        "choices", "tier" and "job_type" (default "train"; "eval", "table").
        """
        return Tracker(type(self).__name__).open(lambda: self.backend(run_dir, about))

    def check(self) -> None:  # noqa: B027 - most need nothing
        """InputError: what the tracker needs is not installed. Asked before anything starts."""

    @abstractmethod
    def backend(self, run_dir: Path, about: Mapping[str, Any]) -> Backend | None:
        """The tracker itself, None = nothing to mirror to. May raise."""
