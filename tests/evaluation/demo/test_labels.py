import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from evaluation.demo.labels import (
    FoundMention,
    LedgerRow,
    PairTruth,
    TrueMention,
    all_metrics,
    answer,
    filter_roc_auc,
    final_cases,
    ledger_counts,
    linking_metrics,
    of_half,
    read_annotations,
    read_ledger,
    read_truth,
    roc_auc,
    shares,
)
from pipeline.schema import UserError
from tests.evaluation.builders import write_demo


def true(start, end, entity_id, ambiguous=False, has_context=False, kind="emoji"):
    return TrueMention(
        start=start, end=end, entity_id=entity_id, kind=kind, ambiguous=ambiguous, has_context=has_context
    )


def found(start, end, chosen, prior_choice=None, similarity=None, seen=()):
    return FoundMention(
        start=start, end=end, chosen=chosen, prior_choice=prior_choice, similarity=similarity, seen_shares=dict(seen)
    )


def pair(shows, *mentions, strays=(), half="fit"):
    return PairTruth(picture_entity_id=shows, kind="emoji", mentions=mentions, half=half, strays=strays)


def kept(*entity_ids):
    return LedgerRow(outcome="kept", stage="", reason="", entity_ids=entity_ids)


def dropped(stage):
    return LedgerRow(outcome="dropped", stage=stage, reason="r", entity_ids=())


def test_roc_auc_by_hand_with_a_tie():
    # Positives 3 and 2, negatives 2 and 1: pairs 3>2, 3>1, 2=2 (half), 2>1 -> 3.5 of 4.
    assert roc_auc(np.array([3.0, 2.0, 2.0, 1.0]), np.array([True, True, False, False])) == 0.875


def test_roc_auc_equals_the_librarys():
    random = np.random.default_rng(1)
    scores, positive = random.integers(0, 9, 200).astype(float), random.random(200) < 0.3
    assert roc_auc(scores, positive) == pytest.approx(roc_auc_score(positive, scores))


def test_roc_auc_needs_both_sides_and_finite_scores():
    with pytest.raises(ValueError, match="2 positives and 0 negatives"):
        roc_auc(np.array([1.0, 2.0]), np.array([True, True]))
    with pytest.raises(ValueError, match="not finite"):
        roc_auc(np.array([1.0, np.nan]), np.array([True, False]))


def test_the_largest_overlap_answers_and_touching_spans_do_not():
    mention = true(10, 20, "E")
    assert answer(mention, [found(0, 12, "A"), found(11, 25, "B")]).chosen == "B"
    assert answer(mention, [found(0, 10, "A"), found(20, 30, "B")]) is None
    assert answer(mention, [found(15, 20, "B"), found(10, 15, "A")]).chosen == "A"


def test_linking_by_hand():
    truth = {
        "a": pair("E1", true(0, 4, "E1"), true(5, 9, "E2")),
        "b": pair("E3", true(0, 4, "E3")),
        "c": pair("E3"),
    }
    links = {
        "a": (found(0, 4, "E1"), found(6, 9, "E9")),  # right; found, wrong
        "b": (found(9, 12, "E3"),),  # not where the text names it
        "c": (found(0, 2, None), found(3, 5, "E5")),  # NIL is no link; a link where the text names nothing is wrong
    }
    values = linking_metrics(truth, links)
    assert values["labels.mentions.recall"] == pytest.approx(2 / 3)
    assert values["labels.mentions.recall_exact"] == pytest.approx(1 / 3)
    assert values["labels.mentions.precision"] == 2 / 5  # of a's two, b's one, c's two
    assert values["labels.linking.precision"] == 1 / 4  # links: E1, E9, E3, E5
    assert values["labels.linking.recall"] == pytest.approx(1 / 3)
    assert "labels.nil_accuracy" not in values and "labels.ambiguous_accuracy" not in values


def test_ambiguous_names_beside_the_prior():
    truth = {
        "a": pair("E1", true(0, 4, "E1", ambiguous=True, has_context=True)),
        "b": pair("E1", true(0, 4, "E1", ambiguous=True, has_context=True)),
        "c": pair("E1", true(0, 4, "E1", ambiguous=True, has_context=True)),
        "d": pair("E1", true(0, 4, "E1", ambiguous=True)),
        "e": pair("E1", true(0, 4, "E1")),
    }
    links = {
        "a": (found(0, 4, "E1", "E2", seen={"E1": 0.5}.items()),),  # right, the prior is wrong
        "b": (found(0, 4, "E1", "E1"),),  # both right
        # c was not found: wrong either way
        "d": (found(0, 4, "E2", "E2"),),
        "e": (found(0, 4, "E1", "E1"),),  # not ambiguous
    }
    values = linking_metrics(truth, links)
    assert values["labels.ambiguous_accuracy"] == pytest.approx(2 / 3)
    assert values["labels.ambiguous_accuracy_prior_only"] == pytest.approx(1 / 3)
    assert values["labels.ambiguous_accuracy_no_context"] == 0.0
    assert values["labels.ambiguous_accuracy_seen"] == 1.0 and values["labels.ambiguous_accuracy_unseen"] == 1 / 2
    assert values["labels.ambiguous_accuracy_unseen_prior_only"] == 1 / 2  # b of b and c


def test_nil_is_right_when_no_entity_is_given_found_or_not():
    truth = {key: pair("E1", true(0, 4, None)) for key in "abcd"}
    links = {"a": (found(0, 4, None),), "b": (found(0, 4, "E7"),), "c": ()}
    values = linking_metrics(truth, links)
    assert values["labels.nil_accuracy"] == 3 / 4
    assert values["labels.nil_accuracy_found"] == 1 / 2


def test_a_link_on_a_stray_name_counts_once_however_many_touch_it():
    # The stray names: [0, 4) has two links on it, [5, 9) a NIL, [10, 14) nothing; of the second pair a link crosses it.
    truth = {"a": pair("E1", strays=((0, 4), (5, 9), (10, 14))), "b": pair("E1", strays=((2, 6),))}
    links = {
        "a": (found(0, 2, "E1"), found(2, 4, "E2"), found(5, 9, None), found(14, 20, "E3")),
        "b": (found(0, 3, "E4"),),
    }
    assert linking_metrics(truth, links)["labels.strays_linked"] == 2 / 4


def test_names_of_the_base_that_got_no_entity_are_counted_by_kind():
    truth = {
        "a": pair("E1", true(0, 4, "E1", kind="flag"), true(5, 9, "E2", kind="flag")),  # right; NIL
        "b": pair("E3", true(0, 4, "E3", kind="logo")),  # not found
        "c": pair("E4", true(0, 4, "E4")),  # wrong, which is no refusal
        "d": pair("E5", true(0, 4, None)),  # not in the base
    }
    links = {
        "a": (found(0, 4, "E1"), found(5, 9, None)),
        "c": (found(0, 4, "E9"),),
        "d": (found(0, 4, None),),
    }
    values = linking_metrics(truth, links)
    assert values["labels.refused"] == 2 / 4
    assert (values["labels.flag.refused"], values["labels.flag.linking.recall"]) == (1 / 2, 1 / 2)
    assert (values["labels.logo.refused"], values["labels.logo.linking.recall"]) == (1.0, 0.0)
    assert (values["labels.emoji.refused"], values["labels.emoji.linking.recall"]) == (0.0, 0.0)


def test_final_labels_by_hand():
    truth = {
        "a": pair("E1", true(0, 4, "E1")),  # kept, right
        "b": pair("E1", true(0, 4, "E2")),  # kept, wrong; not labelable, its text names something else
        "c": pair("E2", true(0, 4, "E2")),  # dropped by the filter
        "d": pair("E1", true(0, 4, "E1")),  # a copy of a: the set holds its label
        "e": pair("E2", true(0, 4, "E2")),  # a copy of b, which was kept with another label
        "f": pair("E4", true(0, 4, None)),  # not in the base: not labelable
        "g": pair("E5", true(0, 4, "E5")),  # below the minimum count: still labelable
        "h": pair("E1", true(0, 4, "E1")),  # a copy of a that was never linked to E1
        "i": pair("E1", true(0, 4, "E1")),  # a copy of a, kept for another label
    }
    ledger = {
        "a": kept("E1"),
        "b": kept("E3", "E2"),
        "c": dropped("select_labels"),
        "d": dropped("deduplicate"),
        "e": dropped("deduplicate"),
        "f": dropped("disambiguate"),
        "g": dropped("build_vocabulary"),
        "h": dropped("deduplicate"),
        "i": kept("E7"),
    }
    links = {
        key: (found(0, 4, chosen),) for key, chosen in zip("acdegi", ["E1", "E2", "E1", "E2", "E5", "E1"], strict=True)
    }
    hashes = {"a": "A", "b": "B", "c": "C", "d": "A", "e": "X", "g": "G", "h": "A", "i": "A"}
    values = shares(final_cases(truth, ledger, links, hashes))
    assert values["labels.final.precision"] == 1 / 4  # labels: E1, E3, E2, E7
    assert values["labels.final.recall"] == 3 / 7  # a, d and i of a, c, d, e, g, h, i


def test_the_filters_auc_is_over_images_and_chosen_entities():
    truth = {"a": pair("E1"), "b": pair("E1"), "c": pair("E1")}
    links = {
        "a": (found(0, 1, "E1", similarity=0.5), found(3, 4, "E1", similarity=0.5)),  # one label of two mentions
        "b": (found(0, 1, "E2", similarity=0.1), found(3, 4, None)),
        "c": (found(0, 1, "E2", similarity=0.9), found(3, 4, "E3")),  # E3 was never scored
    }
    assert filter_roc_auc(truth, links) == 0.5
    assert filter_roc_auc({"a": pair("E1")}, links) is None


def test_counts_come_from_outside_and_an_unknown_outcome_is_an_error():
    counts = ledger_counts([kept("E1"), dropped("x")], num_read=3)
    assert counts == {"ledger.read": 3, "ledger.kept": 1, "ledger.dropped": 1, "ledger.failed": 0}
    with pytest.raises(UserError, match="'lost'"):
        ledger_counts([LedgerRow(outcome="lost", stage="", reason="", entity_ids=())], num_read=1)


def test_everything_on_files_and_a_set_of_another_corpus_is_refused(tmp_path):
    write_demo(tmp_path)
    paths = [str(tmp_path / name) for name in ("corpus/truth.parquet", "i2e/annotations", "i2e/ledger")]
    values, num_cases = all_metrics(*paths)
    assert values["labels.final.precision"] == 0.5  # p0 right, p1 wrong
    # Every share states its cases: two labels, and the scored links of p0, p1 and p2.
    assert num_cases["labels.final.precision"] == 2 and num_cases["filter.roc_auc"] == 3
    assert set(num_cases) == {name for name in values if not name.startswith("ledger.")}
    assert values["labels.final.recall"] == 1.0  # p0, and p2 as a copy of p0
    assert values["labels.linking.precision"] == 1.0
    assert values["filter.roc_auc"] == 1.0
    assert num_cases["labels.untuned.linking.recall"] == 1  # p1 alone is of the half "measure"
    assert num_cases["labels.untuned.final.precision"] == 1 and values["labels.untuned.final.precision"] == 0.0
    with pytest.raises(UserError, match="ledger is missing"):
        read_ledger(str(tmp_path / "none" / "ledger"))
    (tmp_path / "corpus" / "truth.parquet").unlink()
    other = tmp_path / "other"
    other.mkdir()
    row = {"key": "z1", "picture_entity_id": "E0", "kind": "emoji", "half": "fit", "mentions": [], "strays": []}
    pq.write_table(pa.Table.from_pylist([row]), paths[0])
    with pytest.raises(UserError, match="4 image ids, p0 first, are not in the corpus's truth"):
        all_metrics(*paths)


def test_a_half_that_does_not_exist_is_refused(tmp_path):
    write_demo(tmp_path)
    path = tmp_path / "corpus" / "truth.parquet"
    row = {"key": "z1", "picture_entity_id": "E0", "kind": "emoji", "half": "odd", "mentions": [], "strays": []}
    pq.write_table(pa.Table.from_pylist([row]), path)
    with pytest.raises(UserError, match="the column 'half' has 'odd'; it must be one of fit, measure; make it again"):
        read_truth(path)


def test_the_halves_are_those_of_the_truth():
    truth = {"a": pair("E1"), "b": pair("E2", half="measure"), "c": pair("E3")}
    assert list(of_half(truth, "fit")) == ["a", "c"] and list(of_half(truth, "measure")) == ["b"]


def test_two_outcomes_of_a_row_are_an_error(tmp_path):
    write_demo(tmp_path)
    ledger = tmp_path / "i2e" / "ledger"
    shutil.copy(ledger / "part-0.parquet", ledger / "part-1.parquet")
    with pytest.raises(UserError, match="p0 has two outcomes"):
        read_ledger(str(ledger))


def test_the_filter_is_measured_on_links_by_text(tmp_path):
    candidates = [
        {"entity_id": one, "prior": 1.0, "similarity": similarity, "evidence": None}
        for one, similarity in (("E1", 0.3), ("E2", 0.6))
    ]
    link = {"start": 0, "end": 4, "chosen": "E2", "by_text": "E1", "candidates": candidates}
    row = {"image_id": "a", "outcome": "annotated", "image_sha256": "", "linked": [link]}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    for by_text, expected in ((False, ("E2", 0.6)), (True, ("E1", 0.3))):
        [[mention]] = read_annotations(tmp_path, by_text=by_text)[0].values()
        assert (mention.chosen, mention.similarity) == expected
