"""Compiled programs, kept in the folder of a run, so that a run that goes on does not compile them again."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath
from jax.experimental.compilation_cache import compilation_cache

from trainer.processes import say

COMPILED_FOLDER = "compiled"
_FOLDER_SETTING = "jax_compilation_cache_dir"
_SETTINGS = {
    "jax_persistent_cache_min_compile_time_secs": 0.1,  # ours: what compiles faster is compiled again
    # With XLA's own files beside the programs, their folder would be a part of what a program is found by, so that
    # those of a folder that was moved would not be found.
    "jax_persistent_cache_enable_xla_caches": "none",
}
_CPU_INFO = "/proc/cpuinfo"
# The lines of it that say which instructions a CPU has; the others change from one moment to the next.
_OF_INSTRUCTIONS = ("vendor_id", "cpu family", "model", "flags", "Features", "CPU implementer", "CPU part")


@contextlib.contextmanager
def keeping_compiled(workdir: str) -> Iterator[None]:
    """Lets JAX keep what it compiles in a folder of `workdir`, and read it back from there.

    JAX finds a program by its code, the version of XLA, its flags and the kind of the devices. Programs for a CPU use
    the instructions of the CPU that they were compiled on, and another one may not have them, so each kind of CPU has
    a folder of its own. A folder that is set already, as by `JAX_COMPILATION_CACHE_DIR`, is kept instead.
    """
    if given := getattr(jax.config, _FOLDER_SETTING):
        say(f"compiled programs are kept in {given}")
        yield
        return
    folder = os.path.join(workdir, COMPILED_FOLDER, _instructions())
    kept = epath.Path(folder)
    count = sum(file.name.endswith("-cache") for file in kept.iterdir()) if kept.is_dir() else 0
    say(f"compiled programs are kept in {folder}" + (f", which has {count}" if count else ""))
    before = {name: getattr(jax.config, name) for name in _SETTINGS}
    _set({**_SETTINGS, _FOLDER_SETTING: folder})
    try:
        yield
    finally:
        _set({**before, _FOLDER_SETTING: None})


def _set(settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def _instructions() -> str:
    """Returns a name for the instructions of this machine's CPU: equal names, equal instructions."""
    lines = []
    with contextlib.suppress(FileNotFoundError), open(_CPU_INFO, encoding="utf-8") as file:
        for line in file:
            if not line.strip():  # the end of the first core
                break
            if line.partition(":")[0].strip() in _OF_INSTRUCTIONS:
                lines.append(line)
    digest = hashlib.sha256("".join([platform.processor(), *lines]).encode()).hexdigest()
    return f"{platform.machine()}-{digest[:12]}"
