"""Lines of `kb_source.jsonl` -> entities and redirects."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, NamedTuple

from pipeline.kb.entity_ids import ID_BYTES_MAX
from pipeline.kb.records import Record, short_id
from pipeline.kb.store import Entity

_FIELDS = ("id", "label", "description", "aliases", "types", "popularity", "links", "redirect_to")
_REMEDY = "give a Wikidata JSON dump or lines with at least id and label"


class Redirect(NamedTuple):
    """An id that is another id of `target`."""

    entity_id: str
    target: str


def read_own_line(record: Any) -> tuple[str, Record] | Redirect:
    """Returns what a decoded line states: an entity, or a redirect if it has `redirect_to`.

    Raises:
        ValueError: it is neither, or a field is damaged.
    """
    if not isinstance(record, dict):
        raise ValueError(f"{_shown(record)} is not an entity; {_REMEDY}")
    if "redirect_to" in record:
        return Redirect(_id(record.get("id"), "id"), _id(record["redirect_to"], "redirect_to"))
    for name in ("id", "label"):
        if record.get(name) is None or (isinstance(record[name], str) and not record[name].strip()):
            unknown = [repr(field) for field in record if field not in _FIELDS]
            noun = "unknown field" if len(unknown) == 1 else "unknown fields"
            remedy = f"{noun} {', '.join(unknown)}" if unknown else "give a text"
            raise ValueError(f"the field '{name}' is missing or blank; {remedy}")
    entity = _checked(
        Entity(
            entity_id=record["id"],
            label=record["label"],
            description=record.get("description") or "",
            aliases=_list(record, "aliases"),
            types=_list(record, "types"),
            popularity=record.get("popularity") or 0.0,
            links=_list(record, "links"),
        )
    )
    return entity.entity_id, record_of(entity)


def record_of(entity: Entity) -> Record:
    """Returns what is stored of `entity`."""
    return Record(
        entity.label,
        entity.description,
        list(entity.aliases),
        [*map(short_id, entity.types)],
        entity.popularity,
        [*map(short_id, entity.links)],
    )


def _checked(entity: Entity) -> Entity:
    """Returns `entity`, with its popularity as a float.

    Raises:
        ValueError: a field has the wrong type, the label is blank, an id is empty or too long, or the popularity is
            not a number of at least 0.
    """
    _id(entity.entity_id, "id")
    if not _is_text(entity.label) or not entity.label.strip():
        raise ValueError(f"label is {_shown(entity.label)}; give a text that is not blank")
    for name, value in (("description", entity.description), *(("aliases", alias) for alias in entity.aliases)):
        if not _is_text(value):
            raise ValueError(f"{_shown(value)} in {name}; give a text")
    for name in ("types", "links"):
        for value in getattr(entity, name):
            _id(value, name)
    popularity = entity.popularity
    if isinstance(popularity, bool) or not isinstance(popularity, int | float) or not 0 <= popularity < 1e300:
        raise ValueError(f"popularity is {_shown(popularity)}; give a number, at least 0")
    return dataclasses.replace(entity, popularity=float(popularity))


def decode_json(line: bytes) -> Any:
    """Returns the value of a line.

    Raises:
        ValueError: it is not valid JSON.
    """
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("not valid JSON; give a Wikidata JSON dump or kb_source.jsonl") from None


def _id(value: Any, name: str) -> str:
    if not _is_text(value) or not 0 < len(value.encode()) <= ID_BYTES_MAX:
        raise ValueError(f"{name} is {_shown(value)}; give a text of 1 to {ID_BYTES_MAX} bytes")
    return str(value)


def _list(record: dict[str, Any], name: str) -> tuple[Any, ...]:
    value = record.get(name) or []
    if not isinstance(value, list):
        raise ValueError(f"{name} is {_shown(value)}; give a list")
    return tuple(value)


def _is_text(value: Any) -> bool:
    """Returns whether `value` is a text that can be written: JSON may escape half of a character pair."""
    return isinstance(value, str) and value.encode(errors="replace").decode() == value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
