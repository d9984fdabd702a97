"""`python -m pipeline.explain`: why rows of a set ended as they did, each step with its numbers.

Reads annotations, ledger, manifest and vocabulary of the set, and the knowledge base for names. Also for rows that were
dropped or failed, and for a set whose last run ended with an error.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

import tyro

from pipeline.commands import ending_on_user_errors
from pipeline.report.entity_names import NameOf, entity_names
from pipeline.report.explanation import explain_row
from pipeline.report.explanation_text import explanation_lines, shown
from pipeline.report.find_rows import FoundRow, example_ids, find_rows, rows_with_picture
from pipeline.report.reasons import meaning_of, stage_order
from pipeline.report.set_files import SetFiles, open_set_files


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExplainConfig:
    """Shows why rows of a set ended as they did."""

    data: str = "runs/demo/i2e"
    """Folder of the set."""
    image: tuple[str, ...] = ()
    """Ids of the rows, or their first characters. Without any, ids are listed by how their rows ended."""
    kb: str | None = None
    """Folder of the knowledge base, for names; None: where the set was mined with it."""
    json: bool = False
    """Print a JSON array instead of text."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    config = tyro.cli(ExplainConfig, args=argv, prog="python -m pipeline.explain")
    with ending_on_user_errors():
        files = open_set_files(config.data)
        if not config.image:
            _print_examples(files, as_json=config.json)
            return
        found, messages = find_rows(files, config.image)
        name_of, notes = entity_names(files, config.kb, _entity_ids(found))
        rows = _explain(files, found, name_of)
    for note in [*_notes(files), *notes] if found else []:
        print(f"note: {note}", file=sys.stderr)
    if config.json:
        print(json.dumps(rows, ensure_ascii=False, indent=1))
    else:
        print("\n\n".join("\n".join(explanation_lines(row)) for row in rows))
    for message in messages:
        print(f"error: {message}", file=sys.stderr)
    if messages:
        sys.exit(2)


def _explain(files: SetFiles, found: Sequence[FoundRow], name_of: NameOf) -> list[dict[str, Any]]:
    """Returns the explanation of each row."""
    vocabulary = files.vocabulary(_entity_ids(found, only_chosen=True))
    return [
        explain_row(
            row,
            manifest=files.manifest,
            vocabulary=vocabulary,
            name_of=name_of,
            same_picture=_same_picture(files, row),
        )
        for row in found
    ]


def _same_picture(files: SetFiles, found: FoundRow) -> list[str]:
    """Returns the ids of the other rows with the picture of a row that lost a label as a duplicate."""
    labels = (found.ledger or {}).get("labels") or ()
    if not any(label["reason"] == "duplicate_image" for label in labels):
        return []
    rows = rows_with_picture(files, found.record["image_sha256"])
    return [
        image_id for image_id, name, row in rows if (image_id, row) != (found.record["image_id"], found.record["row"])
    ]


def _entity_ids(found: Sequence[FoundRow], *, only_chosen: bool = False) -> set[str]:
    linked = [one for row in found for one in row.record["linked"] or ()]
    chosen = {one["chosen"] for one in linked if one["chosen"] is not None}
    return chosen if only_chosen else chosen | {c["entity_id"] for one in linked for c in one["candidates"] or ()}


def _notes(files: SetFiles) -> list[str]:
    if not files.has_ledger:
        return [f"{files.directory} is not assembled: how rows ended is known only as far as they were annotated"]
    if files.manifest is None:
        return [f"{files.directory} is unfinished (manifest.json is missing): its thresholds are not known"]
    return []


def _print_examples(files: SetFiles, *, as_json: bool) -> None:
    """Prints how rows ended, with ids to explain."""
    ends = sorted(example_ids(files), key=lambda end: (end[0] != "kept", stage_order(end[1]), end[2]))
    if as_json:
        names = ("outcome", "stage", "reason", "rows", "image_ids")
        print(json.dumps([dict(zip(names, end, strict=True)) for end in ends], ensure_ascii=False, indent=1))
        return
    print("give ids with --image; how rows ended, with some of them:")
    for outcome, stage, reason, count, ids in ends:
        where = f"{outcome} at {stage}: {reason}" if reason else outcome
        print(f"  {where:<45}{count:>9}  {', '.join(map(shown, ids))}")
        if meaning_of(reason):
            print(f"    {meaning_of(reason)}")


if __name__ == "__main__":
    main()
