"""The pace of a run as its logs state it."""

import json
import types

import pytest

from trainer import logs as logs_module
from trainer import peak as peak_module
from trainer.logs import Logs
from trainer.peak import peak_flops


def device(kind, platform="gpu", peak=None):
    stats = None if peak is None else {"peak_bytes_in_use": peak}
    return types.SimpleNamespace(device_kind=kind, platform=platform, memory_stats=lambda: stats)


def mesh(*devices):
    return types.SimpleNamespace(local_devices=list(devices), size=len(devices))


def test_speed_waiting_and_utilization_are_since_the_last_line(tmp_path, monkeypatch, capsys):
    clock = [100.0]
    monkeypatch.setattr(logs_module.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(logs_module.jax, "local_devices", lambda: [device("x", peak=2_000_000_000), device("x")])
    logs = Logs(str(tmp_path), first_step=10, steps=40, batch_size=8, peak_steps=4.0)
    for step, seconds, waiting in ((20, 10.0, 1.0), (30, 5.0, 0.0)):
        with logs.waiting():
            clock[0] += waiting
        clock[0] += seconds - waiting
        logs.write(step, {"loss": 1.5})
    logs.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [
        {
            "step": 20,
            "loss": 1.5,
            "images_per_second": 8.0,
            "data_wait_share": 0.1,
            "model_flops_utilization": 0.25,
            "device_memory_gb": 2.0,
        },
        {
            "step": 30,
            "loss": 1.5,
            "images_per_second": 16.0,
            "data_wait_share": 0.0,
            "model_flops_utilization": 0.5,
            "device_memory_gb": 2.0,
        },
    ]
    assert "step 20/40  loss 1.5000  8 images/s  MFU 25%  data wait 10%  ETA 0:00:20\n" in capsys.readouterr().out


def test_the_peak_is_the_makers_or_measured(monkeypatch):
    monkeypatch.setattr(peak_module, "_measured_flops", lambda device, dtype: 7e12)
    assert peak_flops(mesh(device("NVIDIA H200"), device("NVIDIA H200")), "bfloat16") == pytest.approx(2 * 989e12)
    assert peak_flops(mesh(device("NVIDIA H200"), device("NVIDIA H200")), "float32") == pytest.approx(14e12)
    assert peak_flops(mesh(device("another"), device("another")), "bfloat16") == pytest.approx(14e12)
    # Simulated devices share the cores of their process.
    assert peak_flops(mesh(device("cpu", "cpu"), device("cpu", "cpu")), "bfloat16") == pytest.approx(7e12)


def test_a_product_is_timed_on_a_real_device():
    import jax

    assert 1e8 < peak_flops(jax.make_mesh((1, 1), ("data", "model")), "float32") < 1e16
