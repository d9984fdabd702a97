"""Eight simulated devices, set before JAX meets its first one."""

import os

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import pipeline  # noqa: E402, F401  loads what must come before TensorFlow, whichever test comes first
