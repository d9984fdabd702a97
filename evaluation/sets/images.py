"""Sets of pictures to embed: where their bytes come from, under which ids, and what a changed set is known by."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import struct
import sys
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from evaluation.progress import progress
from pipeline.schema import UserError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
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
    fingerprint: str  # changes when ids or contents do, as far as can be told without reading all of them
    boxes: Sequence[Box] | None = None  # one a picture: what is cut out before anything else
    on_white: bool = False  # True: transparent parts become white; False: alpha is dropped, as PIL does

    def __post_init__(self) -> None:
        unique, uses = np.unique(self.ids, return_counts=True)
        if len(unique) != len(self.ids):
            raise UserError(f"{self.name}: the id {unique[uses > 1][0]} stands for two pictures; ids must be unique")

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
                f"picture {image_id} of {self.name} cannot be read ({error}); get it again"
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
    class_names: tuple[str, ...]  # sorted folder names, or the names that the TFDS set gives
    source: str = ""  # where they are from, for the reader of a result

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
        max_unreadable: that may be left out; a warning names each.
        num_threads: that read and decode; None: one a core.

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
    """Returns nothing when so many pictures of the set `name` may be left out.

    Raises:
        UserError: they are all, or more than `max_unreadable`.
    """
    if num_unreadable == num_images:
        raise UserError(f"none of the {num_images} pictures of {name} can be read; look at its folder")
    if num_unreadable > max_unreadable:
        raise UserError(
            f"{num_unreadable} pictures of {name} cannot be read, at most {max_unreadable} may; mend them, or raise "
            "--max-unreadable"
        )


def _cut(picture: Image.Image, box: Box, which: str) -> Image.Image:
    left, top, right, bottom = box
    found = None
    if right > 0 and bottom > 0 and left < picture.width and top < picture.height:  # elsewhere PIL's would be black
        # Turned round, not finite, or huge.
        with contextlib.suppress(ValueError, OverflowError, Image.DecompressionBombError):
            found = picture.crop(tuple(box))  # type: ignore[arg-type]  # PIL takes floats and rounds them
    if found is None or 0 in found.size:
        raise UserError(f"{which} has the box {tuple(box)}, left, top, right, bottom in pixels; mend the ground truth")
    return found


def decode(data: bytes, image_id: str, *, on_white: bool = False) -> Image.Image:
    """Returns the encoded picture `data` as RGB; transparent parts become white, or else lose their alpha.

    Raises:
        UnreadableImage: the bytes are no picture; the message names `image_id`.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            if on_white and (image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info):
                rgba = image.convert("RGBA")
                return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
            picture = image.convert("RGB")
            picture.info.pop("transparency", None)  # the colour that stood for transparent is a colour like any other
            return picture
    # Pillow's decoders raise more than OSError on a file that is cut or corrupt.
    except (OSError, ValueError, SyntaxError, struct.error, zlib.error, Image.DecompressionBombError) as error:
        # Pillow's words would hold an address.
        why = "no picture that Pillow knows" if isinstance(error, UnidentifiedImageError) else str(error)
        raise UnreadableImage(
            f"picture {image_id} ({len(data)} bytes) cannot be read ({why}); replace it, or allow some with "
            "--max-unreadable"
        ) from error


def folder_images(
    name: str, root: str | os.PathLike[str], paths: Iterable[str], *, boxes: Sequence[Box] | None = None
) -> ImageSet:
    """Returns the pictures at `paths` below `root`, in that order; their ids are the paths.

    The fingerprint is of names, sizes and times of change; results state a hash of the contents, made when embedding.
    Missing files are no error here, but when they are opened.
    """
    root, paths = os.fspath(root), list(paths)
    digest = hashlib.sha256(repr(boxes).encode())
    for path in paths:
        try:
            stat = os.stat(os.path.join(root, path))
            digest.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
        except OSError:
            digest.update(f"{path}\0missing\0".encode())

    def read(position: int) -> bytes:
        with open(os.path.join(root, paths[position]), "rb") as file:
            return file.read()

    return ImageSet(
        name=name,
        ids=np.array(paths, dtype=np.str_).reshape(len(paths)),
        read=read,
        fingerprint=digest.hexdigest(),
        boxes=boxes,
    )


def absent_images(name: str, ids: Sequence[str]) -> ImageSet:
    """Returns a set of pictures that are not here, for embeddings that are ready."""

    def read(position: int) -> bytes:
        raise FileNotFoundError("only its embedding is here")

    fingerprint = hashlib.sha256("\0".join(ids).encode()).hexdigest()
    return ImageSet(name=name, ids=np.array(ids, dtype=np.str_).reshape(len(ids)), read=read, fingerprint=fingerprint)


def list_images(root: str | os.PathLike[str]) -> list[str]:
    """Returns the paths of all pictures below `root`, sorted, relative, with "/" between folders."""
    root = os.fspath(root)
    paths = []
    for folder, _, names in os.walk(root):
        for name in names:
            if name.lower().endswith(SUFFIXES):
                paths.append(os.path.relpath(os.path.join(folder, name), root).replace(os.sep, "/"))
    return sorted(paths)
