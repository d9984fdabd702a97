"""The floating-point operations of a training step, counted from the shapes: a product and its sum are two."""

from __future__ import annotations

from trainer.configs.base import Experiment, ImageTower, TextTower


def step_flops(experiment: Experiment, num_classes: int) -> float:
    """Returns the operations of one step over the whole batch, on all devices together.

    They are those of the matrix products of towers, attention and losses, three times: once forward and twice backward.
    Recomputed products, the optimiser and what is done number by number do not count.
    """
    image, text, dim = experiment.image, experiment.text, experiment.embedding_dim
    batch = experiment.data.batch_size
    per_image = image_flops(image, dim)
    if experiment.contrasts:
        per_image += text_flops(text, dim) + 2 * batch * dim
    if experiment.classifies:
        per_image += 2 * num_classes * dim
    return 3.0 * batch * per_image


def image_flops(tower: ImageTower, embedding_dim: int) -> float:
    """Returns the operations of the image tower's products, forward, per image."""
    patches = (tower.image_size_px // tower.patch_px) ** 2
    tokens = patches + (tower.pool == "class_token")
    inputs = 3 * tower.patch_px**2
    stem = 0.0
    if tower.stem_fold_px:
        folds = (tower.patch_px // tower.stem_fold_px) ** 2
        stem = 2 * patches * folds * 3 * tower.stem_fold_px**2 * tower.stem_channels
        inputs = folds * tower.stem_channels
    stem += 2 * patches * inputs * tower.width
    pooled = patches * tower.width if tower.pool == "flatten" else tower.width
    return stem + _blocks_flops(tower, tokens) + 2 * pooled * embedding_dim


def text_flops(tower: TextTower, embedding_dim: int) -> float:
    """Returns the operations of the text tower's products, forward, per text."""
    return _blocks_flops(tower, tower.context_length) + 2 * tower.width * embedding_dim


def _blocks_flops(tower: ImageTower | TextTower, tokens: int) -> float:
    # Query, key, value and output; up and down; and each token against each, once for the weights, once for the sum.
    of_a_token = 2 * (4 + 2 * tower.mlp_ratio) * tower.width**2 + 2 * 2 * tokens * tower.width
    return float(tower.depth * tokens * of_a_token)
