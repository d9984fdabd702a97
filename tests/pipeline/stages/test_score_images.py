"""Similarities of pictures and candidates, and what becomes of broken pictures."""

import dataclasses
import io
import threading
from concurrent.futures import ThreadPoolExecutor

import apache_beam as beam
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to
from PIL import Image

from pipeline.config import DisambiguateConfig, ScoreConfig
from pipeline.images.perceptual_hash import perceptual_hash
from pipeline.kb.build.write_store import KnowledgeBaseWriter
from pipeline.kb.store import Entity, KnowledgeBase
from pipeline.linking.weights import Weights
from pipeline.schema import EVIDENCE, Batch, Candidate, ImageText, LinkedMention, Mention, Rejection, Row, UserError
from pipeline.stages import score_images
from pipeline.stages import score_images as stage
from pipeline.stages.score_images import ImageScorer, ScoreImages, cosine, pad_batch
from trainer.encoder import Encoder, Preprocessing
from trainer.encoder.write import save_encoder

BLIND = Weights(of_evidence=(0.0,) * len(EVIDENCE), bias=0.0)
SMALL = ScoreConfig(batch_size=4)


def scorer_of(encoder, kb, batch_size, weights=BLIND, *, keep_embeddings=True):
    """Returns a scorer, by default one whose weights never ask the picture."""
    score = ScoreConfig(batch_size=batch_size, keep_embeddings=keep_embeddings)
    return ImageScorer(encoder, kb, score, DisambiguateConfig(), weights)


class ColourEncoder:
    """Embeds a picture as its mean colour and a text as the colour it names; both L2-normalised."""

    has_text = True

    def __init__(self):
        self.image_shapes, self.texts = [], []

    def preprocess(self, picture):
        return np.asarray(picture.convert("RGB").resize((2, 2)), np.float32) / 255

    def embed_images(self, pixels):
        self.image_shapes.append(pixels.shape)
        means = pixels.mean((1, 2)) + 1e-6
        return means / np.linalg.norm(means, axis=1, keepdims=True)

    def embed_texts(self, texts):
        self.texts.append(list(texts))
        colours = {"red": [1.0, 0, 0], "green": [0, 1.0, 0]}
        return np.array([colours.get(text.split(",")[0], [0, 0, 1.0]) for text in texts], np.float32)


@pytest.fixture(scope="module")
def kb(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("kb"))
    with KnowledgeBaseWriter(path) as writer:
        writer.add(Entity(entity_id="r", label="red", description="warm colour"))
        writer.add(Entity(entity_id="g", label="green"))
        writer.commit(source="x", source_sha256="")
    return KnowledgeBase.open(path)


def png(colour, size=(3, 5)):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def row(image_id, image, *, chosen="r"):
    mention = Mention(start=0, end=3, surface="red", score=1.0, finder="tagger")
    candidates = (Candidate(entity_id="r", prior=0.5), Candidate(entity_id="g", prior=0.5))
    linked = LinkedMention(mention=mention, candidates=candidates, chosen=chosen, probability=0.9)
    pair = ImageText(image_id=image_id, image=image, text="red", shard="s", row=0)
    return Row(pair=pair, linked=(linked,))


def split(outcomes):
    """Returns the rows that were kept, and the rejections."""
    kept = [one for one in outcomes if isinstance(one, Row)]
    return kept, [one for one in outcomes if isinstance(one, Rejection)]


def similarities(scored):
    return [candidate.similarity for candidate in scored.linked[0].candidates]


def test_every_candidate_of_a_chosen_mention_gets_its_cosine_and_the_row_its_size(kb):
    [scored], rejected = split(scorer_of(ColourEncoder(), kb, 4).score_rows([row("a", png((255, 0, 0)))]))
    assert similarities(scored) == [pytest.approx(1.0, abs=1e-4), pytest.approx(0.0, abs=1e-4)]
    assert (scored.width_px, scored.height_px, rejected) == (3, 5, [])


def test_a_row_gets_the_hash_and_the_embedding_of_its_picture(kb):
    [scored], _ = split(scorer_of(ColourEncoder(), kb, 4).score_rows([row("a", png((255, 0, 0)))]))
    assert scored.perceptual_hash == perceptual_hash(Image.new("RGB", (3, 5), (255, 0, 0)))
    assert np.frombuffer(scored.embedding, "<f2").tolist() == pytest.approx([1.0, 0.0, 0.0], abs=1e-4)


def test_embeddings_are_left_out_on_request(kb):
    scorer = scorer_of(ColourEncoder(), kb, 4, keep_embeddings=False)
    [scored], _ = split(scorer.score_rows([row("a", png((255, 0, 0)))]))
    assert scored.embedding is None and similarities(scored)[0] == pytest.approx(1.0, abs=1e-4)


def test_a_mention_answered_nil_is_not_scored(kb):
    [nil], [chosen] = row("a", png((255, 0, 0)), chosen=None).linked, row("a", b"").linked
    both = dataclasses.replace(row("a", png((255, 0, 0))), linked=(nil, chosen))
    [scored], _ = split(scorer_of(ColourEncoder(), kb, 4).score_rows([both]))
    assert scored.linked[0] == nil
    assert [candidate.similarity is None for candidate in scored.linked[1].candidates] == [False, False]


def test_a_row_without_an_entity_is_rejected(kb):
    _, [rejected] = split(scorer_of(ColourEncoder(), kb, 4).score_rows([row("a", png((255, 0, 0)), chosen=None)]))
    assert (rejected.stage, rejected.reason, rejected.retryable) == ("score_images", "all_nil", False)


SEEING = Weights(of_evidence=tuple({"picture": 2.0, "compared": -1.0}.get(name, 0.0) for name in EVIDENCE), bias=0.0)


def doubtful(image, *, scores=(0.45, 0.45), chosen="g"):
    """Returns a row of one mention whose text leaves "r" and "g" open."""
    [mention] = row("a", image, chosen=chosen).linked
    candidates = tuple(
        dataclasses.replace(one, score=score, evidence=(0.0,) * len(EVIDENCE))
        for one, score in zip(mention.candidates, scores, strict=True)
    )
    linked = dataclasses.replace(mention, candidates=candidates, by_text=chosen)
    return dataclasses.replace(row("a", image), linked=(linked,))


def test_the_picture_decides_what_the_text_leaves_open(kb):
    [scored], _ = split(scorer_of(ColourEncoder(), kb, 4, SEEING).score_rows([doubtful(png((255, 0, 0)))]))
    [answer] = scored.linked
    # The sample is the two entities themselves: red is 1 and green 0, so red stands out by (1 - 0.5) / 0.5 = 1.
    assert [one.evidence[EVIDENCE.index("picture")] for one in answer.candidates] == pytest.approx([1, 0], abs=1e-4)
    assert (answer.chosen, answer.by_text) == ("r", "g")
    # exp(2 - 1) against exp(-1) and NIL's 1.
    assert answer.probability == pytest.approx(np.e / (np.e + np.exp(-1) + 1), abs=1e-4)
    assert similarities(scored) == pytest.approx([1.0, 0.0], abs=1e-4)


def test_the_picture_may_find_an_entity_where_the_text_found_none(kb):
    nil = doubtful(png((255, 0, 0)), scores=(0.3, 0.2), chosen=None)
    [scored], _ = split(scorer_of(ColourEncoder(), kb, 4, SEEING).score_rows([nil]))
    assert (scored.linked[0].chosen, scored.linked[0].by_text) == ("r", None)


def test_a_row_that_the_picture_leaves_without_an_entity_is_rejected_with_its_numbers(kb):
    # Blue is like neither: both sums are -1, so NIL has 1 / (1 + 2 exp(-1)) = 0.58, and the candidates not the 0.65.
    scorer = scorer_of(ColourEncoder(), kb, 4, SEEING)
    _, [rejected] = split(scorer.score_rows([doubtful(png((0, 0, 255)))]))
    assert (rejected.stage, rejected.reason) == ("score_images", "all_nil")
    [answer] = rejected.linked
    assert (answer.chosen, answer.by_text) == (None, "g")
    assert answer.probability == pytest.approx(1 / (1 + 2 * np.exp(-1)), abs=1e-4)


def test_a_sure_text_is_not_chosen_again_and_needs_no_sample(kb):
    encoder = ColourEncoder()
    sure = doubtful(png((255, 0, 0)), scores=(0.01, 0.97))
    [scored], _ = split(scorer_of(encoder, kb, 4, SEEING).score_rows([sure]))
    assert (scored.linked[0].chosen, scored.linked[0].candidates[1].score) == ("g", 0.97)
    assert similarities(scored) == pytest.approx([1.0, 0.0], abs=1e-4)
    assert len(encoder.texts) == 1  # the candidates


def test_the_sample_is_embedded_once(kb):
    encoder = ColourEncoder()
    scorer = scorer_of(encoder, kb, 4, SEEING)
    for shade in (200, 255):
        scorer.score_rows([doubtful(png((shade, 0, 0)))])
    # The candidates, and the sample: "g" comes before "r" in the base.
    assert encoder.texts == [["green", "red, warm colour", "", ""]] * 2


def test_changed_choices_are_counted(encoder_path, kb, tmp_path):
    path = tmp_path / "weights.json"
    path.write_text('{"format_version": 1, "bias": 0.0, "weights": {"picture": 2.0, "compared": -1.0}}')
    scoring = ScoreImages(encoder_path, kb.path, score=SMALL, config=DisambiguateConfig(weights=str(path)))
    scoring.setup()
    outcomes = scoring.run([doubtful(png((200, 0, 0))), doubtful(png((0, 200, 0)))])
    assert [one.linked[0].chosen for one in outcomes] == ["r", "g"]
    assert scoring.further_counts(outcomes) == {"mentions_changed": 1}


def test_broken_pictures_are_rejected_and_the_rest_is_kept(kb):
    whole = png((255, 0, 0))
    rows = [row("a", b"no picture"), row("b", whole[: len(whole) // 2]), row("c", whole), row("d", b"")]
    kept, rejected = split(scorer_of(ColourEncoder(), kb, 4).score_rows(rows))
    assert [one.pair.image_id for one in kept] == ["c"]
    assert [(one.image_id, one.reason, one.retryable) for one in rejected] == [
        (image_id, "broken_image", False) for image_id in "abd"
    ]


def test_pictures_and_texts_are_embedded_once_in_full_batches(kb):
    encoder = ColourEncoder()
    scorer = scorer_of(encoder, kb, 2)
    rows = [row(str(i), png((i * 40, 0, 0))) for i in range(3)] + [row("again", png((0, 0, 0)))]
    first, _ = split(scorer.score_rows(rows))
    second, _ = split(scorer.score_rows(rows))
    # Three distinct pictures are two batches of two; the second call finds everything in the caches.
    assert encoder.image_shapes == [(2, 2, 2, 3)] * 2
    assert encoder.texts == [["green", "red, warm colour"]]
    assert first == second


def test_threads_that_share_a_scorer_never_drop_what_another_needs(kb, monkeypatch):
    monkeypatch.setattr(score_images, "_CACHE_BYTES", 1)
    scorer = scorer_of(ColourEncoder(), kb, 2)
    batches = [[row(f"{n}-{k}", png((n, k, 9))) for k in range(8)] for n in range(40)]
    with ThreadPoolExecutor(4) as pool:
        scored = list(pool.map(scorer.score_rows, batches))
    assert [len(split(outcomes)[0]) for outcomes in scored] == [8] * 40
    alone, _ = split(scorer_of(ColourEncoder(), kb, 2).score_rows(batches[7]))
    assert scored[7] == alone


ENTRY_BYTES = 3 * 4 + 500  # an embedding of the encoder here: three numbers, and what keeping it takes


def test_the_caches_hold_the_embeddings_that_were_used_last(kb, monkeypatch):
    monkeypatch.setattr(score_images, "_CACHE_BYTES", 2 * ENTRY_BYTES)
    encoder = ColourEncoder()
    scorer = scorer_of(encoder, kb, 1)
    first, second, third = (row(name, png((shade, 0, 0))) for name, shade in (("a", 10), ("b", 20), ("c", 30)))
    scorer.score_rows([first, second])
    scorer.score_rows([first])  # used again, so that the second is the oldest
    scorer.score_rows([third])
    assert len(encoder.image_shapes) == 3
    scorer.score_rows([first, third])
    assert len(encoder.image_shapes) == 3
    scorer.score_rows([second])
    assert len(encoder.image_shapes) == 4
    assert encoder.texts == [["green"], ["red, warm colour"]]


def test_caches_of_a_byte_less_hold_nothing(kb, monkeypatch):
    monkeypatch.setattr(score_images, "_CACHE_BYTES", 2 * ENTRY_BYTES - 1)
    scorer = scorer_of(ColourEncoder(), kb, 1)
    scorer.score_rows([row("a", png((10, 0, 0))), row("b", png((20, 0, 0)))])  # needs two texts, too
    assert (len(scorer._pictures), len(scorer._texts)) == (0, 0)


def test_what_is_embedded_together_is_not_kept_together(kb):
    scorer = scorer_of(ColourEncoder(), kb, 8)
    scorer.score_rows([row("a", png((10, 0, 0)))])
    # A view of the batch would keep the rows that are padding, too.
    assert [picture.embedding.base for picture in scorer._pictures.values()] == [None]
    assert [text.base for text in scorer._texts.values()] == [None, None]


def test_pictures_wait_for_the_encoder_by_the_batch(kb):
    encoder = ColourEncoder()
    waiting, most = [], []

    def preprocess(picture):
        waiting.append(picture)
        return ColourEncoder.preprocess(encoder, picture)

    def embed_images(pixels):
        most.append(len(waiting))
        waiting.clear()
        return ColourEncoder.embed_images(encoder, pixels)

    encoder.preprocess, encoder.embed_images = preprocess, embed_images
    scorer_of(encoder, kb, 2).score_rows([row(str(i), png((i, 0, 0))) for i in range(5)])
    assert most == [2, 2, 1]


def test_threads_decode_while_another_has_the_encoder(kb):
    encoder = ColourEncoder()
    decoded, is_embedding, embed = threading.Event(), threading.Event(), encoder.embed_images

    def embed_images(pixels):
        is_embedding.set()
        assert decoded.wait(timeout=30)  # by the other thread
        return embed(pixels)

    def preprocess(picture):
        if is_embedding.is_set():
            decoded.set()
        return ColourEncoder.preprocess(encoder, picture)

    encoder.embed_images, encoder.preprocess = embed_images, preprocess
    scorer = scorer_of(encoder, kb, 2)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(scorer.score_rows, [row("a", png((1, 0, 0)))])
        assert is_embedding.wait(timeout=30)
        second = pool.submit(scorer.score_rows, [row("b", png((2, 0, 0)))])
        assert [len(split(one.result())[0]) for one in (first, second)] == [1, 1]


def test_an_embedding_that_is_not_finite_is_an_error():
    with pytest.raises(ValueError, match="not finite"):
        cosine(np.array([np.nan, 0.0]), np.array([1.0, 0.0]))


def test_padding_adds_zero_rows():
    assert pad_batch(np.ones((1, 2)), 3).tolist() == [[1, 1], [0, 0], [0, 0]]


def test_a_batch_size_below_one_is_refused():
    with pytest.raises(ValueError, match="batch_size 0: must be at least 1"):
        ScoreImages("encoder", "kb", score=ScoreConfig(batch_size=0), config=DisambiguateConfig())


def test_a_directory_that_is_no_encoder_is_a_user_error(tmp_path, kb):
    with pytest.raises(UserError):
        stage._load_scorer(str(tmp_path), kb.path, SMALL, DisambiguateConfig(), BLIND)


def word_tokenizer():
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0, "red": 1, "green": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.enable_padding(length=4)
    tokenizer.enable_truncation(4)
    return tokenizer


@pytest.fixture(scope="module")
def encoder_path(tmp_path_factory):
    """An encoder on disk: a picture is its mean colour, a text the row of its first word."""
    path = tmp_path_factory.mktemp("encoder")
    save_encoder(
        path,
        image_function=lambda params, pixels: pixels.mean((1, 2)) @ params["matrix"],
        image_params={"matrix": jnp.eye(3)},
        preprocessing=Preprocessing(image_size_px=2, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
        text_function=lambda params, tokens: params["rows"][tokens[:, 0]],
        text_params={"rows": jnp.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])},
        tokenizer=word_tokenizer(),
        context_length=4,
    )
    return str(path)


def test_a_row_scores_the_same_alone_and_among_others(tmp_path, kb):
    def image_function(params, pixels):
        return jnp.tanh(pixels.reshape((pixels.shape[0], 768)) @ params["first"]) @ params["second"]

    # Wide enough that the order of sums would show: a product of other shape may add in another order.
    random = np.random.default_rng(0)
    save_encoder(
        tmp_path,
        image_function=image_function,
        image_params={
            "first": jnp.asarray(random.normal(size=(768, 300)) / 28, jnp.float32),
            "second": jnp.asarray(random.normal(size=(300, 64)), jnp.float32),
        },
        preprocessing=Preprocessing(image_size_px=16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        text_function=lambda params, tokens: params["rows"][tokens[:, 0]],
        text_params={"rows": jnp.asarray(random.normal(size=(3, 64)), jnp.float32)},
        tokenizer=word_tokenizer(),
        context_length=4,
    )
    encoder = Encoder.load(str(tmp_path), batch_size=8)
    rows = [row(str(i), png(tuple(random.integers(0, 256, 3).tolist()))) for i in range(21)]
    together, _ = split(scorer_of(encoder, kb, 8).score_rows(rows))
    backwards, _ = split(scorer_of(encoder, kb, 8).score_rows(rows[::-1]))
    alone = [scorer_of(encoder, kb, 8).score_rows([one])[0] for one in rows]
    assert together == alone == backwards[::-1]
    assert len({tuple(similarities(one)) for one in together}) == 21
    assert len({one.embedding for one in together}) == 21


def test_rows_go_through_a_real_encoder_and_broken_pictures_leave_through_rejected(encoder_path, kb):
    batch = Batch(shard="s", rows=(row("a", png((200, 0, 0))), row("b", b"broken")))
    with TestPipeline() as pipeline:
        outputs = (
            pipeline
            | beam.Create([batch])
            | ScoreImages(encoder_path, kb.path, score=SMALL, config=DisambiguateConfig())
        )
        kept = outputs.kept | beam.Map(lambda one: [round(value, 4) for value in similarities(one.rows[0])])
        rejected = outputs.rejected | beam.Map(lambda one: (one.image_id, one.reason))
        assert_that(kept, equal_to([[1.0, 0.0]]), label="kept")
        assert_that(rejected, equal_to([("b", "broken_image")]), label="rejected")
