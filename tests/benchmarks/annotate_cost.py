"""CPU time of annotating with recorded model outputs, against a bare loop that reads, decodes and writes the same.

    make bench NAME=annotate_cost ARGS='--rows 20000'

Both read the same tar of small PNG pictures, decode each picture, and write the same records; the bare loop uses
tarfile, Pillow and pyarrow alone, a thousand rows at a time. The recorded outputs are two mentions with four
candidates each. CPU time of the job is that of all rows less that of one row, which is the start-up. Peak memory is
that of processes of their own, at a tenth of the rows and at all of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import io
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.config import AnnotateConfig, UnitConfig
from pipeline.images.decode import decode_image
from pipeline.jobs.annotate import annotate
from pipeline.jobs.plan import plan
from pipeline.row_stage import RowStage
from pipeline.runners import RunnerConfig
from pipeline.schema import EVIDENCE, Candidate, ImageText, LinkedMention, Mention, Rejection, Row
from pipeline.sources.inputs import list_inputs
from pipeline.storage.annotation_format import ANNOTATION_SCHEMA, record_of_row

SIDE_PX = 64


def linked(text: str) -> tuple[LinkedMention, ...]:
    evidence = tuple(0.5 for _ in EVIDENCE)
    candidates = tuple(
        Candidate(entity_id=f"Q{number}", prior=0.25, evidence=evidence, score=0.2, similarity=0.1)
        for number in range(4)
    )
    spans = ((0, 5), (6, 11))
    return tuple(
        LinkedMention(
            mention=Mention(start=start, end=end, surface=text[start:end], score=0.9, finder="tagger"),
            candidates=candidates,
            chosen="Q1",
            probability=0.8,
        )
        for start, end in spans
    )


class Recorded(RowStage):
    """Decodes each picture, as the scorer does, and gives the row the recorded outputs."""

    name = "recorded"

    def run(self, rows: Sequence[Row]) -> list[Row | Rejection]:
        return [self._outcome(row) for row in rows]

    def _outcome(self, row: Row) -> Row:
        width_px, height_px = decode_image(row.pair.image).size
        return dataclasses.replace(row, linked=linked(row.pair.text), width_px=width_px, height_px=height_px)


def write_tar(path: Path, num_rows: int) -> None:
    """Writes rows of noisy pictures of some 12 kB: one in a hundred has pixels of its own."""
    pictures = []
    for number in range(100):
        buffer = io.BytesIO()
        noise = b"".join(hashlib.sha256(f"{number}/{block}".encode()).digest() for block in range(SIDE_PX**2 * 3 // 32))
        Image.frombytes("RGB", (SIDE_PX, SIDE_PX), noise).save(buffer, "PNG")
        pictures.append(buffer.getvalue())
    with tarfile.open(path, "w") as tar:
        for row in range(num_rows):
            for suffix, content in ((".png", pictures[row % 100]), (".txt", f"Paris Texas in the year {row}".encode())):
                info = tarfile.TarInfo(f"{row:08d}{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def bare_loop(tar_path: Path, output: Path) -> None:
    """Reads, decodes and writes, and nothing else."""
    records: list[dict[str, Any]] = []
    with tarfile.open(tar_path) as tar, pq.ParquetWriter(output, ANNOTATION_SCHEMA, compression="zstd") as writer:
        picture = b""
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None
            content = file.read()
            if member.name.endswith(".png"):
                picture = content
                continue
            image = Image.open(io.BytesIO(picture))
            image.load()
            pair = dataclasses.replace(_example().pair, text=content.decode())
            record = record_of_row(Row(pair=pair, linked=linked(pair.text), width_px=image.width))
            records.append({**record, "image_sha256": hashlib.sha256(picture).hexdigest()})
            if len(records) == 1024:
                writer.write_table(pa.Table.from_pylist(records, schema=ANNOTATION_SCHEMA))
                records = []
        writer.write_table(pa.Table.from_pylist(records, schema=ANNOTATION_SCHEMA))


def _example() -> Row:
    return Row(pair=ImageText(image_id="0", image=b"", text="Paris Texas", shard="s.tar", row=0))


def annotate_all(tar_path: Path, output: Path) -> None:
    units = plan(list_inputs(str(tar_path)), str(output), config=UnitConfig(), runner=RunnerConfig(workers=1))
    annotate(
        units,
        str(output),
        stages=lambda: [Recorded()],
        fingerprint={},
        config=AnnotateConfig(),
        runner=RunnerConfig(workers=1),
    )


def cpu_sec(function: Any, *arguments: Path) -> float:
    begin = time.process_time()
    function(*arguments)
    return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--only-annotate", type=Path, help="a tar: annotate it and print the peak memory, in MB")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.only_annotate:
            annotate_all(args.only_annotate, folder / "out")
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
            return
        for tar, num_rows in (("one", 1), ("tenth", args.rows // 10), ("all", args.rows)):
            write_tar(folder / f"{tar}.tar", num_rows)
        start_up_sec = cpu_sec(annotate_all, folder / "one.tar", folder / "out-one")
        bare_sec = cpu_sec(bare_loop, folder / "all.tar", folder / "bare.parquet")
        job_sec = cpu_sec(annotate_all, folder / "all.tar", folder / "out-all") - start_up_sec
        peaks_mb = [
            float(
                subprocess.run(
                    [sys.executable, __file__, "--only-annotate", str(folder / f"{tar}.tar")],
                    check=True,
                    capture_output=True,
                    text=True,
                ).stdout.splitlines()[-1]
            )
            for tar in ("tenth", "all")
        ]
    print(
        f"{args.rows} rows: annotate {job_sec:.1f} s CPU, bare loop {bare_sec:.1f} s, ratio {job_sec / bare_sec:.2f}; "
        f"start-up {start_up_sec:.1f} s; peak memory {peaks_mb[0]:.0f} MB at {args.rows // 10} rows and "
        f"{peaks_mb[1]:.0f} MB at {args.rows}, ratio {peaks_mb[1] / peaks_mb[0]:.3f}"
    )


if __name__ == "__main__":
    main()
