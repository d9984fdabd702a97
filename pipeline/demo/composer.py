"""Writes captions: a name, words beside it, a stray phrase, and a spelling."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Mapping, Sequence

from pipeline.demo import spelling, templates
from pipeline.demo.captions import STRAY_ROLES, Caption, NamedSpan, Piece, StraySpan, assemble, escape, fill
from pipeline.demo.context import ContextWords
from pipeline.demo.entities import CorpusEntity
from pipeline.demo.name_index import NameIndex
from pipeline.demo.selection import NAMES_IN_TEXTS, half_of
from pipeline.demo.strays import Strays, cut_out

STRAY_SHARE = 0.25  # of the captions but file names and bare names: they have a stray phrase
_RELATED_SHARE = 0.4  # of the words beside a name: from WordNet, not from tags and keywords
_TAGS_MIN, _TAGS_MAX = 2, 4
_ATTEMPTS = 12  # drafts of one caption until no longer name of the base swallows the one that it is about


class Composer:
    """Writes captions, one kind of noise at a time."""

    def __init__(
        self,
        entities: Mapping[str, CorpusEntity],
        kinds: Mapping[str, str],
        index: NameIndex,
        context: ContextWords,
        strays: Strays,
        rng: random.Random,
        *,
        seed: int,
    ):
        """Takes all entities, the kind of picture of each pictured one, the names of the base, words and phrases for
        texts, a generator, and the seed that decides halves."""
        self._entities, self._kinds, self._index = entities, kinds, index
        self._context, self._strays, self._rng, self._seed = context, strays, rng, seed
        self._num_shared: Counter[str] = Counter()  # captions with a shared name and context, by entity
        self._sharing: dict[str, bool] = {}

    def names(self, entity_id: str, *, ambiguous: bool) -> list[str]:
        """Returns the entity's names that it shares (`ambiguous`) or has to itself, label first."""
        kept = []
        for name in self._entities[entity_id].names[:NAMES_IN_TEXTS]:
            meanings = self._index.candidates(name)
            if len(name) >= 3 and entity_id in meanings and (len(meanings) > 1) == ambiguous:
                kept.append(name)
        return kept

    def has_context(self, entity_id: str, name: str) -> bool:
        """Returns whether there are enough words to say beside this shared name."""
        return any(len(self._context.beside(entity_id, name, part)) >= _TAGS_MIN for part in (0, 1))

    def about(self, entity_id: str, names: Sequence[str], *, style: str, truth: str | None) -> Caption:
        """Returns a text that names the entity by one of `names`.

        Args:
            entity_id: whom the text is about.
            names: to choose from.
            style: "tags", "plain" or "bare".
            truth: the right answer, None for an entity that the base lacks.
        """
        is_shared = truth is not None and len(self._index.candidates(names[0])) > 1
        part = self._part(entity_id, is_shared=is_shared and style == "tags")
        if is_shared and style == "tags":
            names = [name for name in names if self.has_context(entity_id, name)]
        caption = Caption(raw="", text="")
        for _ in range(_ATTEMPTS):
            name = self._choose_name(names)
            tags = self._tags(entity_id, name, part) if style == "tags" else []
            if is_shared and style == "tags" and not tags:
                tags = self._tags(entity_id, name, 1 - (part or 0))
            kind = self._kinds[entity_id]
            table = (
                templates.BARE if style == "bare" else (templates.WITH_TAGS if tags else templates.WITHOUT_TAGS)[kind]
            )
            pieces = fill(self._rng.choice(table), self._rng, name=name, tags=tags)
            if style != "bare":
                pieces = self._with_stray(pieces, half_of(self._seed, entity_id))
            mention = NamedSpan(
                start=0,
                end=0,
                name=name,
                entity_id=truth,
                kind=kind,
                ambiguous=truth is None or len(self._index.candidates(name)) > 1,
                has_context=bool(tags),
            )
            caption = self._finish(pieces, mention, tags)
            (named,) = caption.mentions
            if not _is_crossed(self._index.spans(caption.text), named.start, named.end):
                break
        return caption

    def about_nothing(self, table: Sequence[str], *, half: str, plain: bool) -> Caption:
        """Returns a text that names nothing; `plain` ones have no stray phrase and the template's spelling."""
        pieces = fill(self._rng.choice(table), self._rng)
        if plain:
            text, _ = assemble(pieces)
            return Caption(raw=text, text=text)
        return self._finish(self._with_stray(pieces, half), None, ())

    def _choose_name(self, names: Sequence[str]) -> str:
        """Returns mostly the first name; a name in lower case is sometimes capitalised, as in titles."""
        name = names[0] if self._rng.random() < 0.6 else self._rng.choice(names)
        return name.title() if name.islower() and self._rng.random() < 0.3 else name

    def _part(self, entity_id: str, *, is_shared: bool) -> int | None:
        """Returns which part of the entity's words may be used: shared names take turns, other names keep to part 0.

        None, for all words, where the entity shares no name.
        """
        if is_shared:
            self._num_shared[entity_id] += 1
            return self._num_shared[entity_id] % 2
        if entity_id not in self._sharing:
            self._sharing[entity_id] = bool(self.names(entity_id, ambiguous=True))
        return 0 if self._sharing[entity_id] else None

    def _tags(self, entity_id: str, name: str, part: int | None) -> list[str]:
        """Returns two to four words that show what is meant, in random order, often with a category.

        [] where there are fewer than two, which does not depend on chance.
        """
        words = self._context.beside(entity_id, name, part)
        chosen = self._rng.sample(words.categories, min(len(words.categories), self._rng.randint(0, 1)))
        said = [word for word in dict.fromkeys((*words.keywords, *words.categories)) if word not in chosen]
        related = [word for word in words.related if word not in words.keywords and word not in words.categories]
        wanted = self._rng.randint(_TAGS_MIN, _TAGS_MAX)
        while len(chosen) < wanted and (said or related):
            pool = related if related and (not said or self._rng.random() < _RELATED_SHARE) else said
            chosen.append(pool.pop(self._rng.randrange(len(pool))))
        self._rng.shuffle(chosen)
        return chosen if len(chosen) >= _TAGS_MIN else []

    def _with_stray(self, pieces: list[Piece], half: str) -> list[Piece]:
        """Returns the pieces, in `STRAY_SHARE` of the cases with a stray phrase beside them."""
        phrase = self._strays.draw(half, self._rng) if self._rng.random() < STRAY_SHARE else []
        if not phrase:
            return pieces
        template = self._rng.choice(templates.WITH_STRAY)
        return fill(template, self._rng, parts={"caption": pieces, "stray": phrase})

    def _finish(self, pieces: list[Piece], mention: NamedSpan | None, tags: Sequence[str]) -> Caption:
        """Returns the caption of the pieces, spelt as the web spells."""
        pieces = [part for piece in pieces for part in self._stray_tags(piece)]
        pieces, spelt = self._spell(pieces, is_noun=mention is not None and mention.kind == "emoji")
        text, spans = assemble(pieces)
        raw = text
        if self._rng.random() < spelling.ESCAPED:
            times = 2 if self._rng.random() < spelling.ESCAPED_TWICE else 1
            raw = escape(text, self._rng, times=times)
            if raw != text:
                spelt.append("escaped" if times == 1 else "escaped_twice")
        mentions = tuple(
            dataclasses.replace(mention, start=start, end=end)
            for start, end, role in spans
            if role == "name" and mention is not None
        )
        strays = tuple(
            StraySpan(start=start, end=end, kind=role.removeprefix("stray_"))
            for start, end, role in spans
            if role in STRAY_ROLES
        )
        return Caption(raw=raw, text=text, mentions=mentions, strays=strays, tags=tuple(tags), spelling=tuple(spelt))

    def _stray_tags(self, piece: Piece) -> list[Piece]:
        """Returns the piece; of a tag with brands' names in it, these apart."""
        spans = self._index.stray_words(piece.text) if piece.role == "tag" else None
        return cut_out(piece.text, spans, "stray_word") if spans else [piece]

    def _spell(self, pieces: list[Piece], *, is_noun: bool) -> tuple[list[Piece], list[str]]:
        """Returns the pieces in some spelling, and what was changed."""
        spelt: list[str] = []
        for place, piece in enumerate(pieces):
            if piece.role != "name":
                continue
            name = piece.text
            bare = spelling.without_diacritics(name)
            plural = spelling.plural_of(name) if is_noun and name.islower() and name.isascii() else ""
            if bare != name and self._rng.random() < spelling.NO_DIACRITICS:
                pieces[place], spelt = Piece(text=bare, role="name"), ["no_diacritics"]
            elif (
                plural and self._index.meanings(plural) == self._index.meanings(name) and self._chance(spelling.PLURAL)
            ):
                pieces[place], spelt = Piece(text=plural, role="name"), ["plural"]
        if self._chance(spelling.HASHTAGS):
            tagged = spelling.with_hashtags(pieces, self._rng.choice(("name", "tag")))
            if len(tagged) > len(pieces):
                pieces, spelt = tagged, [*spelt, "hashtags"]
        at = self._rng.random()
        for case, share in spelling.CASES.items():
            if 0 <= at < share:
                return spelling.change_case(pieces, case), [*spelt, case]
            at -= share
        return pieces, spelt

    def _chance(self, share: float) -> bool:
        return self._rng.random() < share


def _is_crossed(spans: Sequence[tuple[int, int]], start: int, end: int) -> bool:
    """Returns whether a name of the base touches `[start, end)` and goes beyond it."""
    return any(s < end and start < e and not (start <= s and e <= end) for s, e in spans)
