"""The benchmark of an accelerator, at small sizes on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "infra" / "bench" / "gpu.py"


def run(*words: str) -> tuple[int, list[dict[str, Any]], str]:
    done = subprocess.run([sys.executable, str(SCRIPT), "--small", *words], capture_output=True, text=True)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def test_each_row_is_measured_in_a_process_of_its_own() -> None:
    status, found, _ = run("--rows", "multitask", "head", "attention")
    assert status == 0, found
    assert [line["row"] for line in found] == [
        "multitask", "head_16", "head_products_16", "head_naive_16", "attention_xla",
    ]  # fmt: skip
    step, head = found[0], found[1]
    assert step["images_per_s"] == pytest.approx(step["batch_size"] / step["ms"] * 1e3, rel=1e-2)
    # 4 patches and the class token of 64 channels in 2 blocks, a text of 8 tokens in 2 blocks, 4,096 classes.
    block = 12 * 64**2
    image = 4 * 3 * 16**2 * 64 + 2 * 5 * (block + 2 * 5 * 64) + 64 * 64
    text = 2 * 8 * (block + 2 * 8 * 64) + 64 * 64
    products = image + text + 8 * 64 + 4096 * 64
    assert step["tflops"] == pytest.approx(6 * 8 * products / step["ms"] * 1e3 / 1e12, rel=1e-2)
    assert 0 < step["peak_share"] and 0 < step["temporaries_gb"] and 0 < step["plan_gb"]
    assert head["tflops"] == pytest.approx(8 * 16 * 4096 * 64 / head["ms"] * 1e3 / 1e12, rel=1e-2)


def test_a_row_that_cannot_be_measured_says_why() -> None:
    status, found, _ = run("--rows", "head_16", "--limit-s", "0")
    assert status == 1 and found == [{"row": "head_16", "error": "no time was left of --limit-s 0"}]
    status, found, _ = run("--rows", "head_16", "--limit-s", "0.1")
    assert status == 1 and found == [{"row": "head_16", "error": "stopped: --limit-s 0.1 was over"}]


def test_an_unknown_row_is_refused_with_the_known_ones() -> None:
    status, found, errors = run("--rows", "tower", "hat")
    assert status == 2 and found == []
    assert "--rows hat: no row begins so; the rows are tower, tower_timm, multitask, head_16" in errors
