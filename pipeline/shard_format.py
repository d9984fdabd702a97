"""A set on disk: TFRecord shards of `tf.train.Example`, an offset index beside each, one manifest.

A directory is a set once it has its `manifest.json`, which is written last, so that no step needs a rename.
TensorFlow is imported by the functions that use it: it takes seconds, and a manifest is read without it.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import struct
from collections.abc import Sequence
from typing import Any, BinaryIO, Protocol, overload

import google_crc32c

from pipeline.schema import LabelledImage, VocabularyEntry

FORMAT_VERSION = 1
INDEX_SUFFIX = ".index"
MANIFEST_NAME = "manifest.json"
VOCABULARY_NAME = "vocabulary.jsonl"
_OFFSET_BYTES = 8
_OFFSET = struct.Struct("<Q")
_TWO_OFFSETS = struct.Struct("<QQ")
_CRC = struct.Struct("<I")
_HEAD_BYTES = 12
_FRAME_BYTES = 16  # TFRecord: uint64 length, uint32 CRC of the length, payload, uint32 CRC of the payload


SHARD_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}"  # in the words of TensorFlow Datasets


def shard_file(dataset: str, index: int) -> str:
    """Returns the name of shard `index` by `SHARD_TEMPLATE`. It has no count: one more shard renames no other."""
    return f"{dataset}-train.tfrecord-{index:05d}"


def shard_pattern(dataset: str) -> str:
    """Returns the glob of the shards of `dataset`, however many there are, and of the files beside them."""
    return f"{dataset}-train.tfrecord-*"


def encode_example(record: LabelledImage) -> bytes:
    """Returns `record` as the bytes of a `tf.train.Example`; equal records give equal bytes.

    Raises:
        ValueError: the label fields differ in length.
    """
    import tensorflow as tf

    if not len(record.entity_ids) == len(record.class_ids) == len(record.similarities):
        raise ValueError(
            f"{record.image_id}: {len(record.entity_ids)} entity ids, {len(record.class_ids)} class ids and "
            f"{len(record.similarities)} similarities; give the same number of each"
        )
    example = tf.train.Example()
    feature = example.features.feature
    feature["image"].bytes_list.value.append(record.image)
    feature["image_id"].bytes_list.value.append(record.image_id.encode())
    feature["text"].bytes_list.value.append(record.text.encode())
    feature["entity_ids"].bytes_list.value.extend(entity_id.encode() for entity_id in record.entity_ids)
    feature["class_ids"].int64_list.value.extend(record.class_ids)
    feature["similarities"].float_list.value.extend(record.similarities)
    feature["width"].int64_list.value.append(record.width_px)
    feature["height"].int64_list.value.append(record.height_px)
    if record.fields:
        fields = json.dumps(dict(record.fields), ensure_ascii=False)  # pragma: no mutate: None counts as False
        feature["fields"].bytes_list.value.append(fields.encode())
    # A list without values is there all the same.
    feature["entity_ids"].bytes_list.SetInParent()
    feature["class_ids"].int64_list.SetInParent()
    feature["similarities"].float_list.SetInParent()
    payload: bytes = example.SerializeToString(deterministic=True)
    return payload


def decode_example(payload: bytes) -> LabelledImage:
    """Returns the record that `encode_example` made `payload` of; similarities are rounded to float32."""
    import tensorflow as tf

    feature = tf.train.Example.FromString(payload).features.feature
    fields = feature["fields"].bytes_list.value  # a feature that is missing has no values
    return LabelledImage(
        image=feature["image"].bytes_list.value[0],
        image_id=feature["image_id"].bytes_list.value[0].decode(),
        text=feature["text"].bytes_list.value[0].decode(),
        entity_ids=tuple(value.decode() for value in feature["entity_ids"].bytes_list.value),
        class_ids=tuple(feature["class_ids"].int64_list.value),
        similarities=tuple(feature["similarities"].float_list.value),
        width_px=feature["width"].int64_list.value[0],
        height_px=feature["height"].int64_list.value[0],
        fields=tuple(json.loads(fields[0]).items()) if fields else (),
    )


class ShardWriter:
    """Writes one shard and, on a clean exit, the index beside it: n + 1 little-endian uint64 offsets in bytes."""

    def __init__(self, path: str | os.PathLike[str]):
        self._path = os.fspath(path)
        self._offsets = [0]

    def __enter__(self) -> ShardWriter:
        import tensorflow as tf

        self._writer = tf.io.TFRecordWriter(self._path)
        return self

    def write(self, record: LabelledImage) -> None:
        payload = encode_example(record)
        self._writer.write(payload)
        self._offsets.append(self._offsets[-1] + _FRAME_BYTES + len(payload))

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        self._writer.close()
        if error_type is None:
            import tensorflow as tf

            with tf.io.gfile.GFile(self._path + INDEX_SUFFIX, "wb") as file:
                file.write(struct.pack(f"<{len(self._offsets)}Q", *self._offsets))


class Files(Protocol):
    """Where the files of a set lie; picklable, and safe to share between threads."""

    def open(self, path: str) -> BinaryIO | None:
        """Returns the file at `path`, open for reading; None if there is none."""

    def read(self, path: str, start: int, length: int) -> bytes:
        """Returns the bytes of the file at `path` from `start` on, fewer than `length` where it ends."""


class LocalFiles:
    """The files of a set on a disk."""

    def open(self, path: str) -> BinaryIO | None:
        """Returns the file at `path`, open for reading; None if there is none."""
        return open(path, "rb") if os.path.exists(path) else None

    def read(self, path: str, start: int, length: int) -> bytes:
        """Returns the bytes of the file at `path` from `start` on, fewer than `length` where it ends."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            return os.pread(descriptor, length, start)
        finally:
            os.close(descriptor)


class ShardReader(Sequence[LabelledImage]):
    """Random access to the records of one shard through its index; picklable, and safe to share between threads.

    It holds nothing but the path and the length. A global shuffle reads the shards in random order: an open file or an
    array of offsets for each would be thousands, in every process that decodes.

    Args:
        path: of the shard; its index lies beside it.
        files: where they lie.
        num_records: how many records the shard has, for one that is not looked at before a record is read, as in a
            store, where each look takes long; None: its index says it.

    Raises:
        ValueError: the index is missing, or does not fit the shard.
    """

    def __init__(self, path: str | os.PathLike[str], *, files: Files | None = None, num_records: int | None = None):
        self._path, self._files = os.fspath(path), files or LocalFiles()
        if num_records is not None:
            self._length = num_records
            return
        index_path = self._path + INDEX_SUFFIX
        if not os.path.exists(index_path):
            raise ValueError(f"{index_path} is missing; build the set again")
        index_bytes, size_bytes = os.path.getsize(index_path), os.path.getsize(self._path)
        is_cut = index_bytes < _OFFSET_BYTES or index_bytes % _OFFSET_BYTES
        if is_cut or self._files.read(index_path, index_bytes - _OFFSET_BYTES, _OFFSET_BYTES) != _OFFSET.pack(
            size_bytes
        ):
            raise ValueError(f"{self._path} has {size_bytes} bytes, its index says otherwise; build the set again")
        self._length = index_bytes // _OFFSET_BYTES - 1

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, position: int) -> LabelledImage: ...

    @overload
    def __getitem__(self, position: slice) -> list[LabelledImage]: ...

    def __getitem__(self, position: int | slice) -> LabelledImage | list[LabelledImage]:
        if isinstance(position, slice):
            return [self[i] for i in range(*position.indices(len(self)))]
        if not -len(self) <= position < len(self):
            raise IndexError(f"record {position} of {len(self)} in {self._path}")
        position %= len(self)
        index_path = self._path + INDEX_SUFFIX
        offsets = self._files.read(index_path, position * _OFFSET_BYTES, _TWO_OFFSETS.size)
        if len(offsets) != _TWO_OFFSETS.size:
            raise ValueError(f"{index_path} ends before record {position}; build the set again")
        start, end = _TWO_OFFSETS.unpack(offsets)
        frame = self._files.read(self._path, start, end - start)
        (length,) = _OFFSET.unpack_from(frame)
        if length != end - start - _FRAME_BYTES:
            raise ValueError(f"{self._path}: record {position} does not start at byte {start}; build the set again")
        payload = frame[_HEAD_BYTES : _HEAD_BYTES + length]
        for part, stated in ((frame[:8], frame[8:_HEAD_BYTES]), (payload, frame[_HEAD_BYTES + length :])):
            if _CRC.pack(_masked_crc(part)) != stated:
                raise ValueError(
                    f"{self._path}: record {position}{_said_id(payload)} does not have its checksum; build the set "
                    "again"
                )
        try:
            return decode_example(payload)
        except Exception as error:  # protobuf has types of its own; a value that is missing is an IndexError
            raise ValueError(
                f"{self._path}: record {position} cannot be decoded ({error}); build the set again"
            ) from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class I2ESet:
    """A finished Image-to-Entities set: what its manifest states, and where its shards are."""

    directory: str
    """The path that the set was opened by."""
    manifest: dict[str, Any]
    """The JSON object in `manifest.json`: counts, shards, provenance."""
    shard_paths: tuple[str, ...]
    """The paths of the shards, in order."""
    vocabulary: tuple[VocabularyEntry, ...]
    """The classes, by class id; empty where the set has none."""

    @property
    def num_records(self) -> int:
        """The number of records in all shards."""
        return sum(shard["num_records"] for shard in self.manifest["shards"])


def open_set(directory: str | os.PathLike[str], files: Files | None = None) -> I2ESet:
    """Returns the set in `directory`.

    Args:
        directory: of the set.
        files: where its files lie; None: on a disk.

    Raises:
        ValueError: the manifest is missing, or of another format version.
    """
    directory, files = os.fspath(directory), files or LocalFiles()
    manifest_file = files.open(os.path.join(directory, MANIFEST_NAME))
    if manifest_file is None:
        raise ValueError(f"{directory} holds no finished set ({MANIFEST_NAME} is missing); build it, or let it finish")
    with manifest_file:  # of bytes: json decodes UTF-8, whatever the locale
        manifest = json.load(manifest_file)
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(f"{directory} has format version {version}, this code reads {FORMAT_VERSION}; build it again")
    with files.open(os.path.join(directory, VOCABULARY_NAME)) or io.BytesIO() as lines:
        vocabulary = tuple(VocabularyEntry(**json.loads(line)) for line in lines)
    return I2ESet(
        directory=directory,
        manifest=manifest,
        shard_paths=tuple(os.path.join(directory, shard["file"]) for shard in manifest["shards"]),
        vocabulary=vocabulary,
    )


def _masked_crc(content: bytes) -> int:
    """Returns the CRC-32C of `content`, masked as in a TFRecord."""
    crc: int = google_crc32c.value(content)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _said_id(payload: bytes) -> str:
    """Returns the words that name the image of a damaged record, as far as its id can still be read."""
    try:
        return f", which calls itself image {decode_example(payload).image_id},"
    except Exception:  # protobuf has types of its own; a value that is missing is an IndexError
        return ""
