"""Linear probe: how much of the classes a linear classifier finds in frozen embeddings.

Protocol (version 2). Embeddings are used as they are, L2-normalised, without augmentation.

`exact` is multinomial logistic regression with an L2 penalty: the minimum of `c * sum of log losses + half the squared
norm of the weights`, biases not penalised, which is scikit-learn's objective for three classes or more. (With two, it
fits one vector where this fits two: its solution at 2c is this one at c.) `c` is chosen by accuracy on held-out
pictures: every second power of ten from 10^-6 to 10^6, then three times the two neighbours of the best at half the
distance. Of equal accuracies the lowest log loss on the held-out pictures wins, of equal losses the smallest `c`: where
every `c` classifies the held-out part without a fault, the loss still tells a probe that knows from one that guesses.
(Version 1 took the smallest `c`, which may predict one class only.) Held-out pictures of classes that the rest lacks
count in the accuracy and not in the loss. The probe is then fitted to all training pictures, held-out ones included.

`sgd` is for sets that are too large for that: minibatch gradient descent with momentum and a cosine schedule, no
penalty, one probe for each learning rate, all trained on the same batches; the choice is made as above. The grid and
the schedule are this project's choice.

Without validation pictures, a tenth of each class is held out: at least one of two, never all. Pictures that the
option validation names choose the setting instead, and the probe is fitted to the training pictures alone. With the
option c nothing is chosen. Accuracy at 1 and at 5 is measured on the test pictures (at 5 only where there are more
classes); equal scores rank by class position, and classes are in the order of their folders.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from evaluation.metrics.classes import hits_at
from evaluation.metrics.descent import (
    BATCH_SIZE,
    LEARNING_RATES,
    MAX_LEARNING_RATE,
    MOMENTUM,
    NUM_EPOCHS,
    fit_best_sgd,
)
from evaluation.metrics.linear import HELDOUT_SHARE, LinearProbe, row_slices, rows_of_scores
from evaluation.metrics.logistic import LOG10_C, NUM_REFINEMENTS, check_grid, fit_best, fit_probe
from evaluation.options import Options, option
from evaluation.protocol import Context, Result, register
from evaluation.sets.images import LabelledImages
from evaluation.sets.labelled import check_distinct_sets, check_distinct_sources, check_training_classes, read_labelled
from pipeline.schema import UserError

ACCURACY_RANKS = (1, 5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearProbeOptions(Options):
    """See `--help`."""

    train: str = option("imagenet/train", help="a folder of class folders or tfds:<name>/<split>")
    test: str = option("imagenet/val", help="likewise")
    validation: str | None = option(
        None, help="likewise, to choose settings by; without it a share of each class is held out"
    )
    c: float | None = option(None, at_least=1e-30, at_most=1e30, help="of exact: this value, instead of a search")
    method: str = option("exact", choices=("exact", "sgd"), help="solver, see the protocol")
    log10_c: tuple[float, ...] = option(LOG10_C, help="of exact: the coarse grid, rising in even steps")
    learning_rates: tuple[float, ...] = option(
        LEARNING_RATES, above=0, at_most=MAX_LEARNING_RATE, help="of sgd: a probe is trained at each"
    )
    num_epochs: int = option(NUM_EPOCHS, at_least=1, help="of sgd: passes over the data")
    heldout_share: float = option(HELDOUT_SHARE, above=0, below=1, help="of each class, to choose settings by")
    seed: int = option(0, at_least=0, help="of what is held out and of the order of rows")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_grid(self.log10_c)
        if self.c is not None and self.method != "exact":
            raise UserError(f"c is {self.c:g}, which method {self.method} does not have; leave one of them out")
        if self.c is not None and self.validation is not None:
            raise UserError(f"c is {self.c:g}, so validation={self.validation} chooses nothing; leave one of them out")


@register("linear_probe", version=2, options=LinearProbeOptions)
def linear_probe(context: Context, options: LinearProbeOptions) -> Result:
    """Accuracy of a linear classifier on frozen embeddings (ImageNet layout, or any labelled folder or TFDS set).

    Raises:
        Unavailable: the data is not there.
        UserError: a class has no training picture, there are no pictures to choose settings by, or two of the sets are
            the same pictures.
    """
    sources = {"train": options.train, "test": options.test}
    sources |= {} if options.validation is None else {"validation": options.validation}
    check_distinct_sources(context, "linear_probe", sources)
    train, test, validation = _read(context, options)
    num_classes = len(train.class_names)
    sets = {"training": train, "test": test} | ({} if validation is None else {"validation": validation})
    embedded = {name: context.embed(one.images, truth=one.truth) for name, one in sets.items()}
    width = embedded["training"].vectors.shape[1]
    for name, one in embedded.items():
        if one.vectors.shape[1] != width:
            raise UserError(
                f"training embeddings have {width} dimensions, the {name}'s {one.vectors.shape[1]}; embed both with "
                "one model"
            )
    # Its options are named train, test and validation.
    check_distinct_sets("linear_probe", sources, {"train": embedded["training"], **embedded})
    labels = {name: one.labels[embedded[name].positions] for name, one in sets.items()}
    # Unreadable pictures are out by now.
    check_training_classes(labels["training"], train.class_names, options.train)
    probe = _fit(options, {name: one.vectors for name, one in embedded.items()}, labels, num_classes)
    test_vectors, test_labels = embedded["test"].vectors, labels["test"]
    ranks = [k for k in ACCURACY_RANKS if k < num_classes]
    items = {f"accuracy_at_{k}": np.zeros(len(test_labels)) for k in ranks}
    for rows in row_slices(len(test_labels), rows_of_scores(num_classes)):
        scores = probe.scores(test_vectors[rows])
        for k in ranks:
            items[f"accuracy_at_{k}"][rows] = hits_at(scores, test_labels[rows], k)
    return Result(
        metrics={name: float(values.mean()) for name, values in items.items()},
        counts={
            "num_train": len(labels["training"]),
            "num_validation": None if validation is None else len(labels["validation"]),
            "num_test": len(test_labels),
            "num_classes": num_classes,
            "num_unreadable": sum(one.num_unreadable for one in embedded.values()),
            "num_unread_files": sum(one.num_unread_files for one in sets.values()),
            "chosen_c" if options.method == "exact" else "chosen_learning_rate": probe.chosen,
            "validation_accuracies": {f"{value:.4g}": one for value, one in probe.validation_accuracies.items()},
            "validation_losses": {f"{value:.4g}": one for value, one in probe.validation_losses.items()},
            "converged": probe.converged,
        },
        data=[one.provenance for one in embedded.values()],
        settings=_settings(options),
        items=items,
        chance={f"accuracy_at_{k}": k / num_classes for k in ranks},
    )


def _read(
    context: Context, options: LinearProbeOptions
) -> tuple[LabelledImages, LabelledImages, LabelledImages | None]:
    """Returns training, test and validation pictures; None: some of the first are held out, or nothing is chosen."""

    def read(part: str, source: str, class_names: tuple[str, ...] | None) -> LabelledImages:
        name = f"linear_probe_{part}"
        is_default = options.is_default(part)
        return read_labelled(context, name, source, class_names, option=f"linear_probe.{part}", is_default=is_default)

    train = read("train", options.train, None)
    test = read("test", options.test, train.class_names)
    check_training_classes(train.labels, train.class_names, options.train)
    if options.validation is not None:
        return train, test, read("validation", options.validation, train.class_names)
    if options.c is None and len(train.labels) == len(train.class_names):
        # c is an option of exact alone.
        or_c = ", or linear_probe.c=<number>" if options.method == "exact" else ""
        raise UserError(
            f"each of the {len(train.labels)} classes of {options.train} has one picture, so none can be held out to "
            f"choose settings by; give --option linear_probe.validation=<folder or tfds:...>{or_c}"
        )
    return train, test, None


def _fit(
    options: LinearProbeOptions, vectors: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray], num_classes: int
) -> LinearProbe:
    """Returns the probe of the "training" rows, chosen by the "validation" rows if there are any."""
    rows, row_labels = vectors["training"], labels["training"]
    if options.c is not None:
        return fit_probe(rows, row_labels, c=options.c, num_classes=num_classes)
    if options.method == "exact":
        return fit_best(
            rows,
            row_labels,
            vectors.get("validation"),
            labels.get("validation"),
            num_classes,
            log10_c=options.log10_c,
            heldout_share=options.heldout_share,
            seed=options.seed,
            train_on_validation=options.validation is None,
        )
    return fit_best_sgd(
        rows,
        row_labels,
        vectors.get("validation"),
        labels.get("validation"),
        num_classes,
        learning_rates=options.learning_rates,
        num_epochs=options.num_epochs,
        heldout_share=options.heldout_share,
        seed=options.seed,
        train_on_validation=options.validation is None,
    )


def _settings(options: LinearProbeOptions) -> dict[str, Any]:
    """Returns what makes two results comparable, besides their pictures."""
    if options.c is not None:
        return options.settings("method", "c")
    settings = options.settings("method", "seed")
    # Which pictures choose belongs to the data, that others than training pictures do is a setting.
    settings |= options.settings("heldout_share") if options.validation is None else {"has_validation": True}
    if options.method == "exact":
        return settings | options.settings("log10_c") | {"num_refinements": NUM_REFINEMENTS}
    settings |= options.settings("learning_rates", "num_epochs")
    return settings | {"batch_size": BATCH_SIZE, "momentum": MOMENTUM}
