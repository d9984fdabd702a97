"""What annotations depend on: a change elsewhere must not annotate everything again."""

from __future__ import annotations

import ast
import contextlib
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.config import AnnotateConfig
from pipeline.jobs import annotate
from pipeline.jobs.annotate import Models, annotation_fingerprint
from pipeline.storage import fingerprints
from pipeline.units import Part, Unit
from tests.fakes import write_encoder_stub, write_knowledge_base

ROOT = Path(__file__).resolve().parents[3]
# What the stages import, and what does not change annotations by its code.
OTHERWISE_KNOWN = {
    "pipeline/__init__.py",  # quiet logs
    "pipeline/config.py",  # the settings have their own hash
    "pipeline/engine/__init__.py",
    "pipeline/engine/devices.py",  # where models run: bytes are promised on one kind of device
    "pipeline/engine/processes.py",  # where units are annotated
    "pipeline/engine/progress.py",  # messages
    "pipeline/runners.py",  # where the job runs
    "pipeline/storage/__init__.py",
    "pipeline/storage/beam_files.py",  # how files are opened
    "pipeline/storage/disk.py",  # messages
    "pipeline/storage/fingerprints.py",
    "pipeline/storage/local_copy.py",  # where models lie
    "pipeline/storage/unit_commits.py",  # what is finished
    "trainer/encoder/pictures.py",  # of Encoder.embed_pictures, which mining does not call
    # Without code.
    "pipeline/stages/__init__.py",
    "pipeline/tagger/__init__.py",
    "trainer/__init__.py",
}


def files_imported_by(file: Path, seen: set[Path]) -> set[Path]:
    """Returns the files of this repository that `file` imports, itself and what they import included."""
    seen.add(file)
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            parts = name.split(".")
            for length in range(1, len(parts) + 1):
                base = ROOT.joinpath(*parts[:length])
                for found in (base.with_suffix(".py"), base / "__init__.py"):
                    if parts[0] in ("pipeline", "trainer") and found.exists() and found not in seen:
                        files_imported_by(found, seen)
    return seen


def test_the_code_of_annotations_is_all_that_their_stages_import() -> None:
    stated = {Path(path).resolve().relative_to(ROOT) for path in fingerprints.package_files(annotate._CODE)}
    imported = {path.relative_to(ROOT) for path in files_imported_by(ROOT / "pipeline/jobs/annotate.py", set())}
    assert sorted(map(str, imported - stated)) == sorted(OTHERWISE_KNOWN)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("models")
    write_knowledge_base(folder / "kb")
    write_encoder_stub(folder / "encoder")
    (folder / "tagger.pt").touch()
    return Models(kb=str(folder / "kb"), ner_model=str(folder / "tagger.pt"), encoder=str(folder / "encoder"))


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the repository's code, which the fingerprint is computed from."""
    for package in ("pipeline", "trainer"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(fingerprints, "_ROOT", str(tmp_path / "pipeline"))
    return tmp_path


@pytest.mark.parametrize(
    ("file", "is_part"),
    [
        ("pipeline/tagger/train.py", False),
        ("pipeline/kb/build/count_usage.py", False),
        ("pipeline/kb/build/read_dump.py", False),
        ("pipeline/kb/build/write_store.py", False),
        ("pipeline/build_kb.py", False),
        ("pipeline/stages/select_labels.py", False),
        ("trainer/encoder/write.py", False),
        ("trainer/train_step.py", False),
        ("pipeline/kb/store.py", True),
        ("pipeline/kb/usage.py", True),
        ("pipeline/tagger/load.py", True),
        ("pipeline/tagger/hashed_words.py", True),
        ("pipeline/stages/find_mentions.py", True),
        ("pipeline/stages/score_images.py", True),
        ("pipeline/row_stage.py", True),
        ("pipeline/sources/webdataset.py", True),
        ("pipeline/images/decode.py", True),
        ("trainer/encoder/read.py", True),
        ("trainer/encoder/preprocessing.py", True),
    ],
)
def test_a_line_changes_the_fingerprint_only_in_code_that_annotates(
    code: Path, models: Models, file: str, is_part: bool
) -> None:
    before = annotation_fingerprint(models, AnnotateConfig())
    with open(code / file, "a") as source:
        source.write("\n_ADDED = 1\n")
    after = annotation_fingerprint(models, AnnotateConfig())
    assert (after != before) == is_part
    assert {name for name in before if before[name] != after[name]} <= {"code"}


# 64 MiB of lists are kept, half of them young ones, and a part counts 1,000 bytes: 33,554 parts may be young.
@pytest.mark.parametrize(("num_parts", "is_kept"), [(16_777, True), (16_778, False)])
def test_lists_of_pending_units_are_read_once_and_kept_up_to_a_number_of_bytes(
    tmp_path: Path, num_parts: int, is_kept: bool
) -> None:
    annotated: list[Unit] = []
    worker = annotate._AnnotateDoFn(SimpleNamespace(annotate=annotated.append))  # type: ignore[arg-type]
    part = Part(path="in/a.tar", file="a.tar", fingerprint="f")
    # A unit of so many parts has a list of its own. The first one drops what other tests have read.
    units = [
        Unit(name=f"unit-{number}", parts=(part,) * count)
        for number, count in enumerate((33_554, 16_777, num_parts, 33_554))
    ]
    lists = annotate._write_pending(units, str(tmp_path), "run")
    for path, length in lists:
        assert length == 1
        worker.process((path, 0))
        Path(path).unlink()
    assert annotated == units
    worker.process((lists[3][0], 0))
    assert annotated[4:] == units[3:]
    # The last list made the young ones old. The third had done so before it if it was too large beside the second.
    with contextlib.nullcontext() if is_kept else pytest.raises(FileNotFoundError):
        worker.process((lists[1][0], 0))
    assert annotated[5:] == units[1:2] * is_kept
