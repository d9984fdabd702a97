"""A data card as one HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.report import card_figures
from pipeline.report.card import Card
from pipeline.report.card_counts import BIN_WIDTH, KEPT, LOW_SIMILARITY
from pipeline.report.html_page import Markup, document, escape, figure, paragraph, percent, table, tiles
from pipeline.report.set_files import ThresholdSource

_NAMES_SHOWN = 3


def card_page(card: Card, pictures: Mapping[Any, str]) -> str:
    """Returns the page.

    Args:
        card: its content.
        pictures: (shard, row) -> a sample's picture as a data URI; samples without one get a grey square.
    """
    content = card.content
    sections = [
        ("summary", "Summary", _summary(content)),
        ("funnel", "What became of the rows", _funnel(content)),
        ("entities", "Images per entity", _images_per_entity(card)),
        ("similarities", "Pictures and entities", _similarities(card)),
        ("filter", "What the filter rejects", _filter(content)),
        ("names", "Ambiguous names", _names(content)),
        ("several", "Entities per picture", _several(card)),
        ("pictures", "Sample pictures of entities", _samples_of_entities(content, pictures)),
        ("rejected", "Sample pictures of rejected rows", _samples_of_reasons(content, pictures)),
        ("made", "How it was made", _made(content)),
    ]
    totals = content["totals"]
    subtitle = f"{totals['images']:,} images of {totals['rows']:,} rows, {totals['entities']:,} entities"
    return document(f"Data card: {content['name']}", subtitle, sections)


def _summary(content: Mapping[str, Any]) -> str:
    totals, per_entity = content["totals"], content["images_per_entity"]
    numbers = [
        (f"{totals['images']:,}", f"images, {percent(totals['images'], totals['rows'])} of the rows"),
        (f"{totals['labels']:,}", f"labels, {totals['labels'] / totals['images']:.3f} per image"),
        (f"{totals['entities']:,}", "entities"),
        (f"{per_entity['median']:g}", f"images per entity (median); {per_entity['least']} to {per_entity['most']:,}"),
        (f"{content['similarities']['threshold']:.3f}", "least cosine of picture and entity"),
    ]
    return tiles(numbers) + "".join(paragraph(f"Note: {note}.") for note in content["notes"])


def _funnel(content: Mapping[str, Any]) -> str:
    stages = content["funnel"]
    rows = content["totals"]["rows"]
    svg = card_figures.funnel_figure(rows, stages)
    reasons = [
        (stage["stage"], one["reason"], one["outcome"], one["rows"], percent(one["rows"], rows), one["meaning"])
        for stage in stages
        for one in stage["reasons"]
    ]
    return (
        paragraph("Rows left after each stage, and rows that ended there. Failed rows can be tried again.")
        + figure(svg, "Rows left after each stage")
        + table(("stage", "reason", "outcome", "rows", "share", "meaning"), reasons)
    )


def _images_per_entity(card: Card) -> str:
    content = card.content
    largest = content["images_per_entity"]["share_of_largest_tenth"]
    header = ("class", "entity", "name", "description", "images", "mean similarity", "rejected by the filter")

    def rows(entities: Sequence[Mapping[str, Any]]) -> list[tuple[object, ...]]:
        return [
            (
                one["class_id"],
                one["entity_id"],
                one["name"],
                one["description"],
                one["images"],
                one["mean_similarity"],
                percent(one["share_rejected_by_filter"]),
            )
            for one in entities
        ]

    tail = "<h3>Tail: the entities with fewest images</h3>" + table(header, rows(content["tail"]))
    return (
        paragraph(f"The tenth of the entities with most images has {percent(largest)} of them.")
        + figure(card_figures.images_per_entity_figure(card.image_counts), "Images per entity, logarithmic")
        + "<h3>Head: the entities with most images</h3>"
        + table(header, rows(content["head"]))
        + (tail if content["tail"] else "")
    )


def _similarities(card: Card) -> str:
    stated = card.content["similarities"]
    source = {
        ThresholdSource.GIVEN: "It was given by --min-similarity.",
        ThresholdSource.EARLIER_SET: "It is that of the set which this one continues (--from-set).",
        ThresholdSource.SHARE: f"It keeps {percent(stated['keep_share'])} of the labels (--keep-share).",
    }[stated["threshold_source"]]
    floor = (
        f" The {stated['entity_floor']} best labels of each entity pass whatever their cosine (--entity-floor)."
        if stated["entity_floor"]
        else ""
    )
    bins = card.counts.similarities
    svg = card_figures.similarities_figure(
        bins[KEPT], bins[LOW_SIMILARITY], bins["other"], bin_width=BIN_WIDTH, threshold=stated["threshold"]
    )
    return paragraph(
        f"The filter compares each picture with the name and description of its entity. The threshold is "
        f"{stated['threshold']:.4g}. {source}{floor}"
    ) + figure(svg, "Similarities of picture and entity, with the threshold")


def _filter(content: Mapping[str, Any]) -> str:
    report = content["filter"]
    rows = [
        (
            one["entity_id"],
            one["name"],
            one["linked"],
            one["kept"],
            one["rejected_by_filter"],
            percent(one["share_rejected_by_filter"]),
            one["mean_similarity"],
        )
        for one in report["most_rejected"]
    ]
    text = (
        f"Of {report['entities_linked']:,} entities that rows were linked to, the filter rejects labels of "
        f"{report['entities_with_rejections']:,}, and all labels of {report['entities_rejected_whole']:,}. An encoder "
        "that knows an entity badly rejects right labels too; --entity-floor keeps the best of every entity. The file "
        "entities.csv has all entities; these lose most labels:"
    )
    header = ("entity", "name", "linked", "kept", "rejected by the filter", "share", "mean similarity")
    return paragraph(text) + (table(header, rows) if rows else "")


def _names(content: Mapping[str, Any]) -> str:
    report = content["ambiguous_names"]
    rows = []
    for one in report["most_ambiguous"]:
        cells = "<br>".join(_split_entity(entity) for entity in one["entities"])
        further = f"<br>and {one['further_entities']:,} more" if one["further_entities"] else ""
        rows.append((one["name"], one["links"], one["without_entity"], Markup(cells + further)))
    text = (
        f"Names that were linked to two entities or more: {report['names_with_several_entities']:,}. Those with most "
        "links to other than their commonest entity come first."
    )
    if report["mentions_of_names_not_counted"]:
        text += f" {report['mentions_of_names_not_counted']:,} mentions of rare names are not counted."
    return paragraph(text) + (table(("name", "links", "to none", "entities (links)"), rows) if rows else "")


def _split_entity(entity: Mapping[str, Any]) -> str:
    """Returns one of the entities that a name was linked to, as HTML."""
    what = ": ".join(filter(None, (entity["entity_id"] if entity["name"] else "", entity["description"])))
    name = escape(f"{entity['name'] or entity['entity_id']} ({entity['links']:,})")
    return name + (f" <span class=soft>{escape(what)}</span>" if what else "")


def _several(card: Card) -> str:
    images = card.content["totals"]["images"]
    several = images - card.counts.entities_per_image[1]
    text = f"Images with more than one entity: {several:,} ({percent(several, images)})."
    return paragraph(text) + figure(
        card_figures.entities_per_image_figure(card.counts.entities_per_image), "Entities per image"
    )


def _samples_of_entities(content: Mapping[str, Any], pictures: Mapping[Any, str]) -> str:
    text = "Entities with most images, some between, and those with fewest; pictures are chosen by a hash of their ids."
    parts = [paragraph(text)]
    for group in content["samples"]["of_entities"]:
        name = escape(group["name"] or group["entity_id"])
        parts.append(f"<h3>{name} <span class=soft>{escape(group['entity_id'])}</span></h3>")
        parts.append(_sample_grid(group["images"], pictures))
    return "".join(parts)


def _samples_of_reasons(content: Mapping[str, Any], pictures: Mapping[Any, str]) -> str:
    parts = []
    for group in content["samples"]["of_reasons"]:
        heading = f"{group['stage']}: {group['reason']}" + (" (failed)" if group["outcome"] == "failed" else "")
        meaning = f" <span class=soft>{escape(group['meaning'])}</span>" if group["meaning"] else ""
        parts.append(f"<h3>{escape(heading)}{meaning}</h3>" + _sample_grid(group["images"], pictures))
    return "".join(parts) or paragraph("All rows were kept.")


def _sample_grid(samples: Sequence[Mapping[str, Any]], pictures: Mapping[Any, str]) -> str:
    parts = []
    for sample in samples:
        uri = pictures.get((sample["shard"], sample["row"]))
        picture = f'<img alt="" src="{escape(uri)}">' if uri else '<div class="gap"></div>'
        labels = []
        for link in sample["links"]:
            similarity = "" if link["similarity"] is None else f" {link['similarity']:.3f}"
            labels.append(f'<span class="label">{escape(link["name"] or link["entity_id"])}{similarity}</span>')
        missed = [f'"{name}"' for name in sample["names_without_entity"][:_NAMES_SHOWN]]
        unlinked = f"<small>not linked: {escape(', '.join(missed))}</small>" if missed else ""
        parts.append(
            f'<div class="sample">{picture}{"".join(labels)}<div>{escape(sample["text"])}</div>{unlinked}'
            f"<small>{escape(sample['image_id'])}</small></div>"
        )
    return f'<div class="samples">{"".join(parts)}</div>'


def _made(content: Mapping[str, Any]) -> str:
    config = [
        (job, stage, name, str(value))
        for job, stages in content["config"].items()
        for stage, fields in stages.items()
        for name, value in (fields.items() if isinstance(fields, Mapping) else (("", fields),))
    ]
    hashes = [(name, value) for name, value in sorted(content["hashes"].items())]
    return table(("job", "stage", "setting", "value"), config) + "<h3>Hashes</h3>" + table(("of", "hash"), hashes)
