"""Why a row ended as it did: each step with its numbers, as a JSON object."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.report.entity_names import NameOf
from pipeline.report.find_rows import FoundRow
from pipeline.report.reasons import meaning_of
from pipeline.report.set_files import threshold_source
from pipeline.schema import VocabularyEntry

# Fields of a mention and of a candidate that an explanation arranges; all others are shown as they are.
_OF_MENTION = ("start", "end", "surface", "finder", "mention_score", "chosen", "probability", "candidates")
_OF_CANDIDATE = ("entity_id", "score", "similarity", "verifier_score")


def explain_row(
    found: FoundRow,
    *,
    manifest: Mapping[str, Any] | None,
    vocabulary: Mapping[str, VocabularyEntry],
    name_of: NameOf,
    same_picture: Sequence[str] = (),
) -> dict[str, Any]:
    """Returns the steps of a row.

    Args:
        found: its rows of annotations and ledger.
        manifest: that of the set, with limits and the linker's weights; None if it is unfinished.
        vocabulary: entity id -> class.
        name_of: entity id -> its name and description.
        same_picture: ids of other rows with the same picture, if that was looked up.
    """
    record, ledger = found.record, found.ledger
    # A row that annotating dropped ended there; of the others the ledger tells the end.
    end = record if ledger is None else ledger
    labels = {label["mention"]: label for label in (ledger or {}).get("labels") or ()}
    linker = (manifest or {}).get("linker")
    mentions = []
    for number, linked in enumerate(record["linked"] or ()):
        candidates = [_candidate(one, name_of, linker) for one in linked["candidates"] or ()]
        candidates.sort(key=lambda one: -(one["probability"] or 0.0))
        mention = {
            "surface": linked["surface"],
            "start": linked["start"],
            "end": linked["end"],
            "finder": linked["finder"],
            "finder_score": linked["mention_score"],
            **_further(linked),
            "candidates": candidates,
            "chosen": linked["chosen"],
            "probability": linked["probability"],
            "nil_probability": max(0.0, 1.0 - math.fsum(one["probability"] or 0.0 for one in candidates)),
        }
        if linked["chosen"] is not None:
            chosen = next((one for one in candidates if one["entity_id"] == linked["chosen"]), {})
            mention["similarity"] = chosen.get("similarity")
            mention["verifier_score"] = chosen.get("verifier_score")
            mention["label"] = _label(number, linked, record, labels, ledger is not None, vocabulary)
        mentions.append(mention)
    return {
        "image_id": record["image_id"],
        "shard": record["shard"],
        "row": record["row"],
        "text": record["text"],
        "width_px": record["width"],
        "height_px": record["height"],
        "outcome": end["outcome"],
        "stage": end["stage"],
        "reason": end["reason"],
        "meaning": meaning_of(end["reason"] or ""),
        "same_picture": list(same_picture),
        "mentions": mentions,
        "limits": limits_of(manifest),
    }


def limits_of(manifest: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns the thresholds that decided, by name; an empty dict if the set is unfinished."""
    if manifest is None:
        return {}
    config = manifest["config"]
    of_run = config["annotate"]["disambiguate"].get("probability_min")  # of sets made before weights stated it
    select, vocabulary = config["assemble"]["select"], config["assemble"]["vocabulary"]
    return {
        "probability_min": manifest.get("linker", {}).get("probability_min", of_run),
        **select,
        # After `select`, where it is None if it was not given.
        "min_similarity": manifest["min_similarity"],
        "min_similarity_source": threshold_source(manifest),
        "min_images_per_entity": vocabulary["min_images_per_entity"],
    }


def _further(linked: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the other fields of a mention; x_start and x_end become x, a span, which is None where there is none."""
    fields = {name: value for name, value in linked.items() if name not in _OF_MENTION}
    for name in [name.removesuffix("_start") for name in fields if name.endswith("_start")]:
        if f"{name}_end" in fields:
            start, end = fields.pop(f"{name}_start"), fields.pop(f"{name}_end")
            fields[name] = None if start is None or end is None else [start, end]
    return fields


def _label(
    number: int,
    linked: Mapping[str, Any],
    record: Mapping[str, Any],
    labels: Mapping[int, Mapping[str, Any]],
    is_assembled: bool,
    vocabulary: Mapping[str, VocabularyEntry],
) -> dict[str, Any]:
    """Returns what became of the entity that mention `number` was linked to."""
    if number in labels:
        label = labels[number]
        if label["reason"] is not None:
            meaning = meaning_of(label["reason"])
            return {"outcome": "rejected", "stage": label["stage"], "reason": label["reason"], "meaning": meaning}
        entry = vocabulary.get(linked["chosen"])
        if entry is None:
            return {"outcome": "kept", "class_id": None, "images_of_class": None}
        return {"outcome": "kept", "class_id": entry.class_id, "images_of_class": entry.image_count}
    surer = next((one for one, label in labels.items() if label["entity_id"] == linked["chosen"]), None)
    if surer is not None:
        return {"outcome": "same_entity", "mention": surer}
    if record["outcome"] != "annotated":
        return {"outcome": "not_reached", "stage": record["stage"], "reason": record["reason"]}
    return {"outcome": "unknown" if is_assembled else "not_assembled"}


def _candidate(candidate: Mapping[str, Any], name_of: NameOf, linker: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns a candidate with its names and, where weights are known, what each piece of evidence contributes."""
    weights = {} if linker is None else linker["weights"]
    name, description = name_of(candidate["entity_id"])
    evidence: dict[str, Any] = {}
    weighted: dict[str, float] = {}
    for field, value in candidate.items():
        if field in _OF_CANDIDATE:
            continue
        if not isinstance(value, Mapping):
            evidence[field] = value
            continue
        evidence |= {f"{field}.{part}": number for part, number in value.items()}
        weighted |= {
            f"{field}.{part}": weights[part] * number
            for part, number in value.items()
            if part in weights and number is not None
        }
    shown: dict[str, Any] = {
        "entity_id": candidate["entity_id"],
        "name": name,
        "description": description,
        "probability": candidate["score"],
        "similarity": candidate["similarity"],
        "verifier_score": candidate.get("verifier_score"),
        "evidence": evidence,
    }
    if linker is not None and weighted:
        shown["weights"] = {field: weights[field.rpartition(".")[2]] for field in weighted}
        shown["contributions"] = weighted
        shown["bias"] = linker["bias"]
        shown["sum"] = math.fsum((*weighted.values(), linker["bias"]))
    return shown
