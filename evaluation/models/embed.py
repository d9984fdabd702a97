"""Pictures and texts to embeddings, through the encoder artefact: batched, prefetched, kept on disk, resumable.

Embeddings of pictures lie in one folder for each (encoder, pictures, preprocessing), whatever benchmarks call the set:
one file per block of rows, and when all are there, one file of all rows. Several processes, on one machine or on many
that share the folder, may embed one set together: each claims blocks that nobody works on, then repeats those that were
claimed and never finished. Texts lie in such folders too, one file per block; processes do not share them out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import sys
import time
import uuid
import zipfile
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image
from tqdm import tqdm

from evaluation.models.arrays import read_kept
from evaluation.progress import progress
from evaluation.protocol import Embedded, hash_of
from evaluation.sets.images import ImageSet, UnreadableImage, check_unreadable
from pipeline.schema import UserError
from pipeline.storage.disk import new_file, write_whole

if TYPE_CHECKING:
    from trainer.encoder import Encoder

BATCH_SIZE = 64  # rows per device and call: one fixed shape, so that a row does not depend on its neighbours
BLOCK_ROWS = 16 * BATCH_SIZE  # rows per file: what a kill loses at most
_BATCHES_AHEAD = 4  # batches that wait, decoded
_LAYOUT_VERSION = 3  # of the folder, and of how pictures are decoded
_NUM_SAMPLED = 4  # pictures whose bytes tell one set from another, besides its fingerprint
_WHOLE = "whole.json"  # written last


class TextEncoder(Protocol):
    """What embedding texts needs of an encoder."""

    hash: str

    def embed_texts(self, texts: Sequence[str], /) -> np.ndarray: ...


class ImageEncoder(Protocol):
    """What embedding pictures needs of an encoder."""

    hash: str

    def preprocess(self, picture: Image.Image, /) -> np.ndarray: ...

    def embed_images(self, images: np.ndarray, /) -> np.ndarray: ...


def load_encoder(path: str | os.PathLike[str]) -> Encoder:
    """Returns the encoder in directory `path`, on all local devices.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    # jax takes seconds to import, and most of the evaluation needs none of it.
    from trainer.encoder import Encoder

    try:
        return Encoder.load(path, batch_size=BATCH_SIZE)
    except ValueError as error:
        raise UserError(str(error)) from error
    except OSError as error:
        raise UserError(f"the encoder {path} cannot be read ({error}); look at the permissions of its files") from error


def preprocessing_of(encoder: Any) -> dict[str, Any]:
    """Returns the encoder's preprocessing as JSON values; empty for one that states none."""
    stated = getattr(encoder, "preprocessing", None)
    return dataclasses.asdict(stated) if dataclasses.is_dataclass(stated) and not isinstance(stated, type) else {}


def embed_images(
    encoder: ImageEncoder,
    images: ImageSet,
    *,
    cache_dir: str | os.PathLike[str],
    max_unreadable: int = 0,
    num_threads: int | None = None,
) -> Embedded:
    """Returns the embeddings of `images`, read from `cache_dir` where they were made before.

    Args:
        encoder: usually a `trainer.encoder.Encoder`.
        images: all of them are embedded.
        cache_dir: made if needed.
        max_unreadable: pictures that may be missing or broken; they are left out and counted.
        num_threads: that read and decode pictures; None: one per core.

    Raises:
        UserError: more pictures cannot be read, or an embedding is not finite or a zero vector.
    """
    # max_unreadable is judged when all are there: with a limit of 0 the first one ends the run, else all are counted.
    if len(images) == 0:
        raise UserError(f"{images.name} holds no pictures, at least 1 is needed; look at its folder")
    key = {
        "layout": _LAYOUT_VERSION,
        "encoder": encoder.hash,
        "images": images.fingerprint,
        "ids": hash_of(images.ids.tolist()),
        "sample": _sample_hash(images),
        "on_white": images.on_white,
        "preprocessing": preprocessing_of(encoder),
        "batch_size": BATCH_SIZE,
    }
    text = json.dumps(key, sort_keys=True)
    folder = Path(cache_dir) / hashlib.sha256(text.encode()).hexdigest()[:24]
    whole = _read_whole(folder, images.name, max_unreadable)
    if whole is not None:
        return whole
    with _cached_in(folder):
        write_whole(folder / "key.json", text.encode())
        try:
            _embed_blocks(encoder, images, folder, max_unreadable=max_unreadable, num_threads=num_threads)
            _merge(images, folder)
        finally:
            # Also when another process has merged: this one may have claimed and written blocks since.
            if (folder / _WHOLE).exists():
                for path in [*folder.glob("*.npz"), *folder.glob("*.claim")]:
                    path.unlink(missing_ok=True)
    whole = _read_whole(folder, images.name, max_unreadable)
    if whole is None:
        raise UserError(f"{folder} changed while it was read; remove it and run again")
    return whole


def embed_texts(
    encoder: TextEncoder, name: str, texts: Sequence[str], *, cache_dir: str | os.PathLike[str]
) -> np.ndarray:
    """Returns the embeddings of `texts`, float32 `[n, dim]` at length 1; those in `cache_dir` are read from it.

    Equal texts are embedded once, so that their rows are the same to the last bit.

    Args:
        encoder: usually a `trainer.encoder.Encoder` with a text function.
        name: of the set, for the progress.
        texts: at least one.
        cache_dir: made if needed.

    Raises:
        UserError: there is no text, an embedding is not finite or a zero vector, or `cache_dir` cannot be written.
    """
    place = {text: position for position, text in enumerate(dict.fromkeys(texts))}
    unique = list(place)
    key = json.dumps([_LAYOUT_VERSION, encoder.hash, BATCH_SIZE, BLOCK_ROWS])
    folder = Path(cache_dir) / f"texts-{hash_of([key, *unique])[:24]}"
    rows: np.ndarray | None = None
    with _cached_in(folder):
        num_kept = min(len(unique), BLOCK_ROWS * len(list(folder.glob("*.npy"))))
        with progress(len(unique), f"embed {name}", "text", initial=num_kept) as bar:
            for start in range(0, len(unique), BLOCK_ROWS):
                some = unique[start : start + BLOCK_ROWS]
                path = folder / f"{start:012d}.npy"
                block = read_kept(path, ndim=2, lengths=[len(some)], remedy="embedding again")
                if block is None:
                    block = check_embeddings(encoder.embed_texts(some), np.array(some, dtype=object))
                    with new_file(path) as file:
                        np.save(file, block)
                    bar.update(len(some))
                if rows is None:
                    rows = np.empty((len(unique), block.shape[1]), np.float32)
                rows[start : start + len(some)] = block
    if rows is None:
        raise UserError(f"{name} has no texts, at least 1 is needed")
    return rows if len(unique) == len(texts) else rows[[place[text] for text in texts]]


@contextlib.contextmanager
def _cached_in(folder: Path) -> Iterator[None]:
    """Makes `folder`, and raises UserError where it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error}); free some space or give another --output") from error


def check_embeddings(embeddings: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Returns `embeddings` `[n, dim]` as float32 at length 1.

    Raises:
        UserError: a row is not finite (float16 overflows at 65,504), or a zero vector; the message names its id.
    """
    embeddings = np.asarray(embeddings, np.float32)
    norms: np.ndarray = np.linalg.norm(embeddings, axis=1)
    for wrong, what in ((~np.isfinite(norms), "is not finite"), (norms < 1e-6, "is a zero vector")):
        if wrong.any():
            first = ids[np.flatnonzero(wrong)[0]]
            raise UserError(
                f"the embedding of {first} {what} ({int(wrong.sum())} of {len(norms)} in its batch); "
                "train or export the encoder again, or correct the ready embeddings"
            )
    unit: np.ndarray = embeddings / norms[:, None]
    return unit


def _embed_blocks(
    encoder: ImageEncoder, images: ImageSet, folder: Path, *, max_unreadable: int, num_threads: int | None
) -> None:
    starts = range(0, len(images), BLOCK_ROWS)
    finished = sum(len(_rows_of(start, images)) for start in starts if _block(folder, start).exists())
    start_sec, encoder_sec = time.monotonic(), 0.0
    num_threads = num_threads or os.cpu_count() or 1
    with (
        progress(len(images), f"embed {images.name}", "img", initial=finished) as bar,
        ThreadPoolExecutor(num_threads) as pool,
    ):
        rows: list[np.ndarray] = []
        digests: list[bytes] = []
        unreadable: list[int] = []
        for positions, loading in _prefetched(encoder, images, _unclaimed(folder, starts), pool):
            pixels = []
            readable = []
            for position, future in zip(positions, loading, strict=True):
                try:
                    values, digest = future.result()
                except UnreadableImage as error:
                    if max_unreadable == 0:
                        pool.shutdown(cancel_futures=True)
                        raise
                    tqdm.write(f"warning: {error}", file=sys.stderr)
                    unreadable.append(position)
                else:
                    readable.append(position)
                    pixels.append(values)
                    digests.append(digest)
            if pixels:
                entered = time.monotonic()
                # The encoder pads a short batch to its one shape.
                embedded = encoder.embed_images(np.stack(pixels))
                encoder_sec += time.monotonic() - entered
                rows.append(check_embeddings(embedded, images.ids[readable]))
            bar.update(len(positions))
            if positions.stop % BLOCK_ROWS == 0 or positions.stop == len(images):
                start = positions.stop - 1 - (positions.stop - 1) % BLOCK_ROWS
                arrays = {
                    "vectors": np.concatenate(rows) if rows else np.zeros((0, 0), np.float32),
                    "digests": np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32),
                    "unreadable": np.array(unreadable, np.int64),
                }
                with new_file(_block(folder, start)) as file:
                    np.savez(file, **arrays)  # type: ignore[arg-type]
                rows, digests, unreadable = [], [], []
    seconds = time.monotonic() - start_sec
    if seconds > 10:
        print(
            f"embedded {images.name}: {(len(images) - finished) / seconds:.0f} images/s, "
            f"{100 * encoder_sec / seconds:.0f} % of the time in the encoder",
            file=sys.stderr,
        )


def _prefetched(
    encoder: ImageEncoder, images: ImageSet, starts: Iterator[int], pool: ThreadPoolExecutor
) -> Iterator[tuple[range, list[Future[tuple[np.ndarray, bytes]]]]]:
    """Returns the batches of the blocks at `starts`; the pool reads and decodes some batches ahead."""

    def load(position: int) -> tuple[np.ndarray, bytes]:
        picture, digest = images.open(position)
        return encoder.preprocess(picture), digest

    batch_size = BATCH_SIZE * getattr(encoder, "num_devices", 1)
    waiting: deque[tuple[range, list[Future[tuple[np.ndarray, bytes]]]]] = deque()
    for start in starts:
        rows = _rows_of(start, images)
        for first in range(rows.start, rows.stop, batch_size):
            positions = range(first, min(first + batch_size, rows.stop))
            waiting.append((positions, [pool.submit(load, position) for position in positions]))
            if len(waiting) > _BATCHES_AHEAD:
                yield waiting.popleft()
    yield from waiting


def _unclaimed(folder: Path, starts: range) -> Iterator[int]:
    """Returns the blocks to do: first those nobody has claimed, then those whose claimant has not finished."""
    mine = set()
    for start in starts:
        if (folder / _WHOLE).exists():
            return  # another process was quicker, and has put all together
        if not _block(folder, start).exists():
            try:
                os.close(os.open(folder / f"{start:012d}.claim", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                continue
            mine.add(start)
            yield start
    # From the end: a claimant that is merely slow comes from the front.
    for start in reversed(starts):
        if (folder / _WHOLE).exists():
            return
        if start not in mine and not _block(folder, start).exists():
            yield start


def _rows_of(start: int, images: ImageSet) -> range:
    return range(start, min(start + BLOCK_ROWS, len(images)))


def _block(folder: Path, start: int) -> Path:
    return folder / f"{start:012d}.npz"


def _merge(images: ImageSet, folder: Path) -> None:
    """Writes all rows into one file, then what is known of them; nothing when another process was quicker."""
    temporary = folder / f"vectors.npy.{uuid.uuid4().hex}.tmp"
    try:
        known = _write_rows(temporary, images, folder)
        if known is not None:
            os.replace(temporary, folder / "vectors.npy")
            write_whole(folder / _WHOLE, json.dumps(known).encode())
    finally:
        temporary.unlink(missing_ok=True)


def _write_rows(path: Path, images: ImageSet, folder: Path) -> dict[str, Any] | None:
    """Returns what is known of the rows that it writes; None when another process has all together."""
    digest = hashlib.sha256()
    unreadable: list[int] = []
    num_written = 0
    vectors: np.memmap | None = None
    for start in range(0, len(images), BLOCK_ROWS):
        try:
            with np.load(_block(folder, start), allow_pickle=False) as block:
                rows, digests, missing = block["vectors"], block["digests"], block["unreadable"]
        except FileNotFoundError:
            if (folder / _WHOLE).exists():
                return None
            raise
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            _block(folder, start).unlink(missing_ok=True)
            raise UserError(f"{_block(folder, start)} was broken ({error}) and is removed; run again") from error
        readable = [position for position in _rows_of(start, images) if position not in set(missing.tolist())]
        for position, one in zip(readable, digests, strict=True):
            digest.update(f"{images.ids[position]}\0".encode() + one.tobytes())
        if vectors is None and len(rows):
            shape = (len(images), rows.shape[1])
            vectors = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        if len(rows):
            assert vectors is not None
            vectors[num_written : num_written + len(rows)] = rows
        num_written += len(rows)
        unreadable += missing.tolist()
    check_unreadable(images.name, len(unreadable), len(images), max_unreadable=len(images))  # more: `_read_whole`
    assert vectors is not None
    vectors.flush()
    return {"content_hash": digest.hexdigest(), "num_rows": num_written, "unreadable": unreadable}


def _sample_hash(images: ImageSet) -> str:
    """Returns a hash of the bytes of some pictures: sets unpacked alike can share names, sizes and times."""
    digest = hashlib.sha256()
    for position in np.unique(np.linspace(0, len(images) - 1, _NUM_SAMPLED).astype(int)).tolist():
        # A picture that cannot be read is an error later, or counted.
        with contextlib.suppress(OSError, UnreadableImage):
            digest.update(hashlib.sha256(images.read(position)).digest())
    return digest.hexdigest()


def _read_whole(folder: Path, name: str, max_unreadable: int) -> Embedded | None:
    if not (folder / _WHOLE).exists():
        return None
    try:
        known = json.loads((folder / _WHOLE).read_text())
        vectors = np.load(folder / "vectors.npy", mmap_mode="r", allow_pickle=False)[: known["num_rows"]]
        positions = np.setdiff1d(np.arange(known["num_rows"] + len(known["unreadable"])), known["unreadable"])
    except (OSError, ValueError, KeyError) as error:
        print(f"warning: {folder} cannot be read ({error}); embedding again", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        return None
    num_unreadable = len(known["unreadable"])
    check_unreadable(name, num_unreadable, known["num_rows"] + num_unreadable, max_unreadable)
    return Embedded(
        vectors=vectors,
        positions=positions,
        content_hash=known["content_hash"],
        num_unreadable=num_unreadable,
    )
