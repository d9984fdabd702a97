"""`python -m pipeline.data_card`: what a set holds and what was left out, as one HTML page, JSON and CSV.

Reads a finished set shard by shard, and the pictures of a few rows that were not kept from the input again.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Sequence

import tyro

from pipeline.commands import ending_on_user_errors
from pipeline.report.card import entities_csv, make_card
from pipeline.report.card_page import card_page
from pipeline.report.card_samples import thumbnails
from pipeline.report.set_files import open_set_files
from pipeline.storage.disk import check_writable, reporting_disk_errors, write_whole

PAGE_NAME, JSON_NAME, CSV_NAME = "data_card.html", "data_card.json", "entities.csv"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataCardConfig:
    """Writes the data card of a set."""

    data: str = "runs/demo/i2e"
    """Folder of the set."""
    output: str | None = None
    """Folder for the card; None: beside the set, under its name with "-card"."""
    kb: str | None = None
    """Folder of the knowledge base, for names; None: where the set was mined with it."""
    input_folder: str | None = None
    """Folder of the input shards, if they were moved: pictures of rows that were not kept are read from them."""


def write_data_card(config: DataCardConfig) -> str:
    """Returns the path of the page; JSON and CSV lie beside it.

    Raises:
        UserError: the set is unfinished or damaged, or the output cannot be written.
    """
    files = open_set_files(config.data)
    output = config.output or os.path.normpath(config.data) + "-card"
    card = make_card(files, kb_path=config.kb)
    groups = (*card.samples.of_entity.values(), *card.samples.of_reason.values())
    pictures, notes = thumbnails(files, [sample for group in groups for sample in group], config.input_folder)
    card.content["notes"] += notes
    check_writable(output)
    with reporting_disk_errors(output):
        content = json.dumps(card.content, ensure_ascii=False, indent=1) + "\n"
        write_whole(os.path.join(output, JSON_NAME), content.encode("utf-8", "replace"))
        write_whole(os.path.join(output, CSV_NAME), entities_csv(card).encode("utf-8", "replace"))
        write_whole(os.path.join(output, PAGE_NAME), card_page(card, pictures).encode("utf-8", "replace"))
    for note in card.content["notes"]:
        print(f"note: {note}", file=sys.stderr)
    return os.path.join(output, PAGE_NAME)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    config = tyro.cli(DataCardConfig, args=argv, prog="python -m pipeline.data_card")
    with ending_on_user_errors():
        page = write_data_card(config)
    print(page)


if __name__ == "__main__":
    main()
