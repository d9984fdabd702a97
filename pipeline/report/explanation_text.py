"""An explanation as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.report.set_files import ThresholdSource

_TEXT_CHARS_MAX = 2000  # of a caption; the JSON has all of it
_COLUMNS = 4  # candidates side by side
_CELL_CHARS_MIN, _LINE_CHARS = 26, 108
_ARRANGED = (
    "surface", "start", "end", "finder", "finder_score", "candidates", "chosen", "probability", "nil_probability",
    "similarity", "verifier_score", "label",
)  # fmt: skip


def explanation_lines(row: Mapping[str, Any]) -> Iterator[str]:
    """Yields the lines for a row that `pipeline.report.explanation.explain_row` explained."""
    end = row["outcome"] + (f" at {row['stage']}: {row['reason']}" if row["reason"] else "")
    yield f"{shown(row['image_id'])}: {end}" + (f" ({row['meaning']})" if row["meaning"] else "")
    size = f", {row['width_px']} x {row['height_px']} px" if row["width_px"] else ""
    if row["same_picture"]:
        yield f"  same picture in {', '.join(map(shown, row['same_picture']))}"
    yield f"  input     {shown(row['shard'])}, row {row['row']}{size}"
    text = row["text"]
    cut = f" … ({len(text)} characters in all)" if len(text) > _TEXT_CHARS_MAX else ""
    yield f"  text      {shown(text[:_TEXT_CHARS_MAX])}{cut}" if text else "  text      (none)"
    if not row["mentions"]:
        yield "  mentions  none" + (" were looked for" if row["stage"] in ("read", "validate") else "")
    for number, mention in enumerate(row["mentions"], 1):
        yield ""
        yield from _mention_lines(number, mention, row)


def shown(text: object) -> str:
    """Returns `text` on one line; characters that a terminal would obey, such as escapes, are written out."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in str(text)
    )


def number_text(value: Any) -> str:
    """Returns a value for a table: four digits of a number, "-" for None."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return shown(value)
    if isinstance(value, int):
        return str(value)
    # 0.99996 must not look like 1.
    return f"{value:.6f}" if 0.99995 <= value < 1 else f"{value:.4f}"


def _mention_lines(number: int, mention: Mapping[str, Any], row: Mapping[str, Any]) -> Iterator[str]:
    span = f"characters {mention['start']} to {mention['end']}"
    found_by = f"found by the {mention['finder']}, score {number_text(mention['finder_score'])}"
    yield f'  mention {number}  "{shown(mention["surface"])}", {span}, {found_by}'
    for field, value in mention.items():
        if field not in _ARRANGED and value is not None:
            yield f"    {field:<12}{_span_text(value, row['text'])}"
    candidates = mention["candidates"]
    if not candidates:
        yield "    candidates  none: no entity of the knowledge base has this name"
        return
    for start in range(0, len(candidates), _COLUMNS):
        yield from _candidate_table(candidates[start : start + _COLUMNS], start, len(candidates), mention["chosen"])
    if row["stage"] == "propose_candidates":
        return
    yield from _choice_lines(mention, row["limits"])


def _span_text(value: Any, text: str) -> str:
    """Returns a further field of a mention; a pair of positions as the text that lies between them."""
    if isinstance(value, Sequence) and len(value) == 2 and all(isinstance(one, int) for one in value):
        return f'"{shown(text[value[0] : value[1]])}", characters {value[0]} to {value[1]}'
    return number_text(value)


def _candidate_table(
    candidates: Sequence[Mapping[str, Any]], first: int, num_all: int, chosen: str | None
) -> Iterator[str]:
    """Yields a table with a column per candidate and a line per piece of evidence."""
    several = f" {first + 1} to {first + len(candidates)} of {num_all}" if num_all > _COLUMNS else ""
    rows = [
        (
            "candidate" + several,
            [("> " if one["entity_id"] == chosen else "") + one["entity_id"] for one in candidates],
        ),
        ("name", [one["name"] or "-" for one in candidates]),
        ("description", [one["description"] or "-" for one in candidates]),
    ]
    fields = list(dict.fromkeys(field for one in candidates for field in one["evidence"]))
    group = ""
    zero = []
    for field in fields:
        of, _, part = field.rpartition(".")
        if of and of != group:
            rows.append((of, [""] * len(candidates)))
        group = of
        if of and not any(one["evidence"].get(field) for one in candidates):
            zero.append(part)
            continue
        weight = next((one["weights"][field] for one in candidates if field in one.get("weights", ())), None)
        head = f"  {part}" if of else part
        rows.append((head if weight is None else f"{head} x {weight:.4g}", _evidence_cells(candidates, field)))
    if any("sum" in one for one in candidates):
        rows.append(("  bias", [_signed(one["bias"]) if "sum" in one else "-" for one in candidates]))
        rows.append(("  sum (that of NIL is 0)", [_signed(one["sum"]) if "sum" in one else "-" for one in candidates]))
    rows.append(("probability", [number_text(one["probability"]) for one in candidates]))
    if any(one["similarity"] is not None for one in candidates):
        rows.append(("similarity", [number_text(one["similarity"]) for one in candidates]))
    if any(one["verifier_score"] is not None for one in candidates):
        rows.append(("verifier score", [number_text(one["verifier_score"]) for one in candidates]))
    cell_chars = max(_CELL_CHARS_MIN, _LINE_CHARS // len(candidates))
    cells = [[_cut(cell, cell_chars) for cell in row] for _, row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(candidates))]
    head_width = max(len(head) for head, _ in rows)
    for (head, _), row in zip(rows, cells, strict=True):
        padded = "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield f"    {head.ljust(head_width)}   {padded}".rstrip()
    if zero:
        yield f"    evidence that is 0 for all of them: {', '.join(zero)}"


def _evidence_cells(candidates: Sequence[Mapping[str, Any]], field: str) -> list[str]:
    """Returns the value of each candidate and, where its weight is known, what it adds to the sum."""
    cells = []
    for one in candidates:
        value = number_text(one["evidence"].get(field))
        added = one.get("contributions", {}).get(field)
        cells.append(value if added is None else f"{value} = {_signed(added)}")
    return cells


def _signed(value: float) -> str:
    return f"{round(value, 3) + 0.0:+.3f}"  # the addend makes 0 of -0


def _choice_lines(mention: Mapping[str, Any], limits: Mapping[str, Any]) -> Iterator[str]:
    least = limits.get("probability_min")
    together = f"together the candidates have {number_text(1.0 - mention['nil_probability'])}"
    if least is not None:
        together += f", at least {least:g} is needed (--probability-min)"
    if mention["chosen"] is None:
        best = mention["candidates"][0]
        yield f"    choice      none: {together}; the likeliest, {_with_name(best)}, {number_text(best['probability'])}"
        return
    chosen = next((one for one in mention["candidates"] if one["entity_id"] == mention["chosen"]), None)
    name = mention["chosen"] if chosen is None else _with_name(chosen)
    yield f"    choice      {name}, probability {number_text(mention['probability'])}; {together}"
    similarity, label, verified = mention["similarity"], mention["label"], mention["verifier_score"]
    if verified is not None:
        least_score = limits.get("min_verifier_score")
        needed = "no least score is given" if least_score is None else f"at least {least_score:g} is needed"
        yield f"    verifier    score {number_text(verified)}; {needed} (--min-verifier-score)"
    if similarity is not None and "min_similarity" in limits:
        yield f"    picture     {_similarity_text(similarity, label, limits)}"
    elif similarity is not None:
        yield f"    picture     similarity {number_text(similarity)}; no threshold is known"
    yield f"    label       {_label_text(label, limits)}"


def _with_name(candidate: Mapping[str, Any]) -> str:
    return str(candidate["entity_id"]) + (f" ({shown(candidate['name'])})" if candidate["name"] else "")


def _similarity_text(similarity: float, label: Mapping[str, Any], limits: Mapping[str, Any]) -> str:
    threshold, floor = limits["min_similarity"], limits["entity_floor"]
    source = {
        ThresholdSource.GIVEN: "--min-similarity",
        ThresholdSource.EARLIER_SET: "of the set that this one continues, --from-set",
        ThresholdSource.SHARE: f"which keeps --keep-share {limits['keep_share']:g}",
    }[limits["min_similarity_source"]]
    text = f"similarity {number_text(similarity)}, threshold {number_text(threshold)} ({source}): "
    if similarity >= threshold:
        return text + "it suits the picture"
    if label.get("reason") == "low_similarity":
        best = f", and not among the {floor} best labels of its entity (--entity-floor)" if floor else ""
        return text + f"too low{best}"
    if (
        floor
        and label["outcome"] in ("kept", "rejected")
        and label.get("reason") not in ("low_probability", "low_verifier_score")
    ):
        return text + f"below it, but among the {floor} best labels of its entity (--entity-floor)"
    return text + "below it"


def _label_text(label: Mapping[str, Any], limits: Mapping[str, Any]) -> str:
    outcome = label["outcome"]
    if outcome == "kept":
        if label["class_id"] is None:
            return "kept; the vocabulary does not have its class"
        return f"class {label['class_id']} (images: {label['images_of_class']})"
    if outcome == "rejected":
        limit = {
            "low_probability": limits.get("min_probability"),
            "low_verifier_score": limits.get("min_verifier_score"),
            "rare_entity": limits.get("min_images_per_entity"),
        }.get(label["reason"])
        stated = "" if limit is None else f", which is {limit:g}"
        return f"rejected at {label['stage']}: {label['reason']} ({label['meaning']}{stated})"
    if outcome == "same_entity":
        return f"given by mention {label['mention'] + 1}, which means the same entity more surely"
    if outcome == "not_reached":
        return f"none: the row ended at {label['stage']} ({label['reason']})"
    return "not known: the set is not assembled" if outcome == "not_assembled" else "not known: the ledger has none"


def _cut(text: str, num_chars: int) -> str:
    text = shown(text)
    return text if len(text) <= num_chars else text[: num_chars - 1] + "…"
