import numpy as np
import pytest

from evaluation.demo.pixels import centred, pixel_vectors
from pipeline.schema import UserError
from tests.evaluation.builders import pictures


def test_the_gallerys_mean_is_subtracted_before_the_cosine():
    # The gallery's mean is (2, 1): (4, 1) becomes (2, 0), of direction (1, 0); (0, 1) becomes (-1, 0).
    vectors = np.array([[4, 1], [0, 1], [2, 5]], np.float32)
    result = centred(vectors, np.array([True, True, False]))
    assert result.tolist() == [[1, 0], [-1, 0], [0, 1]]


def test_a_gallery_of_equal_pictures_is_an_error():
    with pytest.raises(UserError, match="2 different pictures"):
        centred(np.ones((2, 3), np.float32), np.array([True, True]))


def test_a_vector_has_16_x_16_x_3_values_in_0_to_1():
    vectors = pixel_vectors(pictures([("a", "cat", "n", False, False)]))
    assert vectors.shape == (1, 768)
    assert 0 <= vectors.min() and vectors.max() <= 1
