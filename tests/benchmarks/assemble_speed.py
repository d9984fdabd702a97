"""Times assembly per core: a first run beside plain Beam copies of the same pictures, and after a moved threshold.

    make bench NAME=assemble_speed ARGS='--units 20'

All times are CPU seconds of this process, less those of the same with one unit, which pays for start-up. One copy is a
Beam job that reads the tars by `tarfile` and writes each picture as a TFRecord: it decides nothing and checks nothing.
The other copies the tars as bytes, through Beam's file systems. The second threshold rejects labels in every twentieth
unit alone, so that 5 % of the shards differ. Pictures are noise as JPEG.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems
from synthetic.units import jpegs, write_base, write_unit

from pipeline.config import AnnotateConfig, AssembleConfig, SelectLabelsConfig, VocabularyConfig
from pipeline.jobs.assemble import assemble
from pipeline.runners import RunnerConfig, pipeline_options
from pipeline.storage.beam_files import copy_file
from pipeline.units import AnnotatedUnit

ENTITIES = 50
EVERY = 20  # of so many units one changes with the threshold


def cpu_seconds(function: Callable[[], object]) -> float:
    begin = time.process_time()
    function()
    return time.process_time() - begin


def make_units(folder: Path, num_units: int, rows: int, side_px: int) -> list[AnnotatedUnit]:
    units = []
    for number in range(num_units):
        pictures = jpegs(rows, side_px, seed=number)
        entities = [f"E{row % ENTITIES}" for row in range(rows)]
        similarities = [0.5] * rows
        if number % EVERY == 0:  # the last class by count, so that no class id moves
            entities[-1], similarities[-1] = f"E{ENTITIES}", 0.2
        units.append(write_unit(folder, number, pictures, entities, similarities))
    return units


def run(units: Sequence[AnnotatedUnit], output: Path, kb: Path, min_similarity: float) -> None:
    assemble(
        units,
        str(output),
        kb_path=str(kb),
        hashes={},
        config=AssembleConfig(
            select=SelectLabelsConfig(min_similarity=min_similarity),
            vocabulary=VocabularyConfig(min_images_per_entity=1),
        ),
        annotate_config=AnnotateConfig(),
        runner=RunnerConfig(workers=1),
    )


def copy_pictures(path: str, target: str) -> None:
    import tensorflow as tf

    with FileSystems.open(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
        with tf.io.TFRecordWriter(f"{target}/{Path(path).stem}.tfrecord") as writer:
            for member in tar:
                content = tar.extractfile(member)
                if content is not None and member.name.endswith(".jpg"):
                    writer.write(content.read())


def copy_bytes(path: str, target: str) -> None:
    copy_file(path, f"{target}/{Path(path).name}")


def copy(units: Sequence[AnnotatedUnit], target: Path, function: Callable[[str, str], None]) -> None:
    target.mkdir(exist_ok=True)
    with beam.Pipeline(options=pipeline_options(RunnerConfig(workers=1))) as job:
        paths = [unit.unit.parts[0].path for unit in units]
        job | beam.Create(paths) | beam.Reshuffle() | beam.Map(function, str(target))


@dataclasses.dataclass(frozen=True)
class Measured:
    seconds: tuple[float, ...]
    """First run, copy of pictures, copy of bytes, moved threshold, nothing to do."""
    megabytes: float
    num_changed: int


def measure(units: Sequence[AnnotatedUnit], folder: Path, kb: Path) -> Measured:
    folder.mkdir()
    first = cpu_seconds(lambda: run(units, folder / "set", kb, 0.1))
    copied = cpu_seconds(lambda: copy(units, folder / "pictures", copy_pictures))
    raw = cpu_seconds(lambda: copy(units, folder / "bytes", copy_bytes))
    before = {path: path.stat().st_mtime_ns for path in (folder / "set").glob("i2e-*-?????")}
    # There and back and there again: start-up takes longer than what is measured, and varies.
    moves = [cpu_seconds(lambda least=least: run(units, folder / "set", kb, least)) for least in (0.3, 0.1) * 3]
    moved = statistics.median(moves)
    run(units, folder / "set", kb, 0.3)
    num_changed = sum(path.stat().st_mtime_ns != time_ns for path, time_ns in before.items())
    again = cpu_seconds(lambda: run(units, folder / "set", kb, 0.3))
    megabytes = sum(path.stat().st_size for path in before) / 1e6
    shutil.rmtree(folder)
    return Measured((first, copied, raw, moved, again), megabytes, num_changed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=20, help="a multiple of 20")
    parser.add_argument("--rows", type=int, default=2000, help="of a unit; build_i2e makes units of up to 10,000")
    parser.add_argument("--side-px", type=int, default=128)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_base(folder / "kb", ENTITIES + 1)
        units = make_units(folder / "input", arguments.units, arguments.rows, arguments.side_px)
        measure(units[1:2], folder / "warm", folder / "kb")
        start, whole = (measure(one, folder / f"of-{len(one)}", folder / "kb") for one in (units[1:2], units))
    first, copied, raw, moved, again = (
        spent - fixed for spent, fixed in zip(whole.seconds, start.seconds, strict=True)
    )
    megabytes = whole.megabytes
    num_rows = arguments.units * arguments.rows
    print(f"{arguments.units} units of {arguments.rows} rows, {1e3 * megabytes / num_rows:.1f} kB a record")
    print(f"first run           {first:8.2f} s  {megabytes / first:8.1f} MB/s a core")
    for name, seconds in (("copy of pictures", copied), ("copy of bytes", raw)):
        print(f"{name:20}{seconds:8.2f} s  {megabytes / seconds:8.1f} MB/s a core")
    print(f"  first run: {copied / first:.2f} x the speed of the copy of pictures (goal: at least 0.5)")
    print(f"             {raw / first:.2f} x that of the copy of bytes")
    print(f"moved threshold     {moved:8.2f} s  {whole.num_changed} of {arguments.units} shards written")
    print(f"  against the first run: {moved / first:.3f} x its time (goal: at most 0.1 for 5 % of the shards)")
    print(f"nothing to do       {again:8.2f} s")


if __name__ == "__main__":
    main()
