"""What models run on."""

from __future__ import annotations

import pytest

from pipeline.engine.devices import encoder_devices, tagger_device


@pytest.mark.parametrize(
    ("num_gpus", "worker", "wanted", "expected"),
    [
        (0, None, None, "cpu"),
        (0, 3, "1", "cpu"),  # flair too ignores a number where there is no GPU
        (1, None, None, "cuda:0"),
        (1, 3, "", "cuda:0"),
        (2, 0, None, "cuda:0"),
        (2, 3, None, "cuda:1"),  # 3 % 2
        (2, 3, "cpu", "cpu"),
        (2, 3, "0", "cuda:0"),
    ],
)
def test_the_tagger_takes_a_gpu_if_there_is_one_and_the_user_does_not_say_otherwise(
    num_gpus: int, worker: int | None, wanted: str | None, expected: str
) -> None:
    assert tagger_device(num_gpus=num_gpus, worker=worker, wanted=wanted) == expected


def test_the_encoder_takes_all_devices_or_those_of_several_workers_one_each() -> None:
    gpus = ["gpu:0", "gpu:1", "gpu:2"]
    assert encoder_devices(gpus, worker=None) == gpus
    assert [encoder_devices(gpus, worker=worker) for worker in (0, 2, 4)] == [["gpu:0"], ["gpu:2"], ["gpu:1"]]
