"""A trace of some steps of a run: what the devices and this program did, and when."""

from __future__ import annotations

import contextlib
import os
import re
from types import TracebackType
from typing import Any

import jax

from pipeline.schema import UserError
from trainer.files import written_locally
from trainer.processes import say

_FOLDER = os.path.join("plugins", "profile")  # where TensorBoard's profile plugin looks, below the folder of the events


def parse_profile_steps(text: str, steps: int) -> range:
    """Returns the steps that `text`, of the form `A-B`, names; both are included.

    Args:
        text: what the option says.
        steps: how many steps the run has.

    Raises:
        UserError: `text` does not name steps of the run.
    """
    match = re.fullmatch(r"(\d+)-(\d+)", text)
    first, last = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= first <= last:
        raise UserError(
            f"--profile-steps {text} is not of the form A-B with 1 <= A <= B (both steps are profiled), "
            "e.g. --profile-steps 10-15"
        )
    if last > steps:
        raise UserError(
            f"--profile-steps {text} names steps after the last one of this run, which is {steps}; choose earlier ones"
        )
    return range(first, last + 1)


class Profile:
    """Traces the given steps of a run, in process 0, whose devices do what those of the others do.

    Args:
        workdir: the run's folder; the trace is written below its `plugins/profile`.
        steps: the steps to trace; none if it is empty.
        first_step: the step that the run goes on from, or 0.
    """

    def __init__(self, workdir: str, steps: range, first_step: int):
        self._workdir = workdir
        self._steps = range(max(steps.start, first_step + 1), steps.stop) if jax.process_index() == 0 else range(0)
        self._traced: list[int] = []
        self._local = contextlib.ExitStack()  # the folder that JAX writes to, which cannot be in a store
        self._annotation: jax.profiler.StepTraceAnnotation | None = None
        if steps and not self._steps:
            say(
                f"nothing is profiled: --profile-steps {steps.start}-{steps.stop - 1} lies before step "
                f"{first_step + 1}, where this run goes on"
            )

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._traced:  # the run ends early
            self._write()

    def begin(self, step: int, state: Any) -> None:
        """Starts the trace if `step` is the first to be traced, once `state`, that of the step before it, is there."""
        if step not in self._steps:
            return
        if not self._traced:
            jax.block_until_ready(state)
            options = jax.profiler.ProfileOptions()
            # Else each call of a Python function is an event, and the trace is full after a few steps.
            options.python_tracer_level = 0
            self._folder = self._local.enter_context(written_locally(self._workdir))
            jax.profiler.start_trace(self._folder, profiler_options=options)
        self._traced.append(step)
        self._annotation = jax.profiler.StepTraceAnnotation("train", step_num=step)
        self._annotation.__enter__()

    def end(self, step: int, state: Any) -> None:
        """Writes the trace if `step` is the last to be traced, once `state`, which the step made, is there."""
        if step not in self._steps:
            return
        if step == self._steps[-1]:
            jax.block_until_ready(state)
        self._end_annotation()
        if step == self._steps[-1]:
            self._write()

    def _end_annotation(self) -> None:
        if self._annotation is not None:
            self._annotation.__exit__(None, None, None)
            self._annotation = None

    def _write(self) -> None:
        self._end_annotation()
        jax.profiler.stop_trace()
        folder = os.path.join(self._folder, _FOLDER)
        name = max(os.listdir(folder), key=lambda name: os.path.getmtime(os.path.join(folder, name)))
        self._local.close()
        say(f"profiled steps {self._traced[0]} to {self._traced[-1]}: {os.path.join(self._workdir, _FOLDER, name)}")
        self._traced = []
