"""Files -> entities: `kb_source.jsonl` and dumps of Wikidata."""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import io
import json
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple, cast

from pipeline.kb.store import Entity
from pipeline.schema import UserError

# Properties whose value is an item that says what the subject is about: part of, country, location, owner, ...
_LINK_PROPERTIES = frozenset(
    "P17 P30 P31 P36 P50 P57 P61 P86 P101 P106 P112 P127 P131 P136 P138 P159 P169 P170 P175 P176 P178 P184 P276 P279 "
    "P361 P452 P495 P527 P641 P749 P1056 P1889".split()
)
_LINKS_MAX = 64  # of one entity; countries have thousands
_ID_BYTES_MAX = 500  # ids are keys of the base
_FIELDS = ("id", "label", "description", "aliases", "types", "popularity", "links", "redirect_to")
_REMEDY = "give a Wikidata JSON dump or lines with at least id and label"


class Redirect(NamedTuple):
    """An id that is another id of `target`."""

    entity_id: str
    target: str


def open_source(path: str, file: BinaryIO) -> BinaryIO:
    """Returns `file`, decompressed according to the name of `path`."""
    if path.endswith(".gz"):
        return cast(BinaryIO, gzip.GzipFile(fileobj=file))
    if path.endswith(".bz2"):
        return cast(BinaryIO, bz2.BZ2File(file))
    return file


def read_entities(path: str, file: BinaryIO, *, language: str = "en") -> Iterator[Entity | Redirect]:
    """Returns the entities of `file`, the open file at `path`.

    Lines of `kb_source.jsonl` (`id`, `label`, `description`, `aliases`, `types`, `popularity`, `links`, or `id` and
    `redirect_to`) and lines of a Wikidata JSON dump are recognised line by line. Items of a dump without a label in
    `language` are left out: they can be neither found nor described.

    Raises:
        UserError: a line is neither of the two, or a field is damaged.
    """
    for number, line in enumerate(io.BufferedReader(cast(Any, open_source(path, file))), start=1):
        text = line.strip().rstrip(b",")
        if text in (b"", b"[", b"]"):
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(text)
        except (ValueError, RecursionError):
            raise UserError(f"{where}: not valid JSON; give a Wikidata JSON dump or kb_source.jsonl") from None
        entity = _from_record(record, where, language)
        if entity is not None:
            yield entity


def _from_record(record: Any, where: str, language: str) -> Entity | Redirect | None:
    if not isinstance(record, dict):
        raise UserError(f"{where}: {_shown(record)} is not an entity; {_REMEDY}")
    if "labels" in record and "claims" in record:
        try:
            entity = entity_from_wikidata(record, language)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{where}: a damaged item ({type(error).__name__}: {error}); {_REMEDY}") from None
        return entity if entity is None else _checked(entity, where)
    if "redirect_to" in record:
        return Redirect(_id(record.get("id"), "id", where), _id(record["redirect_to"], "redirect_to", where))
    for name in ("id", "label"):
        if record.get(name) is None or (isinstance(record[name], str) and not record[name].strip()):
            unknown = [repr(field) for field in record if field not in _FIELDS]
            noun = "unknown field" if len(unknown) == 1 else "unknown fields"
            remedy = f"{noun} {', '.join(unknown)}" if unknown else "give a text"
            raise UserError(f"{where}: the field '{name}' is missing or blank; {remedy}")
    return _checked(
        Entity(
            entity_id=record["id"],
            label=record["label"],
            description=record.get("description") or "",
            aliases=_list(record, "aliases", where),
            types=_list(record, "types", where),
            popularity=record.get("popularity") or 0.0,
            links=_list(record, "links", where),
        ),
        where,
    )


def _id(value: Any, name: str, where: str) -> str:
    if not _is_text(value) or not 0 < len(value.encode()) <= _ID_BYTES_MAX:
        raise UserError(f"{where}: {name} is {_shown(value)}; give a text of 1 to {_ID_BYTES_MAX} bytes")
    return str(value)


def _list(record: dict[str, Any], name: str, where: str) -> tuple[Any, ...]:
    value = record.get(name) or []
    if not isinstance(value, list):
        raise UserError(f"{where}: {name} is {_shown(value)}; give a list")
    return tuple(value)


def _checked(entity: Entity, where: str) -> Entity:
    """Returns `entity`, with its popularity as a float.

    Raises:
        UserError: a field has the wrong type, the label is blank, an id is empty or too long, or the popularity is
            not a number of at least 0.
    """
    _id(entity.entity_id, "id", where)
    if not _is_text(entity.label) or not entity.label.strip():
        raise UserError(f"{where}: label is {_shown(entity.label)}; give a text that is not blank")
    for name, value in (("description", entity.description), *(("aliases", alias) for alias in entity.aliases)):
        if not _is_text(value):
            raise UserError(f"{where}: {_shown(value)} in {name}; give a text")
    for name in ("types", "links"):
        for value in getattr(entity, name):
            _id(value, name, where)
    popularity = entity.popularity
    if isinstance(popularity, bool) or not isinstance(popularity, int | float) or not 0 <= popularity < 1e300:
        raise UserError(f"{where}: popularity is {_shown(popularity)}; give a number, at least 0")
    return dataclasses.replace(entity, popularity=float(popularity))


def _is_text(value: Any) -> bool:
    """Returns whether `value` is a text that can be written: JSON may escape half of a character pair."""
    return isinstance(value, str) and value.encode(errors="replace").decode() == value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def entity_from_wikidata(item: dict[str, Any], language: str = "en") -> Entity | None:
    """Returns the entity of one record of a Wikidata dump; None for properties and items with no label.

    The popularity is the number of site links, the types are the values of P31.
    """
    labels, aliases = item.get("labels") or {}, item.get("aliases") or {}  # an empty map is written as []
    # "mul" holds names that are the same in all languages.
    key = language if language in labels else "mul"
    if item.get("type") != "item" or key not in labels:
        return None
    claims = item.get("claims") or {}
    links = sorted(
        {value for name, claim in claims.items() if name in _LINK_PROPERTIES for value in _item_values(claim)}
    )
    return Entity(
        entity_id=item["id"],
        label=labels[key]["value"],
        description=((item.get("descriptions") or {}).get(language) or {}).get("value", ""),
        aliases=tuple(alias["value"] for one in (language, "mul") for alias in aliases.get(one, ())),
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
