"""Puts the embedded corpus together from npm packages: `python -m pipeline.demo.corpus --help`.

Pictures are emoji, flags and logos; texts are composed (see `captions`), with the noise that `config.SHARES` states.
Everything is drawn from one seed, and files carry no times: the same packages and seed give the same bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import json
import random
import re
import sys
import tarfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import tyro
from PIL import Image

from pipeline.demo import captions
from pipeline.demo.captions import Caption, NamedSpan, NameIndex
from pipeline.demo.config import (
    EMOJI_RENDERINGS,
    FLAG_RENDERINGS,
    LOGO_RENDERINGS,
    OTHER_PACKAGES,
    SHARES,
    CorpusConfig,
)
from pipeline.demo.entities import Entity, emoji_entities, homonyms, wikidata_entities
from pipeline.demo.packages import Packages
from pipeline.demo.pictures import Picture, emoji_icons, emoji_pictures, flag_pictures, logo_pictures
from pipeline.demo.render import rasterise
from pipeline.kb.bag_of_words import split_words
from pipeline.kb.normalise import normalise_alias, strip_legal_suffix
from pipeline.schema import UserError
from pipeline.storage.disk import check_writable, reporting_disk_errors

FORMAT_VERSION = 1
_OUTPUT_BYTES_PER_PAIR = 10_000  # 64 px pictures and all that is written beside them
_ALIAS_WEIGHT = 0.4  # of a name that is no label, beside the label's 1; as the base weighs them
_NAMES_IN_TEXTS = 6  # of one entity, the first; a country's later ones are its names in other languages
_ATTEMPTS = 12  # drafts of one caption before a stray name in it is let pass
_REMOVED_PAIRS_MIN = 5  # training pictures that a removed entity needs, so that its texts spread


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrawnPicture:
    """A picture with its PNG bytes."""

    picture: Picture
    png: bytes
    held_out_entity: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """One picture-text pair and the truth about it."""

    picture: DrawnPicture
    caption: Caption
    noise: str
    copy: int  # how often the picture came before, from 0


def _stream(seed: int, purpose: str) -> random.Random:
    """Returns a generator of its own for each purpose, so that a change in one choice does not move the others."""
    return random.Random(f"{seed}/{purpose}")


def _rank(seed: int, text: str) -> str:
    return hashlib.sha256(f"{seed}/{text}".encode()).hexdigest()


def name_weights(entities: Iterable[Entity]) -> dict[str, dict[str, float]]:
    """Returns normalised name -> {entity id: 1 + popularity, less where the name is no label}."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for entity in entities:
        for name, share in ((entity.label, 1.0), *((a, _ALIAS_WEIGHT) for a in entity.aliases)):
            key = normalise_alias(name)
            for variant in {key, strip_legal_suffix(key)} - {""}:
                weight = (1.0 + entity.popularity) * (share if variant == key else _ALIAS_WEIGHT)
                found[variant][entity.id] = max(weight, found[variant].get(entity.id, 0.0))
    return dict(found)


def draw(pictures: Sequence[Picture], *, size_px: int, num_workers: int) -> list[tuple[Picture, bytes]]:
    """Returns the pictures that show something, with PNG bytes; equal bytes go to the first entity that has them.

    Norway's flag is also Svalbard's: kept for both, each would be a wrong answer to the other.
    """
    drawn = _map(_rasterise, [(p.svg, size_px) for p in pictures], num_workers)
    if None in drawn:
        print(f"{drawn.count(None)} icons are broken or draw nothing, and are left out", flush=True)
    owner: dict[bytes, str] = {}
    kept = []
    for picture, png in zip(pictures, drawn, strict=True):
        if png is not None and owner.setdefault(hashlib.sha256(png).digest(), picture.entity_id) == picture.entity_id:
            kept.append((picture, png))
    return kept


def _rasterise(job: tuple[str, int]) -> bytes | None:
    svg, size_px = job
    try:
        return rasterise(svg, size_px)
    except ValueError:  # a package's broken icon
        return None


def web_copy(job: tuple[bytes, int, str]) -> bytes:
    """Returns the PNG of `(png, copy, seed)`: the same bytes for copy 0, else at another scale and place on white.

    One drawing on several pages is seldom one file. Without this, all but the first pair of a picture would be exact
    duplicates, which mining removes.
    """
    png, copy, seed = job
    if copy == 0:
        return png
    picture = Image.open(io.BytesIO(png))
    rng = random.Random(seed)
    side = picture.width
    inner = rng.randint(round(side * 0.8), side)
    canvas = Image.new("RGB", (side, side), "white")
    scaled = picture.resize((inner, inner), Image.Resampling.BILINEAR)
    canvas.paste(scaled, (rng.randint(0, side - inner), rng.randint(0, side - inner)))
    out = io.BytesIO()
    canvas.save(out, format="PNG", compress_level=6)
    return out.getvalue()


def _map(function: Any, jobs: list, num_workers: int) -> list:
    if num_workers <= 1 or len(jobs) < 500:
        return [function(job) for job in jobs]
    with ProcessPoolExecutor(num_workers) as pool:
        return list(pool.map(function, jobs, chunksize=64))


def held_out_entities(pictures: Iterable[Picture], *, share: float, seed: int) -> set[str]:
    """Returns `share` of the pictured entities of each kind, chosen by a hash of seed and id."""
    by_kind: dict[str, set[str]] = defaultdict(set)
    for picture in pictures:
        by_kind[picture.kind].add(picture.entity_id)
    chosen: set[str] = set()
    for _, ids in sorted(by_kind.items()):
        chosen.update(sorted(ids, key=lambda i: _rank(seed, i))[: round(share * len(ids))])
    return chosen


def choose_removed(
    candidates: Mapping[str, int], entities: Mapping[str, Entity], index: NameIndex, *, count: int, seed: int
) -> dict[str, list[str]]:
    """Returns `count` entities to leave out of the base -> their names that a homonym keeps in the base.

    Args:
        candidates: pictured entity -> number of training pictures.
        entities: all entities by id.
        index: the names of all entities.
        count: how many to choose; fewer where fewer have a homonym.
        seed: of the choice.
    """
    chosen: dict[str, list[str]] = {}
    for entity_id in sorted(candidates, key=lambda i: _rank(seed, f"removed/{i}")):
        if len(chosen) == count:
            break
        # A place is no choice: thousands of items link to it.
        if candidates[entity_id] < _REMOVED_PAIRS_MIN or "place" in entities[entity_id].types:
            continue
        absent = {entity_id, *chosen}
        names = [n for n in entities[entity_id].names[:_NAMES_IN_TEXTS] if set(index.candidates(n)) - absent]
        # Two removed entities must not be each other's only homonym.
        if names and all(set(index.candidates(n)) - absent for earlier in chosen.values() for n in earlier):
            chosen[entity_id] = names
    return chosen


class Composer:
    """Writes captions, one kind of noise at a time."""

    def __init__(self, entities: Mapping[str, Entity], kinds: Mapping[str, str], index: NameIndex, rng: random.Random):
        """Takes all entities, the kind of picture of each pictured one, the names of the base, and a generator."""
        self.entities, self.kinds, self.index, self.rng = entities, kinds, index, rng
        self._contexts: dict[tuple[str, str], tuple[list[str], list[str]]] = {}

    def names(self, entity_id: str, *, ambiguous: bool) -> list[str]:
        """Returns the entity's names that it shares (`ambiguous`) or has to itself, label first."""
        kept = []
        for name in self.entities[entity_id].names[:_NAMES_IN_TEXTS]:
            bearers = self.index.candidates(name)
            if len(name) >= 3 and entity_id in bearers and (len(bearers) > 1) == ambiguous:
                kept.append(name)
        return kept

    def choose_name(self, names: Sequence[str]) -> str:
        """Returns mostly the first name; a name in lower case is sometimes capitalised, as in titles."""
        name = names[0] if self.rng.random() < 0.6 else self.rng.choice(names)
        return name.title() if name.islower() and self.rng.random() < 0.3 else name

    def tags(self, entity_id: str, name: str) -> list[str]:
        """Returns two to four words that tell what is meant, in random order, with a category where there is one.

        [] where there are fewer than two, which does not depend on chance.
        """
        categories, keywords = self._context(entity_id, name)
        chosen = self.rng.sample(categories, min(len(categories), 1))
        rest = [w for w in (*keywords, *categories) if w not in chosen]
        chosen += self.rng.sample(rest, min(len(rest), max(self.rng.randint(1, 3), 2 - len(chosen))))
        self.rng.shuffle(chosen)
        return chosen if len(chosen) >= 2 else []

    def _context(self, entity_id: str, name: str) -> tuple[list[str], list[str]]:
        key = (entity_id, normalise_alias(name))
        if key not in self._contexts:
            entity = self.entities[entity_id]
            categories = list(entity.categories)
            if self.kinds.get(entity_id) == "logo":
                categories += [w for t in entity.types for w in captions.CATEGORY_WORDS.get(t, ())]
            self._contexts[key] = (
                captions.context_words(categories, name, self.index, types=entity.types),
                captions.context_words(entity.keywords, name, self.index, types=entity.types),
            )
        return self._contexts[key]

    def about(self, entity_id: str, names: Sequence[str], *, style: str, truth: str | None) -> Caption:
        """Returns a text that names the entity by one of `names`.

        Args:
            entity_id: whom the text is about.
            names: to choose from.
            style: "tags", "plain" or "bare".
            truth: the right answer, None for an entity that the base lacks.
        """
        caption = Caption(text="")
        for _ in range(_ATTEMPTS):
            name = self.choose_name(names)
            tags = self.tags(entity_id, name) if style == "tags" else []
            kind = self.kinds[entity_id]
            table = captions.BARE if style == "bare" else (captions.WITH_TAGS if tags else captions.WITHOUT_TAGS)[kind]
            text, start, end = captions.fill(self.rng.choice(table), self.rng, name=name, tags=tags)
            ambiguous = truth is None or len(self.index.candidates(name)) > 1
            span = NamedSpan(start=start, end=end, entity_id=truth, ambiguous=ambiguous, has_context=bool(tags))
            caption = Caption(text=text, mentions=(span,), tags=tuple(tags))
            if _covers(self.index.spans(text), start, end):
                break
        return caption

    def about_nothing(self, templates: Sequence[str]) -> Caption:
        """Returns a text that names nothing."""
        text = ""
        for _ in range(_ATTEMPTS):
            text, _, _ = captions.fill(self.rng.choice(templates), self.rng)
            if not _names_beyond_stop_words(text, self.index):
                break
        return Caption(text=text)


# Names in the base (of shops, mostly) that in a text beside a picture are words. They are no stray mentions.
_PLAIN_WORDS = frozenset(
    "a and as at background best brand buy by cartoon click clipart comments cute day days download drawing emoji "
    "final flag for free from get icon illustration image images in is isolated item keywords logo mark more now of "
    "official on online only orders our pack part pic picture png price product read save see shop stock "
    "sticker svg the these this thumbnail to today transparent up vector version view week white with".split()
)


def _names_beyond_stop_words(text: str, index: NameIndex) -> list[tuple[int, int]]:
    return [(s, e) for s, e in index.spans(text) if text[s:e].casefold() not in _PLAIN_WORDS]


def _covers(spans: Sequence[tuple[int, int]], start: int, end: int) -> bool:
    """Returns whether no found name but the wanted one touches it (longer names swallow shorter ones)."""
    return not any(s < end and start < e and not (start <= s and e <= end) for s, e in spans)


def compose_pairs(
    pictures: Sequence[DrawnPicture],
    entities: Mapping[str, Entity],
    removed: Mapping[str, Sequence[str]],
    index: NameIndex,
    *,
    num_pairs: int,
    seed: int,
) -> list[Pair]:
    """Returns `num_pairs` pairs over the training pictures, in the shares of `config.SHARES`, shuffled.

    Args:
        pictures: the training pictures.
        entities: all entities by id, the removed ones included.
        removed: entities that the base lacks -> names to call them by.
        index: the names of the base.
        num_pairs: how many; every picture that can be named comes at least once where they suffice.
        seed: of all choices.

    Raises:
        UserError: a kind of noise has no picture that it fits.
    """
    rng = _stream(seed, "pairs")
    composer = Composer(entities, {p.picture.entity_id: p.picture.kind for p in pictures}, index, rng)
    in_base = [p for p in pictures if p.picture.entity_id not in removed]
    entity_ids = sorted({p.picture.entity_id for p in in_base})
    alone = {i: composer.names(i, ambiguous=False) for i in entity_ids}
    shared = {i: composer.names(i, ambiguous=True) for i in entity_ids}
    nameable = [i for i in entity_ids if alone[i]]
    fitting = {
        "named": [p for p in in_base if alone[p.picture.entity_id]],
        "ambiguous_with_context": [p for p in in_base if _has_context(composer, p, shared)],
        "ambiguous_without_context": [p for p in in_base if shared[p.picture.entity_id]],
        "missing_entity": [p for p in pictures if p.picture.entity_id in removed],
    }
    nothing = {
        "file_name": captions.FILE_NAMES,
        "shop_boilerplate": captions.SHOP_BOILERPLATE,
        "no_entity": captions.NO_ENTITY,
    }
    drafts: list[tuple[DrawnPicture, Caption, str]] = []
    for noise, count in counts_of(SHARES, num_pairs).items():
        cycle = _cycle(fitting.get(noise, in_base), rng, noise=noise, count=count, index=index, shared=shared)
        for picture in itertools.islice(cycle, count):
            entity_id = picture.picture.entity_id
            if noise in nothing:
                caption = composer.about_nothing(nothing[noise])
            elif noise == "missing_entity":
                caption = composer.about(entity_id, removed[entity_id], style="tags", truth=None)
            elif noise == "wrong_text":
                other = rng.choice(nameable)
                while other == entity_id:
                    other = rng.choice(nameable)
                caption = composer.about(other, alone[other], style=_named_style(rng), truth=other)
            elif noise == "named":
                caption = composer.about(entity_id, alone[entity_id], style=_named_style(rng), truth=entity_id)
            else:
                style = "tags" if noise == "ambiguous_with_context" else "bare"
                names = [n for n in shared[entity_id] if style == "bare" or composer.tags(entity_id, n)]
                caption = composer.about(entity_id, names, style=style, truth=entity_id)
            drafts.append((picture, caption, noise))
    rng.shuffle(drafts)
    copies: Counter[str] = Counter()
    pairs = []
    for picture, caption, noise in drafts:
        image_id = picture.picture.image_id
        pairs.append(Pair(picture=picture, caption=caption, noise=noise, copy=copies[image_id]))
        copies[image_id] += 1
    return pairs


def counts_of(shares: Mapping[str, float], total: int) -> dict[str, int]:
    """Returns whole numbers in these shares, which sum to 1, that sum to `total`: rounded down, then the nearest up."""
    counts = {name: int(share * total + 1e-9) for name, share in shares.items()}
    by_rest = sorted(shares, key=lambda name: counts[name] - shares[name] * total)
    for name in by_rest[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


def _named_style(rng: random.Random) -> str:
    return "tags" if rng.random() < 0.7 else "plain"


def _has_context(composer: Composer, picture: DrawnPicture, shared: Mapping[str, Sequence[str]]) -> bool:
    entity_id = picture.picture.entity_id
    return any(composer.tags(entity_id, name) for name in shared[entity_id])


def _cycle(
    pictures: Sequence[DrawnPicture],
    rng: random.Random,
    *,
    noise: str,
    count: int,
    index: NameIndex,
    shared: Mapping[str, Sequence[str]],
) -> Iterable[DrawnPicture]:
    """Returns an endless walk over `pictures` in rounds of random order.

    Of ambiguous names, half the walk goes over entities that are not the likeliest bearer: else the prior alone
    would look like a linker.
    """
    if not count:
        return ()
    if not pictures:
        raise UserError(
            f"no picture fits the noise {noise!r}, which needs {count} pairs; set its share to 0 in "
            "pipeline/demo/config.py or add packages"
        )
    if noise.startswith("ambiguous"):
        by_rank: dict[bool, list[DrawnPicture]] = {True: [], False: []}
        for picture in pictures:
            entity_id = picture.picture.entity_id
            by_rank[index.candidates(shared[entity_id][0])[0] == entity_id].append(picture)
        walks = [_rounds(by_rank[likeliest], rng) for likeliest in (False, True) if by_rank[likeliest]]
        return itertools.chain.from_iterable(zip(*walks, strict=False))
    return _rounds(pictures, rng)


def _rounds(pictures: Sequence[DrawnPicture], rng: random.Random) -> Iterable[DrawnPicture]:
    while True:
        yield from rng.sample(list(pictures), len(pictures))


def write_pairs(pairs: Sequence[Pair], config: CorpusConfig) -> list[dict[str, Any]]:
    """Returns the shards written: tars of `{key}.png`, `{key}.txt`, `{key}.json`, with no times or owners in them."""
    jobs = [(p.picture.png, p.copy, f"{config.seed}/{p.picture.picture.image_id}/{p.copy}") for p in pairs]
    pngs = _map(web_copy, jobs, config.num_workers)
    shards = []
    for first in range(0, len(pairs), config.pairs_per_shard):
        path = config.output / f"pairs-{first // config.pairs_per_shard:05d}.tar"
        last = min(first + config.pairs_per_shard, len(pairs))
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for row in range(first, last):
                key = key_of(row)
                for suffix, content in (
                    ("png", pngs[row]),
                    ("txt", pairs[row].caption.text.encode()),
                    ("json", json.dumps({"key": key}).encode()),
                ):
                    member = tarfile.TarInfo(f"{key}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        shards.append(
            {"file": path.name, "num_records": last - first, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        )
    return shards


def key_of(row: int) -> str:
    """Returns the key of a pair: "p0000123"."""
    return f"p{row:07d}"


_MENTION = pa.struct(
    [
        ("start", pa.int32()),
        ("end", pa.int32()),
        ("entity_id", pa.string()),
        ("ambiguous", pa.bool_()),
        ("has_context", pa.bool_()),
    ]
)


def write_truth(pairs: Sequence[Pair], path: Path) -> None:
    """Writes one row a pair: what the picture shows, the kind of noise, and what the text names."""
    columns = {
        "key": pa.array([key_of(row) for row in range(len(pairs))]),
        "picture_entity_id": pa.array([p.picture.picture.entity_id for p in pairs]),
        "kind": pa.array([p.picture.picture.kind for p in pairs]),
        "noise": pa.array([p.noise for p in pairs]),
        "mentions": pa.array(
            [[dataclasses.asdict(m) for m in p.caption.mentions] for p in pairs], type=pa.list_(_MENTION)
        ),
    }
    pq.write_table(pa.table(columns), path)


def write_evaluation(pictures: Sequence[DrawnPicture], path: Path) -> None:
    """Writes every picture, those that no pair shows included."""
    rows = sorted(pictures, key=lambda p: p.picture.image_id)
    columns = {
        "image_id": [p.picture.image_id for p in rows],
        "image": [p.png for p in rows],
        "entity_id": [p.picture.entity_id for p in rows],
        "kind": [p.picture.kind for p in rows],
        "rendering": [p.picture.rendering for p in rows],
        "family": [p.picture.family for p in rows],
        "heldout_rendering": [p.picture.held_out_rendering for p in rows],
        "heldout_entity": [p.held_out_entity for p in rows],
    }
    pq.write_table(pa.table(columns), path)


def write_knowledge_base(entities: Iterable[Entity], path: Path) -> None:
    """Writes one JSON line an entity, by id; the words for texts stay out."""
    with open(path, "w", encoding="utf-8") as file:
        for entity in sorted(entities, key=lambda e: e.id):
            record = {k: v for k, v in dataclasses.asdict(entity).items() if k not in ("keywords", "categories")}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def build_corpus(config: CorpusConfig) -> dict[str, Any]:
    """Returns the manifest, after every file of the corpus is written to `config.output`.

    Raises:
        UserError: a package is missing, an option is out of range, or a kind of noise fits no picture.
    """
    if not 0 <= config.held_out_entities < 1:
        raise UserError(f"held_out_entities is {config.held_out_entities}; it must be in [0, 1), say 0.2")
    if config.num_pairs < 1 or config.pairs_per_shard < 1 or config.image_size_px < 8:
        raise UserError("num_pairs and pairs_per_shard must be at least 1, image_size_px at least 8")
    check_writable(str(config.output), needed_bytes=_OUTPUT_BYTES_PER_PAIR * config.num_pairs)
    packages = Packages(config.packages)
    renderings = (*EMOJI_RENDERINGS, *FLAG_RENDERINGS, *LOGO_RENDERINGS)
    packages.check(sorted({r.package for r in renderings} | set(OTHER_PACKAGES)))
    (config.output / "manifest.json").unlink(missing_ok=True)

    wikidata = wikidata_entities(packages)
    icons_of = emoji_icons(packages)
    emoji, own_senses = emoji_entities(packages, Counter(c for icons in icons_of.values() for c in icons))
    pictures = [
        *emoji_pictures(packages, icons_of, {e.id for e in emoji}),
        *flag_pictures(packages, icons_of, {e.id for e in wikidata}),
        *logo_pictures(packages, wikidata),
    ]
    popularity = {e.id: e.popularity for e in wikidata}
    # The popular bearer of a flag comes first, and so keeps it.
    pictures.sort(key=lambda p: (-popularity.get(p.entity_id, 0.0), p.entity_id, p.image_id))
    print(f"drawing {len(pictures)} pictures, about {len(pictures) / 500 / config.num_workers:.0f} s", flush=True)
    drawn = draw(pictures, size_px=config.image_size_px, num_workers=config.num_workers)
    pictured = {p.entity_id for p, _ in drawn}
    wordnet = homonyms(
        packages,
        [e for e in (*wikidata, *emoji) if e.id in pictured],
        own_senses=own_senses,
        num_emoji_names=config.num_homonym_names,
        rng=_stream(config.seed, "homonyms"),
    )
    entities = {e.id: e for e in (*wikidata, *emoji, *wordnet)}

    held_out = held_out_entities((p for p, _ in drawn), share=config.held_out_entities, seed=config.seed)
    everything = [DrawnPicture(picture=p, png=png, held_out_entity=p.entity_id in held_out) for p, png in drawn]
    training = [p for p in everything if not p.held_out_entity and not p.picture.held_out_rendering]
    removed = choose_removed(
        Counter(p.picture.entity_id for p in training),
        entities,
        NameIndex(name_weights(entities.values())),
        count=config.num_removed_entities,
        seed=config.seed,
    )
    base = [_without_links(e, removed) for e in entities.values() if e.id not in removed]
    index = NameIndex(name_weights(base), {kind for entity in base for kind in entity.types})
    print(f"composing {config.num_pairs} texts over {len(training)} training pictures", flush=True)
    pairs = compose_pairs(training, entities, removed, index, num_pairs=config.num_pairs, seed=config.seed)
    write_knowledge_base(base, config.output / "kb_source.jsonl")
    shards = write_pairs(pairs, config)
    write_truth(pairs, config.output / "truth.parquet")
    write_evaluation(everything, config.output / "evaluation.parquet")
    manifest = {
        "format_version": FORMAT_VERSION,
        "kind": "demo_corpus",
        "seed": config.seed,
        "image_size_px": config.image_size_px,
        "shards": shards,
        "counts": corpus_counts(pairs, everything, base, index, removed),
        "removed_entity_ids": sorted(removed),
        "sha256": {
            name: hashlib.sha256((config.output / name).read_bytes()).hexdigest()
            for name in ("evaluation.parquet", "kb_source.jsonl", "truth.parquet")
        },
    }
    for stale in set(config.output.glob("pairs-*.tar")) - {config.output / s["file"] for s in shards}:
        stale.unlink()
    (config.output / "manifest.json").write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    return manifest


def _without_links(entity: Entity, removed: Mapping[str, Any]) -> Entity:
    return dataclasses.replace(entity, links=tuple(i for i in entity.links if i not in removed))


def corpus_counts(
    pairs: Sequence[Pair],
    pictures: Sequence[DrawnPicture],
    base: Sequence[Entity],
    index: NameIndex,
    removed: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns what the corpus holds, in numbers: the manifest's `counts`."""
    ambiguous = [(p, m) for p in pairs for m in p.caption.mentions if m.ambiguous and m.entity_id is not None]
    names = [normalise_alias(p.caption.text[m.start : m.end]) for p, m in ambiguous]
    descriptions = {e.id: set(split_words(e.description)) for e in base}
    told = [
        any(descriptions[m.entity_id].intersection(split_words(tag)) for tag in p.caption.tags)
        for p, m in ambiguous
        if m.entity_id is not None and m.has_context
    ]
    others = [index.candidates(p.caption.text[m.start : m.end])[0] != m.entity_id for p, m in ambiguous]
    return {
        "pairs": len(pairs),
        "pairs_by_noise": dict(sorted(Counter(p.noise for p in pairs).items())),
        "pictures": len(pictures),
        "pictures_by_kind": dict(sorted(Counter(p.picture.kind for p in pictures).items())),
        "pictures_in_pairs": len({p.picture.picture.image_id for p in pairs}),
        "pictured_entities": len({p.picture.entity_id for p in pictures}),
        "held_out_entities": len({p.picture.entity_id for p in pictures if p.held_out_entity}),
        "entities": len(base),
        "entities_by_source": dict(sorted(Counter(re.split(r"[:\d]", e.id)[0] for e in base).items())),
        "removed_entities": len(removed),
        "ambiguous_texts": len(ambiguous),
        "ambiguous_names": len(set(names)),
        "ambiguous_texts_not_likeliest": sum(others),
        # Tags and descriptions come from different packages, and have words in common all the same.
        "ambiguous_texts_with_context": len(told),
        "ambiguous_texts_with_a_word_of_the_description": sum(told),
    }


def main() -> None:
    """Builds the corpus; a user's error ends with one line on stderr and status 2."""
    config = tyro.cli(CorpusConfig, prog="python -m pipeline.demo.corpus", description=__doc__)
    started = time.monotonic()
    try:
        with reporting_disk_errors(str(config.output)):
            manifest = build_corpus(config)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    counts = manifest["counts"]
    print(
        f"{counts['pairs']} pairs over {counts['pictures_in_pairs']} of {counts['pictures']} pictures, "
        f"{counts['entities']} entities, in {config.output} after {time.monotonic() - started:.0f} s"
    )


if __name__ == "__main__":
    main()
