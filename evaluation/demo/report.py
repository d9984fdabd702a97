"""The demo in one HTML file that needs nothing else: no network, no script, every text escaped."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from evaluation.demo.goals import Verdict
from evaluation.demo.linking import METRIC_NAMES, Tables
from evaluation.demo.samples import Sample
from evaluation.linking.metrics import Share
from evaluation.report.charts import line_chart, thinned
from evaluation.report.page import data_uri, document, interval_text
from pipeline.report.html_page import Markup, escape, table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Behind:
    """What a metric rests on."""

    num_items: int  # queries or pictures
    interval: tuple[float, float] | None = None  # 95 %
    chance: float | None = None


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
    behind: Mapping[str, Behind] = dataclasses.field(default_factory=dict)
    linking: Tables = dataclasses.field(default_factory=dict)
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
        ("linking", "Linking of real text", _linking_tables(report)),
        ("samples", "Kept and rejected", _samples(report)),
        ("training", "Training", _curves(report)),
        ("retrieval", "Retrieval", _retrieval_table(report)),
        ("entities", "Naming what is shown", _naming_table(report)),
        ("grids", "First ten results", _grids(report)),
        ("seconds", "Time", _seconds(report)),
        ("protocols", "What the numbers rest on", _protocols(report)),
    ]
    return document(
        report.title,
        "Captions of the embedded corpus are composed; pictures and names come from packages.",
        sections,
        missing=report.missing,
    )


def _goals(report: Report) -> str:
    rows = []
    for verdict in report.verdicts:
        word = "met" if verdict.met else "not met" if verdict.value is not None else "not measured"
        shown = f"{verdict.value:.{verdict.goal.digits}f}" if verdict.value is not None else f"needs {verdict.missing}"
        mark = Markup(f'<span class="{"met" if verdict.met else "not"}">{word}</span>')
        rows.append((verdict.goal.name, shown, verdict.goal.limit, mark))
    return table(("goal", "measured", "limit", ""), rows) if rows else ""


def _funnel(report: Report) -> str:
    read = int(report.metrics.get("ledger.read", 0))
    if not read:
        return ""

    def bar(count: int, style: str) -> Markup:
        return Markup(f'<div class="bar {style}" style="width:{100 * count / read:.2f}%"></div>')

    rows: list[tuple[object, ...]] = [("read", "", "", read, bar(read, ""))]
    for outcome, stage, reason, count in report.reasons:
        rows.append((outcome, stage, reason, count, bar(count, outcome if outcome == "failed" else "dropped")))
    kept = int(report.metrics.get("ledger.kept", 0))
    rows.append(("kept", "", "", kept, bar(kept, "kept")))
    body = "<p>Every input row has exactly one outcome.</p>"
    body += table(("outcome", "stage", "reason", "rows", ""), rows, style="bars")
    if report.starved:
        body += "<h3>Entities that the filter rejected most</h3>" + table(
            ("entity", "id", "labels rejected by similarity", "all labels"),
            [(report.names.get(entity_id, ""), entity_id, *counts) for entity_id, *counts in report.starved],
        )
    return body


_LABEL_ROWS = (
    ("labels.mentions.precision", "found mentions that name what the truth names"),
    ("labels.mentions.recall", "true mentions that were found"),
    ("labels.linking.precision", "links that are right"),
    ("labels.linking.recall", "true mentions in the base that were linked right"),
    ("labels.final.precision", "final labels that the picture shows"),
    ("labels.final.recall", "labelable pairs that got their label"),
    ("labels.ambiguous_accuracy", "ambiguous names with context, linked right"),
    ("labels.ambiguous_accuracy_prior_only", "the same, by prior alone"),
    ("labels.ambiguous_accuracy_seen", "with a word that texts say beside the entity under another name"),
    ("labels.ambiguous_accuracy_unseen", "without any such word"),
    ("labels.ambiguous_accuracy_no_context", "ambiguous names without context, linked right"),
    ("labels.nil_accuracy", "names of entities outside the base that got no entity"),
    ("labels.nil_accuracy_found", "the same, of those that were found"),
    ("labels.refused", "true mentions in the base that got no entity"),
    ("labels.strays_linked", "stray names, which mean no entity, that got one"),
    ("labels.untuned.linking.precision", "links that are right, in the half that the linker was not fitted to"),
    ("labels.untuned.ambiguous_accuracy", "ambiguous names with context, in that half"),
    ("labels.untuned.ambiguous_accuracy_unseen", "those without a word that texts say of the entity, in that half"),
    ("labels.untuned.nil_accuracy", "names of entities outside the base, in that half"),
    ("labels.untuned.strays_linked", "stray names that got an entity, in that half"),
    ("labels.untuned.refused", "true mentions in the base that got no entity, in that half"),
    ("labels.untuned.final.precision", "final labels that the picture shows, in that half"),
    ("labels.untuned.final.recall", "labelable pairs that got their label, in that half"),
    ("labels.picture.asked", "mentions that the text left open, so that the picture was asked (on unseen pairs)"),
    ("labels.picture.opened_for_doubt", "opened pictures that only such mentions needed (on unseen pairs)"),
    *(
        (f"labels.{of}.{name}", f"{what}, {how} (on unseen pairs)")
        for name, what in (
            ("linking.precision", "links that are right"),
            ("linking.recall", "true mentions in the base that were linked right"),
            ("ambiguous_accuracy", "ambiguous names with context"),
            ("nil_accuracy", "names of entities outside the base"),
            ("strays_linked", "stray names that got an entity"),
            ("refused", "true mentions in the base that got no entity"),
        )
        for of, how in (("by_text", "by text alone"), ("picture", "with pictures asked"))
    ),
    ("filter.roc_auc", "ROC AUC of the filter's similarity, right labels against wrong ones"),
)


def _label_table(report: Report) -> str:
    rows = [
        (what, report.metrics[key], report.behind[key].num_items if key in report.behind else None, key)
        for key, what in _LABEL_ROWS
        if key in report.metrics
    ]
    return table(("what", "value", "cases", "metric"), rows) if rows else ""


def _linking_tables(report: Report) -> str:
    parts = []
    for name, linkers in report.linking.items():
        metrics = [one for one in METRIC_NAMES if any(one in of_linker for of_linker in linkers.values())]
        rows = [
            (linker.removeprefix("linker "), *(_share(of_linker.get(metric)) for metric in metrics))
            for linker, of_linker in linkers.items()
        ]
        parts.append(f"<h3>{escape(name)}</h3>" + table(("", *(metric.replace(".", " ") for metric in metrics)), rows))
    if not parts:
        return ""
    return (
        "<p>Texts that nothing was fitted to: picture captions and alt-texts with labels of their own, links of "
        "Wikipedia articles, and composed texts beside them. Below each number: its 95 % interval, and the number of "
        "cases.</p>" + "".join(parts)
    )


def _share(share: Share | None) -> Markup:
    if share is None:
        return Markup("")
    interval = escape(interval_text((share.low, share.high)))
    return Markup(f"{share.value:.3f}<small>{interval}<br>{share.denominator} cases</small>")


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
                f'<span class="label">{escape(report.names.get(entity_id, entity_id))}</span>'
                for entity_id in sample.entity_ids
            )
            text = f'<div class="text">{escape(sample.text)}</div>'
            cards.append(f'<div class="sample" title="{escape(sample.image_id)}">{picture}{labels}{text}</div>')
        parts.append(f'<h3>{escape(key)}</h3><div class="samples">{"".join(cards)}</div>')
    return "".join(parts)


def _curves(report: Report) -> str:
    charts = []
    for field, title in (("loss", "loss, mean over neighbouring steps"), ("images_per_second", "pictures per second")):
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
    return (
        "<p>Pictures in renderings that training never saw query all other renderings. Unseen entities have a smaller "
        "gallery of their own, so the two splits do not compare. Below each number: its 95 % interval, the number of "
        "queries, and what chance gives.</p>"
        + "".join(
            f"<h3>{title}</h3>{_of_metric(report, names, metric)}"
            for metric, title in (("map", "Mean average precision"), ("recall_at_1", "Recall at 1"))
        )
    )


def _of_metric(report: Report, names: Sequence[str], metric: str) -> str:
    kinds = ("", "emoji.", "flags.", "logos.")
    rows = []
    for name in sorted(names, key=lambda name: (name != "pixels", name)):
        for split in ("seen", "unseen"):
            keys = [f"retrieval.{name}.{split}.{kind}{metric}" for kind in kinds]
            if any(key in report.metrics for key in keys):
                rows.append((name, split, *(_with_interval(report, key) for key in keys)))
    return table(("", "split", *(kind.rstrip(".") or "all" for kind in kinds)), rows)


def _with_interval(report: Report, key: str) -> Markup:
    """Returns a metric with what it rests on below it."""
    if key not in report.metrics:
        return Markup("")
    shown = f"{report.metrics[key]:.3f}"
    behind = report.behind.get(key)
    if behind is None:
        return Markup(shown)
    chance = "" if behind.chance is None else f", chance {behind.chance:.3f}"
    return Markup(
        f"{shown}<small>{escape(interval_text(behind.interval))}<br>{behind.num_items} queries{escape(chance)}</small>"
    )


def _naming_table(report: Report) -> str:
    rows = []
    for key, value in report.metrics.items():
        benchmark, metric = key.rsplit(".", 1)
        behind = report.behind.get(key)
        # `entities.accuracy_at_1` is that of one of the recipes, which has its own row.
        if benchmark.startswith(("entities.", "zero_shot.")) and behind is not None:
            interval = interval_text(behind.interval)
            rows.append((benchmark, metric.replace("_", " "), value, interval, behind.num_items, behind.chance))
    header = ("benchmark", "metric", "value", "95 % interval", "pictures", "chance")
    return table(header, rows) if rows else ""


def _grids(report: Report) -> str:
    cache: dict[bytes, str | None] = {}

    def picture(image: bytes, title: str, style: str) -> str:
        if image not in cache:
            cache[image] = data_uri(image, title, side_px=64)
        return f'<img class="{style}" alt="{escape(title)}" title="{escape(title)}" src="{cache[image] or "data:,"}">'

    parts = []
    for name, queries in report.grids.items():
        rows = []
        for query in queries:
            hits = "".join(picture(hit.image, hit.title, "right" if hit.right else "wrong") for hit in query.hits)
            rows.append(
                f'<div class="hits"><span>{escape(query.title)}</span>{picture(query.image, query.title, "query")}'
                f"{hits}</div>"
            )
        opened = " open" if name == list(report.grids)[-1] else ""
        parts.append(f"<details{opened}><summary>{escape(name)}</summary>{''.join(rows)}</details>")
    return ("<p>Query on the left; green frames are right, red ones wrong.</p>" + "".join(parts)) if parts else ""


def _seconds(report: Report) -> str:
    seconds = {key.split(".", 1)[1]: v for key, v in report.metrics.items() if key.startswith("seconds.")}
    total = seconds.pop("total", 0.0)
    if not total:
        return ""
    rows: list[tuple[object, ...]] = [
        (step, round(value), Markup(f'<div class="bar" style="width:{100 * value / total:.2f}%"></div>'))
        for step, value in seconds.items()
    ]
    total_row = ("total; a second of two steps counts once", round(total), "")
    return table(("step", "seconds", ""), [*rows, total_row], style="bars")


def _protocols(report: Report) -> str:
    rows = [
        # Long lists stay in protocols.json.
        (name, "; ".join(f"{key}: {value}" for key, value in facts.items() if len(str(value)) <= 200))
        for name, facts in report.protocols.items()
    ]
    return table(("result", "facts"), rows) if rows else ""
