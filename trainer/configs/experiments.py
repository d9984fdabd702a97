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
        data=Data(batch_size=128, name_probability=0.2, description_probability=0.8),
    )


def multitask_demo() -> Experiment:
    """Both losses, at equal weights."""
    return dataclasses.replace(
        supervised_demo(),
        name="multitask_demo",
        loss=Loss(classification_weight=0.5, contrastive_weight=0.5),
        data=Data(batch_size=128, name_probability=0.2, description_probability=0.8),
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


# Shapes of the towers (image, text) and their embeddings, by size. B/16, L/14 and H/14 are the paper's.
_SIZES = {
    "s16": (
        ImageTower(width=384, num_heads=6, pre_norm=True),
        TextTower(width=384, num_heads=6),
        384,
    ),
    "b16": (
        ImageTower(pre_norm=True),
        TextTower(),
        512,
    ),
    "l14": (
        ImageTower(patch_px=14, width=1024, depth=24, num_heads=16, pre_norm=True),
        TextTower(width=768, num_heads=12),
        768,
    ),
    "h14": (
        ImageTower(patch_px=14, width=1280, depth=32, num_heads=16, pool="mean"),
        TextTower(width=1024, depth=24, num_heads=16),
        1024,
    ),
}


def _multitask(size: str) -> Experiment:
    """The paper's shapes and recipe, with the optimiser settings of closely related models.

    Loss weights, class scale and batch size are this project's choice, because the paper does not state them.
    """
    image, text, embedding_dim = _SIZES[size]
    return Experiment(
        name=f"multitask_{size}",
        steps=600_000,
        embedding_dim=embedding_dim,
        dtype="bfloat16",
        remat="full",
        scan_layers=True,
        scan_unroll=12 if image.depth == 12 else 1,  # deeper towers would take minutes to compile
        deterministic=False,
        image=image,
        text=text,
        data=Data(workers=8, threads=4),
        augment=Augment(zoom=0.2, shift=0.1, brightness=0.0, contrast=0.0, saturation=0.0),
        log_every=100,
        checkpoint_every=2000,
    )


def multitask_s16() -> Experiment:
    """ViT-S/16, for first trials on one accelerator."""
    base = _multitask("s16")
    return dataclasses.replace(base, steps=50_000, remat="none", data=dataclasses.replace(base.data, batch_size=1024))


def multitask_b16() -> Experiment:
    """MOFI B/16."""
    return _multitask("b16")


def multitask_l14() -> Experiment:
    """MOFI L/14."""
    return dataclasses.replace(_multitask("l14"), optimizer=Optimizer(learning_rate=4e-4))


def multitask_h14() -> Experiment:
    """MOFI H/14."""
    return dataclasses.replace(_multitask("h14"), optimizer=Optimizer(learning_rate=4e-4))


def supervised_b16() -> Experiment:
    """Entities as classes alone, with the image tower of B/16."""
    return dataclasses.replace(
        _multitask("b16"), name="supervised_b16", loss=Loss(classification_weight=1.0, contrastive_weight=0.0)
    )


def contrastive_b16() -> Experiment:
    """Pictures against texts alone, with the towers of B/16; also for sets of raw pairs."""
    return dataclasses.replace(
        _multitask("b16"), name="contrastive_b16", loss=Loss(classification_weight=0.0, contrastive_weight=1.0)
    )


def finetune_highres() -> Experiment:
    """A trained B/16 goes on at 384 pixels, for a thirtieth of the steps and at a tenth of the learning rates.

    `init_from` names that encoder; set it to yours.
    """
    base = _multitask("b16")
    return dataclasses.replace(
        base,
        name="finetune_highres",
        steps=20_000,
        init_from="runs/multitask_b16/encoder",
        image=dataclasses.replace(base.image, image_size_px=384),
        data=dataclasses.replace(base.data, batch_size=8192),
        optimizer=Optimizer(learning_rate=5e-5, classifier_learning_rate=5e-5, warmup_steps=500),
    )


EXPERIMENTS: dict[str, Callable[[], Experiment]] = {
    function.__name__: function
    for function in (
        contrastive_bootstrap,
        supervised_demo,
        contrastive_demo,
        multitask_demo,
        multitask_s16,
        supervised_b16,
        contrastive_b16,
        multitask_b16,
        multitask_l14,
        multitask_h14,
        finetune_highres,
    )
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
