"""What rows that could not be put together say of how an input is packed, and what helps."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.schema import UserError

APART_SHARE = 0.01  # of all rows; more are a mistake in how the tars were packed
# Reasons for which a row was not put together, and what helps.
CURES = {
    "missing_image": "picture and text need one name up to the first dot; --image-member names the pictures' endings",
    "missing_text": "picture and text need one name up to the first dot; --text-member names the texts' endings",
    "missing_text_field": "--text-field names the field of the .json that holds the text",
    "undecodable_json": "repair the .json members, or leave them out with --text-member txt",
    "several_images": "a name ends at its first dot; --image-member says which of several pictures is meant",
    "several_texts": "a name ends at its first dot; --text-member says which of several texts is meant",
    "unsupported_image": "convert the pictures to a format that is read, such as JPEG",
    "unresolved_link": "pack the files that links point to: tar --dereference --hard-dereference",
    "members_apart": "picture and text lie too far apart in the tar; unpack it, and pack it with: tar --sort=name",
    "duplicate_key": "rename the members, so that each row has a name of its own",
}


def check_layout(read_ends: Mapping[str, int], *, num_rows: int) -> None:
    """Checks that few rows were lost because their members lie apart.

    Args:
        read_ends: reason -> number of rows that ended for it when they were read.
        num_rows: of the input.

    Raises:
        UserError: more than `APART_SHARE` of the rows are halves of others.
    """
    num_apart = read_ends.get("members_apart", 0)
    if num_apart > APART_SHARE * num_rows:
        raise UserError(
            f"{num_apart} of {num_rows} rows are second halves of others ({100 * num_apart / num_rows:.2f} %, limit "
            f"{100 * APART_SHARE:g} %; the ledger has them as members_apart): {CURES['members_apart']}"
        )


def cure_of(read_ends: Mapping[str, int]) -> str:
    """Returns what helps against the most frequent of the reasons in `CURES`; "" if none of them occurs."""
    ends = {reason: count for reason, count in read_ends.items() if count and reason in CURES}
    return CURES[max(ends, key=lambda reason: (ends[reason], reason))] if ends else ""
