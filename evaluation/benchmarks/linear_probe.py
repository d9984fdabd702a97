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

Without validation pictures, a tenth of each class is held out: at least one of two, never all. Accuracy at 1 and at 5
is measured on the test pictures (at 5 only where there are more classes); equal scores rank by class position, and
classes stand in the order of their folders.
"""

from __future__ import annotations

import dataclasses

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
from evaluation.metrics.linear import HELDOUT_SHARE, row_slices, rows_of_scores
from evaluation.metrics.logistic import LOG10_C, NUM_REFINEMENTS, check_grid, fit_best
from evaluation.options import Options, option
from evaluation.protocol import Context, Result, register
from evaluation.sets.labelled import check_training_classes, read_labelled
from pipeline.schema import UserError

ACCURACY_RANKS = (1, 5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearProbeOptions(Options):
    """See `--help`."""

    train: str = option("imagenet/train", help="a folder of class folders or tfds:<name>/<split>")
    test: str = option("imagenet/val", help="likewise")
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


@register("linear_probe", version=2, options=LinearProbeOptions)
def linear_probe(context: Context, options: LinearProbeOptions) -> Result:
    """Accuracy of a linear classifier on frozen embeddings (ImageNet layout, or any labelled folder or TFDS set).

    Raises:
        Unavailable: the data is not there.
        UserError: a class has no training picture.
    """
    train = read_labelled(
        context,
        "linear_probe_train",
        options.train,
        option="linear_probe.train",
        is_default=options.is_default("train"),
    )
    test = read_labelled(
        context,
        "linear_probe_test",
        options.test,
        train.class_names,
        option="linear_probe.test",
        is_default=options.is_default("test"),
    )
    check_training_classes(train.labels, train.class_names, options.train)
    num_classes = len(train.class_names)
    train_embedded = context.embed(train.images, truth=train.truth)
    test_embedded = context.embed(test.images, truth=test.truth)
    widths = train_embedded.vectors.shape[1], test_embedded.vectors.shape[1]
    if widths[0] != widths[1]:
        raise UserError(
            f"training embeddings have {widths[0]} dimensions, the test's {widths[1]}; embed both with one model"
        )
    labels, test_labels = train.labels[train_embedded.positions], test.labels[test_embedded.positions]
    # Unreadable pictures are out by now.
    check_training_classes(labels, train.class_names, options.train)
    settings = options.settings("method", "seed", "heldout_share")
    vectors = train_embedded.vectors
    if options.method == "exact":
        settings |= options.settings("log10_c") | {"num_refinements": NUM_REFINEMENTS}
        probe = fit_best(
            vectors,
            labels,
            None,
            None,
            num_classes,
            log10_c=options.log10_c,
            heldout_share=options.heldout_share,
            seed=options.seed,
        )
    else:
        settings |= options.settings("learning_rates", "num_epochs")
        settings |= {"batch_size": BATCH_SIZE, "momentum": MOMENTUM}
        probe = fit_best_sgd(
            vectors,
            labels,
            None,
            None,
            num_classes,
            learning_rates=options.learning_rates,
            num_epochs=options.num_epochs,
            heldout_share=options.heldout_share,
            seed=options.seed,
        )
    ranks = [k for k in ACCURACY_RANKS if k < num_classes]
    items = {f"accuracy_at_{k}": np.zeros(len(test_labels)) for k in ranks}
    for rows in row_slices(len(test_labels), rows_of_scores(num_classes)):
        scores = probe.scores(test_embedded.vectors[rows])
        for k in ranks:
            items[f"accuracy_at_{k}"][rows] = hits_at(scores, test_labels[rows], k)
    return Result(
        metrics={name: float(values.mean()) for name, values in items.items()},
        counts={
            "num_train": len(labels),
            "num_test": len(test_labels),
            "num_classes": num_classes,
            "num_unreadable": train_embedded.num_unreadable + test_embedded.num_unreadable,
            "chosen_c" if options.method == "exact" else "chosen_learning_rate": probe.chosen,
            "validation_accuracies": {f"{value:.4g}": one for value, one in probe.validation_accuracies.items()},
            "validation_losses": {f"{value:.4g}": one for value, one in probe.validation_losses.items()},
            "converged": probe.converged,
        },
        data=[train_embedded.provenance, test_embedded.provenance],
        settings=settings,
        items=items,
    )
