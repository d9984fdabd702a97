"""Sets of pictures to embed: where their bytes come from, under which ids, and what a changed set is known by."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image
from tqdm import tqdm

from evaluation.progress import progress
from evaluation.sets.listing import FORMATS
from evaluation.sets.text import check_unique, nfc, utf8
from pipeline.images.decode import on_white as convert_on_white
from pipeline.images.decode import open_picture, to_rgb
from pipeline.schema import UserError

_READ_AHEAD = 256  # pictures that are read at a time
Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels


class UnreadableImage(UserError):
    """A picture that is missing or broken."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Pictures by position; nothing is read before it is asked for."""

    name: str  # of the set, such as "gpr1200"; also the name of its file of ready embeddings
    ids: np.ndarray  # unicode [n], unique
    read: Callable[[int], bytes]  # the encoded picture at a position; raises OSError when it is missing
    fingerprint: str  # changes when ids or contents do, as far as is known without reading all of them
    boxes: Sequence[Box] | None = None  # one per picture: what is cut out before anything else
    on_white: bool = False  # True: transparent parts become white; False: alpha is dropped, as PIL does

    def __post_init__(self) -> None:
        unique, uses = np.unique(self.ids, return_counts=True)
        if len(unique) != len(self.ids):
            raise UserError(f"{self.name} has the duplicate id {unique[uses > 1][0]}; ids must be unique")

    def __len__(self) -> int:
        return len(self.ids)

    def open(self, position: int) -> tuple[Image.Image, bytes]:
        """Returns the picture at `position` as RGB and the SHA-256 of its bytes (and box).

        As PIL reads it: no rotation by EXIF; the box is rounded to whole pixels by `Image.crop`.

        Raises:
            UnreadableImage: it is missing or broken; the message names its id.
            UserError: nothing lies in its box.
        """
        image_id = str(self.ids[position])
        try:
            data = self.read(position)
        except OSError as error:
            raise UnreadableImage(
                f"picture {image_id} of {self.name} cannot be read ({error}); get it again, or allow some with "
                "--max-unreadable"
            ) from error
        picture = decode(data, image_id, on_white=self.on_white)
        digest = hashlib.sha256(data)
        if self.boxes is not None:
            box = self.boxes[position]
            digest.update(repr(tuple(map(float, box))).encode())
            picture = _cut(picture, box, f"picture {image_id} of {self.name}")
        return picture, digest.digest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """Pictures with one class each."""

    images: ImageSet
    labels: np.ndarray  # int64 [n], into class_names
    class_names: tuple[str, ...]  # sorted folder names in form NFC, or the names that the TFDS set gives
    source: str = ""  # where they are from, for the reader of a result
    num_unread_files: int = 0  # that look like pictures, in formats that are not read or beside the class folders

    @property
    def truth(self) -> bytes:
        """What is true of the pictures, in their order; for `Context.embed`."""
        return json.dumps(self.class_names).encode() + self.labels.astype("<i8").tobytes()


def read_all(
    images: ImageSet, *, max_unreadable: int = 0, num_threads: int | None = None
) -> tuple[ImageSet, np.ndarray, str]:
    """Returns the pictures that can be read, their positions in `images`, and the SHA-256 over their ids and contents.

    All are read once. The fingerprint of what is returned is that SHA-256.

    Args:
        images: at least one.
        max_unreadable: how many may be left out; a warning names each.
        num_threads: that read and decode; None: one per core.

    Raises:
        UserError: none can be read, or more than `max_unreadable` cannot; where that is 0, it names the picture.
    """
    digest = hashlib.sha256()
    kept: list[int] = []
    num_broken = 0

    def digest_of(position: int) -> bytes | UnreadableImage:
        try:
            return images.open(position)[1]
        except UnreadableImage as error:
            return error

    with progress(len(images), f"read {images.name}", "img") as bar, ThreadPoolExecutor(num_threads) as pool:
        for start in range(0, len(images), _READ_AHEAD):
            positions = range(start, min(start + _READ_AHEAD, len(images)))
            for position, found in zip(positions, pool.map(digest_of, positions), strict=True):
                if not isinstance(found, UnreadableImage):
                    digest.update(f"{images.ids[position]}\0".encode() + found)
                    kept.append(position)
                    continue
                if max_unreadable == 0:
                    raise found
                tqdm.write(f"warning: {found}", file=sys.stderr)
                num_broken += 1
            bar.update(len(positions))
    check_unreadable(images.name, num_broken, len(images), max_unreadable)
    readable = np.array(kept, np.int64)
    left = dataclasses.replace(
        images,
        ids=images.ids[readable],
        read=lambda position: images.read(kept[position]),
        fingerprint=digest.hexdigest(),
        boxes=None if images.boxes is None else [images.boxes[position] for position in kept],
    )
    return left, readable, digest.hexdigest()


def check_unreadable(name: str, num_unreadable: int, num_images: int, max_unreadable: int) -> None:
    """Checks that `num_unreadable` of `num_images` pictures of the set `name` may be left out.

    Raises:
        UserError: none is left, or more than `max_unreadable` are out.
    """
    if num_unreadable == num_images:
        raise UserError(f"none of the {num_images} pictures of {name} can be read; look at its folder")
    if num_unreadable > max_unreadable:
        raise UserError(
            f"{num_unreadable} pictures of {name} cannot be read, the limit is {max_unreadable}; repair or remove "
            "them, or raise --max-unreadable"
        )


def _cut(picture: Image.Image, box: Box, which: str) -> Image.Image:
    left, top, right, bottom = box
    found = None
    if right > 0 and bottom > 0 and left < picture.width and top < picture.height:  # elsewhere PIL's would be black
        # Turned round, not finite, or huge.
        with contextlib.suppress(ValueError, OverflowError, Image.DecompressionBombError):
            found = picture.crop(tuple(box))  # type: ignore[arg-type]  # PIL takes floats and rounds them
    if found is None or 0 in found.size:
        raise UserError(
            f"{which} has the box {tuple(box)} (left, top, right, bottom in pixels) with nothing in it; correct the "
            "ground truth"
        )
    return found


def decode(data: bytes, image_id: str, *, on_white: bool = False) -> Image.Image:
    """Returns the encoded picture `data` as RGB; transparent parts become white, or else lose their alpha.

    Raises:
        UnreadableImage: the bytes are not a picture, or nothing states its range; the message names `image_id`.
    """
    try:
        picture = open_picture(data, FORMATS)
        return convert_on_white(picture) if on_white else to_rgb(picture)
    except ValueError as error:
        raise UnreadableImage(
            f"picture {image_id} ({len(data)} bytes) cannot be read ({str(error).removeprefix('broken image: ')}); "
            "replace it, or allow some with --max-unreadable"
        ) from error


def folder_images(
    name: str, root: str | os.PathLike[str], paths: Sequence[str], *, boxes: Sequence[Box] | None = None
) -> ImageSet:
    """Returns the pictures at `paths` below `root`, in that order; their ids are the paths, in Unicode's form NFC.

    A path that is not there as it is written is looked up in Unicode's composed form, name by name.
    The fingerprint is of names, sizes and times of change; results state a hash of the contents, made when embedding.
    Missing files are an error when they are opened, not here.

    Raises:
        UserError: two paths are equal after Unicode normalisation, or one is not UTF-8.
    """
    root, ids = os.fspath(root), [nfc(path) for path in paths]
    for path in paths:
        utf8(path, f"the path of a picture of {name},")
    if ids != list(paths):
        check_unique(paths, name)
    paths = as_on_disk(root, paths)
    digest = hashlib.sha256(repr(boxes).encode())
    for one_id, path in zip(ids, paths, strict=True):
        try:
            stat = os.stat(os.path.join(root, path))
            digest.update(f"{one_id}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
        except OSError:
            digest.update(f"{one_id}\0missing\0".encode())

    def read(position: int) -> bytes:
        with open(os.path.join(root, paths[position]), "rb") as file:
            return file.read()

    return ImageSet(
        name=name,
        ids=np.array(ids, dtype=np.str_).reshape(len(ids)),
        read=read,
        fingerprint=digest.hexdigest(),
        boxes=boxes,
    )


def as_on_disk(root: str, paths: Sequence[str]) -> list[str]:
    """Returns `paths` as the file system spells them; those that are not there stay as they are."""
    names: dict[str, dict[str, str]] = {}  # of a folder, by their composed form

    def spelled(path: str) -> str:
        folder, _, name = path.rpartition("/")
        folder = spelled(folder) if folder else ""
        full = os.path.join(root, folder)
        if not os.path.lexists(os.path.join(full, name)):
            if folder not in names:
                try:
                    names[folder] = {nfc(one): one for one in os.listdir(full)}
                except OSError:
                    names[folder] = {}
            name = names[folder].get(nfc(name), name)
        return f"{folder}/{name}" if folder else name

    return [path if path.isascii() or os.path.lexists(os.path.join(root, path)) else spelled(path) for path in paths]


def absent_images(name: str, ids: Sequence[str]) -> ImageSet:
    """Returns a set of pictures that are not here, for ready embeddings; ids in Unicode's form NFC."""

    def read(position: int) -> bytes:
        raise FileNotFoundError("only its embedding is here")

    check_unique(ids, name)
    ids = [nfc(one) for one in ids]
    fingerprint = hashlib.sha256("\0".join(ids).encode()).hexdigest()
    return ImageSet(name=name, ids=np.array(ids, dtype=np.str_).reshape(len(ids)), read=read, fingerprint=fingerprint)
