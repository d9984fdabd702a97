"""Zero-shot classification: is the name of what a picture shows the closest of all names?

Protocol (version 1). Pictures of held-out renderings. Candidates: for seen entities the vocabulary, for unseen ones all
unseen entities of the evaluation. An entity's text is its name, through each template; every template's embedding is
normalised, the mean is taken and normalised again. Equal similarities rank by entity id, so of two entities with one
name the smaller id wins: `num_shared_names` says how many candidates share theirs.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from evaluation.entities import accuracy_at, rank_of_truth, scored_pictures
from evaluation.errors import UserError
from evaluation.pictures import Pictures

PROTOCOL_VERSION = 1
TEMPLATES = ("{}",)


class TextEncoder(Protocol):
    """What zero-shot classification needs of an encoder."""

    def embed_texts(self, texts: Sequence[str], /) -> np.ndarray: ...


def class_embeddings(encoder: TextEncoder, names: Sequence[str], templates: Sequence[str] = TEMPLATES) -> np.ndarray:
    """Returns float32 `[names, dim]`: the normalised mean of the normalised embeddings of each template with the name.

    Raises:
        UserError: an embedding is not finite or a zero vector.
    """
    total = np.zeros((), np.float32)
    for template in templates:
        embedded = np.asarray(encoder.embed_texts([template.replace("{}", name) for name in names]), np.float32)
        total = total + _normalised(embedded, names)
    return _normalised(total, names)


def zero_shot_metrics(
    embeddings: np.ndarray,
    pictures: Pictures,
    encoder: TextEncoder,
    names: Mapping[str, str],
    candidates: Sequence[str],
    *,
    heldout_entity: bool = False,
    templates: Sequence[str] = TEMPLATES,
) -> tuple[dict[str, float], dict[str, int]]:
    """Returns `accuracy_at_1` and `accuracy_at_5`, and the counts behind them.

    Args:
        embeddings: L2-normalised float32 `[n, dim]`, in the order of `pictures`.
        pictures: the evaluation's.
        encoder: embeds the names.
        names: entity id to name.
        candidates: the entity ids that compete, unique; those without a name are left out and counted.
        heldout_entity: score the pictures of unseen entities instead of seen ones.
        templates: texts with `{}` for the name.

    Raises:
        UserError: an embedding of a text is not finite or a zero vector.
    """
    named = [entity_id for entity_id in candidates if names.get(entity_id)]
    texts = [names[entity_id] for entity_id in named]
    scored = scored_pictures(pictures, named, heldout_entity=heldout_entity)
    uses = Counter(texts)
    counts = {
        "num_pictures": len(scored),
        "num_candidates": len(named),
        "num_without_name": len(candidates) - len(named),
        "num_shared_names": sum(uses[text] > 1 for text in texts),
    }
    if len(scored) == 0:
        return {}, counts
    class_of = {entity_id: position for position, entity_id in enumerate(named)}
    truth = np.array([class_of[entity_id] for entity_id in pictures.entity_ids[scored]])
    ranks = rank_of_truth(embeddings[scored] @ class_embeddings(encoder, texts, templates).T, truth, named)
    return {"accuracy_at_1": accuracy_at(ranks, 1), "accuracy_at_5": accuracy_at(ranks, 5)}, counts


def read_names(path: str | os.PathLike[str]) -> dict[str, str]:
    """Returns entity id to name from JSON lines: a vocabulary (`entity_id`, `name`) or a source (`id`, `label`).

    Raises:
        UserError: the file is missing, or a line has neither pair of fields.
    """
    names = {}
    for number, row in _json_lines(path):
        entity_id, name = row.get("entity_id", row.get("id")), row.get("name", row.get("label"))
        if not isinstance(entity_id, str) or not isinstance(name, str):
            raise UserError(f"{path}, line {number}: needs entity_id and name, or id and label; mend the line")
        names[entity_id] = name
    return names


def read_image_counts(path: str | os.PathLike[str]) -> dict[str, int]:
    """Returns entity id to number of training pictures, of a vocabulary in JSON lines.

    Raises:
        UserError: the file is missing, or a line is no JSON object.
    """
    return {row["entity_id"]: int(row.get("image_count", 0)) for _, row in _json_lines(path) if "entity_id" in row}


def _json_lines(path: str | os.PathLike[str]) -> list[tuple[int, dict]]:
    if not os.path.exists(path):
        raise UserError(f"{path} is missing; name a vocabulary.jsonl or kb_source.jsonl with --names")
    rows = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}, line {number} is no JSON ({error}); make the file again") from error
            if not isinstance(row, dict):
                raise UserError(f"{path}, line {number} is no JSON object; make the file again")
            rows.append((number, row))
    return rows


def _normalised(embeddings: np.ndarray, names: Sequence[str]) -> np.ndarray:
    norms = np.linalg.norm(embeddings, axis=1)
    wrong = np.flatnonzero(~(np.isfinite(norms) & (norms > 1e-6)))
    if len(wrong):
        raise UserError(f"the embedding of the text {names[wrong[0]]!r} has norm {norms[wrong[0]]}; train again")
    return embeddings / norms[:, None]
