"""Eight simulated devices and quick compilation, set before JAX meets its first device."""

import os

_FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"{_FLAGS} {os.environ.get('XLA_FLAGS', '')}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("USE_TF", "0")  # of transformers; see evaluation/mteb.py
if "PYTEST_XDIST_WORKER" in os.environ:  # there is one per core: more threads would only wait for each other
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")

import pipeline  # noqa: E402, F401  loads what must come before TensorFlow, whichever test comes first
