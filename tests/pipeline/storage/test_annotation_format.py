"""Annotations on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from pipeline.schema import EVIDENCE, Candidate, ImageText, LinkedMention, Mention, Row
from pipeline.storage.annotation_format import AnnotationWriter, record_of_rejection, record_of_row


def test_a_mention_is_written_with_its_longer_name_and_its_candidates(tmp_path: Path) -> None:
    mention = Mention(start=2, end=7, surface="Banff", score=0.6, finder="dictionary", outer=(2, 21))
    candidate = Candidate(
        entity_id="Q1",
        prior=0.5,
        case="acronym",
        link_probability=0.25,
        match=0.75,
        evidence=tuple(float(place) for place in range(len(EVIDENCE))),
        score=0.125,
    )
    alone = Mention(start=0, end=1, surface="a", score=0.4, finder="tagger")
    linked = (
        LinkedMention(mention=mention, candidates=(candidate,), chosen="Q1", probability=0.125),
        LinkedMention(mention=alone, candidates=(), chosen=None, probability=1.0),
    )
    pair = ImageText(image_id="p", image=b"x", text="a Banff National Park", shard="s", row=3)
    path = tmp_path / "a.parquet"
    with path.open("wb") as file, AnnotationWriter(file) as writer:
        writer.write([record_of_row(Row(pair=pair, linked=linked))])
    [row] = pq.read_table(path).to_pylist()
    first, second = row["linked"]
    assert (first["outer_start"], first["outer_end"]) == (2, 21)
    assert (second["outer_start"], second["outer_end"]) == (None, None)
    assert first["candidates"] == [
        {
            "entity_id": "Q1",
            "prior": 0.5,
            "match": 0.75,
            "case": "acronym",
            "link_probability": 0.25,
            "evidence": {name: float(place) for place, name in enumerate(EVIDENCE)},
            "score": 0.125,
            "similarity": None,
            "verifier_score": None,
        }
    ]
    assert second["candidates"] == []


def test_what_is_known_of_the_picture_is_written_where_a_row_is_annotated(tmp_path: Path) -> None:
    pair = ImageText(image_id="p", image=b"x", text="a", shard="s", row=3)
    row = Row(
        pair=pair,
        width_px=2,
        height_px=3,
        image_format="JPEG",
        perceptual_hash="00ff00ff00ff00ff",
        embedding=np.array([0.5, -1.0], "<f2").tobytes(),
    )
    path = tmp_path / "a.parquet"
    with path.open("wb") as file, AnnotationWriter(file) as writer:
        writer.write([record_of_row(row), record_of_rejection(row.rejected(stage="s", reason="r"))])
    kept, dropped = pq.read_table(path).to_pylist()
    names = ("width", "height", "image_format", "image_sha256", "perceptual_hash", "embedding")
    # printf x | sha256sum. Half precision: 0.5 is 0x3800, -1 is 0xbc00; little-endian.
    sha256 = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    assert [kept[name] for name in names] == [2, 3, "JPEG", sha256, "00ff00ff00ff00ff", b"\x00\x38\x00\xbc"]
    assert [dropped[name] for name in names] == [0, 0, None, None, None, None]
