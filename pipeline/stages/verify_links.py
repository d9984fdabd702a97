"""Linked mentions -> scores of their candidates by a verifier that the user brings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from PIL import Image

from pipeline.images.decode import decode_image, on_white
from pipeline.kb.store import KnowledgeBase
from pipeline.linking.verifier import VerifierCandidate, load_verifier, scores_of
from pipeline.row_stage import RowStage
from pipeline.schema import LinkedMention, Rejection, Row

STAGE = "verify_links"


def verify_rows(rows: Sequence[Row], kb: KnowledgeBase, verifier: str, *, batch_size: int) -> list[Row]:
    """Returns the rows with the verifier's score in each candidate of the mentions that have an entity chosen.

    Args:
        rows: rows whose pictures can be decoded.
        kb: has the names and descriptions of the candidates.
        verifier: "module:function"; see `pipeline.linking.verifier`.
        batch_size: mentions per call.

    Raises:
        UserError: the verifier raises, or returns something else than a number for each candidate.
    """
    linked = [list(row.linked) for row in rows]
    places = [
        (place, number)
        for place, row in enumerate(rows)
        for number, one in enumerate(row.linked)
        if one.chosen is not None
    ]
    for start in range(0, len(places), batch_size):
        batch = places[start : start + batch_size]
        pictures: dict[int, Image.Image] = {}  # a text with several names has one picture
        for place, _ in batch:
            if place not in pictures:
                pictures[place] = on_white(decode_image(rows[place].pair.image))
        mentions = [linked[place][number] for place, number in batch]
        scores = scores_of(
            verifier,
            [pictures[place] for place, _ in batch],
            [rows[place].pair.text for place, _ in batch],
            [_candidates(mention, kb) for mention in mentions],
        )
        # Both have the right lengths, or `scores_of` raises.
        scored = zip(batch, mentions, scores, strict=True)  # pragma: no mutate: see above
        for (place, number), mention, values in scored:
            pairs = zip(mention.candidates, values, strict=True)  # pragma: no mutate: see above
            candidates = tuple(dataclasses.replace(candidate, verifier_score=value) for candidate, value in pairs)
            linked[place][number] = dataclasses.replace(mention, candidates=candidates)
    return [dataclasses.replace(row, linked=tuple(linked[place])) for place, row in enumerate(rows)]


def _candidates(linked: LinkedMention, kb: KnowledgeBase) -> list[VerifierCandidate]:
    found = []
    for candidate in linked.candidates:
        entity = kb.entity(candidate.entity_id)
        found.append(
            VerifierCandidate(
                entity_id=candidate.entity_id,
                name=entity.label,
                description=entity.description,
                start=linked.mention.start,
                end=linked.mention.end,
                probability=candidate.score,
                similarity=candidate.similarity,
            )
        )
    return found


class VerifyLinks(RowStage):
    """Keeps all rows, with the verifier's scores; `SelectLabels` rejects labels by them.

    Args:
        kb_path: the knowledge base that the candidates come from.
        verifier: "module:function".
        batch_size: mentions per call.
    """

    name = STAGE

    def __init__(self, kb_path: str, verifier: str, batch_size: int):
        super().__init__()
        self.kb_path = kb_path
        self.verifier = verifier
        self.batch_size = batch_size

    def setup(self) -> None:
        self._kb = KnowledgeBase.open(self.kb_path)
        load_verifier(self.verifier)

    def run(self, rows: Sequence[Row]) -> list[Row | Rejection]:
        return list(verify_rows(rows, self._kb, self.verifier, batch_size=self.batch_size))
