"""The entities of the corpus: Wikidata items, places, emoji concepts, WordNet homonyms, each as one `CorpusEntity`.

Popularity is a count, so that a share of it is a prior:
    Wikidata item   1 + name-suggestion-index items that cite it + place codes those items are found in
    country, region 1 + name-suggestion-index items found there
    WordNet sense   1 + times the sense occurs in WordNet's sense-tagged texts
    emoji concept   1 + renderings that draw it
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.demo.packages import Packages, normalise
from pipeline.demo.senses import LEXICOGRAPHER_FILES, SenseChooser, lexicographer_file_of, related_words

# Groups of emoji that show things, with the kinds a thing of that group may be, likeliest first.
_CONCRETE_EMOJI_GROUPS = {
    "animals & nature": ("animal", "plant", "object", "phenomenon", "food", "cognition", "person"),
    "food & drink": ("food", "plant", "animal", "artifact", "substance"),
    "travel & places": ("artifact", "object", "phenomenon", "location", "event", "group"),
    "activities": ("artifact", "event", "act", "food", "object"),
    "objects": ("artifact", "possession", "communication", "object", "body", "substance"),
}
# Of the groups of faces and people, the subgroups that show things.
_CONCRETE_EMOJI_SUBGROUPS = {
    "costumed & creatures": ("animal", "person", "artifact", "cognition"),
    "cat faces": (),
    "monkey faces": (),
    "hearts": (),
    "body parts": ("body",),
    "fantasy": ("cognition", "person", "animal"),
}
# A homonym of one of these kinds next to the other is the same thing seen twice (the fruit and its tree).
_TOO_NEAR = (
    {"food", "plant"},
    {"food", "animal"},
    {"object", "phenomenon"},
    {"artifact", "communication"},
    {"artifact", "act"},
    {"event", "time"},
)
_NAME_TAGS = re.compile(r"^(name|brand|operator|network|short_name|alt_name|official_name)(:[a-zA-Z-]{2,8})?$")
_WIKIDATA_ID = re.compile(r"Q\d+")
_WORLDWIDE_PLACES = 50  # ours: what the location "001" (the world) counts for
_LEGAL_SUFFIXES = frozenset(
    "inc incorporated corp corporation co company ltd limited llc plc ag gmbh sa se nv ab oy as spa group holding "
    "holdings international".split()
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusEntity:
    """One entity of the base.

    `keywords` (tags of other packages), `categories` (words for the kind of thing) and `related` (words of WordNet's
    senses around it) describe it too. They are what texts say beside its name, and are never written to the base; what
    the base has as a name or type is left out of texts.
    """

    id: str
    label: str
    description: str
    aliases: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    popularity: float = 1.0
    links: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    related: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The label and the aliases."""
        return (self.label, *self.aliases)


def strip_legal_suffixes(name: str) -> str:
    """Returns the normalised name without "Inc.", "GmbH" and the like at its end; one word always stays."""
    words = normalise(name).split()
    while len(words) > 1 and words[-1] in _LEGAL_SUFFIXES:
        words.pop()
    return " ".join(words)


def _distinct(names: Iterable[str], *, beside: str) -> tuple[str, ...]:
    """Returns the names that say something and differ, as normalised, from each other and from `beside`."""
    seen, kept = {normalise(beside)}, []
    for name in names:
        name = name.strip()
        key = normalise(name)
        if len(name) >= 2 and key and key not in seen:
            seen.add(key)
            kept.append(name)
    return tuple(kept)


def place_ids_by_code(packages: Packages) -> dict[str, str]:
    """Returns flag code ("fr", "gb-eng", "us-ga") -> Wikidata id, from country-coder and the flags of NSI."""
    codes: dict[str, str] = {}
    for item in packages.nsi.get("flags/man_made/flagpole", {"items": []})["items"]:
        code, separator, _ = item["displayName"].partition(" - ")
        tags = item["tags"]
        if separator and tags.get("subject:wikidata") and tags.get("flag:type") in ("national", "regional"):
            codes.setdefault(code.lower(), tags["subject:wikidata"])
    for place in packages.places:
        for code in (place.get("iso1A2"), *place.get("aliases", ())):
            if code and re.fullmatch(r"[A-Z]{2}(-[A-Z0-9]{1,3})?", code):
                codes[code.lower()] = place["wikidata"]
    return codes


# Types of the place that a flag is for, by its `flag:type`.
_TYPES_OF_FLAGS = {"regional": ("region", "place"), "municipal": ("city", "place")}


@dataclasses.dataclass
class _Items:
    """What the items of name-suggestion-index say of the Wikidata items that they cite."""

    aliases: dict[str, list[str]] = dataclasses.field(default_factory=lambda: defaultdict(list))
    types: dict[str, list[str]] = dataclasses.field(default_factory=lambda: defaultdict(list))
    places: dict[str, list[str]] = dataclasses.field(default_factory=lambda: defaultdict(list))  # codes
    keywords: dict[str, list[str]] = dataclasses.field(default_factory=lambda: defaultdict(list))
    num_items: Counter[str] = dataclasses.field(default_factory=Counter)
    items_at: Counter[str] = dataclasses.field(default_factory=Counter)  # id of a place -> items found there
    flags: set[str] = dataclasses.field(default_factory=set)


def wikidata_entities(packages: Packages) -> list[CorpusEntity]:
    """Returns the labelled and described items of name-suggestion-index, and the places of country-coder, by id.

    A flag's own item ("flag of Andorra") is left out: a flag's picture shows its country.
    """
    places_by_code = place_ids_by_code(packages)
    items = _read_items(packages, places_by_code)
    entities = {}
    trades: dict[str, list[str]] = {}
    for entity_id, item in packages.wikidata.items():
        label, description = item.get("label", ""), item.get("description", "")
        names = [name.strip() for name in items.aliases[entity_id]]
        known_names = [name for name in names if name and not _WIKIDATA_ID.fullmatch(name)]
        if _WIKIDATA_ID.fullmatch(label):  # no English label: the name that the index gives first
            label = known_names[0] if known_names else ""
        if not label or not description or entity_id in items.flags:
            continue
        types = tuple(dict.fromkeys(items.types[entity_id]))
        for kind in types:
            if kind not in trades:
                trades[kind] = _trade_words(packages, kind)
        places = items.places[entity_id]
        is_place = "place" in types
        related = _place_words(packages, label) if is_place else [w for t in types for w in trades[t]]
        num_places = sum(_WORLDWIDE_PLACES if code == "001" else 1 for code in set(places))
        entities[entity_id] = CorpusEntity(
            id=entity_id,
            label=label,
            description=description,
            aliases=_distinct(known_names, beside=label),
            types=types,
            popularity=1.0 + items.num_items[entity_id] + num_places + items.items_at[entity_id],
            links=tuple(dict.fromkeys(places_by_code[code] for code in places if code in places_by_code))[:10],
            keywords=_distinct(items.keywords[entity_id], beside=label),
            related=_distinct(related, beside=label) if is_place else tuple(related),
        )
    _add_places(entities, packages, places_by_code, items.items_at)
    return [entities[i] for i in sorted(entities)]


def _read_items(packages: Packages, places_by_code: Mapping[str, str]) -> _Items:
    found = _Items()
    place_ids = {place["wikidata"] for place in packages.places}
    for path, category in packages.nsi.items():
        tree, *rest = path.split("/")
        key = {"brands": "brand", "operators": "operator", "transit": "network", "flags": "subject"}[tree]
        for item in category["items"]:
            tags = item["tags"]
            include = item.get("locationSet", {}).get("include", [])
            where = [code.removesuffix(".geojson") for code in include if isinstance(code, str)]
            found.items_at.update({places_by_code[code] for code in where if code in places_by_code})
            if "flag:wikidata" in tags:
                found.flags.add(tags["flag:wikidata"])
            if f"{key}:wikidata" not in tags:
                continue
            for entity_id in tags[f"{key}:wikidata"].split(";"):
                found.num_items[entity_id] += 1
                found.places[entity_id] += where
                if tree == "flags":
                    found.aliases[entity_id].append(tags["subject"])
                    found.types[entity_id] += _TYPES_OF_FLAGS.get(tags.get("flag:type", ""), ())
                    continue
                if entity_id in place_ids:  # what a country operates ("Government", its schools) does not name it
                    continue
                found.types[entity_id] += [word.replace("_", " ") for word in rest[-1:]]
                # A brand's shop may have names of its own; an operator's items are named after what it runs.
                wanted = (key, "short_name", "alt_name", "official_name") + (("name",) if tree == "brands" else ())
                for tag, value in tags.items():
                    if _NAME_TAGS.match(tag) and tag.partition(":")[0] in wanted:
                        found.aliases[entity_id] += value.split(";")
                found.aliases[entity_id] += item.get("matchNames", [])
                for tag in ("cuisine", "clothes", "sport", "healthcare:speciality", "vending", "trade", "telecom"):
                    found.keywords[entity_id] += tags.get(tag, "").replace("_", " ").split(";")
    return found


def _add_places(
    entities: dict[str, CorpusEntity],
    packages: Packages,
    places_by_code: Mapping[str, str],
    items_at: Mapping[str, int],
) -> None:
    """Adds the places of country-coder to `entities`; one that is there gets the names and links of its place."""
    place_labels = {place["nameEn"] for place in packages.places}
    groups = {p.get("id") or p.get("m49") or p["wikidata"]: p["wikidata"] for p in packages.places}
    for place in packages.places:
        entity_id = place["wikidata"]
        known = entities.get(entity_id)
        country = packages.countries.get(place.get("iso1A2", ""), {})
        label = known.label if known else place["nameEn"]
        level = place.get("level") or "country"
        country_id = places_by_code.get(place.get("country", "").lower())
        links = [country_id, *(groups.get(g) for g in place.get("groups", []))]
        names = [place["nameEn"]]
        if country:
            names += [country["name"]["common"], country["name"]["official"]]
            # Not two-letter codes ("IN", "NO"), nor the short name of another place ("Sudan" for South Sudan).
            names += [s for s in country.get("altSpellings", []) if len(s) > 2 and s not in place_labels]
            names += _short_names(packages, label, code=place["iso1A2"])
            names += [t["common"] for t in country.get("translations", {}).values()]
        entities[entity_id] = CorpusEntity(
            id=entity_id,
            label=label,
            description=known.description if known else _describe_place(place, packages),
            aliases=_distinct([*names[:3], *(known.aliases if known else ()), *names[3:]], beside=label),
            types=tuple(dict.fromkeys([*(known.types if known else ()), level, "place"])),
            popularity=known.popularity if known else 1.0 + items_at.get(entity_id, 0),
            links=tuple(dict.fromkeys(i for i in links if i and i != entity_id)),
            keywords=_country_words(country),
            related=_distinct(_place_words(packages, label), beside=label),
        )


def _describe_place(place: Mapping[str, Any], packages: Packages) -> str:
    country = packages.countries.get(place.get("country", ""), {}).get("name", {}).get("common")
    return f"{place.get('level', 'place')} of {country}" if country else f"{place.get('level', 'place')}"


def _trade_words(packages: Packages, kind: str) -> list[str]:
    """Returns words around what shops of this kind are: "groceries" for a supermarket."""
    senses = [packages.synsets[offset] for offset, _ in packages.senses.get(normalise(kind), [])]
    # A bank is an institution before it is a slope.
    senses.sort(key=lambda synset: lexicographer_file_of(synset) not in ("act", "artifact", "food", "group"))
    return related_words(packages, senses[0], with_gloss=True) if senses else []


def _place_words(packages: Packages, label: str) -> list[str]:
    """Returns words around the place that WordNet has under this name: its cities, rivers and products."""
    for offset, _ in packages.senses.get(normalise(label), []):
        synset = packages.synsets[offset]
        if synset.is_instance and lexicographer_file_of(synset) in ("location", "object"):
            return related_words(packages, synset, with_gloss=True)
    return []


def _short_names(packages: Packages, label: str, *, code: str) -> list[str]:
    """Returns the other names of a place if WordNet knows only one by its name: "America", "U.K.".

    A code of two letters is none, unless it has the initials of the name: "US" is the United States, "GB" is a size.
    """
    places = [packages.synsets[offset] for offset, _ in packages.senses.get(normalise(label), [])]
    places = [one for one in places if one.is_instance and lexicographer_file_of(one) in ("location", "object")]
    if len(places) != 1:
        return []
    initials = "".join(word[0] for word in label.split())
    return [name for name in places[0].lemmas if name != code or name == initials]


def _country_words(country: Mapping[str, Any]) -> tuple[str, ...]:
    if not country:
        return ()
    words = [
        *country.get("capital", []),
        country.get("subregion", ""),
        country.get("region", ""),
        *country.get("languages", {}).values(),
        *(c["name"] for c in country.get("currencies", {}).values()),
        country.get("demonyms", {}).get("eng", {}).get("m", ""),
    ]
    return _distinct(words, beside=country["name"]["common"])


def emoji_entities(packages: Packages, renderings_of: Mapping[str, int]) -> tuple[list[CorpusEntity], set[str]]:
    """Returns the concrete emoji concepts that some rendering draws, and the WordNet senses that they show.

    A concept takes the gloss of its own sense as its description; that sense must then not be an entity too.

    Args:
        packages: the packages.
        renderings_of: code points -> number of renderings.
    """
    entities, own_senses = [], set()
    records = [r for r in packages.emoji if renderings_of.get(r["codepoints"]) and _kinds_of(r) is not None]
    by_subgroup: dict[str, list[str]] = defaultdict(list)
    names_by_subgroup: dict[str, list[list[str]]] = defaultdict(list)
    for record in records:
        by_subgroup[record["subgroup_name"]].append(f"emoji:{record['codepoints']}")
        names_by_subgroup[record["subgroup_name"]].append([record["label"], *_shortcode_names(record)])
    chooser = SenseChooser(packages, names_by_subgroup)
    num_concepts = Counter(name for r in records for name in {normalise(n) for n in (r["label"], *_shortcode_names(r))})
    for record in records:
        label, group, subgroup = record["label"], record["group_name"], record["subgroup_name"]
        names = _shortcode_names(record)
        tags = [str(w).replace("_", " ") for w in (*record.get("tags", ()), *record["keywords"])]
        synset = chooser.choose([label, *names], _kinds_of(record) or (), tags, subgroup)
        kind = lexicographer_file_of(synset) if synset else ""
        if synset:
            own_senses.add(synset.offset)
        entity_id = f"emoji:{record['codepoints']}"
        siblings = by_subgroup[subgroup]
        at = siblings.index(entity_id)
        entities.append(
            CorpusEntity(
                id=entity_id,
                label=label,
                # A concept that WordNet lacks is described by its group, which its texts then do not use.
                description=synset.gloss if synset else f"{label}, one of {subgroup} ({group})",
                # A shortcode that two concepts share (rabbit, rabbit face) names a drawing, not a thing.
                aliases=_distinct((n for n in names if num_concepts[normalise(n)] == 1), beside=label),
                types=(kind,) if synset else (),
                popularity=1.0 + renderings_of[record["codepoints"]],
                links=tuple(i for i in siblings[max(0, at - 4) : at + 5] if i != entity_id),
                keywords=_distinct(tags, beside=label),
                categories=_distinct(_category_words(subgroup, group, kind), beside=label) if synset else (),
                related=_distinct(related_words(packages, synset, with_gloss=False), beside=label) if synset else (),
            )
        )
    return entities, own_senses


def _kinds_of(record: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Returns the kinds of thing that the emoji may show, or None where it shows no thing, or a man or woman of one."""
    if "gender" in record:
        return None
    by_group = _CONCRETE_EMOJI_GROUPS.get(record["group_name"])
    return by_group if by_group is not None else _CONCRETE_EMOJI_SUBGROUPS.get(record["subgroup_name"])


def _category_words(subgroup: str, group: str, kind: str) -> list[str]:
    """Returns the words of the emoji's groups that are true of it: no "drink" for bread, no "animals" for a tree."""
    words = [w.strip() for w in (*re.split("[&/]", subgroup), *group.split("&"))]
    untrue = {"drink"} if subgroup != "drink" else set()
    if kind != "animal":
        untrue |= {"animals"}
    return [w for w in words if w not in untrue]


def _shortcode_names(record: Mapping[str, Any]) -> list[str]:
    names = [s.replace("_", " ").replace("-", " ") for s in record["shortcodes"]]
    return [n for n in names if len(n) > 2 and not any(c.isdigit() for c in n)]


def homonyms(
    packages: Packages, named: Iterable[CorpusEntity], *, own_senses: set[str], num_emoji_names: int, rng: random.Random
) -> list[CorpusEntity]:
    """Returns WordNet senses that share a name with a pictured entity and mean something else.

    Args:
        packages: the packages.
        named: the pictured entities. All names of brands and places count, `num_emoji_names` of the emoji names.
        own_senses: senses that emoji concepts show.
        num_emoji_names: emoji names that get homonyms, drawn by `rng`.
        rng: the source of choice.
    """
    emoji_kinds: dict[str, set[str]] = defaultdict(set)
    names: set[str] = set()
    for entity in named:
        for name in entity.names if entity.id.startswith("Q") else ():
            names.add(normalise(name))
        if entity.id.startswith("emoji:"):
            for name in entity.names:
                emoji_kinds[normalise(name)].update(t for t in entity.types if t in LEXICOGRAPHER_FILES)

    def senses_of(name: str) -> list[tuple[str, int]]:
        kept = []
        for offset, count in packages.senses.get(name, [])[:4]:
            synset = packages.synsets[offset]
            kind = lexicographer_file_of(synset)
            near = emoji_kinds.get(name, set())
            too_near = kind in near or any(kind in pair and pair & near for pair in _TOO_NEAR)
            proper = any(lemma[:1].isupper() for lemma in synset.lemmas)  # "Turkey", the country once more
            if not synset.is_instance and not too_near and not proper and offset not in own_senses:
                kept.append((offset, count))
        return kept[:3]

    candidates = sorted(n for n in emoji_kinds if emoji_kinds[n] and senses_of(n))
    names.update(rng.sample(candidates, min(num_emoji_names, len(candidates))))
    found: dict[str, CorpusEntity] = {}
    for name in sorted(names):
        for offset, count in senses_of(name):
            synset = packages.synsets[offset]
            before = found.get(offset)
            lemma = next(lemma for lemma in synset.lemmas if normalise(lemma) == name)
            label = before.label if before else lemma
            found[offset] = CorpusEntity(
                id=f"wordnet:{offset}-n",
                label=label,
                description=synset.gloss,
                aliases=_distinct([*(before.aliases if before else ()), lemma], beside=label),
                types=(lexicographer_file_of(synset),),
                popularity=max(before.popularity if before else 0.0, 1.0 + count),
            )
    links = {offset: [h for h in packages.synsets[offset].hypernyms if h in found] for offset in found}
    return [dataclasses.replace(found[o], links=tuple(f"wordnet:{h}-n" for h in links[o])) for o in sorted(found)]
