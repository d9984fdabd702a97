"""Finds names in texts with a flair tagger."""

from __future__ import annotations

import collections
import functools
import logging
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from pipeline.engine.devices import tagger_device, this_worker
from pipeline.kb.normalise import MARKS
from pipeline.schema import UserError
from pipeline.storage.local_copy import local_copy

# Texts per call, by torch's kind of device. Larger batches are seldom full: texts of the same length are rare. What
# fills them costs a CPU as much as other texts, and a GPU next to nothing.
BATCH_SIZES = {"cpu": 8, "cuda": 32}
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

    Of a file in a store it loads a copy. It runs on a GPU where torch has one, else in one thread of the CPU: more
    workers use more cores. flair's own variable FLAIR_DEVICE chooses: "cpu", or the number of a GPU.

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
    wanted = os.environ.get("FLAIR_DEVICE")
    flair.device = torch.device(tagger_device(num_gpus=torch.cuda.device_count(), worker=this_worker(), wanted=wanted))
    torch.set_num_threads(1)
    tagger = flair.models.SequenceTagger.load(name)
    tagger.eval()
    return tagger


def device_of(tagger: Any) -> str:
    """Returns torch's name of the device that `tagger` runs on, such as "cpu"."""
    return str(next(tagger.parameters()).device)


def tag_texts(tagger: Any, texts: Sequence[str]) -> list[list[TaggedSpan]]:
    """Returns the names in each of `texts`, in order of their start.

    Each distinct text is tagged once, together with other texts of the same number of tokens; a call always has as
    many as `BATCH_SIZES` says, the first repeated if there are fewer. So no token is padded, and the score of a text by
    this project's tagger does not depend on the other texts. Models that read characters or parts of words pad those:
    their scores may differ after the `SCORE_DECIMALS` digits that are kept.
    """
    found: dict[str, list[TaggedSpan]] = {}
    by_length: dict[int, list[str]] = collections.defaultdict(list)
    for text in sorted(set(texts)):
        by_length[len(split_tokens(text))].append(text)
    batch_size = BATCH_SIZES[device_of(tagger).partition(":")[0]]
    for length, alike in by_length.items():
        for start in range(0, len(alike) if length else 0, batch_size):
            batch = alike[start : start + batch_size]
            filled = batch + batch[:1] * (batch_size - len(batch))
            found.update(zip(batch, _tag_batch(tagger, filled), strict=False))
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
