"""Pictures and labels of a TFDS set that someone prepared; nothing is downloaded, copied or decoded.

A set lies at `<data_dir>/<name>[/<config>]/<version>`, as `download_and_prepare` writes it. Its records are read where
they lie: one pass finds each record and its label, and a picture's encoded bytes are read when they are asked for. So a
set needs no memory for its pictures, and no disk beyond its own. Records come in the order of the files, which is the
order that TFDS's slices count in: "train:17" is the same picture in "train", in "train[:80%]" and in "train[17:18]".
"""

from __future__ import annotations

import array
import dataclasses
import hashlib
import io
import os
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from evaluation.progress import progress
from evaluation.protocol import Unavailable
from evaluation.sets.images import ImageSet, LabelledImages
from evaluation.sets.text import nfc
from pipeline.images.decode import UnknownRange, range_of_dtype, scaled_to_8_bits
from pipeline.schema import UserError

_SPEC = re.compile(r"(?P<set>[\w.-]+(/[\w.+-]+)?)(:(?P<version>[\d.*]+))?")
_CHANNELS = (1, 3, 4)  # grey, RGB, RGBA; Pillow would take two for grey and alpha
_HEADER_BYTES, _FOOTER_BYTES = 12, 4  # of a TFRecord: length and its checksum; checksum of the content


@dataclasses.dataclass(frozen=True)
class PreparedSet:
    """A TFDS set on disk."""

    builder: Any  # tfds.core.DatasetBuilder

    @property
    def full_name(self) -> str:
        """Name, config and version, such as "sun397/tfds/4.0.0"."""
        return str(self.builder.info.full_name)

    @property
    def features(self) -> Any:
        """What a record holds: a `tfds.features.FeaturesDict`."""
        return self.builder.info.features

    @property
    def split_sizes(self) -> dict[str, int]:
        """Records of each split."""
        return {name: info.num_examples for name, info in self.builder.info.splits.items()}


def open_tfds(spec: str, data_dir: Path) -> PreparedSet:
    """Returns the set `spec`, `<name>[/<config>][:<version>]`; a version may have stars, and the newest match counts.

    Raises:
        Unavailable: it is not prepared below `data_dir`; the message has the command that prepares it.
        UserError: the spec is malformed, or TFDS cannot read the set.
    """
    # TFDS takes a moment to import, and most benchmarks need none of it.
    import tensorflow_datasets as tfds

    match = _SPEC.fullmatch(spec)
    if match is None:
        raise UserError(
            f"{spec!r} is not the name of a TFDS set; write <name>[/<config>][:<version>], such as sun397/tfds:4.*.*"
        )
    folder = Path(data_dir) / match["set"]
    found = [path.name for path in folder.glob("[!.]*") if path.is_dir()]
    versions = [tfds.core.Version(name) for name in found if tfds.core.Version.is_valid(name)]
    try:
        fitting = [one for one in versions if match["version"] is None or one.match(match["version"])]
    except ValueError as error:
        raise UserError(f"{match['version']!r} in {spec!r} is not a version; write such as 3.0.2 or 3.*.*") from error
    if not fitting:
        if versions:
            seen = f" ({', '.join(map(str, sorted(versions)))} is)"
        elif found and "/" not in match["set"]:
            seen = f" (its folder has {', '.join(sorted(found)[:5])}: name the config)"
        else:
            seen = ""
        command = f"import tensorflow_datasets as tfds; tfds.builder('{spec}', data_dir='{data_dir}')"
        raise Unavailable(
            f"the TFDS set {spec} is not prepared below {data_dir}{seen}; prepare it on a machine with network by "
            "pip install tensorflow tensorflow-datasets importlib_resources; "
            f'python -c "{command}.download_and_prepare()", which writes {folder}/<version>'
        )
    path = folder / str(max(fitting))
    try:
        prepared = PreparedSet(tfds.builder_from_directory(path))
        file_format = prepared.builder.info.file_format
    except Exception as error:  # TFDS raises many kinds for a folder that is half written or too old
        raise UserError(f"{path} cannot be read as a TFDS set ({error}); prepare it again") from error
    if file_format is not None and file_format.value != "tfrecord":
        raise UserError(f"{path} is in the format {file_format.value}, tfrecord is needed; prepare or convert it so")
    return prepared


def read_tfds(name: str, spec: str, data_dir: Path) -> LabelledImages:
    """Returns the pictures of `spec`, with the set's own labels and class names.

    Args:
        name: of the set of pictures, such as "knn_train".
        spec: `<name>[/<config>][:<version>]/<split>`, such as "cifar10/train[:80%]" or "my_set:1.0.0/test"; a split
            is as in TFDS.
        data_dir: the set is prepared below it.

    Raises:
        Unavailable: the set is not there.
        UserError: the set has no single picture and class for each record, or the split is not in it.
    """
    source, _, split = spec.rpartition("/")
    if not source:
        raise UserError(f"{spec!r} does not name a split; write <name>/<split>, such as cifar10/train[:80%]")
    prepared = open_tfds(source, data_dir)
    image, label = _supervised(prepared)
    class_names = tuple(map(nfc, prepared.features[label].names))
    return read_examples(
        name,
        prepared,
        split,
        features=(label,),
        label_of=lambda example: example[label],
        class_names=class_names,
        image=image,
    )


def read_examples(
    name: str,
    prepared: PreparedSet,
    split: str,
    *,
    features: Sequence[str],
    label_of: Callable[[Mapping[str, Any]], int],
    class_names: Sequence[str],
    image: str = "image",
    brightness: int = 1,
) -> LabelledImages:
    """Returns the pictures of `split`, in the order of the files, with labels made from other features.

    Args:
        name: of the set of pictures.
        prepared: of `open_tfds`.
        split: as in TFDS, such as "train[:800]+train[900:1100]".
        features: what `label_of` needs; nothing else is parsed.
        label_of: from those features as numpy values (a Sequence as lists) to the class, from 0.
        class_names: of the classes.
        image: the feature that is the picture. An Image is returned as it is encoded; an array is encoded as PNG,
            scaled to 8 bits as `pipeline.images.decode` states, by the range of its type.
        brightness: what pixels are multiplied by; 255 for masks of 0 and 1. Not 1: encoded as PNG again.

    Raises:
        UserError: a feature or split is not in the set, the pictures are of a type without black and white, a file is
            cut short, or a label is outside the classes.
    """
    import tensorflow_datasets as tfds

    missing = [one for one in (image, *features) if one not in prepared.features]
    if missing:
        raise UserError(f"{prepared.full_name} has no feature {missing[0]!r}; it has {', '.join(prepared.features)}")
    is_encoded = _check_pictures(prepared, image, brightness)
    # As text, the picture's feature gives its bytes as they lie in the record.
    pixels = tfds.features.FeaturesDict({image: tfds.features.Text() if is_encoded else prepared.features[image]})
    index = _index(name, prepared, split, features, label_of, len(class_names), (image, brightness))

    def read(position: int) -> bytes:
        number, start, length = (int(value) for value in index.places[position])
        with open(index.paths[number], "rb") as file:
            file.seek(start)
            record = file.read(length)
        try:
            value: Any = pixels.deserialize_example_np(record)[image]
        except Exception as error:  # the parser of records raises many kinds
            raise OSError(f"{index.paths[number]}, byte {start}: not a record ({error})") from error
        return bytes(value) if is_encoded and brightness == 1 else _as_png(value, is_encoded, brightness)

    return LabelledImages(
        images=ImageSet(
            name=name,
            ids=np.array(index.ids, dtype=np.str_).reshape(len(index.ids)),
            read=read,
            fingerprint=index.fingerprint,
        ),
        labels=np.array(index.labels, np.int64),
        class_names=tuple(class_names),
    )


def _check_pictures(prepared: PreparedSet, image: str, brightness: int) -> bool:
    """Returns whether records hold the pictures as encoded files.

    Raises:
        UserError: their type has no black and white, their shape is not a picture's, or they cannot be made brighter.
    """
    import tensorflow_datasets as tfds

    picture = prepared.features[image]
    dtype = np.dtype(picture.np_dtype)
    if not (dtype == np.bool_ or dtype in (np.uint8, np.uint16) or np.issubdtype(dtype, np.floating)):
        raise UserError(
            f"pictures of {prepared.full_name} ({image!r}) are {dtype}, which states no black and white; prepare them "
            "as uint8, uint16, bool, or floats from 0 to 1"
        )
    shape, is_image = picture.shape, isinstance(picture, tfds.features.Image)
    if not is_image and not (len(shape) == 2 or (len(shape) == 3 and shape[-1] in (None, *_CHANNELS))):
        raise UserError(
            f"pictures of {prepared.full_name} ({image!r}) have shape {list(shape)}, [height, width] or [height, "
            "width, 1, 3 or 4] is needed; prepare them so"
        )
    if brightness != 1 and dtype != np.uint8:
        raise UserError(f"pictures of {prepared.full_name} ({image!r}) are {dtype}, uint8 is needed; prepare them so")
    # TFDS encodes floats as PNG of their bits, which only it can decode.
    return is_image and dtype in (np.uint8, np.uint16)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Index:
    """Where the records of a split lie, and their labels."""

    paths: list[str]
    places: np.ndarray  # int64 [n, 3]: which path, first byte, length
    ids: list[str]
    labels: list[int]
    fingerprint: str


def _index(
    name: str,
    prepared: PreparedSet,
    split: str,
    features: Sequence[str],
    label_of: Callable[[Mapping[str, Any]], int],
    num_classes: int,
    treatment: tuple[str, int],
) -> _Index:
    """Returns the index of a split, whose fingerprint also covers what is done to the pictures, `treatment`.

    Raises:
        UserError: a file is cut short, or a label is outside the classes.
    """
    import tensorflow_datasets as tfds

    parsed = tfds.features.FeaturesDict({one: prepared.features[one] for one in features})
    pieces = _pieces(prepared, split)
    digest = hashlib.sha256(repr((prepared.full_name, *treatment)).encode())
    paths: list[str] = []
    ids: list[str] = []
    labels: list[int] = []
    places = array.array("q")
    with progress(sum(piece.take for piece in pieces), f"index {name}", "img") as bar:
        for piece in pieces:
            try:
                stat = os.stat(piece.path)
                digest.update(repr((os.path.basename(piece.path), stat.st_size, stat.st_mtime_ns)).encode())
                digest.update(repr((piece.skip, piece.take)).encode())
                for number, (start, record) in enumerate(_records(piece.path, piece.skip, piece.take), piece.skip):
                    label = int(label_of(parsed.deserialize_example_np(record)))
                    one_id = f"{piece.split}:{piece.first + number}"
                    if not 0 <= label < num_classes:
                        raise UserError(
                            f"{one_id} of {prepared.full_name} has label {label}, it must be from 0 to "
                            f"{num_classes - 1}; use a split with labels"
                        )
                    ids.append(one_id)
                    labels.append(label)
                    places.extend((len(paths), start, len(record)))
                    bar.update()
            except UserError:
                raise
            except Exception as error:  # the parser of records raises many kinds
                raise UserError(f"{piece.path} cannot be read ({error}); prepare the set again") from error
            paths.append(piece.path)
    table = np.frombuffer(places, np.int64).reshape(-1, 3)
    return _Index(paths=paths, places=table, ids=ids, labels=labels, fingerprint=digest.hexdigest())


def _as_png(value: Any, is_encoded: bool, brightness: int) -> bytes:
    """Returns a picture, an encoded file or an array, as PNG of 8 bits, made brighter.

    Raises:
        OSError: its values have no black and white, or would pass 255, or its number of channels is not 1, 3 or 4.
    """
    if is_encoded:
        with Image.open(io.BytesIO(value)) as encoded:
            value = np.asarray(encoded)
    if value.ndim == 3 and value.shape[-1] not in _CHANNELS:
        raise OSError(f"it has {value.shape[-1]} channels, 1, 3 or 4 are needed")
    if value.dtype != np.uint8:
        try:
            value = scaled_to_8_bits(value, *range_of_dtype(value))
        except UnknownRange as error:
            raise OSError(str(error)) from error
    if int(value.max()) * brightness > 255:
        raise OSError(f"a pixel is {value.max()}, times {brightness} that is above 255")
    return _png(value * np.uint8(brightness))


@dataclasses.dataclass(frozen=True)
class _Piece:
    """A run of records in one file."""

    path: str
    split: str
    first: int  # number in the split of the file's first record
    skip: int
    take: int


def _pieces(prepared: PreparedSet, split: str) -> list[_Piece]:
    splits = prepared.builder.info.splits
    where: dict[str, tuple[str, int]] = {}
    for one, info in splits.items():
        first = 0
        for file in info.file_instructions:
            where[str(file.filename)] = (one, first)
            first += file.examples_in_shard
    try:
        files = splits[split].file_instructions
    except Exception as error:  # TFDS raises ValueError, AssertionError and its own kinds
        stated = ", ".join(f"{one} ({size})" for one, size in prepared.split_sizes.items())
        raise UserError(f"{split!r} is not a split of {prepared.full_name} ({error}); it has {stated}") from error
    return [
        _Piece(
            str(file.filename),
            *where[str(file.filename)],
            skip=file.skip,
            take=file.examples_in_shard - file.skip if file.take < 0 else file.take,
        )
        for file in files
    ]


def _records(path: str, skip: int, take: int) -> Iterator[tuple[int, bytes]]:
    """Returns first byte and content of `take` records after `skip` of them. Checksums are not verified."""
    with open(path, "rb") as file:
        for number in range(skip + take):
            header = file.read(_HEADER_BYTES)
            if len(header) < _HEADER_BYTES:
                raise EOFError(f"record {number} of {skip + take} is not there")
            (length,) = struct.unpack_from("<Q", header)
            if number < skip:
                file.seek(length + _FOOTER_BYTES, os.SEEK_CUR)
                continue
            start = file.tell()
            record = file.read(length)
            if len(record) < length:
                raise EOFError(f"record {number} has {len(record)} of {length} bytes")
            file.seek(_FOOTER_BYTES, os.SEEK_CUR)
            yield start, record


def _supervised(prepared: PreparedSet) -> tuple[str, str]:
    """Returns the names of the features that are picture and class: those that the set states, or the only ones."""
    import tensorflow_datasets as tfds

    features, keys = dict(prepared.features.items()), prepared.builder.info.supervised_keys
    if keys is not None and len(keys) == 2 and isinstance(features.get(keys[1]), tfds.features.ClassLabel):
        return keys[0], keys[1]
    images = [one for one, feature in features.items() if isinstance(feature, tfds.features.Image)]
    classes = [one for one, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
    if len(images) != 1 or len(classes) != 1:
        raise UserError(
            f"{prepared.full_name} has {len(images)} pictures and {len(classes)} classes per record, one of each is "
            "needed; use a classification set"
        )
    return images[0], classes[0]


def _png(pixels: np.ndarray) -> bytes:
    """Returns `pixels`, uint8 `[height, width]` or `[height, width, 1, 3 or 4]`, as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()
