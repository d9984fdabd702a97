"""SIGTERM: the run saves its state and ends, so that the same command goes on from there."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

import jax
from jax.experimental import multihost_utils

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: the same command succeeds later


class Terminated(Exception):
    """SIGTERM ended the run before its last step."""

    def __init__(self, step: int):
        super().__init__(f"stopped by SIGTERM; step {step} is saved, and the same command goes on from there")
        self.step = step


class Termination:
    """Notes SIGTERM while it is entered. A second SIGTERM ends the process at once.

    With several processes JAX notes the signal, and lets all of them stop at the same step.
    """

    def __init__(self) -> None:
        self.is_signalled = False
        self._before: signal.Handlers | int | None = None

    def __enter__(self) -> Termination:
        if not jax.distributed.is_initialized() and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)  # type: ignore[assignment]
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def is_due(self, step: int) -> bool:
        """Returns whether the run must stop before `step`; every process asks before each of its steps."""
        if jax.process_count() > 1:
            due: bool = multihost_utils.reached_preemption_sync_point(step)
            return due
        return self.is_signalled

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.is_signalled = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
