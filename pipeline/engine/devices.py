"""On what a process runs its models: on a GPU, where there is one.

Local worker processes share the GPUs of their machine evenly, one each. The processes of an engine (Flink, Dataflow)
are not numbered: the tagger takes the first GPU that they see, the encoder all of them; CUDA_VISIBLE_DEVICES says which
those are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

_Device = TypeVar("_Device")
_worker: int | None = None


def set_worker(number: int) -> None:
    """Says which of the machine's worker processes this is, from 0; called before models are loaded."""
    global _worker
    _worker = number


def this_worker() -> int | None:
    """Returns the number that `set_worker` was given; None if it was not called."""
    return _worker


def tagger_device(*, num_gpus: int, worker: int | None, wanted: str | None) -> str:
    """Returns torch's name of the device for the tagger, "cpu" or such as "cuda:1".

    Args:
        num_gpus: that torch can use.
        worker: the number of this process; None if it has none.
        wanted: the user's choice as flair's variable FLAIR_DEVICE states it, "cpu" or a number; None or "" for none.
    """
    if num_gpus == 0 or wanted == "cpu":
        return "cpu"
    return f"cuda:{wanted or (worker or 0) % num_gpus}"


def encoder_devices(devices: Sequence[_Device], *, worker: int | None) -> list[_Device]:
    """Returns those of `devices` that share the encoder's batches: one if this process is one of several, else all."""
    return list(devices) if worker is None else [devices[worker % len(devices)]]
