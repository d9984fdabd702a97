"""Checks on what became of the rows of a whole set, with messages that say what to change."""

from __future__ import annotations

import collections
import sys
from collections.abc import Mapping
from typing import Any

from pipeline.config import AssembleConfig
from pipeline.schema import UserError
from pipeline.sources.layout import CURES, check_layout, cure_of

_SAME_ID_SHARE = 0.05  # of all rows; more are a mistake in naming
_LAYOUT_SHARE = 0.5  # of all rows; more are a mistake in how the tar is packed


def check_outcomes(funnel: Mapping[str, Any], ledger: str, config: AssembleConfig) -> None:
    """Checks that each row that was read has one outcome, that few failed, and that some were kept.

    Args:
        funnel: what `make_funnel` returned.
        ledger: where the ledger lies, for messages.
        config: the limits.

    Raises:
        RuntimeError: the outcomes do not add up to the rows.
        UserError: too many rows failed, or none was kept.
    """
    rows = funnel["rows"]
    if rows["kept"] + rows["dropped"] + rows["failed"] != rows["read"]:
        raise RuntimeError(f"{rows['read']} rows were read, but the ledger has {rows}; this is a bug of the pipeline")
    same_id = funnel["rows_by_stage_and_reason"].get("deduplicate", {}).get("duplicate_id", 0)
    if same_id > _SAME_ID_SHARE * rows["read"]:
        print(
            f"warning: {same_id} of {rows['read']} rows have the id of an earlier row and are left out; ids are the "
            "keys of the tars: if each tar starts with the same keys, rename them",
            file=sys.stderr,
        )
    check_layout(funnel["rows_by_stage_and_reason"].get("read", {}), num_rows=rows["read"])
    if rows["read"] and rows["failed"] / rows["read"] > config.max_failed_share:
        raise UserError(
            f"{rows['failed']} of {rows['read']} rows failed ({100 * rows['failed'] / rows['read']:.2f} %, limit "
            f"{100 * config.max_failed_share:g} %); see {ledger}; repair or remove their input, or raise "
            "--max-failed-share"
        )
    if rows["kept"] == 0:
        raise UserError(_why_no_image(funnel, ledger))


def _why_no_image(funnel: Mapping[str, Any], ledger: str) -> str:
    """Returns the message for a set without images; its advice depends on where most rows ended."""
    stages = funnel["rows_by_stage_and_reason"]
    read_ends = stages.get("read", {})
    num_rows = funnel["rows"]["read"]
    if num_rows == 0:
        return "the input has 0 rows, at least 1 is needed; give tars with pictures and texts as --input"
    if sum(read_ends.get(reason, 0) for reason in CURES) > _LAYOUT_SHARE * num_rows:
        return f"no row could be labelled: {_counts(read_ends)}; {cure_of(read_ends)}; see {ledger}"
    if not sum(funnel["labels"].values()):  # nothing that a threshold could have rejected
        ends = collections.Counter[str]()
        for reasons in stages.values():
            ends.update(reasons)
        return (
            f"no row could be labelled: {_counts(ends)}; see {ledger}; change the input, the tagger or the knowledge "
            "base"
        )
    return (
        f"no image of {num_rows} rows kept a label (0, at least 1 is needed); see {ledger}; lower "
        "--min-similarity or --min-images-per-entity, or change the knowledge base"
    )


def _counts(reasons: Mapping[str, int]) -> str:
    """Returns the reasons with the number of their rows, the most frequent one first."""
    return ", ".join(
        f"{count} {reason}" for reason, count in sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    )
