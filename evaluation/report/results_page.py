"""The page of all results in a folder: `report.html` of `make eval`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.protocol import MIN_QUERIES
from evaluation.report.page import data_uri, document, interval_text
from evaluation.results import read_record
from pipeline.report.html_page import escape, table
from pipeline.schema import UserError

_LONGEST = 120  # characters of a fact that is shown; what is longer stays in the JSON file


def render_results(output: Path, measured: Sequence[str], left_out: Sequence[str]) -> str:
    """Returns a page with all results in `output` and their figures.

    Args:
        output: folder of results.
        measured: benchmarks of this run; results of others are marked as of an earlier run.
        left_out: what was not measured or failed, one line each.
    """
    sections = []
    models = set()
    for record in _records(output):
        name = record["benchmark"]
        models.add(_model_of(record))
        sections.append((name, name, _section(output, record, is_earlier=name not in measured)))
    subtitle = f"{output}; {', '.join(sorted(models))}" if len(models) <= 1 else f"{output}, {len(models)} models"
    return document("Evaluation", subtitle, sections, missing=left_out)


def metric_rows(record: Mapping[str, Any]) -> list[tuple[str, float, tuple[float, float] | None, int | None, Any]]:
    """Returns (name, value, 95 % interval, items, chance) of each metric; two names of one number share a row."""
    same_as = record.get("same_as", {})
    rows = []
    for name, value in record["metrics"].items():
        if same_as.get(name) in record["metrics"]:
            continue
        names = [name, *(other for other, one in same_as.items() if one == name and other in record["metrics"])]
        interval = record.get("intervals", {}).get(name)
        rows.append(
            (
                " = ".join(names),
                value,
                None if interval is None else (interval[0], interval[1]),
                record.get("num_items", {}).get(name),
                record.get("chance", {}).get(name),
            )
        )
    return rows


def few_queries_line(too_few: Mapping[str, int]) -> str:
    """Returns a line that names the groups without a number; "" where there are none."""
    if not too_few:
        return ""
    groups = {name.rpartition(".")[0] or name: count for name, count in too_few.items()}
    listed = ", ".join(f"{name} ({count})" for name, count in groups.items())
    return f"too few queries for a number, fewer than {MIN_QUERIES}: {listed}"


def facts_of(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns the counts and settings that the numbers rest on; hashes and what is long stay in the JSON file."""
    facts = {**record["counts"], **record["protocol"]["settings"]}
    return [
        (key, str(value))
        for key, value in facts.items()
        if value not in ([], {}, None) and len(str(value)) <= _LONGEST and not key.endswith("_hash")
    ]


def _records(output: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(output.glob("*.json")):
        try:
            record = read_record(path)
        except (UserError, OSError) as error:
            print(f"warning: the report lacks {path.name}: {error}", file=sys.stderr)
            continue
        if record is not None:
            yield record


def _model_of(record: Mapping[str, Any]) -> str:
    return f"{record['model'].get('name', 'model')} ({record['model']['hash'][:12]})"


def _section(output: Path, record: Mapping[str, Any], *, is_earlier: bool) -> str:
    name = record["benchmark"]
    earlier = " It is of an earlier run." if is_earlier else ""
    # "2026-11-26T11:45:31+00:00", always in UTC.
    date = f"{record['date'][:16].replace('T', ' ')} UTC" if "date" in record else "at an unknown date"
    body = (
        f"<p>{escape(_model_of(record))}, measured {escape(date)}, protocol "
        f"{escape(record['protocol']['version'])}.{earlier}</p>"
    )
    rows = [
        (metric, value, interval_text(interval), "" if count is None else count, chance)
        for metric, value, interval, count, chance in metric_rows(record)
    ]
    body += table(("metric", "value", "95 % interval", "items", "chance"), rows) if rows else ""
    few = few_queries_line(record.get("too_few_queries", {}))
    body += f"<p>{escape(few)}</p>" if few else ""
    if is_earlier:
        body += "".join(f"<p>not measured then: {escape(line)}</p>" for line in record["not_measured"])
    facts = facts_of(record)
    if facts:
        body += f"<details><summary>What the numbers rest on</summary>{table(('fact', ''), facts)}</details>"
    for path in sorted(output.glob(f"{name}-*.png")):
        if path.stem == f"{name}-grid":
            body += "<p>The query is on the left; green frames are right, red ones wrong, grey ones junk.</p>"
        source = data_uri(path.read_bytes(), path.name, side_px=1200)
        body += f'<p><img class="figure" alt="{escape(path.stem)}" src="{source}"></p>'
    return body
