"""What pictures tell the linker where a text leaves doubt: links with them and by text alone.

Measured on the pairs that neither the linker's weights nor the filter's encoder have seen: those of the half "measure"
in the shards that `pairs/` does not hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from evaluation.demo.labels import Cases, FoundMention, PairTruth, found_mention, linking_cases, of_half
from evaluation.sets.parquet import read_table
from evaluation.sets.text import read_json
from pipeline.schema import UserError

METRICS = (
    "linking.precision",
    "linking.recall",
    "refused",
    "strays_linked",
    "ambiguous_accuracy",
    "ambiguous_accuracy_unseen",
    "ambiguous_accuracy_no_context",
    "nil_accuracy",
)
_COLUMNS = ("image_id", "shard", "linked")


def trained_shards(path: Path) -> frozenset[str]:
    """Returns the names of the input files whose pairs the encoder was trained on, by the manifest of its pairs.

    Raises:
        UserError: it cannot be read, or names no input files.
    """
    remedy = "pack the pairs again with python -m pipeline.pack_pairs"
    manifest = read_json(path, remedy=remedy)
    try:
        return frozenset(Path(one["path"]).name for one in manifest["inputs"])
    except (LookupError, TypeError):
        raise UserError(f"{path}: 'inputs' is not a list of objects with a 'path'; {remedy}") from None


def picture_cases(truth: Mapping[str, PairTruth], annotations: Path, trained_on: frozenset[str]) -> dict[str, Cases]:
    """Returns the cases of each metric, an empty dict where the encoder was trained on all shards.

    `labels.picture.<metric>` is of the links as they are, `labels.by_text.<metric>` of those by text alone; the metrics
    are those of `linking_cases`. `labels.picture.asked` is the share of mentions that pictures were compared with, and
    `labels.picture.opened_for_doubt` that of the compared pictures that no chosen entity needed.

    Args:
        truth: of all pairs.
        annotations: folder of the annotations.
        trained_on: names of the shards that the encoder was trained on.

    Raises:
        UserError: the annotations are missing or of another version.
    """
    remedy = "make them with python -m pipeline.build_i2e"
    untuned = of_half(truth, "measure")
    chosen: dict[str, tuple[FoundMention, ...]] = {}
    by_text: dict[str, tuple[FoundMention, ...]] = {}
    asked, opened_for_doubt = [], []
    for row in read_table(annotations, _COLUMNS, remedy=remedy).to_pylist():
        if row["shard"] in trained_on or row["image_id"] not in untuned:
            continue
        mentions = row["linked"] or ()
        if any("by_text" not in one for one in mentions):
            raise UserError(f"{annotations}: mentions have no 'by_text'; {remedy}")
        chosen[row["image_id"]] = tuple(map(found_mention, mentions))
        by_text[row["image_id"]] = tuple(found_mention(one, by_text=True) for one in mentions)
        asked += [any((c["evidence"] or {}).get("compared") for c in one["candidates"] or ()) for one in mentions]
        if any(c["similarity"] is not None for one in mentions for c in one["candidates"] or ()):
            opened_for_doubt.append(all(one["by_text"] is None for one in mentions))
    if not chosen:
        return {}
    measured = {key: untuned[key] for key in chosen}
    with_pictures, without = linking_cases(measured, chosen), linking_cases(measured, by_text)
    cases = {f"labels.picture.{name}": with_pictures[f"labels.{name}"] for name in METRICS}
    cases |= {f"labels.by_text.{name}": without[f"labels.{name}"] for name in METRICS}
    cases["labels.picture.asked"] = Cases(sum(asked), len(asked))
    cases["labels.picture.opened_for_doubt"] = Cases(sum(opened_for_doubt), len(opened_for_doubt))
    return cases
