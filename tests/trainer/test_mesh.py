import jax
import numpy as np
import pytest

from trainer import mesh as mesh_module
from trainer.configs.base import UserError
from trainer.mesh import described, make_mesh, prepare_devices


@pytest.mark.parametrize(
    ("accelerator", "before", "after"),
    [
        (False, "", "--xla_force_host_platform_device_count=4"),
        (False, "--xla_force_host_platform_device_count=8", "--xla_force_host_platform_device_count=8"),
        (True, "--xla_a=1", "--xla_a=1 --xla_gpu_deterministic_ops=true"),
        (True, "--xla_gpu_deterministic_ops=false", "--xla_gpu_deterministic_ops=false"),
    ],
)
def test_devices_are_simulated_or_asked_to_repeat_exactly(monkeypatch, accelerator, before, after):
    monkeypatch.setattr(mesh_module, "_has_accelerator", lambda: accelerator)
    monkeypatch.setenv("XLA_FLAGS", before)
    prepare_devices(4)
    assert mesh_module.os.environ["XLA_FLAGS"] == after


def test_a_mesh_says_what_it_is_made_of():
    assert described(make_mesh(4, 2)) == "no accelerator: mesh 4x2 on 8 simulated CPU device(s)"


def test_several_processes_need_a_mesh_of_all_devices(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    count = len(jax.devices())
    with pytest.raises(UserError, match=rf"has 4 devices, the 2 processes together have {count}; use them all"):
        make_mesh(2, 2)
    assert np.prod(make_mesh(count, 1).devices.shape) == count
