"""Names in texts by a flair tagger. Its words and its scores, apart from the stage that calls it."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from pipeline.schema import UserError

MINI_BATCH_SIZE = 64  # fixed, so that a model sees the same shapes on every worker
TOKENS_MAX = 128  # of one text; alt-texts are far shorter, and one page-long text must not pad its batch
SCORE_DECIMALS = 4  # the order of sums in a padded batch moves the digits behind it
TAG_TYPE = "ner"

# Words with inner apostrophes, dots and hyphens whole; any other sign is a token of its own.
_TOKEN = re.compile(r"\w+(?:['\u2019.&]\w+)*|[^\w\s]")


class TaggedSpan(NamedTuple):
    """A span `[start, end)`, in characters, that the tagger takes for a name."""

    start: int
    end: int
    score: float


def split_tokens(text: str) -> list[tuple[int, int]]:
    """Returns the spans `[start, end)` of the tokens of `text`, at most `TOKENS_MAX`."""
    return [match.span() for match in _TOKEN.finditer(text)][:TOKENS_MAX]


@functools.lru_cache(maxsize=1)
def load_tagger(name: str) -> Any:
    """Returns the flair SequenceTagger called `name` (a file, or a model of the hub), one for the whole process.

    Raises:
        UserError: `name` looks like a file and is none.
    """
    if (name.endswith(".pt") or os.sep in name and name.startswith((".", os.sep))) and not os.path.isfile(name):
        raise UserError(
            f"{name}: no such tagger; write one with: python -m pipeline.kb.train_tagger --output "
            f"{os.path.dirname(name) or '.'}"
        )
    import flair.models  # takes seconds: only where a tagger is used

    import pipeline.kb.hashed_words  # noqa: F401 (makes the embeddings of the demo's tagger known to flair)

    tagger = flair.models.SequenceTagger.load(name)
    tagger.eval()
    return tagger


def tag_texts(tagger: Any, texts: Sequence[str]) -> list[list[TaggedSpan]]:
    """Returns the names in each of `texts`, in order of their start.

    Each distinct text is tagged once. The tagger's batches are packed, so what stands beside a text in its batch
    moves scores only behind `SCORE_DECIMALS`.
    """
    import flair.data

    distinct = sorted({text for text in texts if split_tokens(text)})
    spans = [split_tokens(text) for text in distinct]
    sentences = [
        flair.data.Sentence([text[start:end] for start, end in tokens])
        for text, tokens in zip(distinct, spans, strict=True)
    ]
    label_type = tagger.label_type
    tagger.predict(sentences, mini_batch_size=MINI_BATCH_SIZE, embedding_storage_mode="none")
    found: dict[str, list[TaggedSpan]] = {}
    for text, tokens, sentence in zip(distinct, spans, sentences, strict=True):
        found[text] = [
            TaggedSpan(tokens[span[0].idx - 1][0], tokens[span[-1].idx - 1][1], round(span.score, SCORE_DECIMALS))
            for span in sentence.get_spans(label_type)
        ]
    return [found.get(text, []) for text in texts]
