"""The logs of a run: TensorBoard, metrics.jsonl, and a line per logged step on the terminal."""

from __future__ import annotations

import glob
import json
import os
import time

import jax
import tensorflow as tf
from clu import metric_writers
from tensorboard.compat.proto.event_pb2 import Event

from pipeline.storage.disk import write_whole


class Logs:
    """Writes the metrics of some steps, in process 0.

    Lines of `metrics.jsonl` and events of TensorBoard past `first_step` come from a run that was killed after its last
    checkpoint. They are removed, because this run writes them again.

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
        for path in glob.glob(os.path.join(glob.escape(workdir), "events.out.tfevents.*")):
            _remove_events(path, first_step)
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


def _remove_events(path: str, last_step: int) -> None:
    """Removes the events past `last_step`, and what a kill cut off, from a file of TensorBoard."""
    kept: list[bytes] = []
    is_changed = False
    try:
        for payload in tf.data.TFRecordDataset(path).as_numpy_iterator():
            if Event.FromString(payload).step <= last_step:
                kept.append(payload)
            else:
                is_changed = True
    except tf.errors.DataLossError:
        is_changed = True
    if not is_changed:
        return
    # Under another name until it is whole; a name that TensorBoard does not read.
    temporary = os.path.join(os.path.dirname(path), f"{os.path.basename(path).replace('tfevents', 'kept')}.tmp")
    with tf.io.TFRecordWriter(temporary) as writer:
        for payload in kept:
            writer.write(payload)
    os.replace(temporary, path)
