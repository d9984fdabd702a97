"""Pictures drawn: SVG to PNG for all of them, and the copies that several pages show of one drawing."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

from PIL import Image

from pipeline.demo.pictures import Picture
from pipeline.demo.render import rasterise

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")
_JOBS_MIN = 500  # fewer are not worth starting processes


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrawnPicture:
    """A picture with its PNG bytes."""

    picture: Picture
    png: bytes
    held_out_entity: bool


def draw(pictures: Sequence[Picture], *, size_px: int, num_workers: int) -> list[tuple[Picture, bytes]]:
    """Returns the pictures that show something, with PNG bytes; equal bytes go to the first entity that has them.

    Norway's flag is also Svalbard's: kept for both, each would be a wrong answer to the other.
    """
    drawn = map_in_processes(_rasterise, [(p.svg, size_px) for p in pictures], num_workers)
    if None in drawn:
        print(f"{drawn.count(None)} icons are broken or draw nothing, and are left out", flush=True)
    owner: dict[bytes, str] = {}
    kept = []
    for picture, png in zip(pictures, drawn, strict=True):
        if png is not None and owner.setdefault(hashlib.sha256(png).digest(), picture.entity_id) == picture.entity_id:
            kept.append((picture, png))
    return kept


def _rasterise(job: tuple[str, int]) -> bytes | None:
    svg, size_px = job
    try:
        return rasterise(svg, size_px)
    except ValueError:  # a package's broken icon
        return None


def web_copy(job: tuple[bytes, int, str]) -> bytes:
    """Returns the PNG of `(png, copy, seed)`: the same bytes for copy 0, else at another scale and place on white.

    One drawing on several pages is seldom one file. Without this, all but the first pair of a picture would be exact
    duplicates, which mining removes.
    """
    png, copy, seed = job
    if copy == 0:
        return png
    picture = Image.open(io.BytesIO(png))
    rng = random.Random(seed)
    side = picture.width
    inner = rng.randint(round(side * 0.8), side)
    canvas = Image.new("RGB", (side, side), "white")
    scaled = picture.resize((inner, inner), Image.Resampling.BILINEAR)
    canvas.paste(scaled, (rng.randint(0, side - inner), rng.randint(0, side - inner)))
    out = io.BytesIO()
    canvas.save(out, format="PNG", compress_level=6)
    return out.getvalue()


def map_in_processes(function: Callable[[_Job], _Result], jobs: Sequence[_Job], num_workers: int) -> list[_Result]:
    """Returns `function` of each of `jobs`, in order, computed in `num_workers` processes."""
    if num_workers <= 1 or len(jobs) < _JOBS_MIN:
        return [function(job) for job in jobs]
    with ProcessPoolExecutor(num_workers) as pool:
        return list(pool.map(function, jobs, chunksize=64))
