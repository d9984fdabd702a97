"""Wikipedia's links as labelled texts, with the bases that they are measured against. For the commands beside it.

What is learned is learned from the first half of the excerpt's articles: a base made of the links of one of its folds,
and texts of the other fold, so that a base does not know what its texts link. What is measured is measured on the
second half, with a base made of the links of the whole first half.
"""

from __future__ import annotations

import dataclasses
import glob
import json
from collections.abc import Sequence
from pathlib import Path

from evaluation.linking.gold import GoldText
from evaluation.linking.wikipedia import NamesOf, wikipedia_texts
from evaluation.linking.wikipedia_base import MergedBase, base_of, write_merged_base
from pipeline.build_kb import BuildKbConfig, build_kb
from pipeline.kb.names import find_names, is_known
from pipeline.kb.store import KnowledgeBase
from pipeline.schema import Candidate, Mention
from pipeline.stages.propose_candidates import propose_candidates
from pipeline.storage.fingerprints import code_fingerprint, package_files, sha256_of_file
from pipeline.wiki.articles import Article
from pipeline.wiki.excerpt import read_excerpt

KEPT_SHARE = 0.9  # of the linked entities, in the bases of a fit: names whose entity is left out must end as NIL


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSet:
    """Labelled texts, and the base that they are labelled for."""

    name: str
    kb_path: str
    texts: list[GoldText]
    fold: str = ""  # of the first half, if they are of one
    links: Sequence[GoldText] = ()  # the same texts labelled by the links alone, as those of the second half are


def first_half_sets(kb_source: Path, pairs: str, folder: Path) -> list[TextSet]:
    """Returns the sets for a fit: each fold with two bases, the merged one and the demo's own.

    Both bases count the links of the other fold, since a base whose anchors were counted in the same texts would know
    which names these link.

    Args:
        kb_source: lines of the demo's base.
        pairs: glob of the demo's tars, whose texts the demo's own base counts.
        folder: for the bases, which are made where they are missing or out of date.

    Raises:
        UserError: a file cannot be read, or gensim's wheel lacks the excerpt.
    """
    folds = {fold: read_excerpt(half="first", fold=fold) for fold in ("a", "b")}
    sets = []
    for fold, other in (("a", "b"), ("b", "a")):
        merged, kb_path = _build(folds[other], kb_source, folder / f"links-of-{other}", kept_share=KEPT_SHARE)
        name = f"wikipedia, fold {fold}, base with the links of fold {other}"
        sets.append(_text_set(name, folds[fold], merged, kb_path, half="first", fold=fold, with_repeated=True))
        demo_kb = _build_kb(kb_source, merged.all_anchors, folder / f"demo-with-links-of-{other}", texts=pairs)
        name = f"wikipedia, fold {fold}, demo's base"
        sets.append(_demo_set(name, folds[fold], kb_source, demo_kb, half="first", fold=fold))
    return sets


def second_half_set(kb_source: Path, folder: Path) -> TextSet:
    """Returns the set to measure on: the second half, with a base of the demo's entities and the first half's links.

    Args:
        kb_source: see `first_half_sets`.
        folder: see `first_half_sets`.

    Raises:
        UserError: see `first_half_sets`.
    """
    merged, kb_path = _build(read_excerpt(half="first"), kb_source, folder / "links-of-first-half", kept_share=1.0)
    return _text_set("wikipedia, second half", read_excerpt(half="second"), merged, kb_path, half="second")


def _build(articles: Sequence[Article], kb_source: Path, folder: Path, *, kept_share: float) -> tuple[MergedBase, str]:
    """Returns the merged base and the folder of its knowledge base."""
    merged = write_merged_base(articles, kb_source, folder, kept_share=kept_share)
    return merged, _build_kb(merged.source, merged.anchors, folder)


def _build_kb(source: Path, anchors: Path, folder: Path, *, texts: str | None = None) -> str:
    """Returns the folder of the knowledge base, which is built where what it is made of has changed."""
    folder.mkdir(parents=True, exist_ok=True)
    kb, built_of = folder / "kb", folder / "built-of.json"
    inputs = json.dumps(
        [
            sha256_of_file(source),
            sha256_of_file(anchors),
            [sha256_of_file(path) for path in sorted(glob.glob(texts or ""))],
            code_fingerprint(package_files(("build_kb.py", "kb/**/*.py", "kb/*.py"))),
        ]
    )
    if not built_of.exists() or built_of.read_text() != inputs:
        built_of.unlink(missing_ok=True)
        build_kb(BuildKbConfig(source=str(source), anchors=str(anchors), texts=texts, output=str(kb)))
        built_of.write_text(inputs)
    return str(kb)


def _text_set(
    name: str,
    articles: Sequence[Article],
    merged: MergedBase,
    kb_path: str,
    *,
    half: str,
    fold: str = "",
    with_repeated: bool = False,
) -> TextSet:
    kb = KnowledgeBase.open(kb_path)

    def texts(*, with_repeated: bool) -> list[GoldText]:
        found = wikipedia_texts(articles, merged.entities_of, half=half, with_repeated=with_repeated)
        return [one for one in found if _says_something(one, kb)]

    links = texts(with_repeated=False)
    labelled = texts(with_repeated=True) if with_repeated else links
    return TextSet(name=name, kb_path=kb_path, texts=labelled, fold=fold, links=links)


def _demo_set(
    name: str, articles: Sequence[Article], kb_source: Path, demo_kb: str, *, half: str, fold: str
) -> TextSet:
    kb = KnowledgeBase.open(demo_kb)
    texts = wikipedia_texts(
        articles, base_of(kb_source).entities_of, half=half, names_in=proper_names_in(kb), with_repeated=True
    )
    return TextSet(name=name, kb_path=demo_kb, texts=[one for one in texts if _says_something(one, kb)], fold=fold)


def _says_something(text: GoldText, kb: KnowledgeBase) -> bool:
    """Returns whether a mention is in the base, or has a name of the base though its entity is not in it."""
    return any(one.entity_ids or is_known(text.text[one.start : one.end], kb) for one in text.mentions)


def proper_names_in(kb: KnowledgeBase) -> NamesOf:
    """Returns the function that finds the names of `kb`, in any case, that it knows as proper names alone."""

    def names_in(text: str) -> list[tuple[int, int]]:
        return [(start, end) for start, end in find_names(text, kb) if _is_proper(text[start:end])]

    def _is_proper(surface: str) -> bool:
        return all(candidate.case != "common" for candidate in candidates_of(surface, kb))

    return names_in


def candidates_of(surface: str, kb: KnowledgeBase) -> tuple[Candidate, ...]:
    """Returns the entities that `kb` knows by the words of a link."""
    mention = Mention(start=0, end=len(surface), surface=surface, score=1.0, finder="dictionary")
    return propose_candidates(mention, kb)
