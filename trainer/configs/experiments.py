"""The experiments, one function each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from pipeline.schema import UserError
from trainer.configs.base import Augment, Data, Experiment, ImageTower, Loss, Optimizer, TextTower, closest


def supervised_demo() -> Experiment:
    """Entities as classes, small enough for a laptop: about 3 minutes on two cores."""
    return Experiment(
        name="supervised_demo",
        steps=400,
        embedding_dim=128,
        image=ImageTower(
            image_size_px=48,
            patch_px=8,
            stem_fold_px=4,
            stem_channels=64,
            width=128,
            depth=4,
            num_heads=4,
            pool="flatten",
            scale_init_by_data=True,
            antialias=True,
        ),
        text=TextTower(vocabulary_size=4096, context_length=24, width=128, depth=1, num_heads=4, pool="mean"),
        loss=Loss(classification_weight=1.0, contrastive_weight=0.0),
        data=Data(batch_size=128),
        optimizer=Optimizer(
            kind="muon",
            learning_rate=2e-3,
            muon_learning_rate=0.01,
            classifier_learning_rate=5e-3,
            warmup_steps=30,
            weight_decay=0.0,
        ),
        checkpoint_every=200,
    )


def contrastive_demo() -> Experiment:
    """Entity name and description as text, or the raw texts of a set without entities."""
    return dataclasses.replace(
        supervised_demo(),
        name="contrastive_demo",
        steps=140,
        loss=Loss(classification_weight=0.0, contrastive_weight=1.0),
        data=Data(batch_size=128, description_probability=0.8),
    )


def multitask_demo() -> Experiment:
    """Both losses, at equal weights."""
    return dataclasses.replace(
        supervised_demo(),
        name="multitask_demo",
        loss=Loss(classification_weight=0.5, contrastive_weight=0.5),
        data=Data(batch_size=128, description_probability=0.8),
    )


def contrastive_bootstrap() -> Experiment:
    """A small dual encoder on raw, noisy pairs: the filter of the first mining round. About 100 s on two cores."""
    base = contrastive_demo()
    return dataclasses.replace(
        base,
        name="contrastive_bootstrap",
        steps=180,
        data=Data(batch_size=128),
    )


def multitask_b16() -> Experiment:
    """MOFI B/16: the paper's shapes and recipe, with the optimiser settings of closely related models.

    Loss weights, class scale and batch size are this project's choice, because the paper does not state them.
    """
    return Experiment(
        name="multitask_b16",
        steps=600_000,
        embedding_dim=512,
        dtype="bfloat16",
        remat=True,
        image=ImageTower(),
        text=TextTower(),
        loss=Loss(),
        data=Data(workers=8, threads=4),
        augment=Augment(zoom=0.2, shift=0.1, brightness=0.0, contrast=0.0, saturation=0.0),
        optimizer=Optimizer(),
        log_every=100,
        checkpoint_every=2000,
    )


EXPERIMENTS: dict[str, Callable[[], Experiment]] = {
    function.__name__: function
    for function in (contrastive_bootstrap, supervised_demo, contrastive_demo, multitask_demo, multitask_b16)
}


def get_experiment(name: str) -> Experiment:
    """Returns the experiment of that name.

    Raises:
        UserError: there is no such experiment; the message names the nearest.
    """
    if name not in EXPERIMENTS:
        raise UserError(
            f"--config {name} is unknown; the nearest is {closest(name, EXPERIMENTS)}, and all are "
            f"{', '.join(EXPERIMENTS)}"
        )
    return EXPERIMENTS[name]()
