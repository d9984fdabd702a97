import numpy as np

from trainer.augment import make_augment
from trainer.configs.base import Augment
from trainer.encoder import Preprocessing
from trainer.mesh import batch_sharding, make_mesh

NONE = Augment(zoom=0, shift=0, brightness=0, contrast=0, saturation=0)
PIXELS = np.random.default_rng(0).integers(0, 256, (8, 6, 6, 3), dtype=np.uint8)


def augmented(config, step=0, mesh=(1, 1), pixels=PIXELS):
    function = make_augment(config, Preprocessing(image_size_px=6), 0, batch_sharding(make_mesh(*mesh)))
    return np.asarray(function(pixels, np.int32(step)))


def test_with_every_change_off_it_only_normalises():
    expected = Preprocessing(image_size_px=6).normalise(PIXELS)
    np.testing.assert_allclose(augmented(NONE), expected, atol=1e-5)


def test_it_depends_on_the_step_and_on_nothing_else():
    assert (augmented(Augment(), 3) == augmented(Augment(), 3)).all()
    assert (augmented(Augment(), 3) != augmented(Augment(), 4)).any()
    np.testing.assert_allclose(augmented(Augment(), 3), augmented(Augment(), 3, (2, 2)), atol=1e-5)


def test_a_white_picture_stays_white_when_it_is_moved():
    white = np.full((8, 6, 6, 3), 255, np.uint8)
    moved = augmented(Augment(zoom=0.5, shift=0.5, brightness=0, contrast=0, saturation=0), pixels=white)
    np.testing.assert_allclose(moved, Preprocessing(image_size_px=6).normalise(white), atol=1e-5)


def test_grey_pictures_have_three_equal_channels():
    grey = augmented(Augment(zoom=0, shift=0, brightness=0, contrast=0, saturation=0, grey_probability=1.0))
    preprocessing = Preprocessing(image_size_px=6)
    pixels = grey * np.asarray(preprocessing.std) + np.asarray(preprocessing.mean)
    np.testing.assert_allclose(pixels[..., 0], pixels[..., 2], atol=1e-5)
