"""What a run says: TensorBoard, metrics.jsonl, and one line on the terminal."""

from __future__ import annotations

import json
import math
import os
import time

import jax
from clu import metric_writers

from trainer.configs.base import UserError


class Logs:
    """Writes metrics of chosen steps, in process 0; `first_step` is where this run starts, after a restore or at 0.

    Lines of `metrics.jsonl` past `first_step` come from a run that was killed after its last checkpoint: they are cut,
    for this run writes them again.
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
        # A kill in between leaves what was there.
        with open(self._path + ".part", "w", encoding="utf-8") as file:
            file.writelines(kept)
        os.replace(self._path + ".part", self._path)
        self._writer = metric_writers.AsyncWriter(metric_writers.SummaryWriter(workdir))

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Writes the metrics of `step`, with the speed since the last call.

        Raises:
            UserError: a metric is not finite; in every process.
        """
        broken = [name for name, value in metrics.items() if not math.isfinite(value)]
        if broken:
            raise UserError(
                f"{broken[0]} is {metrics[broken[0]]} at step {step}; lower the learning rate, e.g. --set "
                "optimizer.learning_rate=…, and start again in another --workdir"
            )
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
