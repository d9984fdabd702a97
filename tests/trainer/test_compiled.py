"""Compiled programs that a run keeps for the next start."""

import json
import shutil

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from trainer import compiled
from trainer import train as train_module
from trainer.compiled import _instructions as instructions
from trainer.compiled import keeping_compiled
from trainer.configs.base import override
from trainer.train import train


@pytest.fixture(scope="module", autouse=True)
def no_folder_is_set():
    """Without the folder of all tests, a run keeps its programs in its own."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def small(tiny):
    """An experiment that compiles quickly."""
    changes = ["loss.contrastive_weight=0", "loss.classification_weight=1", "optimizer.kind=adamw", "steps=5"]
    return override(tiny, [*changes, "image.scale_init_by_data=false"])


@pytest.fixture
def hits():
    """How many programs JAX read from a folder instead of compiling them."""
    found = []

    def note(event, **_):
        if event == "/jax/compilation_cache/cache_hits":
            found.append(event)

    jax.monitoring.register_event_listener(note)
    yield found
    jax.monitoring.unregister_event_listener(note)


def losses(workdir):
    return [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def stopped_at_step_4(finished, tmp_path):
    shutil.copytree(finished[1], tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "encoder")
    shutil.rmtree(tmp_path / "checkpoints" / "5")
    (folder,) = (tmp_path / "compiled").iterdir()
    return folder


def test_a_run_that_goes_on_reads_the_programs_back_and_has_the_same_bits(
    finished, small, tmp_path, monkeypatch, capsys, hits
):
    folder = stopped_at_step_4(finished, tmp_path)
    kept = {path.name for path in folder.iterdir()}
    assert any(name.startswith("jit_step-") for name in kept)
    monkeypatch.setattr(train_module, "write_encoder", lambda *_: "")
    train(small, data=finished[0], workdir=str(tmp_path), mesh="1x1")
    assert f"compiled programs are kept in {folder}, which has {len(kept)}\n" in capsys.readouterr().out
    assert {path.name for path in folder.iterdir()} == kept
    assert hits
    assert losses(tmp_path) == losses(finished[1])


def test_a_program_that_cannot_be_read_is_compiled_again(finished, small, tmp_path, monkeypatch):
    folder = stopped_at_step_4(finished, tmp_path)
    (path,) = folder.glob("jit_step-*-cache")
    path.write_bytes(path.read_bytes()[:-20])  # a full disk cut it off
    monkeypatch.setattr(train_module, "write_encoder", lambda *_: "")
    with pytest.warns(UserWarning, match="Error reading persistent compilation cache entry for 'jit_step'"):
        train(small, data=finished[0], workdir=str(tmp_path), mesh="1x1")
    assert losses(tmp_path) == losses(finished[1])


def test_settings_of_jax_are_as_before_afterwards(tmp_path, capsys):
    names = ("jax_compilation_cache_dir", *compiled._SETTINGS)
    before = [getattr(jax.config, name) for name in names]
    with keeping_compiled(str(tmp_path)):
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "compiled" / instructions())
    assert [getattr(jax.config, name) for name in names] == before
    assert capsys.readouterr().out == f"compiled programs are kept in {tmp_path}/compiled/{instructions()}\n"


def test_a_folder_that_is_set_already_is_kept(tmp_path, capsys):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    try:
        with keeping_compiled(str(tmp_path / "run")):
            assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")
    finally:
        jax.config.update("jax_compilation_cache_dir", None)
    assert capsys.readouterr().out == f"compiled programs are kept in {tmp_path}/mine\n"


def test_cpus_of_other_instructions_have_folders_of_their_own(tmp_path, monkeypatch):
    def named(text):
        (tmp_path / "cpuinfo").write_text(text)
        monkeypatch.setattr(compiled, "_CPU_INFO", str(tmp_path / "cpuinfo"))
        return instructions()

    core = "processor\t: 0\nmodel\t\t: 17\ncpu MHz\t\t: {}\nflags\t\t: fpu sse2 {}\n\n"
    first = named(core.format(2400, "avx2"))
    assert first == named(core.format(3100, "avx2"))  # a clock that varies
    assert first == named(core.format(2400, "avx2") + core.format(2400, "avx2"))  # more cores
    assert first != named(core.format(2400, "avx2 avx512f"))
    assert first != named(core.format(2400, "avx2").replace("17", "18"))
    monkeypatch.setattr(compiled, "_CPU_INFO", str(tmp_path / "none"))
    assert instructions() != first
