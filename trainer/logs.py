"""The logs of a run: TensorBoard, metrics.jsonl, and a line per logged step on the terminal."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator

import jax
import tensorflow as tf
from clu import metric_writers
from etils import epath
from tensorboard.compat.proto.event_pb2 import Event

from trainer.files import append_line, read_lines, write_file


class Logs:
    """Writes the metrics of some steps, in process 0.

    Lines of `metrics.jsonl` and events of TensorBoard past `first_step` come from a run that was killed after its last
    checkpoint. They are removed, because this run writes them again.

    Args:
        workdir: the run's folder.
        first_step: the step of the checkpoint that this run starts from, or 0.
        steps: the run's last step.
        batch_size: images per step, over all processes.
        peak_steps: steps a second if all devices did nothing but the models' matrix products, at their peak.
    """

    def __init__(self, workdir: str, *, first_step: int, steps: int, batch_size: int, peak_steps: float):
        self._path = os.path.join(workdir, "metrics.jsonl")
        self._steps, self._batch_size, self._peak_steps = steps, batch_size, peak_steps
        self._waited_s = 0.0
        self._last_step, self._last_time = first_step, time.monotonic()
        self._writer: metric_writers.MetricWriter | None = None
        if jax.process_index() != 0:
            return
        kept = [line + "\n" for line in read_lines(self._path) if json.loads(line)["step"] <= first_step]
        write_file(self._path, "".join(kept).encode())
        for file in list(epath.Path(workdir).iterdir()):
            if file.name.startswith("events.out.tfevents."):
                _remove_events(os.fspath(file), first_step)
        self._writer = metric_writers.AsyncWriter(metric_writers.SummaryWriter(workdir))

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time within as waiting for data."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._waited_s += time.monotonic() - start

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Writes the metrics of `step`, with the speed since the last call.

        Beside `images_per_second` these are `data_wait_share`, the share of the time that the run waited for a batch;
        `model_flops_utilization`, the share of the devices' peak that the models' own products make up; and
        `device_memory_gb`, the most that a device of this process has held, where devices say so.
        """
        if self._writer is None:
            return
        now = time.monotonic()
        elapsed_s = max(now - self._last_time, 1e-9)
        steps_per_s = (step - self._last_step) / elapsed_s
        speeds = {
            "images_per_second": steps_per_s * self._batch_size,
            "data_wait_share": self._waited_s / elapsed_s,
            "model_flops_utilization": steps_per_s / self._peak_steps,
            **_device_memory(),
        }
        self._last_step, self._last_time, self._waited_s = step, now, 0.0
        rounded = {name: float(f"{value:.4g}") for name, value in speeds.items()}
        append_line(self._path, json.dumps({"step": step, **metrics, **rounded}))
        self._writer.write_scalars(step, {**metrics, **speeds})
        left_s = (self._steps - step) / max(steps_per_s, 1e-9)
        print(
            f"step {step}/{self._steps}  loss {metrics['loss']:.4f}  {speeds['images_per_second']:.0f} images/s  "
            f"MFU {speeds['model_flops_utilization']:.0%}  data wait {speeds['data_wait_share']:.0%}  "
            f"ETA {int(left_s) // 3600}:{int(left_s) // 60 % 60:02}:{int(left_s) % 60:02}",
            flush=True,
        )

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _device_memory() -> dict[str, float]:
    """Returns the most memory that a device of this process has held; nothing where devices do not say."""
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
    known = [peak for peak in peaks if peak is not None]
    return {"device_memory_gb": max(known) / 1e9} if known else {}


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
    epath.Path(temporary).replace(path)
