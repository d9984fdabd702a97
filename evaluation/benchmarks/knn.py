"""Weighted k-nearest-neighbour classification: neighbours vote with exp(similarity / temperature).

Protocol (version 1), after Wu et al. 2018: k of 10, 20, 100 and 200 at temperature 0.07, training pictures as the
gallery, test pictures as the queries. Accuracy at 1, and at 5 where there are more classes. Neighbours of equal
similarity come by position in the sorted training pictures; classes of equal votes by class number, and so do classes
without votes. Similarities are exact: float64 of the float32 embeddings.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from evaluation.metrics.blocks import read_rows
from evaluation.metrics.knn import NUM_NEIGHBOURS, TEMPERATURE, knn_predictions
from evaluation.options import Options, option
from evaluation.protocol import Context, Result, register
from evaluation.sets.labelled import check_distinct_sets, check_distinct_sources, check_training_classes, read_labelled
from pipeline.schema import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class KnnOptions(Options):
    """See `--help`."""

    train: str = option("imagenet/train", help="gallery, a folder of class folders or tfds:<name>/<split>")
    test: str = option("imagenet/val", help="queries, likewise")
    k: tuple[int, ...] = option(NUM_NEIGHBOURS, at_least=1, distinct=True, help="numbers of neighbours that vote")
    temperature: float = option(TEMPERATURE, above=0, help="a vote is exp(similarity / temperature)")


@register("knn", version=1, options=KnnOptions)
def knn(context: Context, options: KnnOptions) -> Result:
    """Weighted k-nearest-neighbour accuracy (ImageNet layout, or any labelled folder or TFDS set).

    Raises:
        Unavailable: the data is not there.
        UserError: train and test are the same pictures, or a class has no training picture.
    """
    ks, source, test_source = options.k, options.train, options.test
    sources = {"train": source, "test": test_source}
    check_distinct_sources(context, "knn", sources)
    train = read_labelled(context, "knn_train", source, option="knn.train", is_default=options.is_default("train"))
    test = read_labelled(
        context,
        "knn_test",
        test_source,
        train.class_names,
        option="knn.test",
        is_default=options.is_default("test"),
    )
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
    check_distinct_sets("knn", sources, {"train": gallery, "test": queries})
    truth = test.labels[queries.positions]
    predicted = knn_predictions(
        gallery.vectors,
        train.labels[gallery.positions],
        read_rows(queries.vectors, 0, len(truth)),
        ks=ks,
        temperature=options.temperature,
    )
    right = {k: classes == truth[:, None] for k, classes in predicted.items()}
    items = {f"{k}.accuracy_at_1": right[k][:, 0].astype(np.float64) for k in ks}
    if len(train.class_names) > 5:
        items |= {f"{k}.accuracy_at_5": right[k].any(axis=1).astype(np.float64) for k in ks}
    return Result(
        metrics={name: float(values.mean()) for name, values in items.items()},
        counts={
            "num_train": len(gallery.positions),
            "num_queries": len(truth),
            "num_classes": len(train.class_names),
            "num_unreadable": gallery.num_unreadable + queries.num_unreadable,
            "num_unread_files": train.num_unread_files + test.num_unread_files,
            # No settings: the same pictures compare wherever they lie.
            "train": train.source,
            "test": test.source,
        },
        data=[gallery.provenance, queries.provenance],
        settings=options.settings("temperature"),
        items=items,
        chance={name: (5 if name.endswith("_5") else 1) / len(train.class_names) for name in items},
    )
