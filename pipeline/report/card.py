"""The content of a data card: what a set holds and what was left out, as a JSON object and a table of entities."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.report.card_counts import BIN_WIDTH, KEPT, LOW_SIMILARITY, CardCounts, check_counts, read_batches
from pipeline.report.card_samples import Sample, Samples, pick_entities, shards_in_order
from pipeline.report.entity_names import NameOf, entity_names
from pipeline.report.reasons import meaning_of, stage_order
from pipeline.report.set_files import SetFiles, threshold_source
from pipeline.schema import UserError, VocabularyEntry

FORMAT_VERSION = 1
_SAMPLED_ENTITIES = 12
_SAMPLES = 6  # of an entity, and of a reason
_PER_SHARD = 3  # samples of a group from one input shard, if there are many
_HEAD, _TAIL = 15, 15
_MOST_REJECTED = 30
_MOST_AMBIGUOUS = 30
_ENTITIES_OF_NAME = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """A data card before it is laid out."""

    content: dict[str, Any]
    """What `data_card.json` holds."""
    counts: CardCounts
    image_counts: np.ndarray
    """int `[classes]`, images of each, falling."""
    entity_ids: Sequence[str]
    """All entities that a row was linked to, those with most labels rejected by the filter first."""
    name_of: NameOf
    samples: Samples


def make_card(files: SetFiles, *, kb_path: str | None = None) -> Card:
    """Returns the card of a finished set.

    Args:
        files: the set.
        kb_path: the knowledge base, for names; None: the one that the set was mined with, if it is still there.

    Raises:
        UserError: the set is unfinished, or a file of it is missing or damaged.
    """
    manifest = files.manifest
    if manifest is None:
        raise UserError(
            f"--data {files.directory} holds no finished set (manifest.json is missing): its last run still works, or "
            "ended with an error; run python -m pipeline.build_i2e again (python -m pipeline.explain reads it as it is)"
        )
    vocabulary = sorted(files.vocabulary().values(), key=lambda entry: entry.class_id)
    if not vocabulary:
        raise UserError(
            f"{files.directory}/vocabulary.jsonl is missing or empty; run python -m pipeline.build_i2e again, which "
            "assembles the set again"
        )
    counts = CardCounts()
    names = shards_in_order(files.names)
    samples = Samples(
        pick_entities([entry.entity_id for entry in vocabulary], _SAMPLED_ENTITIES),
        per_group=_SAMPLES,
        per_shard=_PER_SHARD if len(names) >= _SAMPLES else _SAMPLES,
    )
    for name in names:
        for batch in read_batches(files, name):
            counts.add(batch)
            samples.add(batch)
    check_counts(counts, manifest)
    entity_ids = counts.entities.most_rejected()
    name_of, notes = entity_names(files, kb_path, entity_ids)
    image_counts = np.array([entry.image_count for entry in vocabulary])
    content = {
        "format_version": FORMAT_VERSION,
        "name": os.path.basename(os.path.abspath(files.directory)),
        "notes": notes,
        "totals": {
            "rows": manifest["num_rows"],
            "images": counts.rows["kept", "", ""],
            "labels": manifest["num_labels"],
            "entities": manifest["num_classes"],
        },
        "hashes": manifest["hashes"],
        "config": manifest["config"],
        "funnel": funnel(counts.rows),
        "labels": _label_ends(counts, entity_ids),
        "images_per_entity": _image_statistics(image_counts),
        "similarities": _similarities(counts, manifest),
        "entities_per_image": {str(number): count for number, count in sorted(counts.entities_per_image.items())},
        "head": [_entity(entry, counts) for entry in vocabulary[:_HEAD]],
        "tail": [_entity(entry, counts) for entry in vocabulary[max(_HEAD, len(vocabulary) - _TAIL) :]],
        "filter": _filter(counts, entity_ids, name_of),
        "ambiguous_names": _ambiguous_names(counts, name_of),
        "samples": _sampled(samples, name_of),
    }
    return Card(
        content=content,
        counts=counts,
        image_counts=image_counts,
        entity_ids=entity_ids,
        name_of=name_of,
        samples=samples,
    )


def funnel(rows: Mapping[tuple[str, str, str], int]) -> list[dict[str, Any]]:
    """Returns the stages that ended rows, in order: rows dropped and failed there, rows left, and the reasons.

    Args:
        rows: (outcome, stage, reason) -> number of rows; stage and reason are empty for kept ones.
    """
    left = sum(rows.values())
    stages = []
    for stage in sorted({stage for _, stage, _ in rows if stage}, key=stage_order):
        ends = {(outcome, reason): count for (outcome, one, reason), count in rows.items() if one == stage}
        dropped, failed = (
            sum(count for (one, _), count in ends.items() if one == outcome) for outcome in ("dropped", "failed")
        )
        left -= dropped + failed
        reasons = [
            {"reason": reason, "outcome": outcome, "rows": count, "meaning": meaning_of(reason)}
            for (outcome, reason), count in sorted(ends.items(), key=lambda end: (-end[1], end[0]))
        ]
        stages.append({"stage": stage, "dropped": dropped, "failed": failed, "left": left, "reasons": reasons})
    return stages


def entities_csv(card: Card) -> str:
    """Returns the report on all entities as CSV: the filter's numbers, and what else became of labels."""
    buffer = io.StringIO()
    rows = entity_rows(card)
    writer = csv.writer(buffer, lineterminator="\n")
    header = None
    for row in rows:
        if header is None:
            header = list(row)
            writer.writerow(header)
        writer.writerow(
            "" if value is None else f"{value:.6g}" if isinstance(value, float) else value for value in row.values()
        )
    return buffer.getvalue()


def entity_rows(card: Card) -> Iterable[dict[str, Any]]:
    """Yields the report on each entity, those with most labels rejected by the filter first."""
    for entity_id in card.entity_ids:
        yield _entity_row(entity_id, card.counts, card.name_of)


def _entity_row(entity_id: str, counts: CardCounts, name_of: NameOf) -> dict[str, Any]:
    numbers = counts.entities.of(entity_id)
    further = {end: numbers[end] for end in sorted(counts.entities.ends) if end not in (KEPT, LOW_SIMILARITY)}
    return {
        "entity_id": entity_id,
        "name": name_of(entity_id)[0],
        "linked": numbers["linked"],
        "kept": numbers[KEPT],
        "rejected_by_filter": numbers[LOW_SIMILARITY],
        "share_rejected_by_filter": numbers["share_rejected_by_filter"],
        "mean_similarity": numbers["mean_similarity"],
        **further,
    }


def _entity(entry: VocabularyEntry, counts: CardCounts) -> dict[str, Any]:
    numbers = counts.entities.of(entry.entity_id)
    return {
        "class_id": entry.class_id,
        "entity_id": entry.entity_id,
        "name": entry.name,
        "description": entry.description,
        "images": entry.image_count,
        "mean_similarity": numbers["mean_similarity"],
        "share_rejected_by_filter": numbers["share_rejected_by_filter"],
    }


def _label_ends(counts: CardCounts, entity_ids: Sequence[str]) -> dict[str, int]:
    totals = dict.fromkeys(counts.entities.ends, 0)
    for entity_id in entity_ids:
        numbers = counts.entities.of(entity_id)
        for end in totals:
            totals[end] += numbers[end]
    return totals


def _image_statistics(counts: np.ndarray) -> dict[str, Any]:
    return {
        "least": int(counts.min()),
        "median": float(np.median(counts)),
        "mean": float(counts.mean()),
        "most": int(counts.max()),
        # How much of the set the largest tenth of the entities takes: 0.1 if all are alike.
        "share_of_largest_tenth": float(counts[: max(1, round(len(counts) / 10))].sum() / counts.sum()),
    }


def _similarities(counts: CardCounts, manifest: Mapping[str, Any]) -> dict[str, Any]:
    select = manifest["config"]["assemble"]["select"]
    bins = counts.similarities
    used = np.nonzero(np.sum(list(bins.values()), axis=0))[0]
    first, last = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 0)
    return {
        "threshold": manifest["min_similarity"],
        "threshold_source": threshold_source(manifest),
        "keep_share": select["keep_share"],
        "entity_floor": select["entity_floor"],
        "bin_width": BIN_WIDTH,
        "first_bin_starts_at": round(-1 + first * BIN_WIDTH, 4),
        "kept": bins[KEPT][first:last].tolist(),
        "rejected_by_filter": bins[LOW_SIMILARITY][first:last].tolist(),
        "rejected_elsewhere": bins["other"][first:last].tolist(),
    }


def _filter(counts: CardCounts, entity_ids: Sequence[str], name_of: NameOf) -> dict[str, Any]:
    """Returns the report on the filter: the entities of which it rejects most, and how many it rejects whole."""
    num_touched = num_whole = 0
    for entity_id in entity_ids:
        numbers = counts.entities.of(entity_id)
        num_touched += numbers[LOW_SIMILARITY] > 0
        num_whole += 0 < numbers["linked"] == numbers[LOW_SIMILARITY]
    most = [_entity_row(one, counts, name_of) for one in entity_ids[:_MOST_REJECTED]]
    return {
        "entities_linked": len(entity_ids),
        "entities_with_rejections": num_touched,
        "entities_rejected_whole": num_whole,
        "most_rejected": [one for one in most if one["rejected_by_filter"]],
    }


def _ambiguous_names(counts: CardCounts, name_of: NameOf) -> dict[str, Any]:
    return {
        "names_with_several_entities": counts.names.num_ambiguous,
        "mentions_of_names_not_counted": counts.names.num_forgotten,
        "most_ambiguous": [
            {
                "name": name,
                "links": sum(count for _, count in links),
                "without_entity": num_none,
                "entities": [
                    {"entity_id": one, "name": name_of(one)[0], "description": name_of(one)[1], "links": count}
                    for one, count in links[:_ENTITIES_OF_NAME]
                ],
                "further_entities": max(0, len(links) - _ENTITIES_OF_NAME),
            }
            for name, links, num_none in counts.names.most_ambiguous(_MOST_AMBIGUOUS)
        ],
    }


def _sampled(samples: Samples, name_of: NameOf) -> dict[str, Any]:
    return {
        "of_entities": [
            {"entity_id": one, "name": name_of(one)[0], "images": [_sample(sample, name_of) for sample in group]}
            for one, group in samples.of_entity.items()
        ],
        "of_reasons": [
            {
                "outcome": outcome,
                "stage": stage,
                "reason": reason,
                "meaning": meaning_of(reason),
                "images": [_sample(sample, name_of) for sample in group],
            }
            for (outcome, stage, reason), group in sorted(
                samples.of_reason.items(), key=lambda item: (stage_order(item[0][1]), item[0])
            )
        ],
    }


def _sample(sample: Sample, name_of: NameOf) -> dict[str, Any]:
    return {
        "image_id": sample.image_id,
        "shard": sample.shard,
        "row": sample.row,
        "text": sample.text,
        "links": [
            {"text": surface, "entity_id": one, "name": name_of(one)[0], "similarity": similarity}
            for surface, one, similarity in sample.links
        ],
        "names_without_entity": list(sample.names),
    }
