"""The demo in one HTML file that needs nothing else: no network, no script, every text escaped."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
from collections.abc import Mapping, Sequence

from PIL import Image

from evaluation.errors import UserError
from evaluation.goals import Verdict
from evaluation.pictures import open_image
from evaluation.plots import line_chart, thinned
from evaluation.samples import Sample

_STYLE = """
:root { color-scheme: light; --ink: #1d2430; --soft: #5d6776; --line: #e3e7ee; --page: #f5f7fa; --card: #fff;
  --good: #1f9d6b; --bad: #cf3f3f; --accent: #2f6fde; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 24px 20px 64px; }
header h1 { font-size: 30px; margin: 12px 0 2px; letter-spacing: -0.02em; }
header p { color: var(--soft); margin: 0 0 12px; }
nav a { color: var(--accent); text-decoration: none; margin-right: 16px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 18px 22px 22px;
  margin-top: 18px; overflow-x: auto; }
h2 { font-size: 20px; margin: 0 0 4px; } h3 { font-size: 15px; margin: 20px 0 6px; }
section > p { color: var(--soft); margin: 0 0 12px; max-width: 78ch; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; min-width: 55%; }
th, td { text-align: left; padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line); vertical-align: middle; }
th { color: var(--soft); font-weight: 600; font-size: 13px; } td.number, th.number { text-align: right; }
#goals td { white-space: nowrap; }
.met { color: var(--good); font-weight: 600; } .not { color: var(--bad); font-weight: 600; }
.bar { height: 12px; border-radius: 6px; background: var(--accent); min-width: 2px; }
.bar.kept { background: var(--good); } .bar.dropped { background: #e0a13b; } .bar.failed { background: var(--bad); }
.bars td:last-child { width: 45%; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(400px, 1fr)); gap: 16px; }
.chart { width: 100%; height: auto; font: 11px system-ui, sans-serif; fill: var(--soft); }
.chart-title { font-size: 13px; font-weight: 600; fill: var(--ink); } .grid { stroke: var(--line); }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(170px, 1fr)); gap: 12px; }
.sample { border: 1px solid var(--line); border-radius: 10px; padding: 10px; font-size: 12.5px;
  overflow-wrap: anywhere; }
.sample img, .gap { display: block; width: 72px; height: 72px; margin: 0 auto 8px; object-fit: contain; }
.gap { background: var(--line); border-radius: 8px; }
.label { display: inline-block; background: #e5eefd; color: #1d4fae; border-radius: 6px; padding: 0 7px;
  margin: 2px 4px 2px 0; }
.text { color: var(--soft); }
.hits { display: flex; gap: 6px; align-items: center; margin: 6px 0; }
.hits img { width: 58px; height: 58px; object-fit: contain; border: 3px solid transparent; border-radius: 8px;
  background: #fff; }
.hits img.query { border-color: var(--ink); margin-right: 10px; }
.hits img.right { border-color: var(--good); } .hits img.wrong { border-color: var(--bad); }
.hits span { color: var(--soft); font-size: 12.5px; width: 150px; flex: none; overflow-wrap: anywhere; }
details summary { cursor: pointer; font-weight: 600; margin-top: 12px; }
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hit:
    """A retrieved picture."""

    image: bytes
    title: str
    right: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Query:
    """A query and its first results, best first."""

    image: bytes
    title: str
    hits: tuple[Hit, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """All that the page shows; what is empty leaves its section out."""

    title: str
    verdicts: Sequence[Verdict] = ()
    missing: Sequence[str] = ()  # what was not there to be measured
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    reasons: Sequence[tuple[str, str, str, int]] = ()  # outcome, stage, reason, rows
    starved: Sequence[tuple[str, int, int]] = ()  # entity id, labels the filter rejected, all its labels
    samples: Sequence[Sample] = ()
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)  # entity id to name
    curves: Mapping[str, Sequence[Mapping[str, float]]] = dataclasses.field(default_factory=dict)
    grids: Mapping[str, Sequence[Query]] = dataclasses.field(default_factory=dict)  # recipe to queries
    protocols: Mapping[str, Mapping[str, object]] = dataclasses.field(default_factory=dict)


def render(report: Report) -> str:
    """Returns the page."""
    sections = [
        ("goals", "Goals", _goals(report)),
        ("funnel", "From pairs to labels", _funnel(report)),
        ("labels", "Labels against the truth", _label_table(report)),
        ("samples", "Kept and rejected", _samples(report)),
        ("training", "Training", _curves(report)),
        ("retrieval", "Retrieval", _retrieval_table(report)),
        ("entities", "Naming what is shown", _naming_table(report)),
        ("grids", "First ten results", _grids(report)),
        ("seconds", "Time", _seconds(report)),
        ("protocols", "What stands behind the numbers", _protocols(report)),
    ]
    shown = [(anchor, title, body) for anchor, title, body in sections if body]
    links = "".join(f'<a href="#{anchor}">{_escape(title)}</a>' for anchor, title, _ in shown)
    bodies = "".join(
        f'<section id="{anchor}"><h2>{_escape(title)}</h2>{body}</section>' for anchor, title, body in shown
    )
    missing = "".join(f"<li>{_escape(line)}</li>" for line in report.missing)
    notice = f'<section id="missing"><h2>Not measured</h2><ul>{missing}</ul></section>' if missing else ""
    # The policy makes a browser refuse what the page must not hold: anything from the network, any script.
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{_escape(report.title)}</title><style>{_STYLE}</style></head><body><main>"
        f"<header><h1>{_escape(report.title)}</h1><p>Captions of the embedded corpus are composed; pictures and names "
        f"come from packages.</p><nav>{links}</nav></header>{notice}{bodies}</main></body></html>"
    )


def data_uri(image: bytes, image_id: str, *, side_px: int = 128) -> str | None:
    """Returns the picture as a PNG data URI, at most `side_px` wide and high; None if it cannot be read.

    Pictures are always encoded anew, so nothing but pixels reaches the page.
    """
    try:
        picture = open_image(image, image_id)
    except UserError:
        return None
    picture.thumbnail((side_px, side_px), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _escape(value: object) -> str:
    return html.escape(str(value), quote=True)


def _table(header: Sequence[str], rows: Sequence[Sequence[object]], *, style: str = "") -> str:
    """Returns a table; floats show three digits, and a `_Markup` cell goes in as it is."""

    def cell(value: object) -> str:
        if isinstance(value, _Markup):
            return f"<td>{value.html}</td>"
        shown = f"{value:.3f}" if isinstance(value, float) else "" if value is None else value
        return f"<td{' class=number' if isinstance(value, int | float) else ''}>{_escape(shown)}</td>"

    def is_number(column: int) -> bool:
        return any(isinstance(row[column], int | float) for row in rows)

    head = "".join(
        f"<th{' class=number' if is_number(column) else ''}>{_escape(value)}</th>"
        for column, value in enumerate(header)
    )
    body = "".join("<tr>" + "".join(cell(value) for value in row) + "</tr>" for row in rows)
    return f'<table class="{style}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


@dataclasses.dataclass(frozen=True)
class _Markup:
    html: str


def _goals(report: Report) -> str:
    rows = []
    for verdict in report.verdicts:
        word = "met" if verdict.met else "not met" if verdict.value is not None else "not measured"
        shown = f"{verdict.value:.{verdict.goal.digits}f}" if verdict.value is not None else f"needs {verdict.missing}"
        mark = _Markup(f'<span class="{"met" if verdict.met else "not"}">{word}</span>')
        rows.append((verdict.goal.name, shown, verdict.goal.limit, mark))
    return _table(("goal", "measured", "limit", ""), rows) if rows else ""


def _funnel(report: Report) -> str:
    read = int(report.metrics.get("ledger.read", 0))
    if not read:
        return ""

    def bar(count: int, style: str) -> _Markup:
        return _Markup(f'<div class="bar {style}" style="width:{100 * count / read:.2f}%"></div>')

    rows: list[tuple[object, ...]] = [("read", "", "", read, bar(read, ""))]
    for outcome, stage, reason, count in report.reasons:
        rows.append((outcome, stage, reason, count, bar(count, outcome if outcome == "failed" else "dropped")))
    kept = int(report.metrics.get("ledger.kept", 0))
    rows.append(("kept", "", "", kept, bar(kept, "kept")))
    body = "<p>Every input row has exactly one outcome.</p>"
    body += _table(("outcome", "stage", "reason", "rows", ""), rows, style="bars")
    if report.starved:
        body += "<h3>Entities that the filter rejected most</h3>" + _table(
            ("entity", "id", "labels rejected by similarity", "all labels"),
            [(report.names.get(entity_id, ""), entity_id, *counts) for entity_id, *counts in report.starved],
        )
    return body


_LABEL_ROWS = (
    ("labels.mentions.recall", "true mentions that were found"),
    ("labels.linking.precision", "links that are right"),
    ("labels.linking.recall", "true mentions in the base that were linked right"),
    ("labels.final.precision", "final labels that the picture shows"),
    ("labels.final.recall", "labelable pairs that got their label"),
    ("labels.ambiguous_accuracy", "ambiguous names with context, linked right"),
    ("labels.ambiguous_accuracy_prior_only", "the same, by prior alone"),
    ("labels.ambiguous_accuracy_no_context", "ambiguous names without context, linked right"),
    ("labels.nil_accuracy", "names of entities outside the base that got no entity"),
    ("labels.nil_accuracy_found", "the same, of those that were found"),
    ("filter.roc_auc", "ROC AUC of the filter's similarity, right labels against wrong ones"),
)


def _label_table(report: Report) -> str:
    rows = [(what, report.metrics[key], key) for key, what in _LABEL_ROWS if key in report.metrics]
    return _table(("what", "value", "metric"), rows) if rows else ""


def _samples(report: Report) -> str:
    groups: dict[str, list[Sample]] = {}
    for sample in report.samples:
        key = "kept" if sample.outcome == "kept" else f"{sample.outcome} at {sample.stage}: {sample.reason}"
        groups.setdefault(key, []).append(sample)
    parts = []
    for key, samples in groups.items():
        cards = []
        for sample in samples:
            source = data_uri(sample.image, sample.image_id) if sample.image is not None else None
            picture = f'<img alt="" src="{source}">' if source else '<div class="gap" title="no picture"></div>'
            labels = "".join(
                f'<span class="label">{_escape(report.names.get(entity_id, entity_id))}</span>'
                for entity_id in sample.entity_ids
            )
            text = f'<div class="text">{_escape(sample.text)}</div>'
            cards.append(f'<div class="sample" title="{_escape(sample.image_id)}">{picture}{labels}{text}</div>')
        parts.append(f'<h3>{_escape(key)}</h3><div class="samples">{"".join(cards)}</div>')
    return "".join(parts)


def _curves(report: Report) -> str:
    charts = []
    for field, title in (("loss", "loss, mean over neighbouring steps"), ("images_per_sec", "images a second")):
        series = {
            name: thinned([(float(row["step"]), float(row[field])) for row in rows if "step" in row and field in row])
            for name, rows in report.curves.items()
        }
        series = {name: points for name, points in series.items() if points}
        if series:
            charts.append(line_chart(series, title=title, x_label="step", y_label=field))
    return f'<div class="charts">{"".join(charts)}</div>' if charts else ""


def _retrieval_table(report: Report) -> str:
    names = sorted({key.split(".")[1] for key in report.metrics if key.startswith("retrieval.")})
    if not names:
        return ""
    kinds = ("", "emoji.", "flags.", "logos.")
    header = ["", "split", *(kind.rstrip(".") + " mAP" if kind else "mAP" for kind in kinds)]
    header += [kind.rstrip(".") + " recall@1" if kind else "recall@1" for kind in kinds]
    rows = []
    for name in sorted(names, key=lambda name: (name != "pixels", name)):
        for split in ("seen", "unseen"):
            values = [
                report.metrics.get(f"retrieval.{name}.{split}.{kind}{metric}")
                for metric in ("map", "recall_at_1")
                for kind in kinds
            ]
            if any(value is not None for value in values):
                rows.append((name, split, *values))
    return (
        "<p>Pictures in renderings that training never saw query all other renderings. Unseen entities have a smaller "
        "gallery of their own, so the two splits do not compare.</p>" + _table(header, rows)
    )


def _naming_table(report: Report) -> str:
    rows = [
        (key.rsplit(".", 1)[0], key.rsplit(".", 1)[1].replace("_", " "), value)
        for key, value in report.metrics.items()
        if key.startswith(("entities.", "zero_shot."))
    ]
    return _table(("benchmark", "metric", "value"), rows) if rows else ""


def _grids(report: Report) -> str:
    cache: dict[bytes, str | None] = {}

    def picture(image: bytes, title: str, style: str) -> str:
        if image not in cache:
            cache[image] = data_uri(image, title, side_px=64)
        return f'<img class="{style}" alt="{_escape(title)}" title="{_escape(title)}" src="{cache[image] or "data:,"}">'

    parts = []
    for number, (name, queries) in enumerate(report.grids.items()):
        rows = []
        for query in queries:
            hits = "".join(picture(hit.image, hit.title, "right" if hit.right else "wrong") for hit in query.hits)
            rows.append(
                f'<div class="hits"><span>{_escape(query.title)}</span>{picture(query.image, query.title, "query")}'
                f"{hits}</div>"
            )
        opened = " open" if number == 0 else ""
        parts.append(f"<details{opened}><summary>{_escape(name)}</summary>{''.join(rows)}</details>")
    return ("<p>Query on the left; green frames are right, red ones wrong.</p>" + "".join(parts)) if parts else ""


def _seconds(report: Report) -> str:
    seconds = {key.split(".", 1)[1]: v for key, v in report.metrics.items() if key.startswith("seconds.")}
    total = seconds.pop("total", 0.0)
    if not total:
        return ""
    rows: list[tuple[object, ...]] = [
        (step, round(value), _Markup(f'<div class="bar" style="width:{100 * value / total:.2f}%"></div>'))
        for step, value in seconds.items()
    ]
    return _table(("step", "seconds", ""), [*rows, ("total", round(total), "")], style="bars")


def _protocols(report: Report) -> str:
    rows = [
        (name, "; ".join(f"{key}: {value}" for key, value in facts.items())) for name, facts in report.protocols.items()
    ]
    return _table(("result", "facts"), rows) if rows else ""
