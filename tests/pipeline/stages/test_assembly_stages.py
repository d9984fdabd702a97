"""Selection, deduplication and the vocabulary, on labels small enough to work out by hand."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest

from pipeline.config import SelectLabelsConfig
from pipeline.runners import RunnerConfig, pipeline_options
from pipeline.schema import UserError
from pipeline.stages.build_vocabulary import count_ends, number_classes, redirected, sum_counts
from pipeline.stages.deduplicate import block_of_ids, block_of_images, find_later, reject_ids, reject_images
from pipeline.stages.select_labels import (
    _SCORED,
    ChooseSelection,
    Selection,
    SimilarityQuantile,
    best_of_entities,
    cutoffs_of_blocks,
    judged_by_similarity,
    select_labels,
)
from pipeline.storage.digests import digests, make_block, num_partitions, split_block, write_digest_map
from pipeline.storage.funnel import ENTITY_FILTER_SCHEMA
from pipeline.storage.labels import End, Labels


def labels_of(*rows: dict[str, Any]) -> Labels:
    """Returns labels; each of `rows` names what is not as usual: row, id, picture, entity, probability, ..."""
    entity_ids = list(dict.fromkeys(row.get("entity", "E1") for row in rows))
    pictures = digests([row.get("picture", str(place)) for place, row in enumerate(rows)])
    entities = np.array([entity_ids.index(row.get("entity", "E1")) for row in rows], np.int32)

    def column(name: str, usual: float) -> np.ndarray:
        values = [row.get(name, usual) for row in rows]
        return np.array([np.nan if value is None else value for value in values], np.float64)

    return Labels(
        rows=np.array([row.get("row", place) for place, row in enumerate(rows)], np.int32),
        mentions=np.zeros(len(rows), np.int32),
        entities=entities,
        entity_ids=pa.array(entity_ids, pa.string()),
        probabilities=column("probability", 0.9),
        similarities=column("similarity", 0.5),
        verifier_scores=column("verifier_score", None),  # type: ignore[arg-type]
        id_digests=digests([row.get("id", str(row.get("row", place))) for place, row in enumerate(rows)]),
        image_digests=pictures ^ digests(entity_ids)[entities] if rows else digests([]),
    )


def ends_of(labels: Labels, config: SelectLabelsConfig, threshold: float) -> list[str]:
    ends = select_labels(labels, config, Selection(min_similarity=threshold))
    assert ends.dtype == np.int8
    return [End(end).reason for end in ends]


def chosen(tmp_path: Path, config: SelectLabelsConfig, *units: Labels) -> Selection:
    """Returns what `ChooseSelection` chooses for units, in a real pipeline."""
    path = tmp_path / "selection"
    with beam.Pipeline(options=pipeline_options(RunnerConfig(workers=1))) as job:
        (
            job
            | beam.Create(range(len(units)))
            | ChooseSelection(config, labels_of=lambda place: units[place], num_parts=2, folder=str(tmp_path))
            | beam.Map(lambda selection: path.write_bytes(pickle.dumps(selection)))
        )
    selection: Selection = pickle.loads(path.read_bytes())
    return selection


# Of 0.0, 0.1, … 0.9 the seven highest are 0.3 and above; the highest alone is 0.9.
@pytest.mark.parametrize(("keep_share", "expected"), [(0.70, 0.3), (0.05, 0.9), (1.00, 0.0)])
def test_the_threshold_is_the_highest_that_keeps_the_share(keep_share: float, expected: float) -> None:
    combine = SimilarityQuantile(keep_share)
    halves = [
        combine.add_input(combine.create_accumulator(), np.array(values))
        for values in ([0.0, 0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8, 0.9])
    ]
    threshold = combine.extract_output(combine.merge_accumulators(halves))
    assert threshold == pytest.approx(expected, abs=1e-9)


def test_the_threshold_of_no_labels_keeps_all() -> None:
    combine = SimilarityQuantile(0.7)
    assert combine.extract_output(combine.create_accumulator()) == -1.0
    assert combine.extract_output(combine.add_input(combine.create_accumulator(), np.zeros(0))) == -1.0


def test_equal_cosines_are_counted_and_those_outside_the_range_are_at_its_ends() -> None:
    combine = SimilarityQuantile(0.75)

    def threshold(*values: float) -> float:
        accumulator = combine.add_input(combine.create_accumulator(), np.array(values))
        assert accumulator.dtype == np.int64
        return combine.extract_output(accumulator)

    # Three of four reach 0.5.
    assert threshold(0.5, 0.5, 0.5, 0.1) == pytest.approx(0.5, abs=1e-9)
    # Rounding may give a cosine a little outside -1 to 1.
    assert threshold(-1.01) == -1.0 and threshold(1.01) == 1.0
    assert combine.extract_output(combine.merge_accumulators([])) == -1.0


def test_the_share_is_of_the_scored_labels_that_nothing_else_rejects(tmp_path: Path) -> None:
    first = labels_of(
        {"similarity": 0.9, "verifier_score": 1.0},
        {"similarity": 0.8, "verifier_score": 0.5},
        {"similarity": 0.7, "verifier_score": 0.4},
    )
    second = labels_of(
        {"similarity": 0.1, "verifier_score": 0.9},
        {"similarity": 0.2, "verifier_score": 0.8},
        {"similarity": None, "verifier_score": 0.9},
        {"similarity": 0.9, "verifier_score": 0.9, "probability": 0.4},
    )
    # Of 0.9, 0.8, 0.1 and 0.2, which the verifier and the probability let pass, the better half reaches 0.8.
    config = SelectLabelsConfig(keep_share=0.5, min_verifier_score=0.5)
    selection = chosen(tmp_path, config, first, second)
    assert selection.min_similarity == pytest.approx(0.8) and selection.cutoffs is None
    assert [End(end).reason for end in select_labels(first, config, selection)] == [
        "kept", "kept", "low_verifier_score",
    ]  # fmt: skip
    assert [End(end).reason for end in select_labels(second, config, selection)] == [
        "low_similarity", "low_similarity", "not_scored", "low_probability",
    ]  # fmt: skip


def test_a_given_threshold_is_the_one_that_counts(tmp_path: Path) -> None:
    config = SelectLabelsConfig(min_similarity=0.25, keep_share=0.5)
    assert chosen(tmp_path, config, labels_of({"similarity": 0.9})) == Selection(min_similarity=0.25)


def test_labels_are_rejected_by_probability_first_and_those_at_the_limits_are_kept() -> None:
    labels = labels_of(
        {"probability": 0.75, "similarity": 0.25, "verifier_score": 0.5},
        {"probability": 0.7499, "similarity": 0.25, "verifier_score": None},
        {"probability": 0.75, "similarity": 0.2499, "verifier_score": 0.5},
        {"probability": 0.75, "similarity": None, "verifier_score": 0.5},
        {"probability": 0.75, "similarity": None, "verifier_score": 0.4999},
        {"probability": 0.75, "similarity": 0.25, "verifier_score": None},
    )
    config = SelectLabelsConfig(min_probability=0.75, min_verifier_score=0.5)
    assert ends_of(labels, config, 0.25) == [
        "kept", "low_probability", "low_similarity", "not_scored", "low_verifier_score", "low_verifier_score",
    ]  # fmt: skip
    # Without a limit for the verifier its scores reject nothing.
    assert ends_of(labels, SelectLabelsConfig(min_probability=0.75), 0.25)[4:] == ["not_scored", "kept"]


def test_the_floor_keeps_the_best_labels_of_an_entity_that_the_filter_would_starve(tmp_path: Path) -> None:
    first = labels_of(
        {"entity": "E1", "similarity": 0.9},
        {"entity": "E2", "similarity": 0.2},
        {"entity": "E3", "similarity": 0.3, "probability": 0.1},  # takes no place of the floor
        {"entity": "E3", "similarity": 0.2},
    )
    second = labels_of(
        {"entity": "E2", "similarity": 0.05},
        {"entity": "E2", "similarity": 0.1},
        {"entity": "E3", "similarity": 0.1},
        {"entity": "E1", "similarity": 0.4},
        {"entity": "E1", "similarity": 0.3},
        {"entity": "E4", "similarity": None},
    )
    config = SelectLabelsConfig(min_similarity=0.5, entity_floor=2)
    selection = chosen(tmp_path, config, first, second)
    assert selection.cutoffs is not None and selection.cutoffs.path == str(tmp_path / "cutoffs.bin")
    assert [End(end).reason for end in select_labels(first, config, selection)] == [
        "kept", "kept", "low_probability", "kept",
    ]  # fmt: skip
    assert [End(end).reason for end in select_labels(second, config, selection)] == [
        "low_similarity", "kept", "kept", "kept", "low_similarity", "not_scored",
    ]  # fmt: skip


def test_a_floor_without_any_label_is_no_error(tmp_path: Path) -> None:
    assert chosen(tmp_path, SelectLabelsConfig(entity_floor=2), labels_of()) == Selection(min_similarity=-1.0)


def scored(*rows: tuple[int, int, float]) -> np.ndarray:
    """Returns a block of cosines; each row is the two halves of an entity's digest, and the cosine."""
    of = np.array([row[:2] for row in rows], np.uint64).reshape(-1, 2)
    return make_block(_SCORED, of, similarity=np.array([row[2] for row in rows], np.float64))


def test_the_cutoff_of_an_entity_is_the_lowest_of_its_best_cosines() -> None:
    # Entities that share one half of their digests are two.
    first = scored((1, 2, 0.5), (1, 3, 0.9), (2, 2, 0.1))
    second = scored((1, 2, 0.7), (1, 3, 0.2), (1, 2, 0.6), (2, 2, 0.4))
    cutoffs = cutoffs_of_blocks([first.tobytes(), second.tobytes()], 2)
    assert cutoffs.tolist() == [(1, 2, 0.6), (1, 3, 0.2), (2, 2, 0.1)]
    assert cutoffs_of_blocks([first.tobytes(), second.tobytes()], 1).tolist() == [(1, 2, 0.7), (1, 3, 0.9), (2, 2, 0.4)]
    assert cutoffs_of_blocks([], 2).tolist() == []


def test_the_best_of_a_unit_are_judged_labels_of_each_entity() -> None:
    labels = labels_of(
        {"entity": "E1", "similarity": 0.1},
        {"entity": "E2", "similarity": 0.5},
        {"entity": "E1", "similarity": 0.3},
        {"entity": "E1", "similarity": 0.2},
        {"entity": "E1", "similarity": 0.9},
    )
    is_judged = np.array([True, True, True, True, False])
    best = best_of_entities(labels, is_judged, 2)
    [(high, low), (other_high, other_low)] = digests(["E1", "E2"]).tolist()
    assert sorted(best.tolist()) == sorted(
        [(high, low, 0.3), (high, low, 0.2), (other_high, other_low, 0.5)]
    )  # fmt: skip
    assert best_of_entities(labels, np.zeros(5, bool), 2).tolist() == []


def test_the_labels_that_the_share_and_the_floor_are_of_are_scored_and_pass_the_other_limits() -> None:
    labels = labels_of(
        {"probability": 0.75, "verifier_score": 0.5},
        {"probability": 0.74, "verifier_score": 0.5},
        {"probability": 0.75, "verifier_score": 0.4},
        {"probability": 0.75, "verifier_score": 0.5, "similarity": None},
    )
    config = SelectLabelsConfig(min_probability=0.75, min_verifier_score=0.5)
    assert judged_by_similarity(labels, config).tolist() == [True, False, False, False]


def test_an_entity_without_a_cutoff_has_the_threshold_alone(tmp_path: Path) -> None:
    labels = labels_of(
        {"entity": "E1", "similarity": 0.4},
        {"entity": "E1", "similarity": 0.39},
        {"entity": "E2", "similarity": 0.49},
        {"entity": "E2", "similarity": 0.5},
        {"entity": "E3", "similarity": 0.5},
    )
    # The cutoff of E3 lies above the threshold, and takes nothing away.
    cutoffs = write_digest_map(str(tmp_path / "map"), digests(["E1", "E3"]), np.array([0.4, 0.8]))
    ends = select_labels(labels, SelectLabelsConfig(), Selection(min_similarity=0.5, cutoffs=cutoffs))
    assert [End(end).reason for end in ends] == ["kept", "low_similarity", "low_similarity", "kept", "kept"]


def later(*units: tuple[Labels, np.ndarray], block_of: Any) -> dict[int, list[int]]:
    """Returns unit -> positions of later duplicates; the order of arrival must not matter."""
    blocks = [(unit, block_of(labels, ends).tobytes()) for unit, (labels, ends) in enumerate(units)]
    results = []
    for order in itertools.permutations(blocks):
        found = {unit: np.frombuffer(places, "<i4").tolist() for unit, places in find_later(order)}
        results.append(dict(sorted(found.items())))
    assert all(result == results[0] for result in results)
    return results[0]


def kept(labels: Labels) -> np.ndarray:
    return np.full(len(labels), End.KEPT, np.int8)


def test_of_one_id_the_first_row_keeps_all_its_labels() -> None:
    first = labels_of(
        {"row": 2, "id": "a", "entity": "E2"}, {"row": 2, "id": "a", "entity": "E3"}, {"row": 7, "id": "a"}
    )
    second = labels_of({"row": 0, "id": "b"}, {"row": 1, "id": "a"})
    lost = later((first, kept(first)), (second, kept(second)), block_of=block_of_ids)
    assert lost == {0: [7], 1: [1]}
    ends = np.array([End.KEPT, End.KEPT, End.KEPT], np.int8)
    reject_ids(ends, first, [np.array(lost[0], "<i4").tobytes()])
    assert ends.tolist() == [End.KEPT, End.KEPT, End.DUPLICATE_ID]
    # What was rejected before stays so, and a row without a kept label takes no id.
    ends = np.array([End.LOW_SIMILARITY, End.LOW_SIMILARITY, End.LOW_PROBABILITY], np.int8)
    reject_ids(ends, first, [np.array([2, 7], "<i4").tobytes()])
    assert ends.tolist() == [End.LOW_SIMILARITY, End.LOW_SIMILARITY, End.LOW_PROBABILITY]
    ends[2] = End.KEPT
    assert later((first, ends), (second, kept(second)), block_of=block_of_ids) == {1: [1]}


def test_of_one_picture_and_entity_the_first_stays() -> None:
    first = labels_of({"picture": "p", "entity": "E1"}, {"picture": "q"}, {"picture": "p", "entity": "E2"})
    second = labels_of({"picture": "p", "entity": "E2"}, {"picture": "p", "entity": "E1"}, {"picture": "r"})
    lost = later((first, kept(first)), (second, kept(second)), block_of=block_of_images)
    assert lost == {1: [0, 1]}
    ends = kept(second)
    reject_images(ends, [np.array(lost[1], "<i4").tobytes()])
    assert ends.tolist() == [End.DUPLICATE_IMAGE, End.DUPLICATE_IMAGE, End.KEPT]
    # A label that was rejected before does not hide the next one.
    ends = kept(first)
    ends[0] = End.DUPLICATE_ID
    assert later((first, ends), (second, kept(second)), block_of=block_of_images) == {1: [0]}


def test_a_partition_of_nothing_but_firsts_and_a_unit_without_labels_lose_nothing() -> None:
    assert later((labels_of({"id": "a"}), kept(labels_of({}))), block_of=block_of_ids) == {}
    assert len(block_of_ids(labels_of(), kept(labels_of()))) == 0
    assert len(block_of_images(labels_of(), kept(labels_of()))) == 0


@pytest.mark.parametrize("num_parts", [1, 2, 7])
def test_duplicates_do_not_depend_on_the_partitions(num_parts: int) -> None:
    random = np.random.default_rng(0)
    units = [labels_of(*({"id": str(one)} for one in random.integers(0, 40, 25))) for _ in range(4)]
    parts: dict[int, list[tuple[int, bytes]]] = {}
    for unit, labels in enumerate(units):
        for part, rows in split_block(block_of_ids(labels, kept(labels)), num_parts):
            parts.setdefault(part, []).append((unit, rows))
    assert len(parts) == num_parts
    found = {
        (unit, row)
        for blocks in parts.values()
        for unit, rows in find_later(blocks)
        for row in np.frombuffer(rows, "<i4")
    }
    seen: set[tuple[int, int]] = set()
    expected = set()
    for unit, labels in enumerate(units):
        for row, digest in enumerate(labels.id_digests.tolist()):
            if tuple(digest) in seen:
                expected.add((unit, row))
            seen.add(tuple(digest))
    assert found == expected and expected


def test_the_number_of_partitions_grows_with_the_units_up_to_a_limit() -> None:
    assert [num_partitions(number) for number in (0, 1, 127, 128, 640, 100_000)] == [1, 1, 1, 2, 10, 128]


def counts_of(**counts: int) -> pa.Table:
    """Returns the table of entities with these numbers of kept labels."""
    rows = [
        {name: 0 for name in ENTITY_FILTER_SCHEMA.names} | {"entity_id": one, "kept": n} for one, n in counts.items()
    ]
    return pa.Table.from_pylist(rows, schema=ENTITY_FILTER_SCHEMA)


def test_classes_are_numbered_by_falling_count_and_then_by_entity_id() -> None:
    classes = number_classes(counts_of(Q9=5, Q2=7, Q10=5, Q1=4), num_images_min=5)
    # "Q10" sorts before "Q9" as text.
    assert classes.to_pydict() == {"entity_id": ["Q2", "Q10", "Q9"], "image_count": [7, 5, 5]}
    assert len(number_classes(counts_of(), num_images_min=1)) == 0


def test_classes_of_an_earlier_set_keep_their_ids_and_new_ones_follow() -> None:
    counts = counts_of(Q9=5, Q2=7, Q10=9, Q1=4, Q3=8)
    classes = number_classes(counts, num_images_min=5, earlier=["Q1", "Q9", "Q7", "Q2"])
    # Q1 has fewer than 5 now, and Q7 none.
    assert classes.to_pydict() == {
        "entity_id": ["Q1", "Q9", "Q7", "Q2", "Q10", "Q3"],
        "image_count": [0, 5, 0, 7, 9, 8],
    }


def test_a_redirected_entity_keeps_its_class_unless_its_target_has_one() -> None:
    targets = {"Q1": "Q11", "Q2": "Q3", "Q4": "Q11"}
    assert redirected(["Q1", "Q2", "Q3", "Q4"], lambda one: targets.get(one, one)) == ["Q11", "Q2", "Q3", "Q4"]


def test_counts_of_units_are_summed_by_entity_and_end() -> None:
    first = labels_of({"entity": "E1"}, {"entity": "E2"}, {"entity": "E1"})
    second = labels_of({"entity": "E2"}, {"entity": "E1"})
    batches = [
        count_ends(first, np.array([End.KEPT, End.KEPT, End.KEPT], np.int8)),
        count_ends(second, np.array([End.LOW_SIMILARITY, End.KEPT], np.int8)),
    ]
    table = sum_counts(batch.serialize().to_pybytes() for batch in batches)
    found = {row["entity_id"]: {end: n for end, n in row.items() if n} for row in table.to_pylist()}
    assert found == {
        "E1": {"entity_id": "E1", "kept": 3},
        "E2": {"entity_id": "E2", "kept": 1, "low_similarity": 1},
    }


def test_a_map_of_digests_finds_each_and_tells_what_it_lacks(tmp_path: Path) -> None:
    of = digests([str(number) for number in range(1000)])
    written = write_digest_map(str(tmp_path / "map"), of, np.arange(1000, dtype=np.int32))
    assert written.lookup(of[::-1], default=-1).tolist() == list(range(999, -1, -1))
    assert written.lookup(digests(["1000", "5"]), default=-1).tolist() == [-1, 5]
    # Equal first halves, in any order, with and without the second.
    twins = np.array([[7, 2], [7, 1], [9, 0], [7, 3]], np.uint64)
    written = write_digest_map(str(tmp_path / "twins"), twins, np.arange(4, dtype=np.float64))
    wanted = np.array([[7, 3], [7, 1], [7, 2], [7, 4], [9, 1], [2**64 - 1, 0]], np.uint64)
    assert written.lookup(wanted, default=np.inf).tolist() == [3, 1, 0, np.inf, np.inf, np.inf]
    written = write_digest_map(str(tmp_path / "spoilt"), of, np.arange(1000, dtype=np.int32))
    (tmp_path / "spoilt").write_bytes(b"<i4\n")
    with pytest.raises(
        UserError, match="spoilt was changed while it was in use; run again, and only one run at a time"
    ):
        written.lookup(of, default=-1)
    empty = write_digest_map(str(tmp_path / "empty"), digests([]), np.zeros(0, np.int32))
    assert empty.lookup(of[:2], default=-1).tolist() == [-1, -1]
