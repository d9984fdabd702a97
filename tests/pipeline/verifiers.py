"""Verifiers that tests name by `module:function`: a real one, and some with faults."""

from __future__ import annotations

import functools

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
part = functools.partial(by_colour)
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


def fails_within(images, texts, candidates):
    return fails(images, texts, candidates)


def fails_silently(images, texts, candidates):
    raise ValueError


def mapping(images, texts, candidates):
    return {text: [1.0 for _ in ones] for text, ones in zip(texts, candidates, strict=True)}


def letters(images, texts, candidates):
    return ["ab" for _ in texts]


def truth(images, texts, candidates):
    return [[True for _ in ones] for ones in candidates]


def last_is_none(images, texts, candidates):
    return [[*(1.0 for _ in ones[1:]), None] for ones in candidates]


class Words:
    def __repr__(self):
        return "array\n of words " * 10


def long_value(images, texts, candidates):
    return [[Words() for _ in ones] for ones in candidates]


def generator(images, texts, candidates):
    yield from judge.length(images, texts, candidates)


def table(images, texts, candidates):
    return np.array([[len(text) for _ in ones] for text, ones in zip(texts, candidates, strict=True)])


def whole_numbers(images, texts, candidates):
    return [(len(text),) * len(ones) for text, ones in zip(texts, candidates, strict=True)]


def one_each(images, texts, candidates):
    return [[1.0] for _ in texts]


def brightness(images, texts, candidates):
    return [[image.getpixel((0, 0))[0]] for image in images]


class Tensor:
    """What iterates over tensors, not over numbers, as those of torch do."""

    def __init__(self, values):
        self.values = values

    def __iter__(self):
        return map(Tensor, self.values)

    def tolist(self):
        return self.values


def tensor(images, texts, candidates):
    return Tensor(whole_numbers(images, texts, candidates))
