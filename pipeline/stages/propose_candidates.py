"""Mentions -> candidates: the entities that the knowledge base knows under a mention's name."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

from pipeline.config import ProposeConfig
from pipeline.kb.names import spellings
from pipeline.kb.store import KnowledgeBase
from pipeline.row_stage import RowStage
from pipeline.schema import Candidate, LinkedMention, Mention, Rejection, Row

STAGE = "propose_candidates"
NUM_CANDIDATES_MAX = ProposeConfig().num_candidates
_CACHED_NAMES = 4096  # names of texts: few are used often; some 300 bytes a candidate, so 20 MB at most with 16 of them


def propose_candidates(
    mention: Mention, kb: KnowledgeBase, *, num_candidates: int = NUM_CANDIDATES_MAX
) -> tuple[Candidate, ...]:
    """Returns at most `num_candidates` entities that `mention` may mean, the likeliest first.

    The name is looked up as it is and in other spellings, which match less. An entity that has several of these is
    found by the one with the largest product of prior and match.
    """
    return _candidates_of(mention.surface, kb, num_candidates)


@functools.lru_cache(_CACHED_NAMES)
def _candidates_of(surface: str, kb: KnowledgeBase, num_candidates: int) -> tuple[Candidate, ...]:
    found: dict[str, Candidate] = {}
    for spelling in spellings(surface, kb):
        match, alias = spelling.match, kb.alias(spelling.key)
        if alias is None:
            continue
        for entry in alias.entries:
            if not spelling.allows(entry.is_name):
                continue
            before = found.get(entry.entity_id)
            if before is None or before.prior * before.match < entry.prior * match:
                found[entry.entity_id] = Candidate(
                    entity_id=entry.entity_id,
                    prior=entry.prior,
                    match=match,
                    case=entry.case,
                    link_probability=alias.link_probability,
                )
    ranked = sorted(found.values(), key=lambda one: (-one.prior * one.match, one.entity_id))
    return tuple(ranked[:num_candidates])


def propose_row(row: Row, kb: KnowledgeBase, *, num_candidates: int = NUM_CANDIDATES_MAX) -> Row:
    """Returns `row` with one `LinkedMention` per mention, none chosen yet; mentions without candidates are kept."""
    linked = [
        LinkedMention(
            mention=mention,
            candidates=propose_candidates(mention, kb, num_candidates=num_candidates),
            chosen=None,
            probability=0.0,
        )
        for mention in row.mentions
    ]
    return dataclasses.replace(row, linked=tuple(linked))


class ProposeCandidates(RowStage):
    """Keeps the rows with a candidate; rejects the others ("no_candidate").

    Args:
        kb_path: the knowledge base.
        num_candidates: the most candidates of a mention.
    """

    name = STAGE

    def __init__(self, kb_path: str, num_candidates: int = NUM_CANDIDATES_MAX):
        super().__init__()
        if num_candidates < 1:
            raise ValueError(f"num_candidates {num_candidates}: must be at least 1")
        self.kb_path = kb_path
        self.num_candidates = num_candidates

    def setup(self) -> None:
        self._kb = KnowledgeBase.open(self.kb_path)

    def run(self, rows: Sequence[Row]) -> list[Row | Rejection]:
        proposed = [propose_row(row, self._kb, num_candidates=self.num_candidates) for row in rows]
        return [
            row if any(linked.candidates for linked in row.linked) else row.rejected(stage=STAGE, reason="no_candidate")
            for row in proposed
        ]
