import jax
import numpy as np
import pytest

from trainer.augment import make_augment
from trainer.configs.base import Augment
from trainer.encoder import Preprocessing
from trainer.mesh import batch_sharding, make_mesh

NONE = Augment(zoom=0, shift=0, brightness=0, contrast=0, saturation=0)
PIXELS = np.random.default_rng(0).integers(0, 256, (8, 6, 6, 3), dtype=np.uint8)


def augmented(config, step=0, mesh=(1, 1), pixels=PIXELS):
    function = make_augment(config, Preprocessing(image_size_px=pixels.shape[1]), 0, batch_sharding(make_mesh(*mesh)))
    return np.asarray(function(pixels, np.int32(step)))


def test_with_every_change_off_it_only_normalises():
    expected = Preprocessing(image_size_px=6).normalise(PIXELS)
    np.testing.assert_allclose(augmented(NONE), expected, atol=1e-5)


def test_it_depends_on_the_step_and_on_nothing_else():
    assert (augmented(Augment(), 3) == augmented(Augment(), 3)).all()
    assert (augmented(Augment(), 3) != augmented(Augment(), 4)).any()
    np.testing.assert_allclose(augmented(Augment(), 3), augmented(Augment(), 3, (2, 2)), atol=1e-5)


def test_a_white_image_stays_white_when_it_is_moved():
    white = np.full((8, 6, 6, 3), 255, np.uint8)
    moved = augmented(Augment(zoom=0.5, shift=0.5, brightness=0, contrast=0, saturation=0), pixels=white)
    np.testing.assert_allclose(moved, Preprocessing(image_size_px=6).normalise(white), atol=1e-5)


def test_grey_images_have_three_equal_channels():
    grey = augmented(Augment(zoom=0, shift=0, brightness=0, contrast=0, saturation=0, grey_probability=1.0))
    preprocessing = Preprocessing(image_size_px=6)
    pixels = grey * np.asarray(preprocessing.std) + np.asarray(preprocessing.mean)
    np.testing.assert_allclose(pixels[..., 0], pixels[..., 2], atol=1e-5)


def unnormalised(images):
    preprocessing = Preprocessing(image_size_px=images.shape[1])
    return images * np.asarray(preprocessing.std) + np.asarray(preprocessing.mean)


# An image whose first channel grows along its rows and whose second grows along its columns: 0 to 1 over 17 pixels.
SIZE = 17
RAMP = np.arange(SIZE, dtype=np.uint8) * 15
ROWS_AND_COLUMNS = np.zeros((8, SIZE, SIZE, 3), np.uint8)
ROWS_AND_COLUMNS[..., 0] = RAMP[:, None]
ROWS_AND_COLUMNS[..., 1] = RAMP[None, :]


def draws(monkeypatch, **values):
    """Lets the augmentation draw these shares of each bound, by name of the change, and 0 for the others."""
    names = ["zoom", "stretch", "row_shift", "column_shift", "contrast", "brightness", "saturation"]
    numbers = iter(names)

    def uniform(key, shape, minval, maxval):
        assert minval == -maxval
        return jax.numpy.full(shape, values.get(next(numbers), 0.0) * maxval, jax.numpy.float32)

    monkeypatch.setattr(jax.random, "uniform", uniform)


def slopes(images):
    """The grey levels per pixel at the centre: along the rows in channel 0, along the columns in channel 1."""
    levels = unnormalised(images) * 255
    centre = SIZE // 2
    rows = (levels[:, centre + 1, centre, 0] - levels[:, centre - 1, centre, 0]) / 2
    columns = (levels[:, centre, centre + 1, 1] - levels[:, centre, centre - 1, 1]) / 2
    return rows, columns


@pytest.mark.parametrize(
    ("share", "config", "rows", "columns"),
    [
        # The ramp rises by 15 a pixel. A zoom or stretch of z reads pixels exp(z) apart, so it rises by 15 exp(z).
        ({"zoom": 1}, Augment(zoom=0.2), 15 * np.exp(0.2), 15 * np.exp(0.2)),
        ({"zoom": -1}, Augment(zoom=0.2), 15 * np.exp(-0.2), 15 * np.exp(-0.2)),
        ({"zoom": 0.5}, Augment(zoom=0.4), 15 * np.exp(0.2), 15 * np.exp(0.2)),
        ({"stretch": 1}, Augment(stretch=0.2), 15 * np.exp(0.2), 15 * np.exp(-0.2)),
        ({"stretch": -1}, Augment(stretch=0.2), 15 * np.exp(-0.2), 15 * np.exp(0.2)),
        ({"zoom": 1, "stretch": 1}, Augment(zoom=0.1, stretch=0.2), 15 * np.exp(0.3), 15 * np.exp(-0.1)),
    ],
)
def test_zoom_scales_both_sides_and_stretch_scales_them_against_each_other(monkeypatch, share, config, rows, columns):
    draws(monkeypatch, **share)
    changed = augmented(config, pixels=ROWS_AND_COLUMNS)
    np.testing.assert_allclose(slopes(changed)[0], rows, rtol=1e-4)
    np.testing.assert_allclose(slopes(changed)[1], columns, rtol=1e-4)
    # Both are about the centre, which keeps its value: 8 * 15 = 120.
    np.testing.assert_allclose(unnormalised(changed)[:, 8, 8, :2] * 255, 120, atol=1e-2)


def test_a_shift_moves_the_image_by_a_share_of_its_side(monkeypatch):
    draws(monkeypatch, row_shift=1, column_shift=-1)
    changed = augmented(Augment(shift=2 / SIZE), pixels=ROWS_AND_COLUMNS)
    # The centre reads 2 rows below and 2 columns to the left: 120 + 30 and 120 - 30.
    np.testing.assert_allclose(unnormalised(changed)[:, 8, 8, :2] * 255, [[150, 90]] * 8, atol=1e-2)
    # Beyond the border it repeats: row 16 reads row 18, column 0 reads column -2.
    np.testing.assert_allclose(unnormalised(changed)[:, 16, 0, :2] * 255, [[240, 0]] * 8, atol=1e-2)


def test_contrast_brightness_and_saturation_change_values_as_hand_computed(monkeypatch):
    # Two colours, 0.2 and 0.6 grey in halves: mean 0.4. Contrast +50 %: 0.4 -/+ 0.3 = 0.1 and 0.7.
    halves = np.full((8, 4, 4, 3), 51, np.uint8)
    halves[:, 2:] = 153
    draws(monkeypatch, contrast=1)
    changed = unnormalised(augmented(Augment(contrast=0.5), pixels=halves))
    np.testing.assert_allclose(changed[:, [0, 3], 0, 0], [[0.1, 0.7]] * 8, atol=1e-5)
    # Brightness -50 %: 0.1 and 0.3.
    draws(monkeypatch, brightness=-1)
    changed = unnormalised(augmented(Augment(brightness=0.5), pixels=halves))
    np.testing.assert_allclose(changed[:, [0, 3], 0, 0], [[0.1, 0.3]] * 8, atol=1e-5)
    # Red 0.4: its grey is 0.299 * 0.4 = 0.1196. Saturation -50 %: (0.4 + 0.1196) / 2 and 0.1196 / 2.
    red = np.zeros((8, 4, 4, 3), np.uint8)
    red[..., 0] = 102
    draws(monkeypatch, saturation=-1)
    changed = unnormalised(augmented(Augment(saturation=0.5), pixels=red))
    np.testing.assert_allclose(changed[:, 0, 0], [[0.2598, 0.0598, 0.0598]] * 8, atol=1e-5)


def test_zoom_and_stretch_are_drawn_for_each_image_within_their_bounds():
    none = {"zoom": 0.0, "shift": 0.0, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0}
    for config in (Augment(**{**none, "zoom": 0.3}), Augment(**none, stretch=0.3)):
        rows, columns = (np.log(slope / 15) for slope in slopes(augmented(config, pixels=ROWS_AND_COLUMNS)))
        np.testing.assert_allclose(columns, rows if config.zoom else -rows, atol=1e-3)
        assert np.abs(rows).max() <= 0.3 + 1e-3
        assert rows.min() < -0.05 and rows.max() > 0.05
        assert len(np.unique(rows.round(4))) == 8
