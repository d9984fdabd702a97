"""The composed texts of a demo as labelled texts. For the commands beside it."""

from __future__ import annotations

import glob
import hashlib
from pathlib import Path

from evaluation.demo.labels import PairTruth, of_half, read_truth
from evaluation.linking.gold import GoldMention, GoldText
from pipeline.schema import ImageText
from pipeline.sources.read import read_shard

CONCEPT_PREFIXES = ("emoji:", "wordnet:")  # of the ids of common nouns


def composed_texts(demo: Path, *, half: str, most: int | None = None) -> list[GoldText]:
    """Returns the texts of a demo's pairs in one half, with all that they name.

    Args:
        demo: its folder.
        half: "fit", to which the linker is fitted, or "measure".
        most: texts, drawn by a hash of their keys; None: all.

    Raises:
        UserError: the demo's corpus is missing or damaged.
    """
    truth = of_half(read_truth(demo / "corpus" / "truth.parquet"), half)
    keys = truth.keys() if most is None else sorted(truth, key=_drawn)[:most]
    wanted = set(keys)
    texts = []
    for path in sorted(glob.glob(str(demo / "corpus" / "pairs-*.tar"))):
        for pair in read_shard(path):
            if isinstance(pair, ImageText) and pair.image_id in wanted:
                texts.append(_text(pair, truth[pair.image_id]))
    return texts


def _drawn(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _text(pair: ImageText, truth: PairTruth) -> GoldText:
    mentions = tuple(
        GoldMention(
            start=one.start,
            end=one.end,
            entity_ids=frozenset(() if one.entity_id is None else (one.entity_id,)),
            kind="noun" if (one.entity_id or "").startswith(CONCEPT_PREFIXES) else "name",
        )
        for one in sorted(truth.mentions, key=lambda one: one.start)
    )
    # Texts about one picture's entity share its tags.
    group = truth.picture_entity_id or pair.image_id
    return GoldText(text_id=pair.image_id, text=pair.text, group=group, half="", kind="composed", mentions=mentions)
