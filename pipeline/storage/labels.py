"""The labels that the rows of a unit may get, as columns: one small file per unit, made from its annotations.

Assembly reads these files several times, and annotations, which hold every candidate, once. A file says in its footer
what it was made from: one that was cut by a kill has no footer, and one of other annotations is made again.
"""

from __future__ import annotations

import dataclasses
import enum
import posixpath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from apache_beam.io.filesystems import FileSystems

from pipeline.schema import UserError
from pipeline.storage.beam_files import read_bytes, write_bytes
from pipeline.storage.digests import digests
from pipeline.storage.unit_commits import read_annotations

_MADE_FROM = b"made_from"
_HEX_OF_DIGEST = 32  # characters of a picture's SHA-256 that make 128 bits
_OF_MENTION = "linked.list.element"
_OF_CANDIDATE = f"{_OF_MENTION}.candidates.list.element"
_COLUMNS = (
    "image_id",
    "image_sha256",
    "outcome",
    f"{_OF_MENTION}.chosen",
    f"{_OF_MENTION}.probability",
    f"{_OF_CANDIDATE}.entity_id",
    f"{_OF_CANDIDATE}.similarity",
    f"{_OF_CANDIDATE}.verifier_score",
)


class End(enum.IntEnum):
    """What became of a label; the higher, the later the step that rejected it."""

    KEPT = 0
    LOW_PROBABILITY = 1
    LOW_VERIFIER_SCORE = 2
    NOT_SCORED = 3
    LOW_SIMILARITY = 4
    DUPLICATE_ID = 5
    DUPLICATE_IMAGE = 6
    RARE_ENTITY = 7
    BROKEN_IMAGE = 8
    IMAGE_CHANGED = 9

    @property
    def reason(self) -> str:
        """The name in ledgers and counts."""
        return self.name.lower()


STAGE_OF_END = {
    End.LOW_PROBABILITY: "select_labels",
    End.LOW_VERIFIER_SCORE: "select_labels",
    End.NOT_SCORED: "select_labels",
    End.LOW_SIMILARITY: "select_labels",
    End.DUPLICATE_ID: "deduplicate",
    End.DUPLICATE_IMAGE: "deduplicate",
    End.RARE_ENTITY: "build_vocabulary",
    End.BROKEN_IMAGE: "write_shards",
    End.IMAGE_CHANGED: "write_shards",
}
# The ends that labels are counted by. What happens to a picture when it is written is an error of its row.
LABEL_ENDS = tuple(end.reason for end in End if end < End.BROKEN_IMAGE)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Labels:
    """The `n` labels of a unit, by row and then by mention: one for each entity that a row is linked to."""

    rows: np.ndarray
    """int32 `[n]`, positions in the unit, from 0."""
    mentions: np.ndarray
    """int32 `[n]`, positions in the row's `linked`."""
    entities: np.ndarray
    """int32 `[n]`, positions in `entity_ids`."""
    entity_ids: pa.StringArray
    """The entities of these labels, each once."""
    probabilities: np.ndarray
    """float64 `[n]`, of the link."""
    similarities: np.ndarray
    """float64 `[n]`; NaN: the picture was not compared with this entity."""
    verifier_scores: np.ndarray
    """float64 `[n]`; NaN: there is no verifier."""
    id_digests: np.ndarray
    """uint64 `[n, 2]`, of the row's image id."""
    image_digests: np.ndarray
    """uint64 `[n, 2]`, of picture and entity together."""

    def __len__(self) -> int:
        return len(self.rows)


def labels_of_annotations(table: pa.Table) -> Labels:
    """Returns the labels of an annotated unit: each entity chosen in a row, by the likeliest of its mentions.

    Args:
        table: the annotations, in order; other columns than those that labels need may be missing.
    """
    linked = table["linked"].combine_chunks()
    row_of_mention = pc.list_parent_indices(linked).to_numpy()
    mentions = linked.flatten()
    chosen = mentions.field("chosen")
    is_annotated = pc.equal(table["outcome"], "annotated").to_numpy()
    picked = np.nonzero(_numpy(chosen.is_valid()) & is_annotated[row_of_mention])[0]

    encoded = chosen.take(pa.array(picked)).dictionary_encode()
    entities = encoded.indices.to_numpy()
    probabilities = _numpy(mentions.field("probability"))[picked]
    # Of several mentions of one entity in a row the likeliest counts; of equal ones the first.
    order = np.lexsort((picked, -probabilities, entities, row_of_mention[picked]))
    keys = np.stack([row_of_mention[picked][order], entities[order]])
    is_first = np.ones(len(order), bool)
    is_first[1:] = (keys[:, 1:] != keys[:, :-1]).any(axis=0)
    best = np.sort(order[is_first])

    places = picked[best]
    rows = row_of_mention[places]
    similarities, verifier_scores = _scores(mentions, chosen, places)
    labelled_rows, position_of_row = np.unique(rows, return_inverse=True)
    ids = digests(table["image_id"].combine_chunks().take(pa.array(labelled_rows)).to_pylist())
    hashes = table["image_sha256"].combine_chunks().take(pa.array(labelled_rows)).to_pylist()
    halves = np.frombuffer(bytes.fromhex("".join(one[:_HEX_OF_DIGEST] for one in hashes)), "<u8")
    pictures = halves.reshape(len(hashes), 2)
    entity_digests = digests(encoded.dictionary.to_pylist())
    first_mentions = np.concatenate([[0], np.cumsum(pc.fill_null(pc.list_value_length(linked), 0).to_numpy())])
    return Labels(
        rows=rows.astype(np.int32),
        mentions=(places - first_mentions[rows]).astype(np.int32),
        entities=entities[best].astype(np.int32),
        entity_ids=encoded.dictionary,
        probabilities=probabilities[best],
        similarities=similarities,
        verifier_scores=verifier_scores,
        id_digests=ids[position_of_row],
        # Both are uniform: two that differ in either have the same sum of bits as rarely as two hashes are equal.
        image_digests=pictures[position_of_row] ^ entity_digests[entities[best]],
    )


def _scores(mentions: pa.StructArray, chosen: pa.StringArray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns similarity and verifier's score of the candidate that each mention of `places` chose; NaN for none."""
    candidates = mentions.field("candidates").take(pa.array(places))
    mention_of = pc.list_parent_indices(candidates)
    flat = candidates.flatten()
    is_chosen = pc.equal(flat.field("entity_id"), chosen.take(pa.array(places)).take(mention_of))
    found = np.nonzero(_numpy(is_chosen))[0]
    places_found, first = np.unique(mention_of.to_numpy()[found], return_index=True)
    scores = []
    for name in ("similarity", "verifier_score"):
        values = _numpy(flat.field(name))
        of_place = np.full(len(places), np.nan)
        of_place[places_found] = values[found[first]]
        scores.append(of_place)
    return scores[0], scores[1]


def _numpy(array: pa.Array) -> Any:
    """Returns the values of `array`, copied where they lie otherwise in memory; NaN for null."""
    return array.to_numpy(zero_copy_only=False)  # pragma: no mutate: None is False too


def labels_path(output: str, unit: str) -> str:
    """Returns where the labels of the unit called `unit` lie in the output folder."""
    return posixpath.join(output, "assembly", "labels", unit + ".arrow")


def prepare_labels(annotations: str, path: str, *, key: str, sha256: str) -> None:
    """Writes the labels of the file `annotations` to `path`, unless a whole file made from `key` is there.

    Args:
        annotations: path of the annotations of a unit.
        path: of the file of labels.
        key: a hash of all that the labels depend on.
        sha256: that of the annotations, its first digits.

    Raises:
        UserError: the annotations have another hash.
    """
    if FileSystems.exists(path) and _open(path, key) is not None:
        return
    content = read_annotations(annotations, sha256=sha256)
    file = pq.ParquetFile(pa.BufferReader(content))
    table = file.read(columns=list(_COLUMNS), use_threads=False)  # pragma: no mutate: to save time
    write_labels(path, labels_of_annotations(table), key=key)


def write_labels(path: str, labels: Labels, *, key: str) -> None:
    """Writes `labels`, which depend on what `key` is a hash of, to `path`."""
    write_bytes(path, _encode(labels, key))


def read_labels(path: str, *, key: str) -> Labels:
    """Returns the labels in the file at `path`.

    Raises:
        UserError: the file is cut, or was not made from `key`.
    """
    batch = _open(path, key)
    if batch is None:
        raise UserError(f"{path} was changed while it was in use; run again, and only one run at a time")
    columns = {name: batch.column(name).to_numpy() for name in batch.schema.names if name != "entity"}
    entity = batch.column("entity")
    return Labels(
        rows=columns["row"],
        mentions=columns["mention"],
        entities=entity.indices.to_numpy(),
        entity_ids=entity.dictionary,
        probabilities=columns["probability"],
        similarities=columns["similarity"],
        verifier_scores=columns["verifier_score"],
        id_digests=np.stack([columns["id_0"], columns["id_1"]], axis=1),
        image_digests=np.stack([columns["image_0"], columns["image_1"]], axis=1),
    )


def _encode(labels: Labels, key: str) -> bytes:
    columns = {
        "row": pa.array(labels.rows),
        "mention": pa.array(labels.mentions),
        "entity": pa.DictionaryArray.from_arrays(pa.array(labels.entities), labels.entity_ids),
        "probability": pa.array(labels.probabilities),
        "similarity": pa.array(labels.similarities),  # NaN is not null here
        "verifier_score": pa.array(labels.verifier_scores),
        "id_0": pa.array(np.ascontiguousarray(labels.id_digests[:, 0])),
        "id_1": pa.array(np.ascontiguousarray(labels.id_digests[:, 1])),
        "image_0": pa.array(np.ascontiguousarray(labels.image_digests[:, 0])),
        "image_1": pa.array(np.ascontiguousarray(labels.image_digests[:, 1])),
    }
    batch = pa.RecordBatch.from_pydict(columns, metadata={_MADE_FROM: key.encode()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    encoded: bytes = sink.getvalue().to_pybytes()
    return encoded


def _open(path: str, key: str) -> pa.RecordBatch | None:
    """Returns the columns in the file at `path`; None if it is cut, or was not made from `key`."""
    try:
        reader = pa.ipc.open_file(read_bytes(path))
        if (reader.schema.metadata or {}).get(_MADE_FROM) != key.encode():
            return None
        return reader.get_batch(0)
    except pa.ArrowInvalid:
        return None
