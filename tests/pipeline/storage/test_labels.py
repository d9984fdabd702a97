"""Labels in columns, from annotations small enough to read."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.schema import UserError
from pipeline.storage.annotation_format import ANNOTATION_SCHEMA
from pipeline.storage.digests import digests
from pipeline.storage.labels import (
    STAGE_OF_END,
    End,
    Labels,
    labels_of_annotations,
    labels_path,
    prepare_labels,
    read_labels,
)


def linked(chosen: str | None, probability: float = 0.9, **similarities: float | None) -> dict[str, Any]:
    """Returns a mention with a candidate for each of `similarities`; the verifier's score is ten times as much."""
    candidates = [
        {"entity_id": one, "similarity": value, "verifier_score": None if value is None else 10 * value}
        for one, value in similarities.items()
    ]
    return {"chosen": chosen, "probability": probability, "candidates": candidates}


def row(image_id: str, *mentions: dict[str, Any], outcome: str = "annotated", picture: str = "p") -> dict[str, Any]:
    sha256 = hashlib.sha256(picture.encode()).hexdigest() if outcome == "annotated" else None
    return {"image_id": image_id, "outcome": outcome, "image_sha256": sha256, "linked": list(mentions)}


def labels_of(*rows: dict[str, Any]) -> Labels:
    return labels_of_annotations(pa.Table.from_pylist(list(rows), schema=ANNOTATION_SCHEMA))


def entities(labels: Labels) -> list[str]:
    return labels.entity_ids.take(pa.array(labels.entities)).to_pylist()


def test_each_entity_of_a_row_is_one_label_by_the_likeliest_of_its_mentions() -> None:
    labels = labels_of(
        row("a", linked("E1", 0.6), linked(None, 0.0), linked("E2", 0.5), linked("E1", 0.8)),
        row("b"),
        row("c", linked("E2", 0.7), linked("E2", 0.7)),  # as sure: the first
    )
    assert labels.rows.tolist() == [0, 0, 2] and labels.mentions.tolist() == [2, 3, 0]
    assert entities(labels) == ["E2", "E1", "E2"] and sorted(labels.entity_ids.to_pylist()) == ["E1", "E2"]
    assert labels.probabilities.tolist() == [0.5, 0.8, 0.7]
    assert labels.rows.dtype == labels.mentions.dtype == labels.entities.dtype == np.int32
    assert labels.probabilities.dtype == labels.similarities.dtype == labels.verifier_scores.dtype == np.float64
    assert labels.id_digests.dtype == labels.image_digests.dtype == np.uint64


def test_a_label_has_the_numbers_of_its_chosen_candidate() -> None:
    labels = labels_of(
        row("a", linked(None, E1=0.5), linked("E1", E2=0.2, E1=0.1), linked("E3", E1=0.4)),
        row("b", linked("E1", E1=None), linked("E2", E2=0.3, E1=0.6)),
    )
    assert entities(labels) == ["E1", "E3", "E1", "E2"]
    # E3 is no candidate, and the picture of b was not compared with E1.
    np.testing.assert_array_equal(labels.similarities, [0.1, np.nan, np.nan, 0.3])
    np.testing.assert_allclose(labels.verifier_scores, [1.0, np.nan, np.nan, 3.0])


def test_a_row_that_annotation_dropped_has_no_labels_whatever_was_found_for_it() -> None:
    labels = labels_of(row("a", linked("E1", E1=0.5), outcome="dropped"), row("b", linked("E2", E2=0.5)))
    assert labels.rows.tolist() == [1] and entities(labels) == ["E2"] and labels.entity_ids.to_pylist() == ["E2"]
    assert len(labels_of(row("a", outcome="failed"))) == len(labels_of()) == 0
    # Where no mention was looked for, their list is null.
    labels = labels_of(row("a", outcome="failed") | {"linked": None}, row("b", linked("E1"), linked("E2")))
    assert (labels.rows.tolist(), labels.mentions.tolist()) == ([1, 1], [0, 1])


def test_equal_ids_and_equal_pictures_with_equal_entities_have_equal_digests() -> None:
    labels = labels_of(
        row("a", linked("E1"), linked("E2"), picture="p"),
        row("b", linked("E1"), picture="p"),
        row("a", linked("E1"), picture="q"),
    )
    ids, images = ([tuple(one) for one in digests.tolist()] for digests in (labels.id_digests, labels.image_digests))
    assert ids[0] == ids[1] == ids[3] != ids[2]
    assert images[0] == images[2] and len(set(images)) == 3
    picture = np.frombuffer(hashlib.sha256(b"p").digest()[:16], "<u8")
    assert images[1] == tuple((picture ^ digests(["E2"])[0]).tolist())


def test_labels_are_read_as_they_were_written_and_made_again_only_if_they_must(tmp_path: Path) -> None:
    annotations, path = str(tmp_path / "a.parquet"), tmp_path / "labels" / "a.arrow"

    def write(*rows: dict[str, Any]) -> None:
        pq.write_table(pa.Table.from_pylist(list(rows), schema=ANNOTATION_SCHEMA), annotations)

    def prepare(key: str) -> None:
        sha256 = hashlib.sha256(Path(annotations).read_bytes()).hexdigest()[:16]
        prepare_labels(annotations, str(path), key=key, sha256=sha256)

    write(row("a", linked("E1", E1=0.1)), row("b", linked("E2", E2=None)))
    prepare("one")
    labels, expected = read_labels(str(path), key="one"), labels_of(*pq.read_table(annotations).to_pylist())
    for name in ("rows", "mentions", "entities", "probabilities", "similarities", "id_digests", "image_digests"):
        np.testing.assert_array_equal(getattr(labels, name), getattr(expected, name), err_msg=name, strict=True)
    assert entities(labels) == ["E1", "E2"] and np.isnan(labels.verifier_scores[1])

    write(row("a", linked("E3")))
    prepare("one")
    assert entities(read_labels(str(path), key="one")) == ["E1", "E2"]
    with pytest.raises(UserError, match="a.arrow was changed while it was in use"):
        read_labels(str(path), key="two")
    prepare("two")
    assert entities(read_labels(str(path), key="two")) == ["E3"]
    # Wherever a kill cuts the file, it is made again.
    whole = path.read_bytes()
    for size in (0, 1, 8, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        prepare("two")
        assert path.read_bytes() == whole
    write()
    prepare("none")
    assert len(read_labels(str(path), key="none")) == 0
    with pytest.raises(UserError, match="a.parquet was changed since it was committed; remove it, and run again"):
        prepare_labels(annotations, str(path), key="other", sha256="0" * 16)


def test_the_labels_of_a_unit_lie_among_what_assembly_keeps_for_itself() -> None:
    assert labels_path("store://b/i2e", "pairs-0") == "store://b/i2e/assembly/labels/pairs-0.arrow"


def test_ends_have_the_names_of_reasons() -> None:
    assert [End.KEPT.reason, End.LOW_SIMILARITY.reason] == ["kept", "low_similarity"]


def test_every_end_but_kept_has_a_stage_and_later_stages_have_higher_ends() -> None:
    stages = [STAGE_OF_END[end] for end in End if end != End.KEPT]
    assert list(dict.fromkeys(stages)) == ["select_labels", "deduplicate", "build_vocabulary", "write_shards"]
    assert stages == sorted(stages, key=list(dict.fromkeys(stages)).index)
