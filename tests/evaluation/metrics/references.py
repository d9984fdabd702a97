"""Slow references: the definitions, literally, and hard inputs for them."""

import math

import numpy as np


def exact_unit_vectors(random, count):
    """Vectors of length 1 whose products are exact in float32 and often equal."""
    halves = random.choice([-0.5, 0.5], (count, 4))
    axes = np.eye(4)[random.integers(0, 4, count)] * random.choice([-1, 1], (count, 1))
    return np.where(random.random((count, 1)) < 0.5, halves, axes).astype(np.float32)


def unit(random, shape):
    rows = random.normal(size=shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def normalised(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def slow_grade(similarities, positives, junk):
    """The definitions, one picture of the ranking at a time: average precision, and precision at 1, 5, 10."""
    ranking = sorted(range(len(similarities)), key=lambda position: (-similarities[position], position))
    ranking = [position for position in ranking if position not in junk]
    area, found, last = 0.0, 0, 0
    for seen, position in enumerate(ranking):
        before = found / seen if seen else 1.0
        found += position in positives
        if position in positives:
            area += (before + found / (seen + 1)) / 2 / len(positives)
            last = seen + 1
    at = [sum(position in positives for position in ranking[: min(last, k)]) / min(last, k) for k in (1, 5, 10)]
    return [area, *at]


def tied_problem(num_pictures: int = 40, num_classes: int = 60, seed: int = 0):
    """Embeddings, classes of which many are equal, ids in no order, and one to four true classes a picture."""
    rng = np.random.default_rng(seed)
    weights = normalised(rng.standard_normal((12, 8)))[rng.integers(0, 12, num_classes)]
    embeddings = normalised(rng.standard_normal((num_pictures, 8)))
    entity_ids = [f"Q{number}" for number in rng.permutation(num_classes)]
    truths = [rng.choice(num_classes, rng.integers(1, 5), replace=False) for _ in range(num_pictures)]
    return embeddings, weights, entity_ids, truths


def literal_order(embedding: np.ndarray, weights: np.ndarray, entity_ids: list[str]) -> list[int]:
    """The classes, best first: falling cosine in exact arithmetic, then entity id."""
    scores = [math.fsum(float(a) * float(b) for a, b in zip(embedding, row, strict=True)) for row in weights]
    return sorted(range(len(weights)), key=lambda one: (-scores[one], entity_ids[one]))


VECTORS = {"cat": [2, 0], "a cat": [0, 3], "dog": [0, 1], "a dog": [0, 1], "nan": [np.nan, 0], "not cat": [-2, 0]}


class Words:
    def embed_texts(self, texts):
        return np.array([VECTORS[text] for text in texts], np.float32)


def embed(texts):
    return Words().embed_texts(texts)
