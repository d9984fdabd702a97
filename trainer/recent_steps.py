"""The steps since the last look at their metrics, so that the first one that went wrong can be named."""

from __future__ import annotations

import json
import math
import os
from typing import Any

import jax
import numpy as np

from pipeline.schema import UserError
from trainer.data import Records
from trainer.files import write_file
from trainer.finite import first_not_finite
from trainer.train_step import FINITE_GRADIENTS, FINITE_PARAMS

REPORT_FILE = "not_finite.json"
_AHEAD = 2  # ours: steps that may be queued on the device
_SUMS = ("loss", "gradient_norm")  # made of the others


class RecentSteps:
    """Metrics and records of the steps since the last look.

    The metrics stay on the device until then: to fetch them after each step would make the device wait.

    Args:
        workdir: the run's folder, where a report is written when the run stops.
        records: the set's, to look up the ids of the images of a step.
        params: the parameters of the run, which may be abstract.
    """

    def __init__(self, workdir: str, records: Records, params: Any):
        self._workdir, self._records, self._params = workdir, records, params
        self._steps: list[tuple[int, dict[str, Any], np.ndarray]] = []

    def add(self, step: int, metrics: dict[str, Any], read: np.ndarray) -> None:
        """Notes a step: its metrics, and the positions of the records that this process read for it.

        Returns when all but the last `_AHEAD` steps are done. Else JAX would queue all steps until the next look, with
        their batches, and SIGTERM would wait for them.
        """
        self._steps.append((step, metrics, read))
        if len(self._steps) > _AHEAD:
            jax.block_until_ready(self._steps[-1 - _AHEAD][1])

    def looked_at(self) -> dict[str, float]:
        """Returns the scalar metrics of the last step, and forgets all steps but the last.

        Raises:
            UserError: a number of a step is not finite; in every process.
        """
        fetched = jax.device_get([metrics for _, metrics, _ in self._steps])
        for (step, _, read), metrics in zip(self._steps, fetched, strict=True):
            fault = self._fault(metrics)
            if fault is not None:
                raise self.stopped(step, fault, read)
        self._steps = self._steps[-1:]
        return {name: float(value) for name, value in fetched[-1].items() if np.ndim(value) == 0}

    def stopped(self, step: int, fault: str, read: np.ndarray | None = None) -> UserError:
        """Returns the error that ends the run, after the images of the step are written to the workdir.

        Args:
            step: the step.
            fault: what is not finite.
            read: the positions of the records of the step; None: those of the last step.
        """
        positions = (self._steps[-1][2] if read is None else read).tolist()
        ids = [self._records[position].image_id for position in positions]
        number = jax.process_index()
        path = os.path.join(self._workdir, REPORT_FILE if number == 0 else f"{number}-{REPORT_FILE}")
        report = {"step": step, "fault": fault, "image_ids": ids}
        write_file(path, json.dumps(report, indent=1, ensure_ascii=False).encode())
        return UserError(
            f"{fault} at step {step}, whose images were {', '.join(ids[:3])} and {max(0, len(ids) - 3)} more, see "
            f"{path}; lower the learning rate with --set optimizer.learning_rate=VALUE, and start again with another "
            "--workdir"
        )

    def _fault(self, metrics: dict[str, Any]) -> str | None:
        """Returns the first number that is not finite, in the order of the computation; None if all are finite."""
        scalars = {name: float(value) for name, value in metrics.items() if np.ndim(value) == 0}
        for name in [*(name for name in scalars if name not in _SUMS), "loss"]:
            if not math.isfinite(scalars[name]):
                return f"{name} is {scalars[name]}"
        for name, words in ((FINITE_GRADIENTS, "the gradient of {}"), (FINITE_PARAMS, "the update of {}")):
            path = None if name not in metrics else first_not_finite(self._params, metrics[name])
            if path is not None:
                return f"{words.format(path)} is not finite"
        if not math.isfinite(scalars.get("gradient_norm", 0.0)):
            return f"gradient_norm is {scalars['gradient_norm']}"
        return None
