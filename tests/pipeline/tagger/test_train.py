"""Training texts for the tagger, and a tagger of a few sentences."""

import contextlib
import dataclasses
import io
import os
import random
import re
import shutil
import warnings
from types import SimpleNamespace

import flair
import pytest

from pipeline.schema import UserError
from pipeline.tagger.load import device_of, load_tagger, split_tokens, tag_texts
from pipeline.tagger.train import (
    TrainTaggerConfig,
    fill_templates,
    is_fully_marked,
    load_examples,
    mark_repeated_names,
    read_wiki_sentences,
    train_tagger,
)
from pipeline.wiki.articles import Article, read_markup
from pipeline.wiki.excerpt import read_excerpt


def sentences_of(markup):
    article = Article(title="Bern", redirect="", paragraphs=tuple(read_markup(markup)))
    return list(read_wiki_sentences([article]))


def test_links_of_wiki_text_become_spans_and_common_nouns_do_not():
    text = (
        "In ''1905'' the [[physicist]] [[Albert Einstein|Einstein]] moved to [[Bern]], where he worked on.<ref>x</ref> "
        "Nothing is linked here."
    )
    [(plain, spans)] = sentences_of(text)
    assert plain == "In 1905 the physicist Einstein moved to Bern, where he worked on."
    assert [plain[start:end] for start, end in spans] == ["Einstein", "Bern"]


def test_items_of_lists_and_headings_are_no_sentences():
    long = "that goes on for more than sixty characters in all, which a heading does not"
    assert sentences_of(f"* An item with a [[Link]] {long}\n== [[Heading]] of a section ==") == []
    assert len(sentences_of(f"A sentence with a [[Link]] {long}.")) == 1


def test_the_articles_of_the_second_half_are_not_read():
    texts = {text for text, _ in load_examples(TrainTaggerConfig(num_sentences=100_000, num_templates=1))}
    seen, unseen = (set(dict(read_wiki_sentences(read_excerpt(half=half)))) for half in ("first", "second"))
    assert len(texts & seen) > 2000 and not texts & (unseen - seen)


def test_a_tagger_of_one_fold_does_not_read_the_other():
    texts = {text for text, _ in load_examples(TrainTaggerConfig(num_sentences=100_000, num_templates=1, fold="a"))}
    seen, unseen = (set(dict(read_wiki_sentences(read_excerpt(half="first", fold=fold)))) for fold in ("a", "b"))
    assert len(texts & seen) > 800 and not texts & (unseen - seen)


def test_a_name_is_marked_at_its_second_place_as_well():
    text = "Bern is old. Einstein liked Bern"
    assert mark_repeated_names(text, [(0, 4)], {"Bern"}) == [(0, 4), (28, 32)]


@pytest.mark.parametrize(
    ("text", "is_marked"),
    [
        ("Bern is old", True),  # the first word of a sentence may be any
        ("Old towns. Bern is one", True),
        ("The old town of [Bern]", True),
        ("The old town of Bern", False),
        ("The [Bern]ese town", False),
        ("The town of [Bern], in Switzerland", False),
        ("In May [Bern] and I met, on a Monday", True),
    ],
)
def test_sentences_with_a_name_that_is_not_marked_are_left_out(text, is_marked):
    plain = text.replace("[", "").replace("]", "")
    spans = [(text.index("["), text.index("]") - 1)] if "[" in text else []
    assert is_fully_marked(plain, spans) is is_marked


def test_what_is_learned_from_has_no_unmarked_name():
    config = TrainTaggerConfig(num_sentences=100_000, num_templates=1)
    sentences = dict(read_wiki_sentences(read_excerpt(half="first")))
    learned = [(text, spans) for text, spans in load_examples(config) if text in sentences]
    assert all(is_fully_marked(text, spans) for text, spans in learned)
    assert any(set(spans) > set(sentences[text]) for text, spans in learned)  # repeated names are marked before


def test_templates_hold_the_names_at_their_spans():
    for text, spans in fill_templates(["Bern", "Ayn Rand"], 200, random.Random(0)):
        assert all(text[start:end].lower() in ("bern", "ayn rand") for start, end in spans)


def test_tokens_keep_apostrophes_and_inner_dots():
    text = "McDonald's in St.Gallen, A&W!"
    expected = ["McDonald's", "in", "St.Gallen", ",", "A&W", "!"]
    assert [text[start:end] for start, end in split_tokens(text)] == expected


def test_tokens_keep_the_marks_of_their_letters():
    text = "\u092d\u093e\u0930\u0924 Cafe\u0301s"
    assert [text[start:end] for start, end in split_tokens(text)] == text.split()


def test_a_missing_tagger_names_the_command_that_trains_one(tmp_path):
    with pytest.raises(UserError, match="python -m pipeline.tagger.train"):
        load_tagger(str(tmp_path / "best-model.pt"))


def test_an_argument_out_of_range_is_named(tmp_path):
    with pytest.raises(UserError, match="--num-epochs 0: must be at least 1"):
        train_tagger(TrainTaggerConfig(output=str(tmp_path), num_epochs=0))


CONFIG = TrainTaggerConfig(num_sentences=40, num_templates=160, num_epochs=3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The path of a tagger, and what its training printed."""
    import flair.trainers  # noqa: F401 (what importing prints is another matter)

    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output), warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_: output.write(f"{message}\n")
        path = train_tagger(dataclasses.replace(CONFIG, output=str(tmp_path_factory.mktemp("tagger"))))
    return path, output.getvalue()


@pytest.fixture(scope="module")
def tagger(trained):
    return load_tagger(trained[0])


def test_training_prints_what_a_user_can_use_and_leaves_the_tagger_alone_behind(trained):
    path, printed = trained
    assert [re.sub(r"\d+ s", "N s", line) for line in printed.splitlines()] == [
        "training on 190 texts for 3 epochs, about one minute",  # of 200, a twentieth is held out
        "tagger: batch 18/18, N s left",  # 3 epochs of 190 / 32 = 6 batches
        f"{path}: trained in N s",
    ]
    assert os.listdir(os.path.dirname(path)) == ["best-model.pt"]


def test_a_tagger_of_the_hub_is_loaded_by_name_from_the_hubs_cache(trained, tagger, tmp_path, monkeypatch):
    # As huggingface_hub lays out what it has fetched.
    cache = tmp_path / "models" / "ner-mine" / "models--someone--ner-mine"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (cache / "snapshots" / commit).mkdir(parents=True)
    shutil.copyfile(trained[0], cache / "snapshots" / commit / "pytorch_model.bin")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    monkeypatch.setattr("flair.cache_root", tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    of_the_hub = load_tagger.__wrapped__("someone/ner-mine")
    texts = ["Berlin and Paris are cities", "a photo of a dog"]
    assert tag_texts(of_the_hub, texts) == tag_texts(tagger, texts)


def test_loading_a_tagger_prints_nothing(trained, capfd):
    load_tagger.cache_clear()
    tagger = load_tagger(trained[0])
    assert capfd.readouterr() == ("", "")
    assert device_of(tagger) == "cpu"


def test_the_tagger_is_put_on_the_device_that_is_chosen(trained, monkeypatch):
    monkeypatch.setattr(flair, "device", flair.device)  # it is restored
    monkeypatch.setattr("pipeline.tagger.load.torch_device", lambda: "meta")  # a device of torch that has no memory
    monkeypatch.setattr("flair.models.SequenceTagger.load", lambda name: SimpleNamespace(eval=lambda: None))
    load_tagger.__wrapped__(trained[0])
    assert flair.device.type == "meta"


def test_a_training_that_was_stopped_leaves_no_tagger(tmp_path, monkeypatch):
    from flair.models import SequenceTagger

    evaluate = SequenceTagger.evaluate
    epochs = []

    def evaluate_or_stop(*args, **kwargs):
        epochs.append(1)
        if len(epochs) == CONFIG.num_epochs:
            raise KeyboardInterrupt  # by then earlier epochs have saved a tagger
        return evaluate(*args, **kwargs)

    monkeypatch.setattr(SequenceTagger, "evaluate", evaluate_or_stop)
    with pytest.raises(KeyboardInterrupt):
        train_tagger(dataclasses.replace(CONFIG, output=str(tmp_path), num_templates=400))
    assert not (tmp_path / "best-model.pt").exists()


def test_a_training_that_finds_no_name_is_an_error_that_says_what_to_raise(tmp_path):
    config = TrainTaggerConfig(output=str(tmp_path), num_sentences=2, num_templates=1, num_epochs=1)
    with pytest.raises(UserError, match="no epoch of 1 found a name in 1 held-out texts; raise --num-epochs"):
        train_tagger(config)


def test_what_else_is_tagged_changes_no_score(tagger, monkeypatch):
    # To the last digit, before the rounding that hides differences between machines.
    monkeypatch.setattr("pipeline.tagger.load.SCORE_DECIMALS", 17)
    rng = random.Random(0)
    words = (
        "Bern Aristotle Alabama Ayn Rand the of old photo in and a river near painted, 1905 - (c) \u6771\u4eac".split()
    )
    texts = [" ".join(rng.choices(words, k=rng.randint(1, 30))) for _ in range(300)]
    texts += ["", "...", "Photo of Bern", "Photo of Bern", "Alabama " * 300]
    together = tag_texts(tagger, texts)
    assert together == [tag_texts(tagger, [text])[0] for text in texts]
    shuffled = rng.sample(range(len(texts)), len(texts))
    for start in range(0, len(texts), 23):
        part = shuffled[start : start + 23]
        assert tag_texts(tagger, [texts[i] for i in part]) == [together[i] for i in part]
    assert together[300] == [] and len({span.score for spans in together for span in spans}) > 100


def test_every_call_has_as_many_texts_as_the_device_takes_and_all_of_one_length(tagger, monkeypatch):
    monkeypatch.setattr("pipeline.engine.devices.BATCH_SIZES", {"cpu": 4})
    calls = []
    predict = tagger.predict
    monkeypatch.setattr(tagger, "predict", lambda batch, **options: calls.append(batch) or predict(batch, **options))
    tag_texts(tagger, [f"Bern {number}" for number in range(5)] + ["in Bern too", "", "Bern 3"])
    # Five distinct texts of two tokens are two calls, one of three tokens is one; the empty text is none.
    assert [[len(text) for text in batch] for batch in calls] == [[2] * 4, [2] * 4, [3] * 4]


def test_a_text_is_no_context_of_another(tagger, monkeypatch):
    seen = []
    embed = tagger.embeddings.embed
    monkeypatch.setattr(tagger.embeddings, "embed", lambda batch: seen.extend(batch) or embed(batch))
    tag_texts(tagger, ["Bern in spring", "Bern in summer"])
    assert {len(one.left_context(99) + one.right_context(99)) for one in seen} == {0}


def test_tags_are_spans_of_the_text(tagger):
    text = "Portrait of  Ayn Rand,painted in Alabama"  # two blanks, and none behind the comma
    [spans] = tag_texts(tagger, [text])
    edges = {edge for token in split_tokens(text) for edge in token}
    assert all(span.start in edges and span.end in edges and 0 <= span.score <= 1 for span in spans)
