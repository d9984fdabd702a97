"""Selection, deduplication and the vocabulary, on labels small enough to work out by hand."""

from __future__ import annotations

import collections
import dataclasses
import itertools

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.testing.util import assert_that, equal_to

from pipeline.config import SelectLabelsConfig
from pipeline.runners import RunnerConfig, pipeline_options
from pipeline.stages.build_vocabulary import number_classes
from pipeline.stages.deduplicate import split_same_id, split_same_image
from pipeline.stages.select_labels import SelectLabels, SimilarityQuantile, labels_of_record, select_by_verifier
from pipeline.stages.write_shards import row_outcome
from pipeline.storage.annotation_format import EntityLabel, LabelRejection


def label(image_id: str, entity_id: str = "E1", similarity: float | None = 0.5, **changes) -> EntityLabel:  # type: ignore[no-untyped-def]
    fields = {"shard": "s", "row": 0, "image_sha256": "h", "mention": 0, "probability": 0.9, **changes}
    return EntityLabel(image_id=image_id, entity_id=entity_id, similarity=similarity, **fields)


# Of 0.0, 0.1, … 0.9 the seven highest are 0.3 and above; the highest alone is 0.9.
@pytest.mark.parametrize(("keep_share", "expected"), [(0.70, 0.3), (0.05, 0.9), (1.00, 0.0)])
def test_the_threshold_is_the_highest_that_keeps_the_share(keep_share: float, expected: float) -> None:
    combine = SimilarityQuantile(keep_share)
    halves = []
    for values in ([0.0, 0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8, 0.9]):
        accumulator = combine.create_accumulator()
        for value in values:
            accumulator = combine.add_input(accumulator, value)
        halves.append(accumulator)
    threshold = combine.extract_output(combine.merge_accumulators(halves))
    assert threshold == pytest.approx(expected, abs=1e-9)


def test_the_threshold_of_no_labels_keeps_all() -> None:
    combine = SimilarityQuantile(0.7)
    assert combine.extract_output(combine.create_accumulator()) == -1.0


def test_equal_cosines_are_counted_and_those_outside_the_range_are_at_its_ends() -> None:
    combine = SimilarityQuantile(0.75)

    def threshold(*values: float) -> float:
        accumulator = combine.create_accumulator()
        assert accumulator.dtype == np.int64
        for value in values:
            accumulator = combine.add_input(accumulator, value)
        return combine.extract_output(accumulator)

    # Three of four reach 0.5.
    assert threshold(0.5, 0.5, 0.5, 0.1) == pytest.approx(0.5, abs=1e-9)
    # Rounding may give a cosine a little outside -1 to 1.
    assert threshold(-1.01) == -1.0 and threshold(1.01) == 1.0
    assert combine.extract_output(combine.merge_accumulators([])) == -1.0


def select(
    labels: list[EntityLabel],
    config: SelectLabelsConfig,
    kept: list[str],
    rejected: list[tuple],
    threshold: float | None = None,
) -> None:
    with beam.Pipeline(options=pipeline_options(RunnerConfig())) as job:
        result = job | beam.Create(labels) | SelectLabels(config)
        assert_that(result.kept | beam.Map(lambda item: item.image_id), equal_to(kept), label="kept")
        reasons = result.rejected | beam.Map(lambda item: (item.label.image_id, item.reason))
        assert_that(reasons, equal_to(rejected), label="rejected")
        stages = result.rejected | "Stages" >> beam.Map(lambda item: item.stage)
        assert_that(stages, equal_to(["select_labels"] * len(rejected)), label="stages")
        if threshold is not None:
            near = result.threshold | "Near" >> beam.Map(round, 6)
            assert_that(near, equal_to([threshold]), label="threshold")
    counters = job.result.metrics().query()["counters"]
    counted: collections.Counter[str] = collections.Counter()
    for one in counters:  # there is one for each step
        if one.key.metric.namespace == "select_labels":
            counted[one.key.metric.name] += one.committed
    assert counted == {"kept": len(kept)} | collections.Counter(f"rejected_{reason}" for _, reason in rejected)


def test_the_verifier_rejects_before_the_share_is_taken() -> None:
    labels = [
        label("a", similarity=0.9, verifier_score=1.0),
        label("b", similarity=0.8, verifier_score=0.5),
        label("c", similarity=0.7, verifier_score=0.4),
        label("d", similarity=0.1, verifier_score=0.9),
        label("e", similarity=0.2, verifier_score=0.8),
        label("f", similarity=None, verifier_score=0.9),
    ]
    # Of the scored labels a, b, d and e, which the verifier lets pass, the better half reaches 0.8.
    config = SelectLabelsConfig(keep_share=0.5, min_verifier_score=0.5, entity_floor=1)
    rejected = [("c", "low_verifier_score"), ("d", "low_similarity"), ("e", "low_similarity"), ("f", "not_scored")]
    select(labels, config, ["a", "b"], rejected, threshold=0.8)


def test_labels_are_rejected_by_probability_first_and_then_by_similarity() -> None:
    labels = [
        label("a", similarity=0.5),
        label("b", similarity=0.3),
        label("c", similarity=0.29),
        label("d", similarity=0.9, probability=0.4),
        label("e", similarity=None),
    ]
    config = SelectLabelsConfig(min_probability=0.5, min_similarity=0.3)
    select(labels, config, ["a", "b"], [("c", "low_similarity"), ("d", "low_probability"), ("e", "not_scored")])


def test_labels_at_the_thresholds_are_kept() -> None:
    labels = [label("a", similarity=0.25, probability=0.75), label("b", similarity=0.25, probability=0.7499)]
    config = SelectLabelsConfig(min_probability=0.75, min_similarity=0.25)
    select(labels, config, ["a"], [("b", "low_probability")])


def test_the_floor_keeps_the_best_labels_of_an_entity_that_the_filter_would_starve() -> None:
    labels = [
        label("a", "E1", 0.9),
        label("b", "E2", 0.2),
        label("c", "E2", 0.1),
        label("d", "E2", 0.05),
    ]
    config = SelectLabelsConfig(min_similarity=0.5, entity_floor=2)
    select(labels, config, ["a", "b", "c"], [("d", "low_similarity")])


def test_of_two_mentions_of_one_entity_the_likelier_counts() -> None:
    def linked(entity_id: str | None, probability: float) -> dict:
        candidates = [{"entity_id": entity_id, "similarity": 0.4}]
        return {"chosen": entity_id, "probability": probability, "candidates": candidates}

    record = {"shard": "s", "row": 1, "image_id": "a", "image_sha256": "h", "outcome": "annotated"}
    labels = labels_of_record({**record, "linked": [linked("E1", 0.6), linked(None, 0.0), linked("E1", 0.8)]})
    assert [(item.entity_id, item.mention, item.probability, item.similarity) for item in labels] == [
        ("E1", 2, 0.8, 0.4)
    ]


def test_a_label_has_the_numbers_of_its_chosen_candidate_and_the_verifier_is_asked_first() -> None:
    candidates = [
        {"entity_id": "E2", "similarity": 0.2, "verifier_score": 2.0},
        {"entity_id": "E1", "similarity": 0.1, "verifier_score": 1.0},
    ]
    record = {
        "shard": "s", "row": 3, "image_id": "a", "image_sha256": "0", "outcome": "annotated",
        "linked": [{"chosen": "E1", "probability": 0.9, "candidates": candidates}],
    }  # fmt: skip
    (found,) = labels_of_record(record)
    assert found == label("a", "E1", 0.1, row=3, image_sha256="0", mention=0, probability=0.9, verifier_score=1.0)
    # An answer that is no candidate has no numbers; of two mentions that are as sure, the first counts.
    twice = [{"chosen": "E3", "probability": 0.9, "candidates": candidates}] * 2
    (unscored,) = labels_of_record({**record, "linked": twice})
    assert (unscored.similarity, unscored.verifier_score, unscored.mention) == (None, None, 0)
    assert list(select_by_verifier(found, min_score=1.0)) == [found]
    for doubtful, least in ((found, 1.1), (dataclasses.replace(found, verifier_score=None), -9.0)):
        (rejection,) = select_by_verifier(doubtful, min_score=least)
        assert rejection == LabelRejection(label=doubtful, stage="select_labels", reason="low_verifier_score")


def test_a_row_that_annotation_dropped_has_no_labels_whatever_was_found_for_it() -> None:
    linked = {"chosen": "E1", "probability": 0.9, "candidates": [{"entity_id": "E1", "similarity": None}]}
    assert labels_of_record({"outcome": "dropped", "linked": [linked]}) == []


def test_of_one_id_the_first_row_keeps_all_its_labels() -> None:
    labels = [label("a", "E1", row=7), label("a", "E2", row=2), label("a", "E3", row=2)]
    for order in itertools.permutations(labels):
        result = list(split_same_id(order))
        assert sorted(item.entity_id for item in result if isinstance(item, EntityLabel)) == ["E2", "E3"]
        (rejected,) = [item for item in result if isinstance(item, LabelRejection)]
        assert (rejected.label.row, rejected.reason) == (7, "duplicate_id")


def test_of_one_picture_and_entity_the_lowest_id_stays() -> None:
    for order in itertools.permutations("abc"):
        result = list(split_same_image(label(one) for one in order))
        assert [item for item in result if isinstance(item, EntityLabel)] == [label("a")]
        rejected = [(item.label.image_id, item.reason) for item in result if isinstance(item, LabelRejection)]
        assert sorted(rejected) == [("b", "duplicate_image"), ("c", "duplicate_image")]


def test_losers_leave_at_once_so_that_a_million_copies_need_no_memory() -> None:
    coming = iter([label("b"), label("c"), label("d"), label("a")])
    splitting = split_same_image(coming)
    assert next(splitting).label.image_id == "c" and next(coming).image_id == "d"  # type: ignore[union-attr]


def test_classes_are_numbered_by_falling_count_and_then_by_entity_id() -> None:
    names = {name: (name.lower(), "") for name in ("Q9", "Q10", "Q2")}
    entries = number_classes([("Q9", 5), ("Q2", 7), ("Q10", 5)], names)
    assert [(entry.class_id, entry.entity_id, entry.image_count) for entry in entries] == [
        (0, "Q2", 7),
        (1, "Q10", 5),  # "Q10" sorts before "Q9" as text
        (2, "Q9", 5),
    ]


def test_a_row_without_labels_ended_at_the_stage_its_best_label_reached() -> None:
    rejections = [
        LabelRejection(label=label("a"), stage="deduplicate", reason="duplicate_image"),
        LabelRejection(label=label("a"), stage="select_labels", reason="low_similarity"),
    ]
    record = {"outcome": "annotated", "stage": None, "reason": None}
    assert row_outcome(record, [], rejections) == ("dropped", "deduplicate", "duplicate_image")
    assert row_outcome(record, [], []) == ("dropped", "select_labels", "no_entity")
    assert row_outcome(record, [label("a")], rejections) == ("kept", None, None)
