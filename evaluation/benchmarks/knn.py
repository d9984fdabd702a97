"""Weighted k-nearest-neighbour classification: neighbours vote with exp(similarity / temperature).

Protocol (version 1), after Wu et al. 2018: k of 10, 20, 100 and 200 at temperature 0.07, training pictures as the
gallery, test pictures as the queries. Neighbours of equal similarity come by position in the sorted training pictures;
classes of equal votes by class number. Similarities are exact: float64 of the float32 embeddings.
"""

from __future__ import annotations

import numpy as np

from evaluation.metrics.blocks import read_rows
from evaluation.metrics.knn import knn_predictions
from evaluation.protocol import Context, Result, register
from evaluation.sets.labelled import check_training_classes, read_labelled
from pipeline.schema import UserError


@register("knn", version=1)
def knn(context: Context) -> Result:
    """Weighted k-nearest-neighbour accuracy (ImageNet layout, or any labelled folder or TFDS set).

    Options: train, test (folders or tfds:...; imagenet/train, imagenet/val), k (10,20,100,200), temperature (0.07).

    Raises:
        Unavailable: the data is not there.
        UserError: an option is out of range, or a class has no training picture.
    """
    ks = _neighbours(context.option("k", "10,20,100,200"))
    temperature = _temperature(context.option("temperature", "0.07"))
    source, test_source = context.option("train", "imagenet/train"), context.option("test", "imagenet/val")
    if source == test_source:
        raise UserError(f"train and test are both {source}, so pictures would find themselves; name two different sets")
    train = read_labelled(context, "knn_train", source, option="knn.train")
    test = read_labelled(context, "knn_test", test_source, train.class_names, option="knn.test")
    # Before hours of embedding.
    check_training_classes(train.labels, train.class_names, source)
    if max(ks) > len(train.images):
        raise UserError(f"k is {max(ks)}, the training pictures are {len(train.images)}; give more, or a smaller knn.k")
    gallery = context.embed(train.images, truth=train.truth)
    queries = context.embed(test.images, truth=test.truth)
    if gallery.vectors.shape[1] != queries.vectors.shape[1]:
        raise UserError(
            f"training embeddings have {gallery.vectors.shape[1]} dimensions, the test's {queries.vectors.shape[1]}; "
            "embed both with one model"
        )
    truth = test.labels[queries.positions]
    predicted = knn_predictions(
        gallery.vectors,
        train.labels[gallery.positions],
        read_rows(queries.vectors, 0, len(truth)),
        ks=ks,
        temperature=temperature,
    )
    items = {f"{k}.accuracy_at_1": (predicted[k] == truth).astype(np.float64) for k in ks}
    return Result(
        metrics={name: float(values.mean()) for name, values in items.items()},
        counts={
            "num_train": len(gallery.positions),
            "num_queries": len(truth),
            "num_classes": len(train.class_names),
            "num_unreadable": gallery.num_unreadable + queries.num_unreadable,
            # No settings: the same pictures compare wherever they lie.
            "train": train.source,
            "test": test.source,
        },
        settings={"k": list(ks), "temperature": temperature},
        items=items,
    )


def _neighbours(text: str) -> tuple[int, ...]:
    try:
        ks = tuple(int(one) for one in text.split(","))
    except ValueError:
        ks = ()
    if not ks or min(ks) < 1 or len(set(ks)) != len(ks):
        raise UserError(f"knn.k is {text!r}; give different numbers of at least 1, such as 10,20,100,200")
    return ks


def _temperature(text: str) -> float:
    try:
        temperature = float(text)
    except ValueError:
        temperature = 0.0
    if not 0 < temperature < float("inf"):
        raise UserError(f"knn.temperature is {text!r}; it must be a number above 0, such as 0.07")
    return temperature
