"""`python -m pipeline.tagger.train`: a small flair tagger, trained with no download.

It learns from the Wikipedia excerpt inside gensim's wheel, where running text links its names, and from templates in
the style of alt-texts, filled with the names found there. It sees the first half of the articles alone: the second is
for measuring.
"""

from __future__ import annotations

import calendar
import contextlib
import dataclasses
import io
import logging
import os
import random
import re
import shutil
import time
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import tyro

from pipeline.commands import ending_on_user_errors
from pipeline.kb.case import sentence_starts
from pipeline.kb.normalise import WORD
from pipeline.schema import UserError
from pipeline.storage.disk import check_writable, reporting_disk_errors
from pipeline.tagger.load import TAG_TYPE, split_tokens
from pipeline.tagger.word_use import WordUse
from pipeline.wiki.articles import Article
from pipeline.wiki.excerpt import read_excerpt
from pipeline.wiki.sentences import split_sentences

_TAG = "ENT"
_CALENDAR = frozenset((*calendar.month_name, *calendar.day_name))  # no names, though they have a capital
_LANGUAGE = "en"  # of the excerpt and of the templates
MODEL_NAME = "best-model.pt"
_UNFINISHED = "unfinished"  # folder in the output
_OUTPUT_BYTES = 20_000_000  # checkpoints, log and the tagger itself
_PARAGRAPH_CHARS_MIN = 60  # shorter ones are headings and the like
_NAME = re.compile(r"^[A-Z][\w'.-]*(?: (?:of|the|and|de|van|von|la|[A-Z][\w'.-]*|\d+))*$")
TEMPLATES = (
    "{0} and {1}",
    "{0} at night",
    "{0} in {1}",
    "{0}, {1}",
    "{0} - a short history",
    "photograph of {0} taken in summer",
    "old photo of {0}",
    "portrait of {0} by an unknown painter",
    "map showing {0} and {1}",
    "the coast of {0} seen from the air",
    "view over {0} from the hills",
    "poster for {0}",
    "cover of the book about {0}",
    "a visit to {0} with friends",
    "{0} souvenir mug",
    "{0} T-shirt, size large",
    "our trip from {0} to {1}",
    "statue in {0}",
    "crowd outside the {0} building",
    "tickets for {0} now on sale",
    "headquarters of {0}",
    "{0}'s garden in spring",
    "sketch of {0}",
    "detail from a painting in {0}",
    "postcard: greetings from {0}",
    # Without a name, so that the tagger learns to find none.
    "a wooden table with two chairs",
    "small brown dog running on the beach",
    "close-up of a green leaf",
    "Chocolate cake with cream",
    "our products",
    "scan 07 of 12",
    "tap the cross to close",
    "Three people waiting for a bus",
    "Blue and white pattern, seamless",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainTaggerConfig:
    """Trains the tagger that finds names in texts; about one minute on one core."""

    output: str = "runs/demo/tagger"
    """Directory that receives best-model.pt."""
    num_sentences: int = 2600
    """At most as many sentences are taken from the Wikipedia excerpt, of those whose names are all marked."""
    num_templates: int = 1800
    """Filled templates in the style of alt-texts."""
    num_epochs: int = 3
    mini_batch_size: int = 32
    learning_rate: float = 0.006
    seed: int = 0
    fold: Literal["", "a", "b"] = ""
    """Learn from this fold of the articles alone, so that the tagger can be tried on the other; empty: from both."""


def read_wiki_sentences(articles: Iterable[Article]) -> Iterator[tuple[str, list[tuple[int, int]]]]:
    """Yields the sentences of running text that have a link, with the spans `[start, end)` of capitalised names."""
    for article in articles:
        for paragraph in article.paragraphs:
            if not paragraph.is_prose or len(paragraph.text) < _PARAGRAPH_CHARS_MIN:
                continue
            for sentence in split_sentences(paragraph):
                if sentence.links:
                    spans = [(link.start, link.end) for link in sentence.links]
                    yield sentence.text, [(a, b) for a, b in spans if _NAME.match(sentence.text[a:b])]


def mark_repeated_names(text: str, spans: list[tuple[int, int]], names: set[str]) -> list[tuple[int, int]]:
    """Returns `spans` and the further spans of `text` that hold one of `names`; Wikipedia links a name only once.

    They do not overlap; of several at one place the longest is taken.
    """
    taken = list(spans)
    tokens = split_tokens(text)
    for first, (start, _) in enumerate(tokens):
        for last in range(min(first + 4, len(tokens)) - 1, first - 1, -1):
            end = tokens[last][1]
            if text[start:end] in names and all(end <= a or b <= start for a, b in taken):
                taken.append((start, end))
                break
    return sorted(taken)


def is_fully_marked(text: str, spans: list[tuple[int, int]]) -> bool:
    """Returns whether each word of `text` that has a capital, but for first words, is in one of `spans`.

    In other sentences Wikipedia leaves a name without a link. A tagger that learned from them would learn to leave out
    names.
    """
    opening = sentence_starts(text)
    return all(
        any(start <= word.start() and word.end() <= end for start, end in spans)
        for word in WORD.finditer(text)
        if len(word[0]) > 1 and word[0][0].isupper() and word.start() not in opening and word[0] not in _CALENDAR
    )


def fill_templates(names: list[str], count: int, rng: random.Random) -> Iterator[tuple[str, list[tuple[int, int]]]]:
    """Returns `count` filled templates with the spans of the names; some in lower case or in title case."""
    for _ in range(count):
        template = rng.choice(TEMPLATES)
        chosen = [rng.choice(names), rng.choice(names)]
        style = rng.random()
        if style < 0.15:
            template = "".join(part.title() if "{" not in part else part for part in re.split(r"(\{\d\})", template))
        elif style < 0.25:
            chosen = [name.lower() for name in chosen]
        text, spans, position = "", [], 0
        for match in re.finditer(r"\{(\d)\}", template):
            text += template[position : match.start()]
            spans.append((len(text), len(text) + len(chosen[int(match[1])])))
            text += chosen[int(match[1])]
            position = match.end()
        yield text + template[position:], spans


def load_examples(config: TrainTaggerConfig) -> list[tuple[str, list[tuple[int, int]]]]:
    """Returns the texts with the spans of their names, shuffled.

    Raises:
        UserError: gensim's wheel does not hold the excerpt.
    """
    rng = random.Random(config.seed)
    wiki = list(read_wiki_sentences(read_excerpt(half="first", fold=config.fold)))
    names = sorted({text[start:end] for text, spans in wiki for start, end in spans})
    known = {name for name in names if len(name) > 3}
    marked = [(text, mark_repeated_names(text, spans, known)) for text, spans in wiki]
    marked = [(text, spans) for text, spans in marked if is_fully_marked(text, spans)]
    examples = rng.sample(marked, min(config.num_sentences, len(marked)))
    examples += fill_templates(names, config.num_templates, rng)
    rng.shuffle(examples)
    return examples


def train_tagger(config: TrainTaggerConfig) -> str:
    """Returns the path of the tagger that was trained.

    Training writes to a folder beside it; the file is moved to its place when it is complete.

    Raises:
        UserError: an argument is out of range, the excerpt is missing, or the tagger learned nothing.
    """
    for name in ("num_sentences", "num_templates", "num_epochs", "mini_batch_size"):
        if getattr(config, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(config, name)}: must be at least 1")
    check_writable(config.output, needed_bytes=_OUTPUT_BYTES)
    import flair
    import torch
    from flair.data import Corpus
    from flair.datasets import FlairDatapointDataset
    from flair.trainers import ModelTrainer

    started = time.monotonic()
    flair.device = torch.device("cpu")
    flair.set_seed(config.seed)
    torch.set_num_threads(1)  # tensors of this size gain nothing from more, and the sums keep their order
    logging.getLogger("flair").setLevel(logging.WARNING)
    sentences = _labelled_sentences(load_examples(config))
    num_dev = max(len(sentences) // 20, 1)
    num_train = len(sentences) - num_dev
    corpus: Corpus[Any] = Corpus(
        train=FlairDatapointDataset(sentences[num_dev:]),
        dev=FlairDatapointDataset(sentences[:num_dev]),
        sample_missing_splits=False,
    )
    tagger = _new_tagger()
    print(f"training on {num_train:,} texts for {config.num_epochs} epochs, about one minute", flush=True)
    unfinished = os.path.join(config.output, _UNFINISHED)
    shutil.rmtree(unfinished, ignore_errors=True)
    progress = _progress_plugin(-(-num_train // config.mini_batch_size) * config.num_epochs)
    # flair shows a progress bar for each evaluation, which no option turns off, and torch warns about flair's calls.
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        ModelTrainer(tagger, corpus).train(
            unfinished,
            optimizer=torch.optim.AdamW,
            learning_rate=config.learning_rate,
            mini_batch_size=config.mini_batch_size,
            max_epochs=config.num_epochs,
            train_with_dev=False,
            save_final_model=False,
            shuffle_first_epoch=True,
            embeddings_storage_mode="none",
            create_file_logs=False,
            create_loss_file=False,
            plugins=[progress],
        )
    if not progress.is_finished:
        raise KeyboardInterrupt  # flair takes Ctrl-C for the end of the training
    best = os.path.join(unfinished, MODEL_NAME)
    if not os.path.exists(best):
        raise UserError(
            f"no epoch of {config.num_epochs} found a name in {num_dev} held-out texts; raise --num-epochs or "
            "--num-sentences"
        )
    path = os.path.join(config.output, MODEL_NAME)
    os.replace(best, path)
    shutil.rmtree(unfinished)
    print(f"{path}: trained in {time.monotonic() - started:.0f} s", flush=True)
    return path


def _labelled_sentences(examples: Iterable[tuple[str, list[tuple[int, int]]]]) -> list[Any]:
    """Returns flair's sentences with a label on each name; texts without tokens are left out."""
    from flair.data import Sentence

    sentences = []
    for text, spans in examples:
        tokens = split_tokens(text)
        if not tokens:
            continue
        sentence = Sentence([text[start:end] for start, end in tokens])
        for start, end in spans:
            inside = [i for i, (a, b) in enumerate(tokens) if start <= a and b <= end]
            if inside:
                sentence[inside[0] : inside[-1] + 1].add_label(TAG_TYPE, _TAG)
        sentences.append(sentence)
    return sentences


def _new_tagger() -> Any:
    """Returns an untrained flair SequenceTagger."""
    from flair.data import Dictionary
    from flair.models import SequenceTagger

    from pipeline.tagger.hashed_words import HashedWordEmbeddings

    word_use = WordUse.of_language(_LANGUAGE)
    tags = Dictionary(add_unk=False)  # the corpus could count them, and would print a progress bar for it
    tags.span_labels = True
    tags.add_item(_TAG)
    return SequenceTagger(
        hidden_size=96,
        embeddings=HashedWordEmbeddings(hashes=word_use.hashes, uses=word_use.uses),
        tag_dictionary=tags,
        tag_type=TAG_TYPE,
        use_crf=False,  # a hundred tags per text are not worth its time
        reproject_embeddings=False,
        locked_dropout=0.2,
    )


def _progress_plugin(num_batches: int) -> Any:
    """Returns a flair plugin that prints the share done and the time left, about every 10 s.

    Its `is_finished` is whether the training came to its end.
    """
    from flair.trainers.plugins.base import TrainerPlugin

    class Progress(TrainerPlugin):
        def __init__(self) -> None:
            super().__init__()
            self.done = 0
            self.is_finished = False
            self.start = self.printed = time.monotonic()

        @TrainerPlugin.hook
        def after_training_batch(self, **_: object) -> None:
            self.done += 1
            now = time.monotonic()
            if now - self.printed >= 10 or self.done == num_batches:
                left_sec = (now - self.start) / self.done * (num_batches - self.done)
                print(f"tagger: batch {self.done}/{num_batches}, {left_sec:.0f} s left", flush=True)
                self.printed = now

        @TrainerPlugin.hook
        def after_training_loop(self, **_: object) -> None:
            self.is_finished = True

    return Progress()


def main() -> None:
    """Runs the command."""
    config = tyro.cli(TrainTaggerConfig, prog="python -m pipeline.tagger.train")
    with ending_on_user_errors(), reporting_disk_errors(config.output):
        train_tagger(config)


if __name__ == "__main__":
    main()
