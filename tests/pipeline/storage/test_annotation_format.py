"""Annotations on disk."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from pipeline.schema import EVIDENCE, Candidate, ImageText, LinkedMention, Mention, Row
from pipeline.storage.annotation_format import AnnotationWriter, record_of_row


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
