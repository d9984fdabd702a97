"""Records of a Wikidata JSON dump -> what is stored of entities. Only the fields that are used are decoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import astuple

from pipeline.kb.records import Record, item_number

# Properties whose value is an item that says what the subject is about: part of, country, location, owner, ...
LINK_PROPERTIES = tuple(
    "P17 P30 P31 P36 P50 P57 P61 P86 P101 P106 P112 P127 P131 P136 P138 P159 P169 P170 P175 P176 P178 P184 P276 P279 "
    "P361 P452 P495 P527 P641 P749 P1056 P1889".split()
)
_LINKS_MAX = 64  # of one entity; countries have thousands
# Values of P31 (instance of) whose items are no things that a picture or a text is about.
SKIPPED_KINDS = {
    "Q4167410": "disambiguation page",
    "Q22808320": "disambiguation page of human names",
    "Q4167836": "category page",
    "Q24046192": "category page of stubs",
    "Q11266439": "template",
    "Q11753321": "navigational template",
    "Q19842659": "template of user languages",
    "Q15184295": "module",
    "Q13406463": "list",
    "Q15623926": "set index",
    "Q14204246": "project page",
    "Q4663903": "portal",
    "Q15138389": "article page",
    "Q17633526": "news article of Wikinews",
    "Q17362920": "duplicated page",
    "Q21286738": "permanent duplicate",
    "Q13442814": "scholarly article",
    "Q18918145": "academic journal article",
    "Q7318358": "review article",
    "Q23927052": "conference paper",
    "Q580922": "preprint",
}
# Codes of Wikidata whose texts serve for a language that has none of its own, in this order.
_VARIANTS = {
    "de": ("de-at", "de-ch"),
    "en": ("en-gb", "en-ca", "en-us"),
    "es": ("es-419",),
    "ko": ("ko-kp",),
    "nl": ("nl-informal",),
    "no": ("nb", "nn"),
    "pt": ("pt-br",),
    "sr": ("sr-ec", "sr-el"),
    "zh": ("zh-hans", "zh-hant", "zh-cn", "zh-tw", "zh-hk", "zh-sg", "zh-mo", "zh-my"),
}
ANY_LANGUAGE = "mul"  # holds names that are the same in all languages


class _Text(msgspec.Struct, gc=False):
    value: str


class _Link(msgspec.Struct, gc=False):
    """A site link; only their number counts."""


class _Value(msgspec.Struct, gc=False):
    kind: str | None = msgspec.field(name="entity-type", default=None)
    id: str | None = None
    number: int | None = msgspec.field(name="numeric-id", default=None)


class _Data(msgspec.Struct, gc=False):
    value: _Value | str | int | float | list[Any] | None = None


class _Snak(msgspec.Struct, gc=False):
    snaktype: str
    datavalue: _Data | None = None


class _Statement(msgspec.Struct, gc=False):
    mainsnak: _Snak
    rank: str = "normal"


def language_chain(languages: Sequence[str]) -> tuple[str, ...]:
    """Returns the codes whose texts are read, the preferred first: each language, then "mul" and its variants."""
    chain: dict[str, None] = {}
    for code in languages:
        base = code.split("-")[0]
        variants = (*_VARIANTS.get(code, ()), *(() if base == code else (base,)))
        chain |= dict.fromkeys((code, ANY_LANGUAGE, *variants))
    return tuple(chain)


def item_decoder(languages: Sequence[str]) -> msgspec.json.Decoder[Any]:
    """Returns what decodes one line of a dump, and of `kb_source.jsonl` the fields that tell it from a dump's."""
    chain = language_chain(languages)
    names = [f"language_{place}" for place in range(len(chain))]  # codes are no names of attributes
    rename = dict(zip(names, chain, strict=True))
    one = msgspec.defstruct("One", [(name, _Text | None, None) for name in names], rename=rename, gc=False)
    fields: list[Any] = [(name, list[_Text], msgspec.field(default_factory=list)) for name in names]
    many = msgspec.defstruct("Many", fields, rename=rename, gc=False)
    claims = msgspec.defstruct(
        "Claims", [(name, list[_Statement], msgspec.field(default_factory=list)) for name in LINK_PROPERTIES], gc=False
    )
    # An empty map is written as [].
    item = msgspec.defstruct(
        "Item",
        [
            ("id", str, ""),
            ("type", str, ""),
            ("labels", one | list[Any] | None, None),
            ("descriptions", one | list[Any] | None, None),
            ("aliases", many | list[Any] | None, None),
            ("claims", claims | list[Any] | None, None),
            ("sitelinks", dict[str, _Link] | list[Any] | None, None),
            ("label", msgspec.Raw | None, None),
            ("redirect_to", msgspec.Raw | None, None),
        ],
        gc=False,
    )
    return msgspec.json.Decoder(item)


class ItemReader:
    """Turns decoded items into records.

    Args:
        languages: of labels, descriptions and aliases, the preferred first.
        skipped_kinds: values of P31 -> why their items are left out.
    """

    def __init__(self, languages: Sequence[str], skipped_kinds: Mapping[str, str]) -> None:
        self._no_label = f"no label in {', '.join(languages)}"
        self._skipped_kinds = {item_number(kind): reason for kind, reason in skipped_kinds.items()}

    def read(self, item: Any) -> tuple[str, Record] | str:
        """Returns id and record of `item`, or why it is left out.

        The label is that of the first language that has one; those of the others are aliases. The popularity is the
        number of site links, the types are the values of P31, the links those of `LINK_PROPERTIES`, at most 64.
        """
        if item.type != "item":
            return item.type or "no type"
        claims = item.claims or None
        types = _item_values(claims.P31) if claims else []
        for kind in types:
            if kind in self._skipped_kinds:
                return self._skipped_kinds[kind]
        names = [text.value for text in astuple(item.labels) if text] if item.labels else []
        names = [name for name in names if name and not name.isspace()]
        if not names:
            return self._no_label
        label = names[0]
        description = ""
        if item.descriptions:
            description = next((text.value for text in astuple(item.descriptions) if text), "")
        if item.aliases:
            names += [text.value for texts in astuple(item.aliases) for text in texts if not text.value.isspace()]
        links: set[int | str] = set()
        if claims:
            for statements in astuple(claims):
                if statements:
                    links.update(_item_values(statements))
        return item.id, Record(
            label,
            description,
            [name for name in dict.fromkeys(names) if name != label],
            types,
            float(len(item.sitelinks or ())),
            sorted(links, key=int)[:_LINKS_MAX],
        )


def _item_values(statements: Sequence[_Statement]) -> list[int | str]:
    """Returns the items that are values of best rank: of preferred statements if there are any, else of normal ones."""
    best = "normal"
    for statement in statements:
        if statement.rank == "preferred":
            best = "preferred"
    values: list[int | str] = []
    for statement in statements:
        data = statement.mainsnak.datavalue
        # "somevalue" and "novalue" have no data.
        if data is not None and statement.rank == best and statement.mainsnak.snaktype == "value":
            value = data.value
            if isinstance(value, _Value) and value.kind == "item":
                number = value.number or item_number(
                    value.id or ""
                )  # old dumps carry no id, new ones may lose the number
                if number:
                    values.append(number)
    return values
