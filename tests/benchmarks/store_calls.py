"""Counts what mining asks of an object store, for each unit and for each further part of it.

    make bench NAME=store_calls ARGS='--rows 600'

Inputs and output lie on a file system of Beam that counts its calls and is a local folder, to the pipeline a store like
gs://. The models are a stand-in. Runs with 4 and 8 units of the same rows, and with 8 units of twice as many, tell the
calls for a unit from those for a run and for a batch of rows. A file that is read counts once for each piece of 16 MiB.
"""

from __future__ import annotations

import argparse
import collections
import importlib
import io
import math
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from apache_beam.io.filesystem import FileMetadata
from apache_beam.io.localfilesystem import LocalFileSystem

from pipeline import build_i2e as command
from pipeline.build_i2e import BuildI2EConfig, build_i2e
from pipeline.config import AssembleConfig, SelectLabelsConfig, UnitConfig, VocabularyConfig
from pipeline.runners import RunnerConfig

# Installed packages have a folder `tests` as well.
sys.path.append(str(Path(__file__).parents[1]))
fakes = importlib.import_module("fakes")
SCHEME = "counted"
PIECE_BYTES = 16 << 20  # Beam's reader of gs:// asks for this much at a time
calls: collections.Counter[str] = collections.Counter()


class CountedFileSystem(LocalFileSystem):
    """counted:///path is the local file /path; each call is counted."""

    @classmethod
    def scheme(cls) -> str:
        return SCHEME

    def join(self, basepath: str, *paths: str) -> str:
        return "/".join((basepath.rstrip("/"), *paths))

    def split(self, path: str) -> tuple[str, str]:
        folder, _, name = path.rpartition("/")
        return folder, name

    def has_dirs(self) -> bool:
        return False

    def _url_dirname(self, url_or_path: str) -> str:
        return url_or_path.rpartition("/")[0]

    def _list(self, dir_or_prefix: str) -> Iterator[FileMetadata]:
        calls["list"] += 1
        root = Path(local(dir_or_prefix))
        for path in sorted((root if root.is_dir() else root.parent).rglob("*")):
            if path.is_file() and str(path).startswith(str(root)):
                yield FileMetadata(f"{SCHEME}://{path}", path.stat().st_size, path.stat().st_mtime)

    def create(self, path: str, *arguments: Any, **options: Any) -> Any:
        calls["write"] += 1
        return super().create(local(path), *arguments, **options)

    def open(self, path: str, *arguments: Any, **options: Any) -> Any:
        size_bytes = Path(local(path)).stat().st_size if Path(local(path)).exists() else 0
        calls["read"] += max(1, math.ceil(size_bytes / PIECE_BYTES))
        return super().open(local(path), *arguments, **options)

    def exists(self, path: str) -> bool:
        calls["look"] += 1
        return bool(super().exists(local(path)))

    def size(self, path: str) -> int:
        calls["look"] += 1
        return int(super().size(local(path)))

    def last_updated(self, path: str) -> float:
        calls["look"] += 1
        return float(super().last_updated(local(path)))

    def metadata(self, path: str) -> FileMetadata:
        calls["look"] += 1
        found = super().metadata(local(path))
        return FileMetadata(path, found.size_in_bytes, found.last_updated_in_seconds)

    def checksum(self, path: str) -> str:
        calls["look"] += 1
        return str(super().checksum(local(path)))

    def delete(self, paths: Sequence[str]) -> None:
        calls["delete"] += len(paths)
        for path in paths:
            Path(local(path.replace("[", "").replace("]", ""))).unlink(missing_ok=True)


def local(path: str) -> str:
    return path.removeprefix(f"{SCHEME}://")


def count(num_units: int, num_rows: int) -> tuple[collections.Counter[str], collections.Counter[str]]:
    """Returns the calls of planning and annotating, and those of assembly."""
    folder = Path(tempfile.mkdtemp())
    fakes.write_knowledge_base(folder / "kb")
    fakes.write_encoder_stub(folder / "encoder")
    (folder / "tagger.pt").touch()
    (folder / "in").mkdir()
    for unit in range(num_units):
        rows = (fakes.pair(f"{unit}/{row}", f"E{row % 7}", (unit * num_rows + row) % 60_000) for row in range(num_rows))
        fakes.write_tar(folder / "in" / f"{unit:03d}.tar", (member for row in rows for member in row))
    config = {
        "input": f"{SCHEME}://{folder}/in/*.tar",
        "output": f"{SCHEME}://{folder}/out",
        "kb": str(folder / "kb"),
        "ner_model": str(folder / "tagger.pt"),
        "encoder": str(folder / "encoder"),
        "units": UnitConfig(unit_rows=0),
        "assemble": AssembleConfig(
            select=SelectLabelsConfig(keep_share=0.8), vocabulary=VocabularyConfig(min_images_per_entity=1)
        ),
        "runner": RunnerConfig(workers=1),
    }
    command.model_stages = lambda models, config: [fakes.FakeLinker()]
    found = []
    for only_annotate in (True, False):
        calls.clear()
        build_i2e(BuildI2EConfig(**config, only_annotate=only_annotate))
        found.append(calls.copy())
    shutil.rmtree(folder)
    return found[0], found[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=600, help="of a unit")
    num_rows = parser.parse_args().rows
    output, sys.stdout = sys.stdout, io.StringIO()
    few, many, long = count(4, num_rows), count(8, num_rows), count(8, 2 * num_rows)
    sys.stdout = output
    for place, job in enumerate(("annotate", "assemble")):
        kinds = sorted(many[place].keys() | few[place].keys())
        of_unit = {kind: (many[place][kind] - few[place][kind]) / 4 for kind in kinds}
        of_rows = {kind: (long[place][kind] - many[place][kind]) / 8 / num_rows * 1000 for kind in kinds}
        of_run = {kind: 2 * few[place][kind] - many[place][kind] for kind in kinds}
        print(f"{job}: for a unit of {num_rows} rows {sum(of_unit.values()):.2f} {of_unit}")
        print(f"  for each further 1000 rows of a unit {sum(of_rows.values()):.2f} {of_rows}; for a run {of_run}")


if __name__ == "__main__":
    main()
