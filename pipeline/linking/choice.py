"""From the evidence for the candidates of a mention to the entity that it means, or NIL."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pipeline.schema import Candidate, LinkedMention


def softmax_with_nil(scores: np.ndarray) -> np.ndarray:
    """Returns the probabilities `[candidates]` of `scores`; NIL, whose score is 0, takes the rest to 1."""
    top = float(scores.max(initial=0.0))  # pragma: no mutate: any number near it gives the same
    exponents = np.exp(scores - top)
    return np.asarray(exponents / (exponents.sum() + math.exp(-top)))


def choose(
    linked: LinkedMention, evidence: Sequence[Sequence[float]], shares: Sequence[float], probability_min: float
) -> LinkedMention:
    """Returns `linked` with its likeliest candidate chosen, or NIL.

    It is NIL where the candidates together are less likely than `probability_min`. So two candidates that are equally
    likely do not make a name NIL; how sure the choice between them is says the probability of the chosen one.
    """
    candidates = tuple(
        Candidate(
            entity_id=candidate.entity_id,
            prior=candidate.prior,
            match=candidate.match,
            case=candidate.case,
            link_probability=candidate.link_probability,
            evidence=tuple(values),
            score=share,
            similarity=candidate.similarity,
        )
        for candidate, values, share in zip(linked.candidates, evidence, shares, strict=True)
    )
    # Of equal scores the one with the higher prior wins: candidates are in that order.
    best = max(candidates, key=lambda candidate: candidate.score, default=None)
    of_candidates = math.fsum(shares)
    if best is None or of_candidates < probability_min:
        chosen, probability = None, 1 - of_candidates
    else:
        chosen, probability = best.entity_id, best.score
    return LinkedMention(
        mention=linked.mention, candidates=candidates, chosen=chosen, probability=probability, by_text=chosen
    )
