"""Labels against the truth of the composed corpus. Beside it, `infra/composed_sets.py` alone reads `truth.parquet`.

What counts as what:

- A *true mention* is a span of the text that names an entity; its entity is null when the base does not hold it.
- A *found mention* is a span that the pipeline looked at. It answers a true mention when the two overlap; of several,
  the one that shares most characters, then the earlier one.
- A *link* is a found mention with a chosen entity. It is right when it answers a true mention and that mention's true
  entity is the chosen one; a link where the text names nothing is wrong.
- A *label* is an entity of an image after the filter. It is right when the picture shows that entity.
- A pair is *labelable* when its picture shows an entity that is in the base and its text names that entity. Recall of
  labels is over labelable pairs, before any minimum count of images per entity. Of equal
  pictures with one entity the pipeline keeps one; the copies count as labelled when they were linked to that entity
  and passed the filter, because the set holds their label.

- A *stray name* is a name of the base that means none of its entities: a common word that brands bear, or a part of a
  longer name. Any link there is wrong.

Every pair is of one half, by its entity: the weights of the linker are fitted to the pairs of the half "fit", and
`labels.untuned.*` are of the half "measure". No name with its entity is in both.

A row that was dropped before candidates were proposed has no mentions here, so they count as unfound.
"""

from __future__ import annotations

import dataclasses
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from evaluation.sets.parquet import read_table
from pipeline.schema import UserError

TRUTH_COLUMNS = ("key", "picture_entity_id", "kind", "half", "mentions", "strays")
HALVES = ("fit", "measure")
KINDS = ("emoji", "flag", "logo")
ANNOTATION_COLUMNS = ("image_id", "outcome", "image_sha256", "linked")
LEDGER_COLUMNS = ("image_id", "outcome", "stage", "reason", "entity_ids")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrueMention:
    """A span `[start, end)` in characters that names `entity_id` (None: an entity that the base does not hold)."""

    start: int
    end: int
    entity_id: str | None
    kind: str  # of the entity's pictures: emoji, flag or logo
    ambiguous: bool  # the name belongs to several entities of the base
    has_context: bool  # the text has words that identify the entity


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairTruth:
    """What the picture of one pair shows, and what its text names."""

    picture_entity_id: str | None
    kind: str
    mentions: tuple[TrueMention, ...]
    half: str  # "fit" or "measure"
    strays: tuple[tuple[int, int], ...] = ()  # spans of stray names

    @property
    def labelable(self) -> bool:
        return any(
            mention.entity_id is not None and mention.entity_id == self.picture_entity_id for mention in self.mentions
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoundMention:
    """A span the pipeline looked at; `chosen` is None for NIL."""

    start: int
    end: int
    chosen: str | None
    prior_choice: str | None  # the candidate with the largest prior, then the smaller id
    similarity: float | None  # of the picture with the chosen entity
    seen_shares: Mapping[str, float] = dataclasses.field(default_factory=dict)  # candidate to its evidence `seen`


@dataclasses.dataclass(frozen=True, kw_only=True)
class LedgerRow:
    """The outcome of one input row."""

    outcome: str
    stage: str
    reason: str
    entity_ids: tuple[str, ...]


def read_truth(path: str | os.PathLike[str]) -> dict[str, PairTruth]:
    """Returns the truth of every pair by its key.

    Raises:
        UserError: the file is missing, lacks a column, or has no rows.
    """
    table = read_table(path, TRUTH_COLUMNS, remedy="make it with python -m pipeline.demo.corpus")
    if table.num_rows == 0:
        raise UserError(f"{path} holds no pairs, at least 1 is needed; make it again")
    unknown = sorted(set(table["half"].to_pylist()) - set(HALVES), key=str)
    if unknown:
        raise UserError(
            f"{path}: the column 'half' has {unknown[0]!r}; it must be one of {', '.join(HALVES)}; make it again with "
            "python -m pipeline.demo.corpus"
        )
    return {
        row["key"]: PairTruth(
            picture_entity_id=row["picture_entity_id"],
            kind=row["kind"],
            half=row["half"],
            strays=tuple((stray["start"], stray["end"]) for stray in row["strays"] or ()),
            mentions=tuple(
                TrueMention(
                    start=mention["start"],
                    end=mention["end"],
                    entity_id=mention["entity_id"],
                    kind=mention["kind"],
                    ambiguous=bool(mention["ambiguous"]),
                    has_context=bool(mention["has_context"]),
                )
                for mention in row["mentions"] or ()
            ),
        )
        for row in table.to_pylist()
    }


def of_half(truth: Mapping[str, PairTruth], half: str) -> dict[str, PairTruth]:
    """Returns the pairs of `half`: "fit", to which the linker's weights are fitted, or "measure"."""
    return {key: pair for key, pair in truth.items() if pair.half == half}


def read_annotations(
    path: str | os.PathLike[str], *, by_text: bool = False
) -> tuple[dict[str, tuple[FoundMention, ...]], dict[str, str]]:
    """Returns the found mentions of every image, and its picture's SHA-256, both by image id.

    Args:
        path: folder of the annotations.
        by_text: whether mentions are linked as the text alone does it, where the picture was asked too.

    Raises:
        UserError: the files are missing or lack a column.
    """
    table = read_table(path, ANNOTATION_COLUMNS, remedy="make them with python -m pipeline.build_i2e")
    found, hashes = {}, {}
    for row in table.to_pylist():
        found[row["image_id"]] = tuple(found_mention(link, by_text=by_text) for link in row["linked"] or ())
        hashes[row["image_id"]] = row["image_sha256"] or ""
    return found, hashes


def found_mention(link: Mapping[str, Any], *, by_text: bool = False) -> FoundMention:
    """Returns a mention of the annotations as it is measured; see `read_annotations`."""
    chosen = link["by_text" if by_text else "chosen"]
    candidates = link["candidates"] or []
    prior_choice = min(candidates, key=lambda c: (-c["prior"], c["entity_id"]))["entity_id"] if candidates else None
    similarity = next((c["similarity"] for c in candidates if c["entity_id"] == chosen), None)
    return FoundMention(
        start=link["start"],
        end=link["end"],
        chosen=chosen,
        prior_choice=prior_choice,
        similarity=similarity,
        seen_shares={c["entity_id"]: (c.get("evidence") or {}).get("seen", 0.0) for c in candidates},
    )


def read_ledger(path: str | os.PathLike[str]) -> dict[str, LedgerRow]:
    """Returns the outcome of every input row by image id.

    Raises:
        UserError: the files are missing or lack a column, or an id has two outcomes.
    """
    table = read_table(path, LEDGER_COLUMNS, remedy="make it with python -m pipeline.build_i2e")
    ledger: dict[str, LedgerRow] = {}
    for row in table.to_pylist():
        if row["image_id"] in ledger:
            raise UserError(f"{path}: {row['image_id']} has two outcomes, exactly 1 is right; build the set again")
        ledger[row["image_id"]] = LedgerRow(
            outcome=row["outcome"],
            stage=row["stage"] or "",
            reason=row["reason"] or "",
            entity_ids=tuple(row["entity_ids"] or ()),
        )
    return ledger


def answer(mention: TrueMention, found: Sequence[FoundMention]) -> FoundMention | None:
    """Returns the found mention that answers `mention`: largest overlap, then earlier start; None if none overlaps."""
    best, best_overlap = None, 0
    for candidate in sorted(found, key=lambda other: (other.start, other.end)):
        overlap = min(mention.end, candidate.end) - max(mention.start, candidate.start)
        if overlap > best_overlap:
            best, best_overlap = candidate, overlap
    return best


class Cases(NamedTuple):
    """How many cases a share is of, and how many of them count."""

    num_right: int
    num_cases: int


def _cases(right: Iterable[bool]) -> Cases:
    counted = list(right)
    return Cases(sum(counted), len(counted))


def shares(cases: Mapping[str, Cases]) -> dict[str, float]:
    """Returns the share of each metric that has cases."""
    return {name: one.num_right / one.num_cases for name, one in cases.items() if one.num_cases}


def linking_metrics(truth: dict[str, PairTruth], found: dict[str, tuple[FoundMention, ...]]) -> dict[str, float]:
    """Returns the metrics of mentions and links, see `linking_cases`; a metric without cases has no key."""
    return shares(linking_cases(truth, found))


def linking_cases(truth: Mapping[str, PairTruth], found: Mapping[str, tuple[FoundMention, ...]]) -> dict[str, Cases]:
    """Returns the cases of each metric of mentions and links.

    - `labels.mentions.recall`: share of true mentions that a found mention answers; `recall_exact`: with equal spans.
      `labels.mentions.precision`: share of found mentions that answer a true one.
    - `labels.linking.precision`: right links / links. `labels.linking.recall`: right links / true mentions in the base.
    - `labels.ambiguous_accuracy`: share of ambiguous true mentions in the base, with context, that are linked right;
      unfound ones count as wrong. `_no_context`: the same without context. `_prior_only`: with context, had the
      candidate with the largest prior been chosen of each found mention. `_seen` and `_unseen`: with context, of texts
      with a word, and without any, that other texts say beside the right entity under another of its names;
      `_unseen_prior_only`: the latter, by the largest prior.
    - `labels.nil_accuracy`: share of true mentions outside the base that got no entity, found or not;
      `labels.nil_accuracy_found`: of those that were found.
    - `labels.refused`: share of true mentions in the base that got no entity, found or not. `labels.<kind>.refused` and
      `labels.<kind>.linking.recall`: of the entities whose pictures are emoji, flags or logos.
    - `labels.strays_linked`: share of stray names that a link overlaps.
    """
    num_mentions = num_answered = num_exact = num_found = num_answering = 0
    num_links = num_right_links = 0
    ambiguous: dict[bool, list[bool]] = {True: [], False: []}
    by_seen: dict[bool, list[tuple[bool, bool]]] = {True: [], False: []}  # (right, right by prior)
    nil: list[tuple[bool, bool]] = []  # (found, got no entity)
    in_base: dict[str, list[tuple[bool, bool]]] = {kind: [] for kind in KINDS}  # (right, got no entity)
    strays: list[bool] = []
    for key, pair in truth.items():
        mentions = found.get(key, ())
        right_spans, answering = set(), set()
        for mention in pair.mentions:
            link = answer(mention, mentions)
            num_mentions += 1
            num_answered += link is not None
            if link is not None:
                answering.add((link.start, link.end))
            num_exact += any((other.start, other.end) == (mention.start, mention.end) for other in mentions)
            if mention.entity_id is None:
                nil.append((link is not None, link is None or link.chosen is None))
                continue
            right = link is not None and link.chosen == mention.entity_id
            if link is not None and right:
                right_spans.add((link.start, link.end))
            in_base[mention.kind].append((right, link is None or link.chosen is None))
            if mention.ambiguous:
                ambiguous[mention.has_context].append(right)
                if mention.has_context:
                    is_seen = link is not None and link.seen_shares.get(mention.entity_id, 0.0) > 0
                    by_seen[is_seen].append((right, link is not None and link.prior_choice == mention.entity_id))
        num_found += len(mentions)
        num_answering += len(answering)
        links = [other for other in mentions if other.chosen is not None]
        num_links += len(links)
        num_right_links += sum((other.start, other.end) in right_spans for other in links)
        strays += [any(other.start < end and start < other.end for other in links) for start, end in pair.strays]
    with_context, without_context = ambiguous[True], ambiguous[False]
    named = [case for cases in in_base.values() for case in cases]
    by_kind = {}
    for kind, cases in in_base.items():
        by_kind[f"labels.{kind}.linking.recall"] = _cases(right for right, _ in cases)
        by_kind[f"labels.{kind}.refused"] = _cases(refused for _, refused in cases)
    return {
        "labels.mentions.precision": Cases(num_answering, num_found),
        "labels.mentions.recall": Cases(num_answered, num_mentions),
        "labels.mentions.recall_exact": Cases(num_exact, num_mentions),
        "labels.linking.precision": Cases(num_right_links, num_links),
        "labels.linking.recall": _cases(right for right, _ in named),
        "labels.refused": _cases(refused for _, refused in named),
        "labels.strays_linked": _cases(strays),
        "labels.ambiguous_accuracy": _cases(with_context),
        "labels.ambiguous_accuracy_prior_only": _cases(by_prior for cases in by_seen.values() for _, by_prior in cases),
        "labels.ambiguous_accuracy_seen": _cases(right for right, _ in by_seen[True]),
        "labels.ambiguous_accuracy_unseen": _cases(right for right, _ in by_seen[False]),
        "labels.ambiguous_accuracy_unseen_prior_only": _cases(by_prior for _, by_prior in by_seen[False]),
        "labels.ambiguous_accuracy_no_context": _cases(without_context),
        "labels.nil_accuracy": _cases(right for _, right in nil),
        "labels.nil_accuracy_found": _cases(right for was_found, right in nil if was_found),
        **by_kind,
    }


def final_cases(
    truth: dict[str, PairTruth],
    ledger: dict[str, LedgerRow],
    found: dict[str, tuple[FoundMention, ...]],
    image_hashes: dict[str, str],
) -> dict[str, Cases]:
    """Returns the cases of `labels.final.precision` and `labels.final.recall`.

    Args:
        truth: by key.
        ledger: by image id, which is the pair's key.
        found: the found mentions, by image id.
        image_hashes: SHA-256 of each image's picture, by image id.
    """
    num_labels = num_right = 0
    labels_of_picture: dict[str, set[str]] = defaultdict(set)
    for image_id, row in ledger.items():
        if row.outcome != "kept":
            continue
        shown = truth[image_id].picture_entity_id
        num_labels += len(row.entity_ids)
        num_right += sum(entity_id == shown for entity_id in row.entity_ids)
        labels_of_picture[image_hashes.get(image_id) or image_id].update(row.entity_ids)
    labelable = [key for key, pair in truth.items() if pair.labelable]
    num_recalled = 0
    for key in labelable:
        if key not in ledger:
            continue
        row, shown = ledger[key], truth[key].picture_entity_id
        # A row goes down to the stage that its best label reached, so a copy's label may hide behind a later stage.
        passed_filter = row.outcome == "kept" or row.stage in ("deduplicate", "build_vocabulary")
        num_recalled += shown in row.entity_ids or (
            passed_filter
            and any(link.chosen == shown for link in found.get(key, ()))
            and shown in labels_of_picture.get(image_hashes.get(key) or key, set())
        )
    return {
        "labels.final.precision": Cases(num_right, num_labels),
        "labels.final.recall": Cases(num_recalled, len(labelable)),
    }


def filter_roc_auc(truth: dict[str, PairTruth], found: dict[str, tuple[FoundMention, ...]]) -> float | None:
    """Returns the ROC AUC of the filter's similarity: right labels against wrong ones, before the threshold.

    Of links by text: those that the picture took part in choosing say less of the encoder. One case per image and
    chosen entity that was scored. None when either side is empty.
    """
    similarities, right = _scored(truth, found)
    if not any(right) or all(right):
        return None
    return roc_auc(np.array(similarities), np.array(right))


def _scored(truth: dict[str, PairTruth], found: dict[str, tuple[FoundMention, ...]]) -> tuple[list[float], list[bool]]:
    """Returns the similarity of each image and chosen entity that was scored, and whether the label is right."""
    similarities: list[float] = []
    right: list[bool] = []
    for key, pair in truth.items():
        scored = {link.chosen: link.similarity for link in found.get(key, ()) if link.chosen is not None}
        for entity_id, similarity in scored.items():
            if similarity is not None:
                similarities.append(similarity)
                right.append(entity_id == pair.picture_entity_id)
    return similarities, right


def roc_auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Returns the chance that a positive scores above a negative, both drawn at random; a tie counts one half.

    Args:
        scores: float `[n]`, finite.
        positive: bool `[n]`, with at least one of each.

    Raises:
        ValueError: a score is not finite, or one side is empty.
    """
    if not np.isfinite(scores).all():
        raise ValueError("a score is not finite; score again")
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    if num_positive == 0 or num_negative == 0:
        raise ValueError(f"{num_positive} positives and {num_negative} negatives; at least 1 of each is needed")
    _, inverse, uses = np.unique(scores, return_inverse=True, return_counts=True)
    # Tied scores share the mean of their ranks, which gives a tie one half.
    mean_ranks = np.cumsum(uses) - (uses - 1) / 2
    rank_sum = float(mean_ranks[inverse][positive].sum())
    return (rank_sum - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative)


def all_metrics(truth_path: str, annotations_path: str, ledger_path: str) -> tuple[dict[str, float], dict[str, int]]:
    """Returns every metric of this module with the ledger's counts, and how many cases each share is of.

    Raises:
        UserError: a file is missing or cannot be read, or the ledger's ids are not the truth's.
    """
    truth = read_truth(truth_path)
    found, hashes = read_annotations(annotations_path)
    ledger = read_ledger(ledger_path)
    check_ids(truth, ledger, ledger_path)
    check_ids(truth, found, annotations_path)
    values = ledger_counts(ledger.values(), num_read=len(truth))
    cases = linking_cases(truth, found) | final_cases(truth, ledger, found, hashes)
    untuned = of_half(truth, "measure")
    in_half = {key: row for key, row in ledger.items() if key in untuned}
    of_untuned = linking_cases(untuned, found) | final_cases(untuned, in_half, found, hashes)
    cases |= {key.replace("labels.", "labels.untuned.", 1): one for key, one in of_untuned.items()}
    values |= shares(cases)
    num_cases = {name: one.num_cases for name, one in cases.items() if name in values}
    linked_by_text, _ = read_annotations(annotations_path, by_text=True)
    auc = filter_roc_auc(truth, linked_by_text)
    if auc is not None:
        values["filter.roc_auc"], num_cases["filter.roc_auc"] = auc, len(_scored(truth, linked_by_text)[1])
    return values, num_cases


def check_ids(truth: dict[str, PairTruth], ids: Iterable[str], path: str) -> None:
    """Checks that every id has a truth.

    Raises:
        UserError: one has none, so that it was built from another corpus.
    """
    foreign = [image_id for image_id in ids if image_id not in truth]
    if foreign:
        raise UserError(
            f"{path}: {len(foreign)} image ids, {foreign[0]} first, are not in the corpus's truth (which has keys like "
            f"{next(iter(truth))}); build the set from this corpus again"
        )


def ledger_counts(rows: Iterable[LedgerRow], num_read: int) -> dict[str, float]:
    """Returns `ledger.read`, as counted outside the pipeline, and `ledger.kept`, `.dropped` and `.failed`."""
    values: dict[str, float] = {"ledger.read": num_read, "ledger.kept": 0, "ledger.dropped": 0, "ledger.failed": 0}
    for row in rows:
        key = f"ledger.{row.outcome}"
        if key not in values or row.outcome == "read":
            raise UserError(f"the ledger has outcome {row.outcome!r}; it must be kept, dropped or failed; build again")
        values[key] += 1
    return values


def read_reasons(ledger_path: str) -> list[tuple[str, str, str, int]]:
    """Returns (outcome, stage, reason, rows) of everything that was not kept, the largest first."""
    table = read_table(ledger_path, LEDGER_COLUMNS, remedy="make it with python -m pipeline.build_i2e")
    uses: dict[tuple[str, str, str], int] = defaultdict(int)
    for row in table.to_pylist():
        if row["outcome"] != "kept":
            uses[row["outcome"], row["stage"] or "", row["reason"] or ""] += 1
    return [(*key, count) for key, count in sorted(uses.items(), key=lambda item: (-item[1], item[0]))]
