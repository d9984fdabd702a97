"""Closeness of entities in the graph of types and links, from the vectors of a knowledge base that has them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from pipeline.kb.store import KnowledgeBase

NUM_SUREST = 8  # entities of a text that its vector is the mean of (ours)


def closeness(kb: KnowledgeBase, first: str, second: str) -> float:
    """Returns the cosine of the vectors of two entities, in [-1, 1]; 0 where one has none."""
    a, b = kb.vector(first), kb.vector(second)
    return 0.0 if a is None or b is None else float(a @ b)


def text_vector(
    kb: KnowledgeBase, entities: Iterable[tuple[str, float]], *, num_surest: int = NUM_SUREST
) -> np.ndarray | None:
    """Returns the mean vector of a text's surest entities, float32 `[dim]` of length 1; None where none has a vector.

    Args:
        kb: the base of the vectors.
        entities: ids and how likely the text means them, in [0, 1]; each weighs as much.
        num_surest: how many count, the likeliest first.
    """
    ranked = sorted(entities, key=lambda entity: (-entity[1], entity[0]))[:num_surest]
    found = [weight * vector for entity_id, weight in ranked if (vector := kb.vector(entity_id)) is not None]
    if not found:
        return None
    total = np.sum(found, axis=0)
    length = float(np.linalg.norm(total))
    return None if length < 1e-6 else np.asarray(total / length, np.float32)
