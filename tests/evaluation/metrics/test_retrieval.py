import numpy as np
import pytest

from evaluation.metrics.retrieval import found_at, retrieval_ranks
from tests.evaluation.metrics.references import exact_unit_vectors


def slow_recalls(images, captions, image_of):
    """The definition, a sort a query."""
    found = {}
    for k in (1, 5, 10):
        hits = []
        for image in range(len(images)):
            order = sorted(range(len(captions)), key=lambda c: (-float(images[image] @ captions[c]), c))
            hits.append(any(image_of[caption] == image for caption in order[:k]))
        found[f"image_to_text.recall_at_{k}"] = sum(hits) / len(hits)
        hits = []
        for caption in range(len(captions)):
            order = sorted(range(len(images)), key=lambda i: (-float(captions[caption] @ images[i]), i))
            hits.append(image_of[caption] in order[:k])
        found[f"text_to_image.recall_at_{k}"] = sum(hits) / len(hits)
    return found


def test_recalls_equal_the_slow_twin_with_ties_and_several_captions():
    random = np.random.default_rng(5)
    images = exact_unit_vectors(random, 50)
    image_of = random.permutation(np.concatenate([np.arange(50), random.integers(0, 50, 90)]))
    captions = np.where(random.random((140, 1)) < 0.5, images[image_of], exact_unit_vectors(random, 140))
    found = found_at(*retrieval_ranks(images, captions, image_of))
    expected = slow_recalls(images, captions, image_of)
    assert {key: float(values.mean()) for key, values in found.items()} == pytest.approx(expected, abs=1e-6)
    assert 0.05 < expected["text_to_image.recall_at_1"] < expected["text_to_image.recall_at_10"] < 1


def test_any_caption_of_a_picture_is_a_hit():
    captions = np.array([[-1, 0], [0, 1], [1, 0]], np.float32)
    image_ranks, caption_ranks = retrieval_ranks(np.array([[1, 0], [0, 1]], np.float32), captions, np.array([0, 1, 0]))
    assert image_ranks.tolist() == [1, 1]
    assert caption_ranks.tolist() == [2, 1, 1]


@pytest.mark.parametrize("image_of", [[0, 0], [0, 2], [0]])
def test_arrays_without_a_caption_for_each_picture_are_refused(image_of):
    with pytest.raises(ValueError, match="caption"):
        retrieval_ranks(np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32), np.array(image_of))
