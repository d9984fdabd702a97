"""On what a process runs its models, on a GPU where there is one, and how many texts a call of one has.

Local worker processes share the GPUs of their machine evenly, one each. The processes of an engine (Flink, Dataflow)
are not numbered: models of torch (the tagger and the sentence encoder) take the first GPU that they see, the encoder
of pictures all of them; CUDA_VISIBLE_DEVICES says which those are.
"""

from __future__ import annotations

import collections
import os
from collections.abc import Iterator, Sequence
from typing import TypeVar

# Texts per call, by torch's kind of device. Larger batches are seldom full: texts of the same length are rare. What
# fills them costs a CPU as much as other texts, and a GPU next to nothing.
BATCH_SIZES = {"cpu": 16, "cuda": 32}
_CPU_TOKENS = 128  # ours, of a call: with more, most texts of a rare length would be the first one repeated

_Device = TypeVar("_Device")
_worker: int | None = None


def set_worker(number: int) -> None:
    """Says which of the machine's worker processes this is, from 0; called before models are loaded."""
    global _worker
    _worker = number


def this_worker() -> int | None:
    """Returns the number that `set_worker` was given; None if it was not called."""
    return _worker


def torch_device() -> str:
    """Returns torch's name of the device for this process's models of torch, and gives it one thread of the CPU.

    flair's variable FLAIR_DEVICE chooses: "cpu", or the number of a GPU. More workers use more cores.
    """
    import torch  # takes seconds: only where a model of torch is used

    torch.set_num_threads(1)
    wanted = os.environ.get("FLAIR_DEVICE")
    return torch_device_of(num_gpus=torch.cuda.device_count(), worker=_worker, wanted=wanted)


def batches_of_one_length(lengths: Sequence[int], *, device: str) -> Iterator[list[int]]:
    """Yields the places of texts that have one number of tokens, as many as a call of a model on `device` has.

    So no token is padded. Where too few are left the first is repeated, since the size of a call changes the last
    digits of what it returns. On a CPU, calls of long texts have fewer of them.

    Args:
        lengths: of each text, in tokens.
        device: torch's name of it.
    """
    kind = device.partition(":")[0]
    places: dict[int, list[int]] = collections.defaultdict(list)
    for place, length in enumerate(lengths):
        places[length].append(place)
    for length, alike in places.items():
        size = BATCH_SIZES[kind]
        if kind == "cpu":
            size = max(1, min(size, _CPU_TOKENS // max(1, length)))
        for start in range(0, len(alike), size):
            batch = alike[start : start + size]
            yield batch + batch[:1] * (size - len(batch))


def torch_device_of(*, num_gpus: int, worker: int | None, wanted: str | None) -> str:
    """Returns torch's name of the device for a process's models of torch, "cpu" or such as "cuda:1".

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
