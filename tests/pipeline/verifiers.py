"""Verifiers that tests name by `module:function`: a real one, and some with faults."""

from __future__ import annotations

import numpy as np

CHANNELS = {"red": 0, "green": 1, "blue": 2}
sizes: list[int] = []  # of the batches that `by_colour` was called with


def by_colour(images, texts, candidates):
    """Returns how much of the picture's colour is the one that each candidate's description names."""
    sizes.append(len(texts))
    scores = []
    for image, ones in zip(images, candidates, strict=True):
        means = np.asarray(image, np.float64).mean(axis=(0, 1))
        scores.append([means[CHANNELS[one.description]] / max(means.sum(), 1.0) for one in ones])
    return scores


class Judge:
    """Verifiers may be methods of an object that holds a model."""

    def length(self, images, texts, candidates):
        return [np.full(len(ones), len(text)) for text, ones in zip(texts, candidates, strict=True)]


judge = Judge()
not_callable = 3


def fails(images, texts, candidates):
    raise RuntimeError("the model\nis not there")


def too_few(images, texts, candidates):
    return [[1.0 for _ in ones] for ones in candidates[1:]]


def too_many(images, texts, candidates):
    return [[1.0 for _ in ones] + [0.0] for ones in candidates]


def one_number(images, texts, candidates):
    return 1.0


def flat(images, texts, candidates):
    return [1.0 for _ in texts]


def not_finite(images, texts, candidates):
    return [[float("nan") for _ in ones] for ones in candidates]


def words(images, texts, candidates):
    return [["good" for _ in ones] for ones in candidates]


def fails_later(images, texts, candidates):
    yield [1.0 for _ in candidates[0]]
    raise RuntimeError("the second picture is odd")
