import numpy as np
import pyarrow.parquet as pq
import pytest

from evaluation.benchmarks.retrieval import evaluate_split, split_items
from evaluation.models.encoder import EncoderModel
from tests.evaluation.builders import Asked, FakeEncoder, pictures, sources, write_evaluation


def unit(*angles_deg):
    angles = np.deg2rad(np.array(angles_deg, np.float64))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_ranking_over_other_families_by_hand():
    # Query q (cat, family t, 0 degrees) against: a cat 10, b dog 20, c cat 30 -> matches at ranks 1 and 3.
    # AP = (1 + 2/3) / 2 = 5/6. Its near-duplicate r, a cat of family t at 0 degrees, is in no ranking.
    set_ = pictures(
        [
            ("a", "cat", "n", False, False),
            ("b", "dog", "n", False, False),
            ("c", "cat", "f", False, False),
            ("q", "cat", "t", True, False),
            ("r", "cat", "t", False, False),
        ]
    )
    result = evaluate_split(unit(10, 20, 30, 0, 0), set_, "seen")
    assert result.queries.tolist() == [3]
    assert result.average_precisions.tolist() == pytest.approx([5 / 6])
    assert result.first_is_match.tolist() == [True]


def test_ties_in_a_split_go_to_the_smaller_id():
    # Both stand at the same angle; a is the dog, so the cat b is second: AP 1/2.
    set_ = pictures([("a", "dog", "n", False, False), ("b", "cat", "n", False, False), ("q", "cat", "t", True, False)])
    result = evaluate_split(unit(40, 40, 0), set_, "seen")
    assert result.average_precisions.tolist() == [0.5]
    assert result.first_is_match.mean() == 0.0


def test_average_precisions_are_those_of_float64_with_copies_in_the_gallery():
    rng = np.random.default_rng(0)
    for trial in range(20):
        kinds = [("cat", "dog", "emu")[number % 3] for number in range(60)]
        rows = [(f"i{n:02d}", kinds[n], ("n", "f", "t")[n // 20], n >= 40, False) for n in range(60)]
        embeddings = rng.normal(size=(60, 128)).astype(np.float32)
        embeddings[[3, 8, 30]] = embeddings[[19, 11, 5]]  # exact copies, of other entities too
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
        expected = []
        for query in range(40, 60):
            similarities = [(-np.sum(np.float64(embeddings[n]) * np.float64(embeddings[query])), n) for n in range(40)]
            hits = [kinds[n] == kinds[query] for _, n in sorted(similarities)]
            expected.append(np.mean([sum(hits[: k + 1]) / (k + 1) for k in range(40) if hits[k]]))
        result = evaluate_split(embeddings, pictures(rows), "seen")
        np.testing.assert_allclose(result.average_precisions, expected, atol=1e-12, err_msg=str(trial))


def test_splits_have_galleries_of_their_own_and_a_query_without_match_leaves_the_mean():
    set_ = pictures(
        [
            ("a", "cat", "n", False, False),
            ("b", "emu", "n", False, True),
            ("q", "cat", "t", True, False),
            ("r", "emu", "t", True, True),
            ("s", "yak", "t", True, True),
        ]
    )
    embeddings = unit(0, 0, 10, 10, 0)
    seen, unseen = (evaluate_split(embeddings, set_, split) for split in ("seen", "unseen"))
    assert (seen.num_gallery, unseen.num_gallery) == (2, 3)
    assert seen.average_precisions.mean() == 1.0  # the emu at the same angle as its match is in the other gallery
    assert unseen.queries.tolist() == [3]
    assert unseen.num_queries_without_match == 1  # the only other yak is in no other family


def test_metrics_come_by_kind_and_kinds_without_queries_have_no_key():
    # The emoji ranks a (dog) before b (cat): AP 1/2. The flag c ranks first for s: AP 1. Mean 3/4.
    set_ = pictures(
        [
            ("a", "dog", "n", False, False),
            ("b", "cat", "n", False, False),
            ("c", "fr", "n", False, False),
            ("q", "cat", "t", True, False),
            ("s", "fr", "u", True, False),
        ],
        kinds=["emoji", "emoji", "flag", "emoji", "flag"],
    )
    result = evaluate_split(unit(5, 10, 90, 0, 90), set_, "seen")
    values = {name: float(items.mean()) for name, items in split_items(result, set_).items()}
    assert values["map"] == pytest.approx(0.75)
    assert values["emoji.map"] == pytest.approx(0.5)
    assert values["flags.map"] == 1.0
    assert values["flags.recall_at_1"] == 1.0
    assert "logos.map" not in values


def test_a_missing_embedding_and_an_unknown_split_are_errors():
    set_ = pictures([("a", "cat", "n", False, False)])
    with pytest.raises(ValueError, match="2 embeddings for 1 pictures"):
        evaluate_split(unit(0, 0), set_, "seen")
    with pytest.raises(ValueError, match="'held'"):
        evaluate_split(unit(0), set_, "held")


def test_families_and_flags_are_part_of_the_truth_and_a_split_without_queries_is_named(tmp_path):
    truths, lines = [], []
    for num_entities, column, value in ((6, None, None), (6, "family", "one"), (2, None, None)):
        path = tmp_path / "evaluation.parquet"
        write_evaluation(path, num_entities)
        if column is not None:
            table = pq.read_table(path)
            changed = table.set_column(table.schema.get_field_index(column), column, [[value] * len(table)])
            pq.write_table(changed, path)
        context = Asked(model=EncoderModel(encoder=FakeEncoder(), cache_dir=tmp_path), data_dir=tmp_path)
        result = context.run("retrieval")
        lines.append(result.not_measured)
        truths.append(sources(result)["evaluation"].truth)
    assert len(set(truths)) == 3 and None not in truths
    # Two entities are both unseen; with one family, no picture has another's match.
    assert list(map(len, lines)) == [0, 2, 1] and lines[2] == ["seen: no query has a match among 0 pictures"]
