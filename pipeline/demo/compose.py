"""Pictures and texts put together: a caption for each pair, in the shares of noise that `config.SHARES` sets."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from pipeline.demo import templates
from pipeline.demo.captions import Caption
from pipeline.demo.composer import Composer
from pipeline.demo.config import SHARES
from pipeline.demo.context import ContextWords
from pipeline.demo.drawing import DrawnPicture
from pipeline.demo.entities import CorpusEntity
from pipeline.demo.name_index import NameIndex
from pipeline.demo.selection import half_of, stream
from pipeline.demo.strays import Strays
from pipeline.schema import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """One picture-text pair and the truth about it."""

    picture: DrawnPicture
    caption: Caption
    noise: str
    half: str  # "fit" or "measure", by the entity that the text names, else by the picture's
    copy: int  # how often the picture came before, from 0


def compose_pairs(
    pictures: Sequence[DrawnPicture],
    entities: Mapping[str, CorpusEntity],
    removed: Mapping[str, Sequence[str]],
    index: NameIndex,
    strays: Strays,
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
        strays: phrases with names that mean no entity.
        num_pairs: how many; every picture that can be named comes at least once where they suffice.
        seed: of all choices.

    Raises:
        UserError: a kind of noise has no picture that it fits.
    """
    rng = stream(seed, "pairs")
    kinds = {p.picture.entity_id: p.picture.kind for p in pictures}
    composer = Composer(entities, kinds, index, ContextWords(entities, kinds, index, seed=seed), strays, rng, seed=seed)
    in_base = [p for p in pictures if p.picture.entity_id not in removed]
    entity_ids = sorted({p.picture.entity_id for p in in_base})
    alone = {i: composer.names(i, ambiguous=False) for i in entity_ids}
    shared = {i: composer.names(i, ambiguous=True) for i in entity_ids}
    nameable = [i for i in entity_ids if alone[i]]
    fitting = {
        "named": [p for p in in_base if alone[p.picture.entity_id]],
        "ambiguous_with_context": [p for p in in_base if _has_context(composer, p.picture.entity_id, shared)],
        "ambiguous_without_context": [p for p in in_base if shared[p.picture.entity_id]],
        "missing_entity": [p for p in pictures if p.picture.entity_id in removed],
    }
    nothing = {
        "file_name": templates.FILE_NAMES,
        "shop_boilerplate": templates.SHOP_BOILERPLATE,
        "no_entity": templates.NO_ENTITY,
    }
    drafts: list[tuple[DrawnPicture, Caption, str, str]] = []
    for noise, count in counts_of(SHARES, num_pairs).items():
        cycle = _cycle(fitting.get(noise, in_base), rng, noise=noise, count=count, index=index, shared=shared)
        for picture in itertools.islice(cycle, count):
            entity_id = about = picture.picture.entity_id
            if noise in nothing:
                caption = composer.about_nothing(
                    nothing[noise], half=half_of(seed, entity_id), plain=noise == "file_name"
                )
            elif noise == "missing_entity":
                caption = composer.about(entity_id, removed[entity_id], style="tags", truth=None)
            elif noise == "wrong_text":
                while about == entity_id:
                    about = rng.choice(nameable)
                caption = composer.about(about, alone[about], style=_named_style(rng), truth=about)
            elif noise == "named":
                caption = composer.about(entity_id, alone[entity_id], style=_named_style(rng), truth=entity_id)
            else:
                style = "tags" if noise == "ambiguous_with_context" else "bare"
                caption = composer.about(entity_id, shared[entity_id], style=style, truth=entity_id)
            drafts.append((picture, caption, noise, half_of(seed, about)))
    rng.shuffle(drafts)
    copies: Counter[str] = Counter()
    pairs = []
    for picture, caption, noise, half in drafts:
        image_id = picture.picture.image_id
        pairs.append(Pair(picture=picture, caption=caption, noise=noise, half=half, copy=copies[image_id]))
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


def _has_context(composer: Composer, entity_id: str, shared: Mapping[str, Sequence[str]]) -> bool:
    return any(composer.has_context(entity_id, name) for name in shared[entity_id])


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
