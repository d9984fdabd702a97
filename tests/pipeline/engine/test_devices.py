"""What models run on."""

from __future__ import annotations

import pytest

from pipeline.engine import devices
from pipeline.engine.devices import (
    batches_of_one_length,
    encoder_devices,
    set_worker,
    this_worker,
    torch_device,
    torch_device_of,
)


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
def test_models_of_torch_take_a_gpu_if_there_is_one_and_the_user_does_not_say_otherwise(
    num_gpus: int, worker: int | None, wanted: str | None, expected: str
) -> None:
    assert torch_device_of(num_gpus=num_gpus, worker=worker, wanted=wanted) == expected


def test_models_of_torch_run_where_the_user_says_in_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(devices, "torch_device_of", lambda **values: asked.append(values) or "cuda:1")
    monkeypatch.setattr(devices, "_worker", 3)
    monkeypatch.setattr("torch.set_num_threads", asked.append)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setenv("FLAIR_DEVICE", "cpu")
    assert torch_device() == "cuda:1"
    assert asked == [1, {"num_gpus": 4, "worker": 3, "wanted": "cpu"}]


def test_a_batch_has_texts_of_one_length_and_as_many_as_the_device_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "BATCH_SIZES", {"cpu": 2, "cuda": 3})
    lengths = [5, 0, 5, 7, 5]
    assert list(batches_of_one_length(lengths, device="cpu")) == [[0, 2], [4, 4], [1, 1], [3, 3]]
    assert list(batches_of_one_length(lengths, device="cuda:1")) == [[0, 2, 4], [1, 1, 1], [3, 3, 3]]
    assert list(batches_of_one_length([5, 0, 5], device="cuda:1")) == [[0, 2, 0], [1, 1, 1]]
    assert list(batches_of_one_length([], device="cpu")) == []


def test_a_batch_on_a_cpu_has_at_most_128_tokens_or_one_text() -> None:
    lengths = [0] * 17 + [8] * 17 + [9] * 15 + [65, 65, 128, 129, 129]
    sizes = {lengths[batch[0]]: len(batch) for batch in batches_of_one_length(lengths, device="cpu")}
    # At most 16; 128 / 8 = 16, 128 / 9 = 14.2, 128 / 65 = 1.97
    assert sizes == {0: 16, 8: 16, 9: 14, 65: 1, 128: 1, 129: 1}
    assert {len(batch) for batch in batches_of_one_length(lengths, device="cuda:0")} == {32}


def test_the_encoder_takes_all_devices_or_those_of_several_workers_one_each() -> None:
    gpus = ["gpu:0", "gpu:1", "gpu:2"]
    assert encoder_devices(gpus, worker=None) == gpus
    assert [encoder_devices(gpus, worker=worker) for worker in (0, 2, 4)] == [["gpu:0"], ["gpu:2"], ["gpu:1"]]


def test_a_process_is_the_worker_that_it_was_told_to_be_and_none_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_worker", devices._worker)  # for the tests that follow
    assert this_worker() is None
    set_worker(3)
    assert this_worker() == 3
