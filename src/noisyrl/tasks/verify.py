"""Math-Verify in a process that can be killed.

Comparing two formulas may take for ever or exhaust the memory, and the library's own time limit needs the main
thread. So worker processes compare, one for each thread that asks at the same time, and whoever asks waits with a wall
clock. Run as a script this file is the worker; its imports at the top are therefore the standard library's only.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import threading
from functools import lru_cache

DEADLINE_S = 5.0
"""Longest comparison; a typical one takes 2 to 20 ms."""
_START_S = 120.0  # importing sympy from a cold disk
_MEMORY_BYTES = 4 << 30
_MOST_WORKERS = min(8, os.cpu_count() or 1)


class VerifyTimeout(Exception):
    """The comparison took longer than DEADLINE_S and was killed."""


class VerifyCrash(Exception):
    """The worker died, out of memory for example."""


@lru_cache(maxsize=65_536)  # samples of one prompt often agree; exceptions are not remembered
def equivalent(gold: str, answer: str) -> bool:
    """True if the two LaTeX expressions mean the same. Not symmetric: intervals and equations are read from the gold.

    VerifyTimeout, VerifyCrash: undecided. RuntimeError: Math-Verify cannot be imported.
    """
    return _POOL.ask(gold, answer)


class _Pool:
    """Idle workers; an expression that hangs holds up nobody else. For any thread, and for forked processes."""

    def __init__(self) -> None:
        self.forget()

    def ask(self, gold: str, answer: str) -> bool:
        with self.free:
            with self.lock:
                worker = self.idle.pop() if self.idle else _Worker()
            try:
                return worker.ask(gold, answer)
            finally:
                with self.lock:
                    self.idle.append(worker)

    def stop(self) -> None:
        """Ends the idle workers."""
        with self.lock:
            while self.idle:
                self.idle.pop().stop()

    def forget(self) -> None:
        """What a forked process starts with: its parent's workers answer its parent, and locks may be held for ever."""
        self.idle: list[_Worker] = []
        self.lock = threading.Lock()
        self.free = threading.BoundedSemaphore(_MOST_WORKERS)


class _Worker:
    """One process, started on first use and again after it was killed; for one thread at a time."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def ask(self, gold: str, answer: str) -> bool:
        process = self._started()
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps([gold, answer]) + "\n")
            process.stdin.flush()
            return bool(self._read(process, DEADLINE_S))
        except (VerifyTimeout, VerifyCrash):
            self.stop()
            raise
        except OSError as error:
            self.stop()
            raise VerifyCrash(str(error)) from error

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def _started(self) -> subprocess.Popen[str]:
        if self.process is None or self.process.poll() is not None:
            # -P: or the task files beside this one (math.py) would hide the standard library's modules.
            command = [sys.executable, "-P", __file__]
            pipe = subprocess.PIPE
            self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
            failure = self._read(self.process, _START_S)
            if failure is not None:
                self.stop()
                raise RuntimeError(f"the math grader cannot start: {failure}; pip install 'math-verify[antlr4_9_3]'")
        return self.process

    @staticmethod
    def _read(process: subprocess.Popen[str], seconds: float) -> object:
        assert process.stdout is not None
        if not select.select([process.stdout], [], [], seconds)[0]:
            raise VerifyTimeout(f"no answer within {seconds} s")
        line = process.stdout.readline()
        if not line.endswith("\n"):
            raise VerifyCrash("the worker died")
        return json.loads(line)


_POOL = _Pool()
atexit.register(_POOL.stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_POOL.forget)


def serve() -> None:
    """Answer one JSON line [gold, answer] after another, until standard input ends."""
    try:
        from math_verify import LatexExtractionConfig, parse, verify
    except Exception as error:  # told to the parent, who raises it
        print(json.dumps(repr(error)), flush=True)
        return
    _limit_memory()
    print("null", flush=True)
    # Only the box is read: the other extractors would fish a number out of a box that does not parse.
    extractors = [LatexExtractionConfig(boxed_match_priority=0)]
    for line in sys.stdin:
        gold, answer = (
            parse(rf"\boxed{{{text}}}", extractors, extraction_mode="first_match", parsing_timeout=None)
            for text in json.loads(line)
        )
        print(json.dumps(bool(verify(gold, answer, timeout_seconds=None))), flush=True)


def _limit_memory() -> None:
    """Where the system allows it: a power tower must not take the trainer's memory with it."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    except (ImportError, ValueError, OSError):
        pass


if __name__ == "__main__":
    serve()
