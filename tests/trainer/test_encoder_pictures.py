"""Encoders take pictures as callers have them, and name the entities on them."""

import io
import json
import threading

import numpy as np
import pytest
from PIL import Image

from trainer.encoder import Classifier, Encoder, Preprocessing
from trainer.encoder import read as read_module
from trainer.encoder.write import save_encoder

SIZE = 4


def mean_colour(params, images):
    """The mean of each channel, times a weight."""
    return images.mean(axis=(1, 2)) * params["weight"][None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("encoder")
    save_encoder(
        path,
        image_function=mean_colour,
        image_params={"weight": np.ones(3, np.float32)},
        preprocessing=Preprocessing(image_size_px=SIZE, mean=(0, 0, 0), std=(1, 1, 1)),
        classifier=Classifier(
            weights=np.asarray([[1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32),
            entity_ids=("Q1", "Q2", "Q3"),
            names=("red", "green", "blue"),
            scale=2.0,
        ),
    )
    return path


@pytest.fixture
def encoder(folder):
    return Encoder.load(folder, batch_size=2)


def plain(colour, size=(6, 5)):
    return Image.new("RGB", size, colour)


def test_paths_and_pil_images_are_embedded_alike_in_order_whatever_their_size(encoder, tmp_path):
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 51, 0)]
    pictures = []
    for number, colour in enumerate(colours):
        picture = plain(colour, (5 + number, 9))
        picture.save(tmp_path / f"{number}.png")
        pictures.append([picture, tmp_path / f"{number}.png", str(tmp_path / f"{number}.png")][number % 3])
    half = 2**-0.5  # of yellow, which is red and green alike
    expected = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [half, half, 0], [0, 1, 0]]
    embedded = encoder.embed_pictures(pictures)
    assert embedded.dtype == np.float32
    np.testing.assert_allclose(embedded, expected, atol=1e-6)
    assert encoder.embed_pictures([]).shape == (0, 3)


def test_pictures_are_turned_upright(encoder):
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:, :4, 0] = 255
    exif = Image.Exif()
    exif[274] = 6  # shown after a quarter turn: the left half is then the upper one
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", exif=exif)
    seen = []
    deep = io.BytesIO()
    Image.fromarray((pixels[:, :, 0] * 257.0).astype(np.uint16)).save(deep, "PNG", exif=exif)
    encoder.preprocess = lambda image: seen.append(np.array(image)) or np.ones((SIZE, SIZE, 3), np.float32)
    encoder.embed_pictures([Image.open(file)])
    encoder.embed_pictures([Image.open(deep)])
    assert (seen[0][:4, :, 0] == 255).all() and (seen[0][4:] == 0).all()
    assert (seen[1][:4] == 255).all() and (seen[1][4:] == 0).all()


def test_pictures_are_decoded_while_the_device_computes(encoder):
    """The function waits for a picture of a later batch to be prepared; in turns, that would never be."""
    started = threading.Event()
    preprocess, embed = encoder.preprocess, encoder._jitted_image
    count = 0

    def watched(image):
        nonlocal count
        count += 1
        if count > encoder.num_devices * 2:
            started.set()
        return preprocess(image)

    def waiting(params, images):
        assert started.wait(timeout=20)
        return embed(params, images)

    encoder.preprocess, encoder._jitted_image = watched, waiting
    assert encoder.embed_pictures([plain((9, 9, 9))] * (4 * encoder.num_devices)).shape[1] == 3


def test_no_more_pictures_are_prepared_ahead_than_the_devices_take_in_a_turn(encoder):
    count = 0

    def counted(image):
        nonlocal count
        count += 1
        return np.ones((SIZE, SIZE, 3), np.float32)

    most = []

    def embed(params, images):
        most.append(count)
        return np.zeros((2, 3), np.float32)

    encoder.preprocess, encoder._jitted_image = counted, embed
    encoder.embed_pictures([plain((9, 9, 9))] * 200)
    # When the first batch runs, one more for each device has been handed to the threads: of two pictures each.
    assert most[0] <= 2 * (encoder.num_devices + 1)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"no picture", "not a picture of the formats PNG, JPEG"), (None, "No such file or directory")],
)
def test_a_file_that_cannot_be_read_is_named_with_its_place(encoder, tmp_path, content, reason):
    path = tmp_path / "b.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^picture 3 \({path}\) cannot be read: .*{reason}"):
        encoder.embed_pictures([plain((1, 2, 3))] * 3 + [path])


def test_a_pil_image_that_cannot_be_read_is_named_by_its_place(encoder):
    file = io.BytesIO()
    plain((1, 2, 3), (40, 40)).save(file, "BMP")
    cut = Image.open(io.BytesIO(file.getvalue()[:300]))
    with pytest.raises(ValueError, match=r"^picture 1 \(a PIL image\) cannot be read: image file is truncated"):
        encoder.embed_pictures([plain((1, 2, 3)), cut])
    with pytest.raises(ValueError, match=r"^picture 0 \(a PIL image\) cannot be read: .*black and white"):
        encoder.embed_pictures([Image.fromarray(np.full((5, 5), -1.5, np.float32))])


def test_what_is_no_list_of_pictures_is_refused(encoder):
    with pytest.raises(ValueError, match="^pictures is the single picture 'a.jpg'; give a list of pictures$"):
        encoder.embed_pictures("a.jpg")
    with pytest.raises(TypeError, match="^picture 1 is a ndarray; give the path of a file or a PIL image"):
        encoder.embed_pictures([plain((1, 2, 3)), np.zeros((5, 5, 3), np.uint8)])


def test_pictures_are_classified_with_probabilities(encoder):
    # The embedding of red is (1, 0, 0), so the logits are (2, 0, 0): e^2 / (e^2 + 2) = 0.78699, and 0.10651 twice.
    ((first, second), yellow) = encoder.classify([plain((255, 0, 0)), plain((0, 255, 255))], top=2)
    assert first.entity_id == "Q1" and first.name == "red" and first.probability == pytest.approx(0.78699, abs=1e-5)
    assert second == ("Q2", "green", pytest.approx(0.10651, abs=1e-5))  # of equals the first
    # Cyan: e^sqrt(2) = 4.11325 twice, and 1: 4.11325 / 9.22650 = 0.44581.
    assert [one.entity_id for one in yellow] == ["Q2", "Q3"]
    assert yellow[1].probability == pytest.approx(0.44581, abs=1e-5)


def test_all_classes_are_given_where_there_are_no_more(encoder):
    (classes,) = encoder.classify([plain((9, 0, 0))], top=50)
    assert [one.name for one in classes] == ["red", "green", "blue"]
    with pytest.raises(ValueError, match="^top is 0; it must be at least 1$"):
        encoder.classify([plain((9, 0, 0))], top=0)


def test_many_classes_are_compared_with_some_rows_at_a_time(encoder, monkeypatch):
    pictures = [plain((255, 0, 0)), plain((0, 255, 0)), plain((0, 0, 255))]
    together = encoder.classify(pictures)
    monkeypatch.setattr(read_module, "_LOGITS_AT_ONCE", 2)
    assert encoder.classify(pictures) == together
    assert [one[0].name for one in together] == ["red", "green", "blue"]


def test_an_encoder_without_classifier_does_not_classify(tmp_path):
    save_encoder(
        tmp_path,
        image_function=mean_colour,
        image_params={"weight": np.ones(3, np.float32)},
        preprocessing=Preprocessing(image_size_px=SIZE),
    )
    with pytest.raises(ValueError, match="^this encoder has no classifier; give one that was trained on a set with"):
        Encoder.load(tmp_path).classify([plain((1, 2, 3))])


def test_an_encoder_without_names_classifies_by_id(folder, tmp_path):
    assert json.loads((folder / "classifier.json").read_text())["names"] == ["red", "green", "blue"]
    of_red = Classifier(weights=np.ones((1, 3), np.float32), entity_ids=("Q1",), scale=1.0)
    save = {"image_function": mean_colour, "image_params": {"weight": np.ones(3, np.float32)}}
    save_encoder(tmp_path, **save, preprocessing=Preprocessing(image_size_px=SIZE), classifier=of_red)
    assert json.loads((tmp_path / "classifier.json").read_text()) == {"entity_ids": ["Q1"]}
    assert Encoder.load(tmp_path).classify([plain((9, 9, 9))]) == [[("Q1", "", 1.0)]]


def test_a_classifier_has_as_many_names_as_entities(tmp_path):
    with pytest.raises(ValueError, match="^the classifier has 1 entities, but 2 names$"):
        save_encoder(
            tmp_path,
            image_function=mean_colour,
            image_params={"weight": np.ones(3, np.float32)},
            preprocessing=Preprocessing(image_size_px=SIZE),
            classifier=Classifier(
                weights=np.ones((1, 3), np.float32), entity_ids=("Q1",), scale=1.0, names=("one", "two")
            ),
        )
