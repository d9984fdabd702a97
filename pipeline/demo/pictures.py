"""Which pictures there are: each as an SVG with the entity it shows, its rendering and its family."""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from urllib.parse import urlparse

from pipeline.demo.config import EMOJI_RENDERINGS, FLAG_RENDERINGS, LOGO_RENDERINGS, Rendering
from pipeline.demo.entities import CorpusEntity, place_ids_by_code, strip_legal_suffixes
from pipeline.demo.packages import IconSet, Packages, normalise
from pipeline.demo.render import svg_of

# Colour codes and sizes of variants that the six logo packages append to a brand's name.
_LOGO_VARIANTS = re.compile(r"-(icon|dark|light|original|plain|wordmark|line|filled|square|color|old)$")
# Logos from these sites do not identify the brand's own site.
_SOURCE_HOSTS = frozenset("wikipedia wikimedia github google worldvectorlogo brandfetch figma facebook".split())
_SPELT_OUT = re.compile(r"\w[&.]\w")  # "Ba&sh", "V.I.M.": the same letters as another name, and not that name
_SECOND_LEVELS = frozenset("ac co com edu gov net or org".split())  # below a country, as in "co.uk"
_WORLDWIDE = 50  # popularity of a brand that name-suggestion-index knows everywhere (ours)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture to draw."""

    image_id: str
    svg: str
    entity_id: str
    kind: str  # emoji, flag or logo
    rendering: str
    family: str
    held_out_rendering: bool


def _picture(rendering: Rendering, icons: IconSet, name: str, entity_id: str, kind: str) -> Picture:
    body, width, height, left, top = icons.icons[name]
    return Picture(
        image_id=f"{rendering.name}/{name}",
        svg=svg_of(body, width, height, left=left, top=top),
        entity_id=entity_id,
        kind=kind,
        rendering=rendering.name,
        family=rendering.family,
        held_out_rendering=rendering.held_out,
    )


def emoji_icons(packages: Packages) -> dict[str, dict[str, str]]:
    """Returns rendering name -> {code points: icon name}.

    Packages with `chars.json` say it themselves. For the others the names of those, and emojibase's label and
    shortcodes, are looked up; fxemoji writes names in one word, so hyphens do not count. A name that means two
    different emoji is not used.
    """
    sets = {r.name: packages.icon_set(r.package) for r in EMOJI_RENDERINGS}
    meanings: dict[str, set[str]] = defaultdict(set)
    for icons in sets.values():
        for codepoints, name in icons.chars.items():
            meanings[_key_of(name)].add(codepoints)
    for record in packages.emoji:
        for name in (record["label"], *record["shortcodes"]):
            meanings[_key_of(normalise(name).replace(" ", "-"))].add(record["codepoints"])
    found: dict[str, dict[str, str]] = {}
    for rendering, icons in sets.items():
        if icons.chars:
            found[rendering] = icons.chars
            continue
        found[rendering] = {}
        for name in sorted(icons.icons):
            meant = meanings.get(_key_of(name), set())
            if len(meant) == 1:
                found[rendering].setdefault(next(iter(meant)), name)
    return found


def _key_of(icon_name: str) -> str:
    """Returns the name in one word; "flag-for-france" and "flag-france" are one."""
    return re.sub(r"^flag-for-", "flag-", icon_name).replace("-", "")


def emoji_pictures(packages: Packages, icons_of: dict[str, dict[str, str]], entity_ids: set[str]) -> list[Picture]:
    """Returns the pictures of the emoji entities in `entity_ids`, rendering by rendering."""
    pictures = []
    for rendering in EMOJI_RENDERINGS:
        icons = packages.icon_set(rendering.package)
        for codepoints, name in sorted(icons_of[rendering.name].items()):
            if f"emoji:{codepoints}" in entity_ids:
                pictures.append(_picture(rendering, icons, name, f"emoji:{codepoints}", "emoji"))
    return pictures


def flag_pictures(packages: Packages, icons_of: dict[str, dict[str, str]], entity_ids: set[str]) -> list[Picture]:
    """Returns flags by ISO code from the flag packages, and the flag emoji of the emoji packages."""
    place_of = {code: i for code, i in place_ids_by_code(packages).items() if i in entity_ids}
    pictures = []
    for rendering in FLAG_RENDERINGS:
        icons = packages.icon_set(rendering.package)
        suffix = re.sub(r"^flag", "", rendering.name) if rendering.name in ("flag-4x3", "flag-1x1") else ""
        for code, entity_id in sorted(place_of.items()):
            if f"{code}{suffix}" in icons.icons:
                pictures.append(_picture(rendering, icons, f"{code}{suffix}", entity_id, "flag"))
    for rendering in EMOJI_RENDERINGS:
        icons = packages.icon_set(rendering.package)
        for codepoints, name in sorted(icons_of[rendering.name].items()):
            entity_id = place_of.get(flag_code_of(codepoints), "")
            if entity_id:
                pictures.append(_picture(rendering, icons, name, entity_id, "flag"))
    # Two codes of one place (ac and sh-ac) draw the same flag: the first is kept.
    first = {(p.rendering, p.entity_id): p for p in reversed(pictures)}
    return list(reversed(first.values()))


def flag_code_of(codepoints: str) -> str:
    """Returns "fr" for the regional indicators, "gb-eng" for the tag sequence, "" for anything else."""
    values = [int(part, 16) for part in codepoints.split("-")]
    if len(values) == 2 and all(0x1F1E6 <= v <= 0x1F1FF for v in values):
        return "".join(chr(v - 0x1F1E6 + ord("a")) for v in values)
    if len(values) > 3 and values[0] == 0x1F3F4 and values[-1] == 0xE007F:
        letters = "".join(chr(v - 0xE0000) for v in values[1:-1])
        return f"{letters[:2]}-{letters[2:]}"
    return ""


def logo_pictures(packages: Packages, entities: list[CorpusEntity]) -> list[Picture]:
    """Returns logos whose brand is surely a Wikidata item of name-suggestion-index; the others are left out.

    A name alone does not identify a brand: Box the file store is not Box the retail chain, nor Okta of okta.com that of
    okta-elpe.com. See `_brand_of`. The iconify sets name no sites, so they follow simple-icons where that has the name.
    """
    by_name: dict[str, list[CorpusEntity]] = defaultdict(list)
    for entity in entities:
        if entity.types and "place" not in entity.types:
            for name in {strip_legal_suffixes(n) for n in entity.names}:
                by_name[name.replace(" ", "")].append(entity)
    matched: dict[str, str | None] = {}
    pictures = []
    for rendering in LOGO_RENDERINGS:
        if rendering.package == "simple-icons":
            for icon in packages.json("simple-icons/data/simple-icons.json"):
                key = strip_legal_suffixes(icon["title"]).replace(" ", "")
                entity_id = _brand_of(packages, by_name.get(key, []), _site_of(icon["source"]), key)
                matched[key] = entity_id
                if entity_id:
                    slug = icon.get("slug") or re.sub("[^a-z0-9]", "", normalise(icon["title"]))
                    pictures.append(_simple_icon(packages, rendering, slug, icon["hex"], entity_id))
            continue
        icons = packages.icon_set(rendering.package)
        seen: set[str] = set()
        for name in sorted(icons.icons):
            slug = name
            if rendering.name == "tabler":
                if not slug.startswith("brand-") or slug.endswith("-filled"):
                    continue
                slug = slug.removeprefix("brand-")
            while _LOGO_VARIANTS.search(slug):
                slug = _LOGO_VARIANTS.sub("", slug)
            key = strip_legal_suffixes(slug).replace(" ", "")
            if key not in matched:
                matched[key] = _brand_of(packages, by_name.get(key, []), "", key)
            entity_id = matched[key]
            # Wordmarks and dark versions in one package would be near-duplicates of one rendering: the first is kept.
            if entity_id and entity_id not in seen:
                seen.add(entity_id)
                pictures.append(_picture(rendering, icons, name, entity_id, "logo"))
    return pictures


def _simple_icon(packages: Packages, rendering: Rendering, slug: str, colour: str, entity_id: str) -> Picture:
    body = re.sub(r"^<svg[^>]*>|</svg>\s*$", "", packages.text(f"simple-icons/icons/{slug}.svg").strip())
    return Picture(
        image_id=f"{rendering.name}/{slug}",
        svg=svg_of(f'<g fill="#{colour}">{body}</g>', 24, 24),
        entity_id=entity_id,
        kind="logo",
        rendering=rendering.name,
        family=rendering.family,
        held_out_rendering=rendering.held_out,
    )


def _site_of(url: str) -> str:
    """Returns the registered domain ("apple.com" of https://www.apple.com/at/), or "" where it identifies no brand."""
    host = (urlparse(url).hostname or "").split(".")
    labels = 3 if len(host) > 2 and len(host[-1]) == 2 and host[-2] in _SECOND_LEVELS else 2
    if len(host) < labels or host[-labels] in _SOURCE_HOSTS:
        return ""
    return ".".join(host[-labels:])


def _brand_of(packages: Packages, candidates: list[CorpusEntity], site: str, key: str) -> str | None:
    """Returns the candidate whose site is the logo's; else the one whose label is the name, if the whole world has it.

    The latter must own the name's own ".com" (hyphens aside), and the logo must not come from a site of that name
    elsewhere: proton.me is not the Proton of proton.com.
    """
    ranked = sorted(candidates, key=lambda e: (-e.popularity, e.id))
    sites_of = {
        e.id: {_site_of(u) for u in packages.wikidata.get(e.id, {}).get("officialWebsites", [])} - {""} for e in ranked
    }
    for entity in ranked:
        if site in sites_of[entity.id]:
            return entity.id
    for entity in ranked:
        is_label = strip_legal_suffixes(entity.label).replace(" ", "") == key and not _SPELT_OUT.search(entity.label)
        sites = sites_of[entity.id]
        owns_name = any(one.replace("-", "") == f"{key}.com" for one in sites)
        from_namesake = site.partition(".")[0].replace("-", "") == key
        if is_label and owns_name and not from_namesake and entity.popularity >= _WORLDWIDE:
            return entity.id
    return None
