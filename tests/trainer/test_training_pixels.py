import concurrent.futures
import io
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from trainer.encoder import Preprocessing
from trainer.training_pixels import training_pixels


def noise(width, height, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def encoded(picture, kind="JPEG", **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def smooth(width, height):
    """A JPEG without detail, as photographs are at this scale."""
    return encoded(Image.fromarray(noise(8, 6)).resize((width, height), Image.Resampling.BICUBIC), quality=90)


def as_an_encoder_takes_it(content, preprocessing):
    return preprocessing.pixels(Image.open(io.BytesIO(content)))


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("size", [(61, 47), (33, 90), (24, 24), (9, 13), (1, 1), (1, 40)])
def test_jpegs_have_the_pixels_that_an_encoder_takes(size, mode, antialias):
    content = encoded(Image.fromarray(noise(*size)).convert(mode), quality=90)
    preprocessing = Preprocessing(image_size_px=24, antialias=antialias)
    pixels = training_pixels(content, preprocessing)
    assert pixels.shape == (24, 24, 3) and pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, as_an_encoder_takes_it(content, preprocessing))


def test_a_large_jpeg_is_decoded_at_a_part_of_its_size_with_antialias_alone():
    large = encoded(Image.fromarray(noise(130, 96)), quality=90)
    with_antialias, without = (Preprocessing(image_size_px=24, antialias=antialias) for antialias in (True, False))
    # 96 / 2 is twice 24. Noise shows the difference; a photograph hardly does.
    assert (training_pixels(large, with_antialias) != as_an_encoder_takes_it(large, with_antialias)).any()
    np.testing.assert_array_equal(training_pixels(large, without), as_an_encoder_takes_it(large, without))
    photograph = smooth(130, 96)
    differences = training_pixels(photograph, with_antialias) - as_an_encoder_takes_it(photograph, with_antialias) * 1.0
    assert np.abs(differences).max() <= 4 and np.abs(differences).mean() < 0.6
    # 94 / 2 is less.
    small = encoded(Image.fromarray(noise(130, 94)), quality=90)
    np.testing.assert_array_equal(training_pixels(small, with_antialias), as_an_encoder_takes_it(small, with_antialias))


def test_threads_do_not_write_into_each_others_pictures():
    contents = [encoded(Image.fromarray(noise(300, 200, seed=seed))) for seed in range(8)] * 8
    preprocessing = Preprocessing(image_size_px=64)
    expected = [as_an_encoder_takes_it(content, preprocessing) for content in contents]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        actual = list(pool.map(lambda content: training_pixels(content, preprocessing), contents))
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("kept", [2, 60, 0.5, 0.95])
def test_a_jpeg_that_is_cut_off_is_refused(kept):
    content = encoded(Image.fromarray(noise(300, 200)))
    cut = content[: kept if kept > 1 else int(kept * len(content))]
    with pytest.raises((OSError, ValueError, SyntaxError), match="cannot identify|[Tt]runcated"):
        training_pixels(cut, Preprocessing(image_size_px=24))


def test_a_jpeg_with_too_many_pixels_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow refuses twice as many
    with pytest.raises(Image.DecompressionBombError, match="exceeds limit of 200 pixels"):
        training_pixels(encoded(Image.fromarray(noise(21, 10))), Preprocessing(image_size_px=4))


def test_transparency_is_white_and_deep_greys_are_scaled():
    preprocessing = Preprocessing(image_size_px=2)
    transparent = encoded(Image.new("RGBA", (2, 2), (255, 0, 0, 0)), "PNG")
    assert (training_pixels(transparent, preprocessing) == 255).all()
    # 65535 / 255 = 257 per level.
    deep = encoded(Image.fromarray(np.asarray([[0, 100 * 257], [65535, 0]], np.uint16)), "PNG")
    np.testing.assert_array_equal(training_pixels(deep, preprocessing)[..., 0], [[0, 100], [255, 0]])


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("size", [(10_000, 10), (10, 10_000)])
def test_a_very_long_picture_costs_no_more_memory_than_its_own_pixels(size, kind, antialias):
    content = encoded(Image.fromarray(noise(*size)), kind)
    tracemalloc.start()
    pixels = training_pixels(content, Preprocessing(image_size_px=24, antialias=antialias))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert pixels.shape == (24, 24, 3)
    assert peak_bytes < 8 * 10_000 * 10 * 3  # resized as a whole it has 24 x 24,000 pixels
