"""Puts the embedded corpus together from npm packages: `python -m pipeline.demo.corpus --help`.

Pictures are emoji, flags and logos; texts are composed (see `captions`), with the noise that `config.SHARES` states.
Everything is drawn from one seed, and files carry no times: the same packages and seed give the same bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import tyro

from pipeline.commands import ending_on_user_errors
from pipeline.demo.compose import Pair, compose_pairs
from pipeline.demo.config import EMOJI_RENDERINGS, FLAG_RENDERINGS, LOGO_RENDERINGS, OTHER_PACKAGES, CorpusConfig
from pipeline.demo.drawing import DrawnPicture, draw
from pipeline.demo.entities import CorpusEntity, emoji_entities, homonyms, wikidata_entities
from pipeline.demo.files import write_evaluation, write_knowledge_base, write_pairs, write_truth
from pipeline.demo.name_index import NameIndex
from pipeline.demo.packages import Packages
from pipeline.demo.pictures import emoji_icons, emoji_pictures, flag_pictures, logo_pictures
from pipeline.demo.selection import choose_removed, held_out_entities, name_weights, stream
from pipeline.demo.strays import Strays
from pipeline.kb.bag_of_words import split_words
from pipeline.kb.normalise import normalise_alias
from pipeline.schema import UserError
from pipeline.storage.disk import check_writable, reporting_disk_errors

FORMAT_VERSION = 2
_OUTPUT_BYTES_PER_PAIR = 10_000  # 64 px pictures and all that is written beside them


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
    # The most popular entity with a flag comes first, and so keeps it.
    pictures.sort(key=lambda p: (-popularity.get(p.entity_id, 0.0), p.entity_id, p.image_id))
    print(f"drawing {len(pictures)} pictures, about {len(pictures) / 500 / config.num_workers:.0f} s", flush=True)
    drawn = draw(pictures, size_px=config.image_size_px, num_workers=config.num_workers)
    pictured = {p.entity_id for p, _ in drawn}
    wordnet = homonyms(
        packages,
        [e for e in (*wikidata, *emoji) if e.id in pictured],
        own_senses=own_senses,
        num_emoji_names=config.num_homonym_names,
        rng=stream(config.seed, "homonyms"),
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
    index = NameIndex(
        name_weights(base),
        types={kind for entity in base for kind in entity.types},
        brands={e.id for e in base if e.id.startswith("Q") and "place" not in e.types},
    )
    strays = Strays(packages, index, seed=config.seed)
    print(f"composing {config.num_pairs} texts over {len(training)} training pictures", flush=True)
    pairs = compose_pairs(training, entities, removed, index, strays, num_pairs=config.num_pairs, seed=config.seed)
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


def _without_links(entity: CorpusEntity, removed: Mapping[str, Any]) -> CorpusEntity:
    return dataclasses.replace(entity, links=tuple(i for i in entity.links if i not in removed))


def corpus_counts(
    pairs: Sequence[Pair],
    pictures: Sequence[DrawnPicture],
    base: Sequence[CorpusEntity],
    index: NameIndex,
    removed: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns what the corpus holds, in numbers: the manifest's `counts`."""
    ambiguous = [(p, m) for p in pairs for m in p.caption.mentions if m.ambiguous and m.entity_id is not None]
    names = [normalise_alias(m.name) for _, m in ambiguous]
    descriptions = {e.id: set(split_words(e.description)) for e in base}
    in_description = [
        any(descriptions[m.entity_id].intersection(split_words(tag)) for tag in p.caption.tags)
        for p, m in ambiguous
        if m.entity_id is not None and m.has_context
    ]
    stray_texts = [p for p in pairs if p.caption.strays]
    stray_names = {normalise_alias(p.caption.text[s.start : s.end]) for p in stray_texts for s in p.caption.strays}
    others = [index.candidates(m.name)[0] != m.entity_id for _, m in ambiguous]
    return {
        "pairs": len(pairs),
        "pairs_by_noise": dict(sorted(Counter(p.noise for p in pairs).items())),
        "pairs_by_half": dict(sorted(Counter(p.half for p in pairs).items())),
        "pairs_by_spelling": dict(sorted(Counter(one for p in pairs for one in p.caption.spelling).items())),
        "pairs_with_stray_names": len(stray_texts),
        "stray_names_by_kind": dict(sorted(Counter(s.kind for p in stray_texts for s in p.caption.strays).items())),
        "distinct_stray_names": len(stray_names),
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
        "ambiguous_texts_with_context": len(in_description),
        "ambiguous_texts_with_a_word_of_the_description": sum(in_description),
    }


def main() -> None:
    """Builds the corpus; a user's error ends with one line on stderr and status 2."""
    config = tyro.cli(CorpusConfig, prog="python -m pipeline.demo.corpus", description=__doc__)
    started = time.monotonic()
    with ending_on_user_errors(), reporting_disk_errors(str(config.output)):
        manifest = build_corpus(config)
    counts = manifest["counts"]
    print(
        f"{counts['pairs']} pairs over {counts['pictures_in_pairs']} of {counts['pictures']} pictures, "
        f"{counts['entities']} entities, in {config.output} after {time.monotonic() - started:.0f} s"
    )


if __name__ == "__main__":
    main()
