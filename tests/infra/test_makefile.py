"""The Makefile refuses what it would otherwise ignore. `make -n` prints the commands and runs none."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def make(*words: str) -> subprocess.CompletedProcess[str]:
    """Runs `make -n` with no variable of an outer make or of the environment."""
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    command = ["make", "-n", "-o", ".venv/setup.json", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(("word", "name"), [("BENCHMARK=knn", "BENCHMARK"), ("OUTPT=x", "OUTPT"), ("knn=1", "knn")])
def test_an_unknown_variable_is_refused_with_the_known_ones(word: str, name: str) -> None:
    done = make("eval", word)
    assert done.returncode == 2 and done.stdout == ""
    assert f"unknown variable {name}; the known ones are PYTHON RUNNER INPUT KB " in done.stderr
    assert " BENCHMARKS " in done.stderr


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("eval", "BENCHMARKS=knn", "ENCODER=e", "DATA_DIR=d", "OUTPUT=o", "ARGS=--x"), "--benchmarks 'knn'"),
        (("eval", "EMBEDDINGS=e"), "--embeddings 'e'"),
        (("build-i2e", "INPUT=a.tar", "OUTPUT=o", "RUNNER=r", "NER_MODEL=n"), "--output 'o'"),
        (("build-i2e",), "--output 'runs/demo/i2e'"),
        (
            ("build-i2e", "RUNNER=r", "WORKERS=3", "FLINK_MASTER=f:1", "DRY_RUN=1"),
            "--runner 'r' --workers '3' --flink-master 'f:1' --dry-run --input",
        ),
        (("flink-up", "WORKERS=3", "ARGS=--rest-port 0"), "infra/flink/cluster.py up --workers '3' --rest-port 0"),
        (("flink-down", "ARGS=--folder f"), "infra/flink/cluster.py down --folder f"),
        (("build-i2e", "KB=k"), "--kb 'k'"),
        (
            ("build-i2e", "IMAGE_MEMBER=i", "TEXT_MEMBER=t", "TEXT_FIELD=f", "KEEP_FIELDS=k,l", "MAX_SIDE_PX=9"),
            "--image-member 'i' --text-member 't' --text-field 'f' --keep-fields 'k,l' --max-side-px '9'",
        ),
        (("build-kb", "TEXT_MEMBER=t", "TEXT_FIELD=f", "KB=k"), "--text-member 't' --text-field 'f' --output 'k'"),
        (("build-kb", "DUMP=d", "TEXTS=t", "KB=k"), "--source 'd' --languages 'en' --texts 't' --output 'k'"),
        (
            ("build-kb", "ANCHORS=a", "REDIRECTS=r", "LANGUAGES=en,fr", "GRAPH=svd", "KB=k"),
            "--anchors 'a' --redirects 'r' --graph 'svd' --output 'k'",
        ),
        (("build-kb",), "--output 'runs/demo/kb'"),
        (("explain", "DATA=d", "IMAGE=a b", "KB=k"), "--data 'd' --kb 'k' --image 'a' 'b'"),
        (("explain",), "-m pipeline.explain --data 'runs/demo/i2e'"),
        (("setup", "ACCELERATOR=tpu"), "-r infra/accelerators/tpu.txt"),
        (("train", "ACCELERATOR=cuda13"), "-r infra/accelerators/cuda13.txt"),
        (("retry", "DATA=d"), "-m pipeline.retry --data 'd'"),
        (("data-card", "DATA=d", "OUTPUT=o", "KB=k"), "--data 'd' --output 'o' --kb 'k'"),
        (("train", "CONFIG=c", "DATA=d", "MESH=2x1"), "--workdir 'runs/c-2x1'"),
        (("train", "WORKDIR=w", "PROFILE_STEPS=10-15"), "--workdir 'w' --profile-steps '10-15'"),
        (("eval-linker", "GOLD=g", "WEIGHTS=w"), "--gold g --kb 'runs/demo/kb' --ner-model"),
        (("eval-linker", "GOLD=g", "WEIGHTS=w"), "best-model.pt' --weights 'w'"),
        (("eval-linker",), "best-model.pt' --demo 'runs/demo'"),
        (("compare", "A=a", "B=b"), "'a' 'b'"),
        (("tensorboard", "WORKDIR=w"), "--logdir 'w'"),
        (("bench", "NAME=n"), "tests/benchmarks/n.py"),
        (("mutate", "FILES=f", "TESTS=t"), "f --tests t"),
        (("setup", "PYTHON=python9"), ""),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_every_variable_of_a_command_reaches_it(words: tuple[str, ...], part: str) -> None:
    done = make(*words)
    assert done.returncode == 0, done.stderr
    assert part in " ".join(done.stdout.replace("\\\n", " ").split())


def test_every_module_that_a_command_runs_is_there() -> None:
    names = set(re.findall(r"\$\(PY\) -m ([\w.]+)", (ROOT / "Makefile").read_text(encoding="utf-8")))
    assert "trainer.write_encoder" in names
    assert [name for name in sorted(names) if importlib.util.find_spec(name) is None] == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("build-i2e", "INPUT=a.tar"),
            "INPUT is given without OUTPUT, which would write over runs/demo/i2e; give OUTPUT=",
        ),
        (
            ("build-kb", "DUMP=d"),
            "DUMP, TEXTS, ANCHORS, REDIRECTS or GRAPH is given without KB, which would write over runs/demo/kb",
        ),
        (
            ("build-kb", "TEXTS=t"),
            "DUMP, TEXTS, ANCHORS, REDIRECTS or GRAPH is given without KB, which would write over runs/demo/kb",
        ),
    ],
)
def test_files_of_the_user_do_not_replace_the_demo(words: tuple[str, ...], message: str) -> None:
    done = make(*words)
    assert done.returncode == 2 and done.stdout == ""
    assert message in done.stderr


def test_an_accelerator_that_nothing_is_locked_for_is_refused() -> None:
    done = make("setup", "ACCELERATOR=cuda12")
    assert done.returncode == 2 and done.stdout == ""
    assert "ACCELERATOR is 'cuda12'; give one of cuda13 tpu, or leave it out for the CPU" in done.stderr


@pytest.mark.parametrize(("given", "expected"), [({}, "glibc.malloc.hugetlb=1"), ({"GLIBC_TUNABLES": "mine"}, "mine")])
def test_training_asks_for_large_pages_unless_the_environment_says_otherwise(
    given: dict[str, str], expected: str, tmp_path: Path
) -> None:
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text(encoding="utf-8"))
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nenv\n")  # prints the environment that it is started with
    python.chmod(0o755)
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    command = ["make", "-o", ".venv/setup.json", "train"]
    done = subprocess.run(command, cwd=tmp_path, env=environment | given, capture_output=True, text=True)
    assert f"GLIBC_TUNABLES={expected}\n" in done.stdout, done.stderr


def test_python_keeps_the_modules_that_it_compiles() -> None:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OTHER": "2"}
    command = ["make", "-s", "--eval", "show: ; @env", "show"]
    shown = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    assert "OTHER=2" in shown and "PYTHONDONTWRITEBYTECODE" not in shown
