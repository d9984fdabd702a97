"""Mentions -> candidates: the entities that the knowledge base knows under a mention's name."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from pipeline.config import ProposeConfig
from pipeline.kb.normalise import alias_variants, normalise_alias
from pipeline.kb.store import AliasEntry, KnowledgeBase
from pipeline.row_stage import RowStage
from pipeline.schema import Candidate, LinkedMention, Mention, Rejection, Row

STAGE = "propose_candidates"
NUM_CANDIDATES_MAX = ProposeConfig().num_candidates
VARIANT_SHARE = 0.5  # prior of a name found only by stripping its ending or its legal form (ours)
CASE_SHARE = 0.25  # prior of a proper name that the text writes small, amid capitals (ours)


def propose_candidates(
    mention: Mention, text: str, kb: KnowledgeBase, *, num_candidates: int = NUM_CANDIDATES_MAX
) -> tuple[Candidate, ...]:
    """Returns at most `num_candidates` entities that `mention` may mean, the likeliest first.

    The name is looked up as it is, and without possessive, legal suffix and plural. A proper name that is written in
    lower case while the rest of `text` has capitals is less likely. The priors of all that were found sum to 1.
    """
    key = normalise_alias(mention.surface)
    weights: dict[str, float] = {}
    lower_amid_capitals = mention.surface.islower() and any(map(str.isupper, text))
    found: list[tuple[AliasEntry, float]] = [(entry, 1.0) for entry in kb.entries(key)]
    for variant in alias_variants(key):
        found += [(entry, VARIANT_SHARE) for entry in kb.entries(variant)]
    for entry, share in found:
        if entry.is_name and lower_amid_capitals:
            share *= CASE_SHARE
        weights[entry.entity_id] = max(weights.get(entry.entity_id, 0.0), entry.prior * share)
    total = sum(weights.values())
    ranked = sorted(weights.items(), key=lambda item: (-item[1], item[0]))[:num_candidates]
    return tuple(Candidate(entity_id=entity_id, prior=weight / total) for entity_id, weight in ranked)


def propose_row(row: Row, kb: KnowledgeBase, *, num_candidates: int = NUM_CANDIDATES_MAX) -> Row:
    """Returns `row` with one `LinkedMention` per mention, none chosen yet; mentions without candidates are kept."""
    linked = [
        LinkedMention(
            mention=mention,
            candidates=propose_candidates(mention, row.pair.text, kb, num_candidates=num_candidates),
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
