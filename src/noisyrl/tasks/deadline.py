"""Grading by the wall clock: a grader that hangs or fails leaves a response unscored, and the run goes on."""

from __future__ import annotations

import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from noisyrl.spec import InputError
from noisyrl.tasks.base import Task
from noisyrl.types import Grade, Prompt


class GraderTimeout(BaseException):
    """Grading took longer than allowed. No `except Exception` of a grader swallows it."""


def graded(task: Task, prompt: Prompt, turns: Sequence[str], seconds: float) -> Grade:
    """`task.grade(prompt, turns)`; status "timeout" after `seconds`, "error" if it raises (the first one warns).

    InputError goes through: what the user has to mend would fail on every response.

    The clock interrupts Python code and calls that yield to signals. Graders that may hang inside C, as Math-Verify
    does, run in a process of their own and are killed there (`verify.py`). Outside the main thread there is no clock.
    """
    try:
        with _alarm(seconds):
            return task.grade(prompt, turns)
    except GraderTimeout:
        return Grade(None, "timeout")
    except InputError:
        raise
    except Exception as error:
        warnings.warn(f"the grader failed on {prompt.uid}: {type(error).__name__}: {error}", stacklevel=2)
        return Grade(None, "error")


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """GraderTimeout is raised inside the block after `seconds`."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def ring(signum: int, frame: object) -> None:
        raise GraderTimeout

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
