import io
import json
import pathlib
import subprocess
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tokenizers
from PIL import Image

from pipeline.images.decode import on_white
from trainer.encoder import Classifier, Encoder, Preprocessing, is_whole
from trainer.encoder.format import content_hash
from trainer.encoder.write import save_encoder
from trainer.tokenizer import train_tokenizer

ROOT = pathlib.Path(__file__).parents[2]
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


def test_a_row_does_not_depend_on_the_devices(saved):
    one = Encoder.load(saved[0], batch_size=4, devices=jax.local_devices()[:1])
    three = Encoder.load(saved[0], batch_size=4, devices=jax.local_devices()[:3])
    assert three.num_devices == 3
    np.testing.assert_array_equal(three.embed_images(images(30)), one.embed_images(images(30)))
    texts = [f"red panda {number}" for number in range(9)]
    np.testing.assert_array_equal(three.embed_texts(texts), one.embed_texts(texts))


def test_no_rows_give_no_rows(saved):
    encoder = Encoder.load(saved[0])
    assert encoder.embed_texts([]).shape == (0, DIM)
    assert encoder.embed_images(images(0)).shape == (0, DIM)


def test_a_single_text_is_not_taken_for_a_list_of_letters(saved):
    with pytest.raises(ValueError, match="^texts is the single text 'an apple'; give a list of texts$"):
        Encoder.load(saved[0]).embed_texts("an apple")


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.bool_])
def test_pixels_that_are_not_preprocessed_are_refused(saved, dtype):
    message = f"^images are {np.dtype(dtype)} pixels; turn each image into a row with `preprocess`$"
    with pytest.raises(ValueError, match=message):
        Encoder.load(saved[0]).embed_images(np.zeros((1, SIZE, SIZE, 3), dtype))


@pytest.mark.parametrize("given", ["apple.png", np.zeros((SIZE, SIZE, 3), np.uint8)])
def test_what_is_not_a_pil_image_is_not_preprocessed(saved, given):
    message = f"^the image is a {type(given).__name__}; give a PIL image: open a file with PIL.Image.open, "
    with pytest.raises(TypeError, match=message):
        Encoder.load(saved[0]).preprocess(given)


@pytest.mark.parametrize("antialias", [True, False])
def test_a_16_bit_picture_embeds_as_its_8_bit_version(saved, antialias):
    path, _, _ = saved
    encoder = Encoder.load(path)
    encoder.preprocessing = Preprocessing(image_size_px=SIZE, antialias=antialias)
    levels = np.random.default_rng(3).integers(0, 256, (11, 9))
    # A level of 8 bits times 257 is the same grey with 16: 255 * 257 = 65535.
    file = io.BytesIO()
    Image.fromarray((levels * 257).astype(np.uint16)).save(file, "PNG")
    deep, shallow = Image.open(file), Image.fromarray(levels.astype(np.uint8))
    assert deep.mode.startswith("I")
    rows = np.stack([encoder.preprocess(picture) for picture in (deep, shallow)])
    np.testing.assert_array_equal(rows[0], rows[1])
    embedded = encoder.embed_images(rows)
    np.testing.assert_array_equal(embedded[0], embedded[1])


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


@pytest.mark.parametrize("shape", [(2, 3, 3), (5, 2, 3, 3), (0, 2, 4, 3), (4, 3)])
def test_each_channel_is_normalised_by_its_own_mean_and_deviation(shape):
    preprocessing = Preprocessing(image_size_px=2, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0))
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    shares = pixels.astype(np.float32) / np.float32(255)
    expected = np.stack([(shares[..., 0] - 0.5) / 0.5, (shares[..., 1] - 0.25) / 0.25, shares[..., 2] / 2], axis=-1)
    found = preprocessing.normalise(pixels)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)  # to the bit: embeddings must not change


def test_greys_of_16_bits_are_scaled_and_not_clipped():
    # 65535 / 255 = 257 per level: 0, 100 * 257 and 65535 are the levels 0, 100 and 255.
    image = Image.fromarray(np.asarray([[0, 100 * 257], [65535, 0]], np.uint16))
    pixels = Preprocessing(image_size_px=2).pixels(image)
    np.testing.assert_array_equal(pixels[..., 0], [[0, 100], [255, 0]])


def test_a_wide_picture_is_cropped_at_its_centre():
    pixels = np.zeros((2, 6, 3), np.uint8)
    pixels[:, 2:4] = 200
    assert (Preprocessing(image_size_px=2).pixels(Image.fromarray(pixels)) == 200).all()


def test_without_antialias_only_the_nearest_pixels_count():
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[::4] = 255  # rows 0 and 4; at a factor of 4, rows 1-2 and 5-6 are read
    assert (Preprocessing(image_size_px=2, antialias=False).pixels(Image.fromarray(pixels)) == 0).all()
    assert (Preprocessing(image_size_px=2, antialias=True).pixels(Image.fromarray(pixels)) > 0).all()


def torchvision_sizes(size, width, height):
    """What torchvision documents and does: the long side is truncated, the crop's offset rounded, half to even."""
    short, long = sorted((width, height))
    scaled = (size, int(size * long / short))
    new_width, new_height = scaled if width <= height else scaled[::-1]
    return new_width, new_height, int(round((new_width - size) / 2.0)), int(round((new_height - size) / 2.0))


def resized_by_torch(pixels, size, resize, antialias):
    """Returns float32 [size, size, 3], the crop of `pixels` as torch resizes them."""
    import torch

    new_width, new_height, left, top = torchvision_sizes(size, pixels.shape[1], pixels.shape[0])
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(pixels).permute(2, 0, 1)[None].float(),
        size=(new_height, new_width),
        mode=resize,
        align_corners=False,
        antialias=antialias,
    )[0]
    return resized.permute(1, 2, 0).numpy()[top : top + size, left : left + size]


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("resize", ["bilinear", "bicubic"])
@pytest.mark.parametrize("width, height", [(101, 67), (67, 101), (333, 500), (500, 375), (9, 13), (24, 59), (31, 31)])
def test_pixels_are_torchvisions_to_one_grey_level(width, height, resize, antialias):
    size = 24
    # torchvision leaves PIL pictures to Pillow, which clips what overshoots after rows and after columns, torch only at
    # the end: the greys of the antialiased pictures overshoot neither.
    low, high = (60, 196) if antialias else (0, 256)
    pixels = np.random.default_rng(width).integers(low, high, (height, width, 3), np.uint8)
    expected = resized_by_torch(pixels, size, resize, antialias).round().clip(0, 255)
    preprocessing = Preprocessing(image_size_px=size, resize=resize, antialias=antialias)
    actual = preprocessing.pixels(Image.fromarray(pixels))
    assert actual.dtype == np.uint8 and actual.shape == (size, size, 3)
    assert np.abs(actual - expected).max() <= 1


@pytest.mark.parametrize("resize", ["bilinear", "bicubic"])
@pytest.mark.parametrize("width, height", [(500, 375), (333, 500), (227, 640), (1023, 767)])
def test_with_antialias_pixels_are_pillows_at_the_size_and_place_of_torchvision(width, height, resize):
    picture = Image.fromarray(np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8))
    new_width, new_height, left, top = torchvision_sizes(224, width, height)
    filter_ = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[resize]
    whole = np.asarray(picture.resize((new_width, new_height), filter_))
    expected = whole[top : top + 224, left : left + 224]
    assert (Preprocessing(image_size_px=224, resize=resize).pixels(picture) == expected).all()


@pytest.mark.parametrize("resize", ["bilinear", "bicubic"])
@pytest.mark.parametrize("width, height", [(1700, 100), (40, 700), (10_000, 10), (3, 2000)])
def test_of_a_very_long_picture_only_the_crop_is_resized(width, height, resize):
    picture = Image.fromarray(np.random.default_rng(height).integers(60, 196, (height, width, 3), np.uint8))
    new_width, new_height, left, top = torchvision_sizes(24, width, height)
    filter_ = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[resize]
    whole = np.asarray(picture.resize((new_width, new_height), filter_)).astype(int)
    actual = Preprocessing(image_size_px=24, resize=resize).pixels(picture)
    assert np.abs(actual - whole[top : top + 24, left : left + 24]).max() <= 1


def test_the_long_side_is_truncated():
    # 5 x 3 at a short side of 4 is 6.67 wide, so 6, and the crop of 4 starts at 1; of 7 it would start at 2.
    pixels = np.repeat(np.arange(5, dtype=np.uint8)[None, :, None] * 60, 3, axis=0).repeat(3, axis=2)
    actual = Preprocessing(image_size_px=4, antialias=False).pixels(Image.fromarray(pixels))
    centres = (np.arange(1, 5) + 0.5) * 5 / 6 - 0.5
    np.testing.assert_array_equal(actual[0, :, 0], np.rint(centres * 60))


@pytest.mark.parametrize("extra, offset", [(0, 0), (1, 0), (2, 1), (3, 2), (4, 2), (5, 2), (6, 3), (7, 4)])
def test_the_crop_starts_at_half_the_difference_rounded_to_even(extra, offset):
    pixels = np.zeros((10 + extra, 10, 3), np.uint8)
    pixels += np.arange(10 + extra, dtype=np.uint8)[:, None, None]
    for picture in (pixels, pixels.transpose(1, 0, 2)):
        assert Preprocessing(image_size_px=10).pixels(Image.fromarray(picture))[0, 0, 0] == offset


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("resize", ["bilinear", "bicubic"])
@pytest.mark.parametrize("width, height", [(101, 67), (67, 101), (9, 13), (31, 31), (24, 24), (24, 30), (1700, 100)])
def test_pixels_that_are_not_rounded_are_those_of_resized_floats(width, height, resize, antialias):
    size = 24
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    expected = resized_by_torch(pixels, size, resize, antialias)
    preprocessing = Preprocessing(image_size_px=size, resize=resize, antialias=antialias, round_pixels=False)
    actual = preprocessing.pixels(Image.fromarray(pixels))
    assert actual.dtype == np.float32
    # Of the very long picture the crop alone is resized.
    np.testing.assert_allclose(actual, expected, atol=5e-3 if width < 1000 else 1)  # torch has places in float32
    if (width, height) != (size, size) and min(width, height) != size:
        assert np.abs(actual - np.rint(actual)).mean() > 0.2  # of fractions that are spread evenly: 0.25


def test_exif_does_not_turn_a_picture():
    pixels = np.random.default_rng(2).integers(0, 256, (6, 9, 3), np.uint8)
    plain, turned = io.BytesIO(), io.BytesIO()
    exif = Image.Exif()
    exif[274] = 6  # the orientation: shown upright after a quarter turn
    Image.fromarray(pixels).save(plain, "PNG")
    Image.fromarray(pixels).save(turned, "PNG", exif=exif)
    assert Image.open(turned).getexif()[274] == 6
    preprocessing = Preprocessing(image_size_px=4)
    assert (preprocessing.pixels(Image.open(turned)) == preprocessing.pixels(Image.open(plain))).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resize": "lanczos"}, "resize is 'lanczos'; it must be one of bilinear, bicubic"),
        ({"fit": "pad"}, "fit is 'pad'; it must be one of short_side, squash"),
        ({"alpha": "black"}, "alpha is 'black'; it must be one of white, drop"),
        ({"crop_start": "ceil"}, "crop_start is 'ceil'; it must be one of rounded, floor"),
        ({"resize_px": 3}, "resize_px is 3, less than the crop of 4 pixels; give at least that"),
    ],
)
def test_an_unknown_preprocessing_is_refused(changes, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        Preprocessing(image_size_px=4, **changes)


def test_a_picture_is_resized_to_more_than_the_crop():
    # Of 8 x 4 the short side becomes 4, so the picture stays as it is; the crop of 2 starts at (8 - 2) / 2 and 1.
    pixels = np.arange(32, dtype=np.uint8).reshape(4, 8)[..., None].repeat(3, axis=2)
    for antialias in (True, False):
        preprocessing = Preprocessing(image_size_px=2, resize_px=4, antialias=antialias)
        np.testing.assert_array_equal(preprocessing.pixels(Image.fromarray(pixels))[..., 0], [[11, 12], [19, 20]])


@pytest.mark.parametrize("antialias", [True, False])
def test_a_squashed_picture_keeps_its_edges(antialias):
    # Columns of 4 x 2 in pairs: 0 0 100 100; squashed to 2 x 2 each pair becomes one.
    pixels = np.zeros((2, 4, 3), np.uint8)
    pixels[:, 2:] = 100
    actual = Preprocessing(image_size_px=2, fit="squash", antialias=antialias).pixels(Image.fromarray(pixels))
    expected = Image.fromarray(pixels).resize((2, 2), Image.Resampling.BILINEAR) if antialias else [[0, 100]] * 2
    np.testing.assert_array_equal(actual[..., 0], np.asarray(expected)[..., 0] if antialias else expected)


@pytest.mark.parametrize(("crop_start", "first"), [("rounded", [0, 2, 2]), ("floor", [0, 1, 2])])
def test_the_crop_starts_as_its_rule_says(crop_start, first):
    # Surpluses of 1, 3 and 5: halves 0.5, 1.5 and 2.5; rounded half to even 0, 2, 2, floored 0, 1, 2.
    for surplus, start in zip((1, 3, 5), first, strict=True):
        pixels = np.zeros((10 + surplus, 10, 3), np.uint8) + np.arange(10 + surplus, dtype=np.uint8)[:, None, None]
        preprocessing = Preprocessing(image_size_px=10, crop_start=crop_start)
        assert preprocessing.pixels(Image.fromarray(pixels))[0, 0, 0] == start


def test_with_alpha_dropped_what_lies_under_it_shows():
    picture = Image.new("RGBA", (2, 2), (255, 10, 0, 0))
    np.testing.assert_array_equal(Preprocessing(image_size_px=2, alpha="drop").pixels(picture)[0, 0], [255, 10, 0])
    np.testing.assert_array_equal(Preprocessing(image_size_px=2).pixels(picture)[0, 0], [255, 255, 255])


def test_an_encoder_keeps_its_preprocessing(tmp_path):
    preprocessing = Preprocessing(
        image_size_px=SIZE,
        resize_px=5,
        fit="squash",
        resize="bicubic",
        antialias=False,
        round_pixels=False,
        alpha="drop",
        crop_start="floor",
        mean=(0.5, 0.4, 0.3),
        std=(0.1, 0.2, 0.3),
    )
    save_encoder(
        tmp_path,
        image_function=image_function,
        image_params={"head": {"kernel": np.ones((SIZE * SIZE * 3, DIM), np.float32)}},
        preprocessing=preprocessing,
    )
    assert Encoder.load(tmp_path).preprocessing == preprocessing


def test_an_encoder_of_format_version_1_has_the_preprocessing_of_then():
    preprocessing = Encoder.load(ROOT / "tests" / "trainer" / "golden" / "encoder").preprocessing
    assert preprocessing == Preprocessing(image_size_px=SIZE)


def test_an_encoder_of_format_version_2_rounds_its_pixels(saved):
    path = saved[0] / "encoder.json"
    metadata = json.loads(path.read_text()) | {"format_version": 2}
    assert metadata["preprocessing"].pop("round_pixels")
    metadata["hash"] = content_hash(str(saved[0]), metadata)
    path.write_text(json.dumps(metadata))
    assert Encoder.load(saved[0]).preprocessing.round_pixels


def test_a_directory_without_encoder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no finished encoder .*; train one there, or name another directory"):
        Encoder.load(tmp_path)


def test_another_format_version_is_refused(saved):
    path = saved[0] / "encoder.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 4}))
    with pytest.raises(ValueError, match="encoder.json has format_version 4, but this code reads 1, 2, 3; write"):
        Encoder.load(saved[0])


def test_a_damaged_file_is_noticed(saved):
    path = saved[0] / "tokenizer.json"
    path.write_text(path.read_text().replace("<pad>", "<pat>", 1))
    with pytest.raises(ValueError, match="does not match the hash"):
        Encoder.load(saved[0])


def test_the_exports_are_for_cpu_cuda_and_tpu(saved):
    for name in ("image.jaxexport", "text.jaxexport"):
        exported = jax.export.deserialize(bytearray((saved[0] / name).read_bytes()))
        assert exported.platforms == ("cpu", "cuda", "tpu")


def test_the_bytes_do_not_contain_paths_of_the_code(saved):
    assert not [path.name for path in saved[0].iterdir() if b".py" in path.read_bytes()]


def test_the_golden_encoder_opens_without_model_code():
    """What the fixture `saved` wrote in format version 1 lies under golden/."""
    golden = ROOT / "tests" / "trainer" / "golden" / "encoder"
    script = """
import json, sys
sys.modules |= dict.fromkeys(("flax", "optax", "orbax", "trainer.models", "trainer.configs", "apache_beam"))
import numpy as np
from trainer.encoder import Encoder
encoder = Encoder.load(sys.argv[1])
images = np.asarray(json.loads(sys.stdin.read()), np.float32)
print(json.dumps([encoder.embed_images(images).tolist(), encoder.embed_texts(["Red panda", "whale"]).tolist()]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(golden)],
        cwd=ROOT,
        input=json.dumps(images(2).tolist()),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    of_images, of_texts = json.loads(done.stdout)
    weights = safetensors.numpy.load_file(golden / "weights.safetensors")
    pixels = images(2).reshape(2, -1)
    np.testing.assert_allclose(of_images, unit(np.tanh(pixels @ weights["image/head/kernel"])), atol=1e-6)
    # <bos>, the text's tokens, <eos> and padding, whose row of the table counts too.
    tokenizer = tokenizers.Tokenizer.from_file(str(golden / "tokenizer.json"))
    tokens = np.asarray([tokenizer.encode(text).ids for text in ("red panda", "whale")])
    assert tokens.shape == (2, 6) and (tokens[:, 0] == 1).all() and (tokens == 2).sum() == 2
    np.testing.assert_allclose(of_texts, unit(weights["text/table"][tokens].sum(axis=1)), atol=1e-6)


def test_reading_an_encoder_imports_no_code_that_mines_trains_or_writes():
    script = """
import sys
import trainer.encoder
heavy = ("apache_beam", "tensorflow", "torch", "flair", "flax", "optax", "orbax", "grain", "trainer.encoder.write")
print([name for name in heavy if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_an_encoder_whose_json_was_cut_is_refused(saved):
    path = saved[0] / "encoder.json"
    path.write_text(path.read_text()[:-9])
    assert not is_whole(saved[0])
    with pytest.raises(ValueError, match="encoder/encoder.json is not valid JSON .*; write the encoder again"):
        Encoder.load(saved[0])


def test_provenance_is_kept_and_does_not_change_the_hash(tmp_path):
    hashes = {
        save_encoder(
            tmp_path / f"{provenance}",
            image_function=image_function,
            image_params={"head": {"kernel": np.ones((SIZE * SIZE * 3, DIM), np.float32)}},
            preprocessing=Preprocessing(image_size_px=SIZE),
            provenance=provenance,
        )
        for provenance in (None, {"data": "a"}, {"data": "b"})
    }
    assert len(hashes) == 1
    assert json.loads((tmp_path / "{'data': 'b'}" / "encoder.json").read_text())["provenance"] == {"data": "b"}
    assert is_whole(tmp_path / "{'data': 'b'}")


def test_all_files_have_the_same_permissions(saved):
    assert len({path.stat().st_mode for path in saved[0].iterdir()}) == 1


def test_a_disk_that_is_full_leaves_no_encoder(saved):
    path, params, _ = saved
    (path / "image.jaxexport").unlink()
    (path / "image.jaxexport").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        save_encoder(
            path,
            image_function=image_function,
            image_params=params["image"],
            preprocessing=Preprocessing(image_size_px=SIZE),
        )
    assert not is_whole(path)
