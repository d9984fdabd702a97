"""The logs of a run: TensorBoard, metrics.jsonl, and a line per logged step on the terminal."""

from __future__ import annotations

import json
import os
import time

import jax
from clu import metric_writers

from pipeline.storage.disk import write_whole


class Logs:
    """Writes the metrics of some steps, in process 0.

    Lines of `metrics.jsonl` past `first_step` come from a run that was killed after its last checkpoint. They are
    removed, because this run writes them again.

    Args:
        workdir: the run's folder.
        first_step: the step of the checkpoint that this run starts from, or 0.
        steps: the run's last step.
        batch_size: images per step, over all processes.
    """

    def __init__(self, workdir: str, *, first_step: int, steps: int, batch_size: int):
        self._path = os.path.join(workdir, "metrics.jsonl")
        self._steps, self._batch_size = steps, batch_size
        self._last_step, self._last_time = first_step, time.monotonic()
        self._writer: metric_writers.MetricWriter | None = None
        if jax.process_index() != 0:
            return
        kept: list[str] = []
        if os.path.exists(self._path):
            with open(self._path, encoding="utf-8") as file:
                kept = [line for line in file if line.endswith("\n") and json.loads(line)["step"] <= first_step]
        write_whole(self._path, "".join(kept).encode())
        self._writer = metric_writers.AsyncWriter(metric_writers.SummaryWriter(workdir))

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Writes the metrics of `step`, with the speed since the last call."""
        if self._writer is None:
            return
        now = time.monotonic()
        speed = (step - self._last_step) * self._batch_size / max(now - self._last_time, 1e-9)
        self._last_step, self._last_time = step, now
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics, "images_per_second": round(speed, 1)}) + "\n")
        self._writer.write_scalars(step, {**metrics, "images_per_second": speed})
        left_s = (self._steps - step) * self._batch_size / max(speed, 1e-9)
        print(
            f"step {step}/{self._steps}  loss {metrics['loss']:.4f}  {speed:.0f} images/s  "
            f"ETA {int(left_s) // 3600}:{int(left_s) // 60 % 60:02}:{int(left_s) % 60:02}",
            flush=True,
        )

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
