"""Pictures and texts put together: a caption for each pair, in the shares of noise that `config.SHARES` sets."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from pipeline.demo import captions
from pipeline.demo.captions import Caption, NamedSpan, NameIndex
from pipeline.demo.config import SHARES
from pipeline.demo.drawing import DrawnPicture
from pipeline.demo.entities import CorpusEntity
from pipeline.demo.selection import NAMES_IN_TEXTS, stream
from pipeline.kb.normalise import normalise_alias
from pipeline.schema import UserError

_ATTEMPTS = 12  # drafts of one caption before a stray name in it is accepted


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """One picture-text pair and the truth about it."""

    picture: DrawnPicture
    caption: Caption
    noise: str
    copy: int  # how often the picture came before, from 0


class Composer:
    """Writes captions, one kind of noise at a time."""

    def __init__(
        self, entities: Mapping[str, CorpusEntity], kinds: Mapping[str, str], index: NameIndex, rng: random.Random
    ):
        """Takes all entities, the kind of picture of each pictured one, the names of the base, and a generator."""
        self.entities, self.kinds, self.index, self.rng = entities, kinds, index, rng
        self._contexts: dict[tuple[str, str], tuple[list[str], list[str]]] = {}

    def names(self, entity_id: str, *, ambiguous: bool) -> list[str]:
        """Returns the entity's names that it shares (`ambiguous`) or has to itself, label first."""
        kept = []
        for name in self.entities[entity_id].names[:NAMES_IN_TEXTS]:
            meanings = self.index.candidates(name)
            if len(name) >= 3 and entity_id in meanings and (len(meanings) > 1) == ambiguous:
                kept.append(name)
        return kept

    def choose_name(self, names: Sequence[str]) -> str:
        """Returns mostly the first name; a name in lower case is sometimes capitalised, as in titles."""
        name = names[0] if self.rng.random() < 0.6 else self.rng.choice(names)
        return name.title() if name.islower() and self.rng.random() < 0.3 else name

    def tags(self, entity_id: str, name: str) -> list[str]:
        """Returns two to four words that show what is meant, in random order, with a category where there is one.

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


# Names in the base (of shops, mostly) that are plain words in a text about a picture. They are not stray mentions.
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
    entities: Mapping[str, CorpusEntity],
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
    rng = stream(seed, "pairs")
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

    Of ambiguous names, half the walk is over entities that are not the likeliest meaning: else the prior alone
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
