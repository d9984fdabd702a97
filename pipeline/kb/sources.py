"""Files -> entities: `kb_source.jsonl` and dumps of Wikidata."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import os
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple, cast

from pipeline.kb.store import Entity
from pipeline.schema import UserError

# Properties whose value is an item that tells what the subject is about: part of, country, location, owner, ...
_LINK_PROPERTIES = frozenset(
    "P17 P30 P31 P36 P50 P57 P61 P86 P101 P106 P112 P127 P131 P136 P138 P159 P169 P170 P175 P176 P178 P184 P276 P279 "
    "P361 P452 P495 P527 P641 P749 P1056 P1889".split()
)
_LINKS_MAX = 64  # of one entity; countries have thousands


class Redirect(NamedTuple):
    """An id that is another id of `target`."""

    entity_id: str
    target: str


def open_source(path: str, file: BinaryIO) -> BinaryIO:
    """Returns `file`, decompressed as the name of `path` tells."""
    if path.endswith(".gz"):
        return cast(BinaryIO, gzip.GzipFile(fileobj=file))
    if path.endswith(".bz2"):
        return cast(BinaryIO, bz2.BZ2File(file))
    return file


def read_entities(path: str, file: BinaryIO, *, language: str = "en") -> Iterator[Entity | Redirect]:
    """Returns the entities of `file`, the open file at `path`.

    Lines of `kb_source.jsonl` (`id`, `label`, `description`, `aliases`, `types`, `popularity`, `links`, or `id` and
    `redirect_to`) and lines of a Wikidata JSON dump are told apart line by line. Items of a dump without a label in
    `language` are left out: they could be neither found nor described.

    Raises:
        UserError: a line is neither of the two.
    """
    for number, line in enumerate(io.BufferedReader(cast(Any, open_source(path, file))), start=1):
        text = line.strip().rstrip(b",")
        if text in (b"", b"[", b"]"):
            continue
        where = f"{os.path.basename(path)} line {number}"
        try:
            record = json.loads(text)
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise UserError(f"{where}: not JSON; give a Wikidata JSON dump or kb_source.jsonl") from None
        entity = _from_record(record, where, language)
        if entity is not None:
            yield entity


def _from_record(record: Any, where: str, language: str) -> Entity | Redirect | None:
    if isinstance(record, dict) and "labels" in record and "claims" in record:
        return entity_from_wikidata(record, language)
    try:
        if "redirect_to" in record:
            return Redirect(record["id"], record["redirect_to"])
        return Entity(
            entity_id=record["id"],
            label=record["label"],
            description=record.get("description") or "",
            aliases=tuple(record.get("aliases") or ()),
            types=tuple(record.get("types") or ()),
            popularity=float(record.get("popularity") or 0.0),
            links=tuple(record.get("links") or ()),
        )
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{where}: no entity ({error}); give a Wikidata JSON dump or lines with at least id and label"
        ) from None


def entity_from_wikidata(item: dict[str, Any], language: str = "en") -> Entity | None:
    """Returns the entity of one record of a Wikidata dump; None for properties and items with no label.

    The popularity is the number of site links, the types are the values of P31.
    """
    labels = item.get("labels") or {}  # an empty map is written as []
    if item.get("type") != "item" or language not in labels:
        return None
    claims = item.get("claims") or {}
    links = sorted(
        {value for name, claim in claims.items() if name in _LINK_PROPERTIES for value in _item_values(claim)}
    )
    return Entity(
        entity_id=item["id"],
        label=labels[language]["value"],
        description=((item.get("descriptions") or {}).get(language) or {}).get("value", ""),
        aliases=tuple(alias["value"] for alias in (item.get("aliases") or {}).get(language, ())),
        types=tuple(_item_values(claims.get("P31", ()))),
        popularity=float(len(item.get("sitelinks") or ())),
        links=tuple(links[:_LINKS_MAX]),
    )


def _item_values(statements: Any) -> list[str]:
    values = []
    for statement in statements:
        snak = statement.get("mainsnak", {})
        value = snak.get("datavalue", {}).get("value")
        if statement.get("rank") != "deprecated" and snak.get("snaktype") == "value" and isinstance(value, dict):
            if value.get("entity-type") == "item":
                values.append(value.get("id") or f"Q{value['numeric-id']}")  # old dumps carry no id
    return values
