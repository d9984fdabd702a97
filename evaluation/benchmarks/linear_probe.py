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

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from evaluation.metrics.classes import hits_at
from evaluation.metrics.descent import BATCH_SIZE, LEARNING_RATES, MOMENTUM, NUM_EPOCHS, check_schedule, fit_best_sgd
from evaluation.metrics.linear import HELDOUT_SHARE, row_slices, rows_of_scores
from evaluation.metrics.logistic import LOG10_C, NUM_REFINEMENTS, check_grid, fit_best
from evaluation.protocol import Context, Result, register
from evaluation.sets.labelled import check_training_classes, read_labelled
from pipeline.schema import UserError

ACCURACY_RANKS = (1, 5)


@register("linear_probe", version=2)
def linear_probe(context: Context) -> Result:
    """Accuracy of a linear classifier on frozen embeddings (ImageNet layout, or any labelled folder or TFDS set).

    Options: train, test (folders or tfds:...), method (exact or sgd; exact), log10_c (the coarse grid of exact),
    learning_rates and num_epochs (of sgd), heldout_share (0.1), seed (0).

    Raises:
        Unavailable: the data is not there.
        UserError: an option is out of range, or a class has no training picture.
    """
    method = context.option("method", "exact")
    if method not in ("exact", "sgd"):
        raise UserError(f"linear_probe.method is {method!r}; give exact or sgd")
    seed = _number(context, "seed", "0", int)
    if seed < 0:
        raise UserError(f"linear_probe.seed is {seed}, it must be at least 0")
    share = _number(context, "heldout_share", str(HELDOUT_SHARE), float)
    if not 0 < share < 1:
        raise UserError(f"linear_probe.heldout_share is {share}, it must lie between 0 and 1; 0.1 is usual")
    num_epochs = _number(context, "num_epochs", str(NUM_EPOCHS), int)
    grid = _numbers(context, "log10_c", LOG10_C)
    rates = _numbers(context, "learning_rates", LEARNING_RATES)
    source, test_source = context.option("train", "imagenet/train"), context.option("test", "imagenet/val")
    # Before hours of embedding.
    check_grid(grid)
    check_schedule(rates, num_epochs, BATCH_SIZE)
    train = read_labelled(context, "linear_probe_train", source, option="linear_probe.train")
    test = read_labelled(context, "linear_probe_test", test_source, train.class_names, option="linear_probe.test")
    check_training_classes(train.labels, train.class_names, source)
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
    check_training_classes(labels, train.class_names, source)
    settings: dict[str, Any] = {"method": method, "seed": seed, "heldout_share": share}
    vectors = train_embedded.vectors
    if method == "exact":
        settings |= {"log10_c": grid, "num_refinements": NUM_REFINEMENTS}
        probe = fit_best(vectors, labels, None, None, num_classes, log10_c=grid, heldout_share=share, seed=seed)
    else:
        settings |= {"learning_rates": rates, "num_epochs": num_epochs, "batch_size": BATCH_SIZE, "momentum": MOMENTUM}
        probe = fit_best_sgd(
            vectors,
            labels,
            None,
            None,
            num_classes,
            learning_rates=rates,
            num_epochs=num_epochs,
            heldout_share=share,
            seed=seed,
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
            "chosen_c" if method == "exact" else "chosen_learning_rate": probe.chosen,
            "validation_accuracies": {f"{value:.4g}": one for value, one in probe.validation_accuracies.items()},
            "validation_losses": {f"{value:.4g}": one for value, one in probe.validation_losses.items()},
            "converged": probe.converged,
        },
        settings=settings,
        items=items,
    )


def _numbers(context: Context, name: str, default: Sequence[float]) -> list[float]:
    text = context.option(name, ",".join(map(str, default)))
    try:
        return [float(one) for one in text.split(",")]
    except ValueError as error:
        raise UserError(f"linear_probe.{name} is {text!r}; give numbers with commas, such as 0.1,1") from error


def _number(context: Context, name: str, default: str, kind: Callable[[str], Any]) -> Any:
    text = context.option(name, default)
    try:
        return kind(text)
    except ValueError as error:
        raise UserError(f"linear_probe.{name} is {text!r}, which is no such number; {default} is usual") from error
