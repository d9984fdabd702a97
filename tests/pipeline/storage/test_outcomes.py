"""Checks on what became of all rows."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from pipeline.config import AssembleConfig
from pipeline.schema import UserError
from pipeline.storage.funnel import ENTITY_FILTER_SCHEMA, make_funnel
from pipeline.storage.outcomes import check_outcomes


def funnel(num_rows: int, *, num_labels: int = 1, **outcomes: int) -> dict[str, Any]:
    """Returns the funnel of a set of one shard; outcomes are named as in commit records, with _of_ for a slash."""
    entities = pa.Table.from_pylist(
        [{name: num_labels for name in ENTITY_FILTER_SCHEMA.names} | {"entity_id": "E1"}], schema=ENTITY_FILTER_SCHEMA
    )
    ends = {name.replace("_of_", "/"): count for name, count in outcomes.items()}
    return make_funnel([{"num_rows": num_rows, "outcomes": ends}], entities, min_similarity=0.25)


def test_a_set_whose_outcomes_do_not_add_up_to_its_rows_is_an_error() -> None:
    check_outcomes(funnel(10, kept=9, dropped_of_validate_of_image_too_small=1), "ledger", AssembleConfig())
    for kept in (8, 10):  # one outcome less, and one more
        with pytest.raises(
            RuntimeError, match="10 rows were read, but the ledger has .*; this is a bug of the pipeline"
        ):
            check_outcomes(funnel(10, kept=kept, dropped_of_validate_of_image_too_small=1), "ledger", AssembleConfig())


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (funnel(0), "the input has 0 rows, at least 1 is needed; give tars with pictures and texts as --input"),
        (
            funnel(
                5,
                dropped_of_read_of_missing_text=2,
                dropped_of_read_of_undecodable_json=1,
                dropped_of_validate_of_image_too_small=2,
            ),
            "no row could be labelled: 2 missing_text, 1 undecodable_json; picture and text need one name up to the "
            "first dot; --text-member names the texts' endings; see the ledger",
        ),
        # Half of the rows are not most of them, and nothing was labelled.
        (
            funnel(
                4,
                num_labels=0,
                dropped_of_read_of_missing_text=2,
                dropped_of_validate_of_image_too_small=1,
                dropped_of_find_mentions_of_no_mention=1,
            ),
            "no row could be labelled: 2 missing_text, 1 image_too_small, 1 no_mention; see the ledger; change the "
            "input, the tagger or the knowledge base",
        ),
        (
            funnel(1, dropped_of_select_labels_of_low_similarity=1),
            "no image of 1 rows kept a label (0, at least 1 is needed); see the ledger; lower --min-similarity or "
            "--min-images-per-entity, or change the knowledge base",
        ),
    ],
)
def test_a_set_without_an_image_is_an_error_whose_advice_fits_where_its_rows_ended(
    found: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as refused:
        check_outcomes(found, "the ledger", AssembleConfig())
    assert str(refused.value) == message


def test_a_set_of_one_image_is_no_error() -> None:
    check_outcomes(funnel(1, kept=1), "ledger", AssembleConfig())


def test_second_halves_of_rows_are_counted_against_all_rows() -> None:
    # 1 of 100 is the limit.
    check_outcomes(funnel(100, kept=99, dropped_of_read_of_members_apart=1), "ledger", AssembleConfig())
    with pytest.raises(UserError, match=r"2 of 100 rows are second halves of others \(2.00 %, limit 1 %; "):
        check_outcomes(funnel(100, kept=98, dropped_of_read_of_members_apart=2), "ledger", AssembleConfig())


def test_failed_rows_stop_the_run_above_the_limit_alone() -> None:
    # 1 of 100 is the limit; 2 of 100 are above it.
    check_outcomes(funnel(100, kept=99, failed_of_read_of_timeout=1), "ledger", AssembleConfig())
    with pytest.raises(UserError) as refused:
        check_outcomes(funnel(100, kept=98, failed_of_read_of_timeout=2), "ledger", AssembleConfig())
    assert str(refused.value) == (
        "2 of 100 rows failed (2.00 %, limit 1 %); see ledger; repair or remove their input, or raise "
        "--max-failed-share"
    )


def test_many_rows_of_one_id_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    check_outcomes(funnel(100, kept=95, dropped_of_deduplicate_of_duplicate_id=5), "ledger", AssembleConfig())
    assert capsys.readouterr().err == ""
    check_outcomes(funnel(10, kept=9, dropped_of_deduplicate_of_duplicate_image=1), "ledger", AssembleConfig())
    assert capsys.readouterr().err == ""
    check_outcomes(funnel(100, kept=94, dropped_of_deduplicate_of_duplicate_id=6), "ledger", AssembleConfig())
    assert capsys.readouterr().err == (
        "warning: 6 of 100 rows have the id of an earlier row and are left out; ids are the keys of the tars: if each "
        "tar starts with the same keys, rename them\n"
    )


def test_the_funnel_counts_rows_by_stage_and_labels_by_end() -> None:
    table = pa.Table.from_pylist(
        [
            {"entity_id": "E1", "kept": 3, "low_similarity": 2},
            {"entity_id": "E2", "low_similarity": 5},
            {"entity_id": "E3", "kept": 1, "rare_entity": 0},
            {"entity_id": "E0", "low_similarity": 2},
        ],
        schema=ENTITY_FILTER_SCHEMA,
    )
    zeros = [pa.array([value or 0 for value in column.to_pylist()], pa.int64()) for column in table.columns[1:]]
    table = pa.table([table["entity_id"], *zeros], schema=ENTITY_FILTER_SCHEMA)
    records = [
        {"num_rows": 4, "outcomes": {"kept": 2, "dropped/select_labels/low_similarity": 2}},
        {"num_rows": 3, "outcomes": {"kept": 1, "failed/read/timeout": 1, "dropped/select_labels/low_similarity": 1}},
    ]
    found = make_funnel(records, table, min_similarity=0.25)
    assert found["rows"] == {"read": 7, "kept": 3, "dropped": 3, "failed": 1}
    assert found["rows_by_stage_and_reason"] == {"select_labels": {"low_similarity": 3}, "read": {"timeout": 1}}
    assert found["labels"]["kept"] == 4 and found["labels"]["low_similarity"] == 9 and found["min_similarity"] == 0.25
    # The most rejected first, equal ones by id; E2 and E0 lost all their labels to the filter.
    assert [one["entity_id"] for one in found["entities_most_rejected_by_similarity"]] == ["E2", "E0", "E1"]
    assert found["num_entities_rejected_whole_by_similarity"] == 2
