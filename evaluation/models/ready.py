"""Embeddings that someone else made, as a model that benchmarks measure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from evaluation.metrics.blocks import IN_MEMORY_VALUES, read_rows, take_rows
from evaluation.models.arrays import map_array
from evaluation.models.embed import check_embeddings
from evaluation.protocol import Embedded, Tuner, Unavailable, hash_of
from evaluation.sets.images import ImageSet
from evaluation.sets.text import match_ids, read_ids
from pipeline.schema import UserError
from pipeline.storage.disk import new_file
from pipeline.storage.fingerprints import sha256_of_file

_ROWS_AT_A_TIME = 16_384


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddingsModel:
    """Embeddings from a folder: `<set>.npy` `[n, dim]` of any float type and `<set>.ids`, one id per line.

    Rows are matched to pictures by id, so their order is free; an id that the benchmark does not ask for is an error.
    A large set is never in memory: a file of its rows, in order and at length 1, is written into `cache_dir`, unless
    the set's own file is so already.
    """

    folder: Path
    cache_dir: Path | None = None  # None: large sets go into memory too

    def identity(self, embeddings: Mapping[str, str]) -> Mapping[str, Any]:
        """Returns the SHA-256 of the files of each set, as `embeddings` has them, and of all of them together."""
        hashes = dict(sorted(embeddings.items()))
        return {"hash": hash_of(map(str, hashes.items())), "sets": hashes}

    @property
    def preprocessing(self) -> Mapping[str, Any]:
        """Not known."""
        return {"embeddings": "ready-made"}

    @property
    def classifier(self) -> None:
        """There is none."""
        return None

    @property
    def tuner(self) -> Tuner:
        """Raises Unavailable."""
        raise Unavailable("ready embeddings cannot be fine-tuned; give an encoder")

    def embed(self, images: ImageSet) -> Embedded:
        """Returns the rows of `<images.name>.npy` in the order of `images`.

        Raises:
            Unavailable: there is no such file.
            UserError: ids differ from the set's, or a row is not finite or a zero vector.
        """
        vectors, files_hash = self._rows(images.name, images.ids.tolist())
        return Embedded(vectors=vectors, positions=np.arange(len(images)), embeddings_hash=files_hash)

    def known_ids(self, name: str) -> list[str] | None:
        """Returns the ids in `<name>.ids`; None: there is no such set.

        Raises:
            Unavailable: there are embeddings without ids.
            UserError: the file cannot be read.
        """
        path = self.folder / f"{name}.ids"
        if path.exists():
            return read_ids(path)
        if (self.folder / f"{name}.npy").exists():
            raise Unavailable(f"{path} is not there; write the id of each row of {name}.npy, one per line")
        return None

    def embed_texts(self, name: str, texts: Sequence[str]) -> Embedded:
        """Returns the rows of `<name>.npy`, whose ids are the texts."""
        unique = list(dict.fromkeys(texts))
        rows, files_hash = self._rows(name, unique)
        place = {text: position for position, text in enumerate(unique)}
        vectors = rows[[place[text] for text in texts]]
        return Embedded(vectors=vectors, positions=np.arange(len(texts)), embeddings_hash=files_hash)

    def _rows(self, name: str, wanted: Sequence[str]) -> tuple[np.ndarray, str]:
        """Returns the rows of the ids `wanted`, in that order and at length 1, and the SHA-256 of the set's files."""
        path, ids_path = self.folder / f"{name}.npy", self.folder / f"{name}.ids"
        for one in (path, ids_path):
            if not one.exists():
                raise Unavailable(
                    f"{one} is not there; write {name}.npy, floats [n, dim], and {name}.ids, one id per line, of "
                    f"{len(wanted):,} ids such as {wanted[0]!r}"
                )
        vectors = map_array(path)
        ids = read_ids(ids_path)
        if vectors.ndim != 2 or not np.issubdtype(vectors.dtype, np.floating) or len(vectors) != len(ids):
            raise UserError(
                f"{path} has shape {vectors.shape} of {vectors.dtype}, and {ids_path.name} has {len(ids)} lines; "
                "floats [n, dim] and n ids are needed"
            )
        order = match_ids(wanted, ids, source=str(ids_path), wanted_by=name)
        files_hash = hash_of([sha256_of_file(path), sha256_of_file(ids_path)])
        names = np.array(wanted, dtype=object)
        if vectors.size <= IN_MEMORY_VALUES or self.cache_dir is None:
            return check_embeddings(vectors[order], names), files_hash
        in_order = (order == np.arange(len(order))).all()
        if in_order and vectors.dtype == np.float32 and _have_length_1(vectors):
            return vectors, files_hash
        key = hash_of([files_hash, hash_of(wanted)])
        ordered = self.cache_dir / f"ready-{key[:24]}.npy"
        if not ordered.exists():
            try:
                self.cache_dir.mkdir(parents=True, exist_ok=True)
                with new_file(ordered) as file:
                    _write_normalised(file, vectors, order, names)
            except OSError as error:
                raise UserError(
                    f"{ordered} cannot be written ({error}); free {vectors.size * 4 / 1e9:.1f} GB or give another "
                    "--output"
                ) from error
        return np.load(ordered, mmap_mode="r", allow_pickle=False), files_hash


def _have_length_1(vectors: np.ndarray) -> bool:
    """Returns whether all rows have length 1, but for rounding; not so for what is not finite."""
    for start in range(0, len(vectors), _ROWS_AT_A_TIME):
        block = read_rows(vectors, start, min(start + _ROWS_AT_A_TIME, len(vectors)))
        if not (np.abs(np.linalg.norm(block, axis=1) - 1) < 1e-6).all():
            return False
    return True


def _write_normalised(file: BinaryIO, vectors: np.ndarray, order: np.ndarray, names: np.ndarray) -> None:
    """Writes the rows at `order` as a float32 array, at length 1."""
    header = {"descr": "<f4", "fortran_order": False, "shape": vectors.shape}
    np.lib.format.write_array_header_1_0(file, header)
    for start in range(0, len(order), _ROWS_AT_A_TIME):
        some = order[start : start + _ROWS_AT_A_TIME]
        if (np.diff(some) == 1).all():
            block = read_rows(vectors, int(some[0]), int(some[-1]) + 1)
        else:
            block = take_rows(vectors, some)
        unit = check_embeddings(block, names[start : start + _ROWS_AT_A_TIME])
        file.write(unit.astype("<f4", copy=False).data)
