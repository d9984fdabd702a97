"""What an experiment is made of: nested frozen dataclasses, one a part, and how a field is overridden."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Iterator
from typing import Any, Literal


class UserError(Exception):
    """An error the user can mend: one line that names the value, the limit and the remedy."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageTower:
    """A vision transformer."""

    image_size_px: int = 224
    patch_px: int = 16
    stem_fold_px: int = (
        0  # 0: patches go straight to `width`; else fold this many pixels first, mix, then fold the rest
    )
    stem_channels: int = 0
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: int = 4
    # What the head reads: the class token, the mean of the tokens, or all of them side by side.
    pool: Literal["class_token", "mean", "flatten"] = "class_token"
    scale_init_by_data: bool = False  # centre and scale the stem and the head on one batch before the first step
    antialias: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextTower:
    """A text transformer and its tokenizer."""

    vocabulary_size: int = 50_265
    context_length: int = 77  # tokens a text
    width: int = 512
    depth: int = 12
    num_heads: int = 8
    mlp_ratio: int = 4
    # Causal with the last token read, or both ways with the mean read.
    pool: Literal["last", "mean"] = "last"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
    """Which losses, and their weights; a weight of 0 leaves the loss out, and with it the parts only it needs."""

    classification_weight: float = 0.5
    contrastive_weight: float = 0.5
    class_scale: float = 16.0  # at the start; it is learned, at most 100
    class_margin: float = 0.0  # taken from the cosine of the right class
    class_std: float = 0.05  # of the class vectors at the start
    tile_classes: int = 4096  # classes whose logits are in memory at once
    contrastive_temperature: float = 0.07  # at the start; the scale 1 / temperature is learned, at most 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """What is read from the set, and how."""

    batch_size: int = 32_768  # images a step, over all devices
    description_probability: float = 1.0  # entity sets: how often the text is "name, description" and not the name
    workers: int = 0  # processes that decode; 0 decodes in threads of this process
    threads: int = 2
    prefetch: int = 16  # images that wait decoded, a thread or process


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augment:
    """How much training pictures vary; 0 switches a change off."""

    zoom: float = 0.1  # largest change of scale, either way
    stretch: float = 0.0  # largest change of the ratio of the sides, either way
    shift: float = 0.06  # largest shift, as a share of the side
    brightness: float = 0.1
    contrast: float = 0.1
    saturation: float = 0.1
    grey_probability: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Muon for matrices and AdamW for the rest, or AdamW for all; linear warm-up, then half a cosine to zero."""

    kind: Literal["muon", "adamw"] = "adamw"
    learning_rate: float = 5e-4  # of AdamW, at the peak
    muon_learning_rate: float = 0.02  # of Muon, at the peak
    classifier_learning_rate: float = 5e-4  # of the class vectors (AdamW), at the peak
    warmup_steps: int = 2000
    b1: float = 0.9
    b2: float = 0.98
    weight_decay: float = 0.2  # matrices only
    clip_norm: float = 1.0  # of all gradients together; 0 leaves them


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """All that one training run is made of, but for the data, the place and the mesh."""

    name: str
    steps: int
    seed: int = 0
    embedding_dim: int = 512
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the towers' matrix products; parameters are float32
    remat: bool = False  # recompute activations in the backward pass: less memory, more time
    image: ImageTower = ImageTower()
    text: TextTower = TextTower()
    loss: Loss = Loss()
    data: Data = Data()
    augment: Augment = Augment()
    optimizer: Optimizer = Optimizer()
    log_every: int = 20  # steps
    checkpoint_every: int = 1000  # steps
    checkpoints_kept: int = 2

    @property
    def classifies(self) -> bool:
        return self.loss.classification_weight > 0

    @property
    def contrasts(self) -> bool:
        return self.loss.contrastive_weight > 0


def override(experiment: Experiment, assignments: Iterable[str]) -> Experiment:
    """Returns `experiment` with fields changed by `a.b=value` strings.

    Raises:
        UserError: an assignment names no field (the nearest is named), or its value has another type.
    """
    for assignment in assignments:
        path, separator, value = assignment.partition("=")
        if not separator:
            raise UserError(
                f"--set {assignment} has no '='; write it as FIELD=VALUE, e.g. optimizer.learning_rate=1e-3"
            )
        experiment = _replaced(experiment, path.strip(), path.strip().split("."), value.strip())
    return experiment


def fields_of(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted name, value) of every leaf field."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from fields_of(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns the known name closest to `name`."""
    known = list(known)
    return max(known, key=lambda candidate: difflib.SequenceMatcher(None, name, candidate).ratio())


def check(experiment: Experiment) -> None:
    """Raises UserError unless the fields fit each other."""
    image, text = experiment.image, experiment.text
    if not experiment.classifies and not experiment.contrasts:
        raise UserError("both loss weights are 0; set loss.classification_weight or loss.contrastive_weight above 0")
    positive = {
        "steps": experiment.steps,
        "log_every": experiment.log_every,
        "checkpoint_every": experiment.checkpoint_every,
        "data.batch_size": experiment.data.batch_size,
        "embedding_dim": experiment.embedding_dim,
        "image.image_size_px": image.image_size_px,
        "image.patch_px": image.patch_px,
        "image.width": image.width,
        "image.num_heads": image.num_heads,
        "text.width": text.width,
        "text.num_heads": text.num_heads,
    }
    for name, value in positive.items():
        if value < 1:
            raise UserError(f"{name} is {value}, it must be at least 1; set it with --set {name}=…")
    if image.image_size_px % image.patch_px:
        raise UserError(
            f"image.image_size_px {image.image_size_px} is no multiple of image.patch_px {image.patch_px}; change one"
        )
    if image.stem_fold_px and image.patch_px % image.stem_fold_px:
        raise UserError(
            f"image.patch_px {image.patch_px} is no multiple of image.stem_fold_px {image.stem_fold_px}; change either"
        )
    for name, tower in (("image", image), ("text", text)):
        if tower.width % tower.num_heads:
            raise UserError(
                f"{name}.width {tower.width} is no multiple of {name}.num_heads {tower.num_heads}; change either"
            )


def _replaced(config: Any, path: str, parts: list[str], value: str) -> Any:
    names = [field.name for field in dataclasses.fields(config)]
    if parts[0] not in names:
        raise UserError(f"--set {path}: no field '{parts[0]}'; the nearest is '{nearest(parts[0], names)}'")
    current = getattr(config, parts[0])
    if dataclasses.is_dataclass(current):
        if len(parts) == 1:
            raise UserError(f"--set {path} names a group; set one of its fields, e.g. {path}.{_first_field(current)}")
        return dataclasses.replace(config, **{parts[0]: _replaced(current, path, parts[1:], value)})
    if len(parts) > 1:
        raise UserError(f"--set {path}: '{parts[0]}' has no fields of its own; write {parts[0]}=VALUE")
    kind = typing.get_type_hints(type(config))[parts[0]]
    return dataclasses.replace(config, **{parts[0]: _parsed(path, kind, value)})


def _first_field(config: Any) -> str:
    return dataclasses.fields(config)[0].name


def _parsed(path: str, kind: Any, value: str) -> Any:
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if value in choices:
            return value
        raise UserError(f"--set {path}={value}: choose one of {', '.join(choices)}")
    if kind is bool:
        if value.lower() in ("true", "false"):
            return value.lower() == "true"
        raise UserError(f"--set {path}={value}: write true or false")
    if isinstance(kind, types.UnionType):
        raise UserError(f"--set {path}: this field cannot be set from the command line")
    try:
        return kind(value)
    except ValueError:
        raise UserError(f"--set {path}={value}: this field takes a value of type {kind.__name__}") from None
