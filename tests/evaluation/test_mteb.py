"""The package mteb measures an encoder on a task of made-up pictures, without a network."""

import mteb
import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from mteb.abstasks.classification import AbsTaskClassification
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.abstasks.zeroshot_classification import AbsTaskZeroShotClassification
from mteb.models.models_protocols import EncoderProtocol
from PIL import Image

from evaluation.mteb import EncoderForMteb
from pipeline.schema import UserError
from trainer.encoder import Encoder, Preprocessing
from trainer.encoder.write import save_encoder
from trainer.tokenizer import train_tokenizer

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An encoder of mean colours, in which the words "red", "green" and "blue" lie at these colours."""
    tokenizer = train_tokenizer([*COLOURS] * 9, 300, 4)
    table = np.zeros((300, 3), np.float32)
    for row, word in enumerate(COLOURS):
        (token,) = tokenizer.encode(word).ids[1:2]
        table[token, row] = 1
    path = tmp_path_factory.mktemp("encoder")
    save_encoder(
        path,
        image_function=lambda params, images: images.mean(axis=(1, 2)) * params["weight"][None],
        image_params={"weight": np.ones(3, np.float32)},
        preprocessing=Preprocessing(image_size_px=4, mean=(0, 0, 0), std=(1, 1, 1)),
        text_function=lambda params, tokens: params["table"][tokens].sum(axis=1),
        text_params={"table": table},
        tokenizer=tokenizer,
        context_length=4,
    )
    return path


def rows_of(count, seed):
    """Pictures of a noisy colour, and which it is: every fourth picture is of the colour after its label."""
    random = np.random.default_rng(seed)
    labels = [number % 3 for number in range(count)]
    shown = [(label + (number % 4 == 3)) % 3 for number, label in enumerate(labels)]
    colours = np.array(list(COLOURS.values()))
    pixels = [np.clip(colours[one] + random.integers(-60, 60, (6, 7, 3)), 0, 255).astype(np.uint8) for one in shown]
    return Dataset.from_dict({"image": [Image.fromarray(one) for one in pixels], "label": labels})


def metadata(kind, category, modalities):
    return TaskMetadata(
        name=f"Colours{kind}",
        type=kind,
        category=category,
        modalities=modalities,
        description="Made-up colours.",
        dataset={"path": "none", "revision": "none"},
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="accuracy",
    )


class ColoursZeroShot(AbsTaskZeroShotClassification):
    metadata = metadata("ZeroShotClassification", "i2t", ["image", "text"])

    def load_data(self, **_):
        self.dataset, self.data_loaded = DatasetDict(test=rows_of(12, 1)), True

    def get_candidate_labels(self):
        return list(COLOURS)


class ColoursProbe(AbsTaskClassification):
    metadata = metadata("ImageClassification", "i2c", ["image"])
    input_column_name = "image"
    n_experiments, samples_per_label = 2, 8

    def load_data(self, **_):
        train = rows_of(60, 2).filter(lambda row, number: number % 4 != 3, with_indices=True)
        self.dataset, self.data_loaded = DatasetDict(train=train, test=rows_of(12, 1)), True


@pytest.mark.parametrize("task", [ColoursZeroShot, ColoursProbe])
def test_mteb_measures_an_encoder(folder, task):
    result = mteb.evaluate(
        EncoderForMteb(folder), task(), cache=None, co2_tracker=False, encode_kwargs={"batch_size": 5}
    )
    (scores,) = result.task_results[0].scores["test"]
    assert scores["accuracy"] == pytest.approx(9 / 12)  # 3 of 12 pictures show another colour
    assert result.model_name == f"mofi/{Encoder.load(folder).hash[:12]}"
    assert result.model_revision == Encoder.load(folder).hash


def batches(*rows):
    """What mteb's loader gives: a dict of columns for each batch."""
    return [{name: [row[name] for row in batch] for name in batch[0]} for batch in rows]


def test_rows_keep_their_order_over_batches_of_any_size(folder, monkeypatch):
    model = EncoderForMteb(folder)
    assert isinstance(model, EncoderProtocol)
    words = [list(COLOURS)[number % 3] for number in range(7)]
    texts = batches(*([{"text": word} for word in words[start : start + 2]] for start in range(0, 7, 2)))
    expected = np.eye(3)[[number % 3 for number in range(7)]]
    np.testing.assert_allclose(model.encode(texts), expected, atol=1e-6)
    monkeypatch.setattr("evaluation.mteb.BATCH_SIZE", 1)
    monkeypatch.setattr("evaluation.mteb._BATCHES_AT_ONCE", 1)
    np.testing.assert_allclose(model.encode(texts), expected, atol=1e-6)
    assert model.encode([]).shape == (0, 3)


def test_a_picture_with_a_text_is_the_sum_of_both(folder):
    model = EncoderForMteb(folder)
    both = batches([{"text": "green", "image": Image.new("RGB", (5, 5), (9, 0, 0))}])
    np.testing.assert_allclose(model.encode(both), [[1, 1, 0]], atol=1e-6)


def test_other_inputs_and_missing_encoders_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="^the task has inputs without text and image; an encoder embeds nothing"):
        EncoderForMteb(folder).encode(batches([{"audio": b""}]))
    with pytest.raises(UserError, match="holds no finished encoder"):
        EncoderForMteb(tmp_path)


def test_what_mteb_is_told_of_the_encoder(folder):
    meta = EncoderForMteb(folder).mteb_model_meta
    assert (meta.embed_dim, meta.max_tokens, meta.modalities) == (3, 4, ["image", "text"])
    assert meta.similarity_fn_name == "cosine"
