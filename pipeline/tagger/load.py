"""Finds names in texts with a flair tagger."""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from pipeline.engine.devices import batches_of_one_length, torch_device
from pipeline.kb.normalise import MARKS
from pipeline.schema import UserError
from pipeline.storage.local_copy import local_copy

TOKENS_MAX = 128  # of one text; alt-texts are far shorter
SCORE_DECIMALS = 4  # further digits differ between machines
TAG_TYPE = "ner"

# A word keeps its inner apostrophes, dots and ampersands; any other character is a token of its own.
_TOKEN = re.compile(rf"[\w{MARKS}]+(?:['\u2019.&][\w{MARKS}]+)*|[^\w\s]")


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

    Of a file in a store it loads a copy. `torch_device` says on what it runs.

    Raises:
        UserError: `name` looks like the path of a file, and there is no such file.
    """
    name = local_copy(name)
    if (name.endswith(".pt") or os.sep in name and name.startswith((".", os.sep))) and not os.path.isfile(name):
        raise UserError(
            f"{name}: no such tagger; write one with: python -m pipeline.tagger.train --output "
            f"{os.path.dirname(name) or '.'}"
        )
    os.environ.setdefault("USE_TF", "0")  # transformers, which flair imports, would load TensorFlow
    import flair.models  # takes seconds: only where a tagger is used
    import torch

    import pipeline.tagger.hashed_words  # noqa: F401 (makes the embeddings of the demo's tagger known to flair)

    logging.getLogger("flair").setLevel(logging.WARNING)  # it would print the tags of the model
    flair.device = torch.device(torch_device())
    tagger = flair.models.SequenceTagger.load(name)
    tagger.eval()
    return tagger


def device_of(tagger: Any) -> str:
    """Returns torch's name of the device that `tagger` runs on, such as "cpu"."""
    return str(next(tagger.parameters()).device)


def tag_texts(tagger: Any, texts: Sequence[str]) -> list[list[TaggedSpan]]:
    """Returns the names in each of `texts`, in order of their start.

    Each distinct text is tagged once, together with other texts of the same number of tokens; every call of that
    number has as many. So no token is padded, and the score of a text by this project's tagger does not depend on the
    other texts. Models that read characters or parts of words pad those: their scores may differ after the
    `SCORE_DECIMALS` digits that are kept.
    """
    distinct = sorted(set(texts))
    lengths = [len(split_tokens(text)) for text in distinct]
    found: dict[str, list[TaggedSpan]] = {}
    for batch in batches_of_one_length(lengths, device=device_of(tagger)):
        if lengths[batch[0]]:
            alike = [distinct[place] for place in batch]
            found.update(zip(alike, _tag_batch(tagger, alike), strict=True))
    return [found.get(text, []) for text in texts]


def _tag_batch(tagger: Any, texts: Sequence[str]) -> list[list[TaggedSpan]]:
    import flair.data

    spans = [split_tokens(text) for text in texts]
    sentences = [
        flair.data.Sentence([text[start:end] for start, end in tokens])
        for text, tokens in zip(texts, spans, strict=True)
    ]
    for sentence in sentences:
        # Some models look at the sentences before and after: a text has none.
        flair.data.Sentence.set_context_for_sentences([sentence])
    tagger.predict(sentences, mini_batch_size=len(sentences), embedding_storage_mode="none")
    return [
        [
            TaggedSpan(tokens[span[0].idx - 1][0], tokens[span[-1].idx - 1][1], round(span.score, SCORE_DECIMALS))
            for span in sentence.get_spans(tagger.label_type)
        ]
        for tokens, sentence in zip(spans, sentences, strict=True)
    ]
