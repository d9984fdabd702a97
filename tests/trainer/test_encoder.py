import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from trainer.encoder import Classifier, Encoder, Preprocessing, on_white, save_encoder
from trainer.tokenizer import train_tokenizer

SIZE, DIM = 4, 3


def image_function(params, images):
    return jnp.tanh(images.reshape(images.shape[0], -1) @ params["head"]["kernel"])


def text_function(params, tokens):
    return params["table"][tokens].sum(axis=1)


@pytest.fixture
def saved(tmp_path):
    random = np.random.default_rng(0)
    tokenizer = train_tokenizer(["red panda", "blue whale"] * 5, 300, 6)
    params = {
        "image": {"head": {"kernel": random.normal(size=(SIZE * SIZE * 3, DIM)).astype(np.float32)}},
        "text": {"table": random.normal(size=(300, DIM)).astype(np.float32)},
    }
    save_encoder(
        tmp_path / "encoder",
        image_function=image_function,
        image_params=params["image"],
        preprocessing=Preprocessing(image_size_px=SIZE),
        text_function=text_function,
        text_params=params["text"],
        tokenizer=tokenizer,
        context_length=6,
        classifier=Classifier(weights=np.asarray([[3, 0, 4]] * 2, np.float32), entity_ids=("Q1", "Q2"), scale=20.0),
    )
    return tmp_path / "encoder", params, tokenizer


def images(count):
    return np.random.default_rng(1).normal(size=(count, SIZE, SIZE, 3)).astype(np.float32)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_a_loaded_encoder_embeds_as_the_model_that_was_saved(saved):
    path, params, tokenizer = saved
    encoder = Encoder.load(path, batch_size=4)
    np.testing.assert_allclose(
        encoder.embed_images(images(6)), unit(np.asarray(image_function(params["image"], images(6)))), atol=1e-6
    )
    tokens = np.asarray([tokenizer.encode(text).ids for text in ("Red panda", "other")])
    np.testing.assert_allclose(
        encoder.embed_texts(["Red panda", "other"]), unit(np.asarray(text_function(params["text"], tokens))), atol=1e-6
    )
    assert (encoder.embedding_dim, encoder.image_size_px, encoder.has_text) == (DIM, SIZE, True)


def test_the_image_function_carries_its_gradient(saved):
    path, params, _ = saved
    encoder = Encoder.load(path)

    def first(flat):
        return encoder.image_function(flat, images(2))[:, 0].sum()

    def expected(kernel):
        raw = image_function({"head": {"kernel": kernel}}, images(2))
        return (raw / jnp.linalg.norm(raw, axis=1, keepdims=True))[:, 0].sum()

    gradient = jax.grad(first)(encoder.image_params)["head/kernel"]
    np.testing.assert_allclose(gradient, jax.grad(expected)(params["image"]["head"]["kernel"]), atol=1e-5)


def test_a_row_does_not_depend_on_its_company(saved):
    encoder = Encoder.load(saved[0], batch_size=4)
    assert (encoder.embed_images(images(7))[5] == encoder.embed_images(images(7)[5:6])[0]).all()


def test_no_rows_give_no_rows(saved):
    encoder = Encoder.load(saved[0])
    assert encoder.embed_texts([]).shape == (0, DIM)
    assert encoder.embed_images(images(0)).shape == (0, DIM)


def test_the_classifier_comes_back_at_length_one(saved):
    classifier = Encoder.load(saved[0]).classifier
    np.testing.assert_allclose(classifier.weights, [[0.6, 0, 0.8]] * 2, rtol=1e-6)
    assert classifier.entity_ids == ("Q1", "Q2")
    assert classifier.scale == 20.0


def test_transparent_pixels_become_white():
    picture = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert on_white(picture).getpixel((0, 0)) == (255, 255, 255)
    encoded = Preprocessing(image_size_px=2, mean=(0.5,) * 3, std=(0.5,) * 3)
    np.testing.assert_allclose(encoded.normalise(encoded.pixels(picture)), 1.0)


def test_a_wide_picture_is_cropped_at_its_centre():
    pixels = np.zeros((2, 6, 3), np.uint8)
    pixels[:, 2:4] = 200
    assert (Preprocessing(image_size_px=2).pixels(Image.fromarray(pixels)) == 200).all()


def test_without_antialias_only_the_nearest_pixels_count():
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[::4] = 255  # rows 0 and 4; at a factor of 4, rows 1-2 and 5-6 are read
    assert (Preprocessing(image_size_px=2, antialias=False).pixels(Image.fromarray(pixels)) == 0).all()
    assert (Preprocessing(image_size_px=2, antialias=True).pixels(Image.fromarray(pixels)) > 0).all()


def test_a_directory_without_encoder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no finished encoder .*train or import one"):
        Encoder.load(tmp_path)


def test_another_format_version_is_refused(saved):
    path = saved[0] / "encoder.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 2}))
    with pytest.raises(ValueError, match=r"format version 2, this code reads 1; export it again"):
        Encoder.load(saved[0])


def test_a_damaged_file_is_noticed(saved):
    path = saved[0] / "tokenizer.json"
    path.write_text(path.read_text().replace("<pad>", "<pat>", 1))
    with pytest.raises(ValueError, match="does not match the hash"):
        Encoder.load(saved[0])
