"""The config of an experiment, as nested frozen dataclasses, one per part, and how its fields are overridden."""

from __future__ import annotations

import dataclasses
import decimal
import difflib
import math
import re
import typing
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

from pipeline.schema import UserError

LARGEST_SCALE = 100.0  # of the logits of both losses, as in CLIP
_SUM_ERROR = 1e-6  # of probabilities that add up to 1 but for rounding


@dataclasses.dataclass(frozen=True)
class Meaning:
    """A field's description in `--help`, with its unit, and the range that `check` enforces."""

    text: str
    least: float = -math.inf
    greatest: float = math.inf


Activation = Literal["gelu_tanh", "gelu", "quick_gelu"]
_ACTIVATION = Meaning(
    "of the blocks' MLPs: GELU approximated by tanh, GELU, or x * sigmoid(1.702 x) as in OpenAI's CLIP"
)
_NORM_EPSILON = Meaning("added to the variance in the tower's norms; CLIP has 1e-5", 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageTower:
    """A vision transformer."""

    image_size_px: Annotated[int, Meaning("side of the square image", 1)] = 224
    patch_px: Annotated[int, Meaning("side of a patch; each patch is one token", 1)] = 16
    stem_fold_px: Annotated[
        int,
        Meaning("0: patches are projected straight to width; else blocks of this side are folded and mixed first", 0),
    ] = 0
    stem_channels: Annotated[int, Meaning("channels of that mix; used only with stem_fold_px", 0)] = 0
    width: Annotated[int, Meaning("channels of a token", 1)] = 768
    depth: Annotated[int, Meaning("blocks", 1)] = 12
    num_heads: Annotated[int, Meaning("attention heads per block", 1)] = 12
    mlp_ratio: Annotated[int, Meaning("hidden channels of a block's MLP, as a multiple of width", 1)] = 4
    activation: Annotated[Activation, _ACTIVATION] = "gelu_tanh"
    norm_epsilon: Annotated[float, _NORM_EPSILON] = 1e-6
    pool: Annotated[
        Literal["class_token", "mean", "flatten"],
        Meaning("what the head reads: the class token, the mean of the tokens, or all tokens side by side"),
    ] = "class_token"
    pre_norm: Annotated[bool, Meaning("normalise the tokens before the first block, as CLIP does")] = False
    scale_init_by_data: Annotated[
        bool, Meaning("centre and scale the outputs of stem and head on one batch before the first step")
    ] = False
    antialias: Annotated[
        bool, Meaning("average over all pixels when an image is shrunk, as Hugging Face's image processors do")
    ] = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextTower:
    """A text transformer and its tokenizer."""

    vocabulary_size: Annotated[int, Meaning("tokens, with the 256 bytes and three special tokens", 259)] = 50_265
    context_length: Annotated[int, Meaning("tokens per text; longer texts are truncated", 3)] = 77
    width: Annotated[int, Meaning("channels of a token", 1)] = 512
    depth: Annotated[int, Meaning("blocks", 1)] = 12
    num_heads: Annotated[int, Meaning("attention heads per block", 1)] = 8
    mlp_ratio: Annotated[int, Meaning("hidden channels of a block's MLP, as a multiple of width", 1)] = 4
    activation: Annotated[Activation, _ACTIVATION] = "gelu_tanh"
    norm_epsilon: Annotated[float, _NORM_EPSILON] = 1e-6
    pool: Annotated[
        Literal["last", "mean"],
        Meaning("last: causal attention, reads the last token; mean: full attention, reads the mean"),
    ] = "last"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
    """The losses and their weights. A weight of 0 leaves out the loss and the parts that only it needs."""

    classification_weight: Annotated[float, Meaning("of the softmax over entities; 0 leaves it out", 0)] = 0.5
    contrastive_weight: Annotated[float, Meaning("of image against text; 0 leaves it out", 0)] = 0.5
    class_scale: Annotated[float, Meaning("of the classes' cosines, at the start", 1e-3, LARGEST_SCALE)] = 16.0
    class_scale_learned: Annotated[bool, Meaning("learn that scale; else it stays as it is")] = True
    class_margin: Annotated[float, Meaning("subtracted from the cosine of the right class", 0, 2)] = 0.0
    class_std: Annotated[float, Meaning("standard deviation of the class vectors, at the start", 1e-6)] = 0.05
    tile_classes: Annotated[
        int, Meaning("classes whose logits are in memory at once, per device; 0: chosen by batch and embedding_dim", 0)
    ] = 0
    class_dtype: Annotated[
        Literal["float32", "bfloat16"],
        Meaning("of the factors of the classifier's matrix products; they are summed in float32"),
    ] = "float32"
    sample_rate: Annotated[
        float,
        Meaning(
            "share of all classes, drawn at random, that a step compares its images with, beside the classes of the "
            "batch; only these are updated. 1: all",
            1e-6,
            1,
        ),
    ] = 1.0
    sample_blocks: Annotated[
        int,
        Meaning("equal parts of the classes, each drawn from by itself; a multiple of the number of devices", 1),
    ] = 64
    contrastive_temperature: Annotated[
        float, Meaning("at the start; the scale 1 / temperature is learned", 1 / LARGEST_SCALE)
    ] = 0.07


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """What is read from the set and how."""

    batch_size: Annotated[int, Meaning("images per step, over all devices", 1)] = 32_768
    name_probability: Annotated[float, Meaning("entity sets: share of texts that are the entity's name", 0, 1)] = 0.0
    description_probability: Annotated[
        float, Meaning('entity sets: share of texts that are "name, description" of the entity', 0, 1)
    ] = 1.0
    alt_text_probability: Annotated[
        float, Meaning("entity sets: share of texts that are the picture's own; the three shares add up to 1", 0, 1)
    ] = 0.0
    weight_column: Annotated[
        str,
        Meaning(
            "column of the set by which the losses weigh examples: similarities (of picture and entity), or a field "
            "that passed through; empty: all weigh the same"
        ),
    ] = ""
    weight_mapping: Annotated[
        Literal["value", "exponential"],
        Meaning("from the column to the weight: the value itself, or exp(value / weight_temperature)"),
    ] = "value"
    weight_temperature: Annotated[float, Meaning("of the exponential; used only with it", 1e-6)] = 0.1
    workers: Annotated[int, Meaning("processes per host that decode images; 0: threads of the trainer decode", 0)] = 0
    threads: Annotated[int, Meaning("decoding threads in each of those processes", 1)] = 2
    held_out_batches: Annotated[
        int, Meaning("batches of records that training leaves out; evaluate_every measures on them", 0)
    ] = 0
    num_skippable: Annotated[
        int, Meaning("how many damaged records may be skipped, each for the record after it; one more stops the run", 0)
    ] = 0
    prefetch: Annotated[int, Meaning("decoded batches kept ready; each host keeps its part of them", 1)] = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augment:
    """Random changes of training images; 0 switches a change off."""

    zoom: Annotated[float, Meaning("largest change of the logarithm of the scale, either way", 0)] = 0.1
    stretch: Annotated[float, Meaning("largest change of the logarithm of each side, opposite ways", 0)] = 0.0
    shift: Annotated[float, Meaning("largest shift, as a share of the side", 0)] = 0.06
    brightness: Annotated[float, Meaning("largest change, as a share, either way", 0)] = 0.1
    contrast: Annotated[float, Meaning("largest change, as a share, either way", 0)] = 0.1
    saturation: Annotated[float, Meaning("largest change, as a share, either way", 0)] = 0.1
    grey_probability: Annotated[float, Meaning("share of images that lose their colours", 0, 1)] = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Muon for matrices and AdamW for the rest, or AdamW for all; linear warm-up, then half a cosine to zero."""

    kind: Annotated[Literal["muon", "adamw"], Meaning("muon: Muon for matrices, AdamW for the rest")] = "adamw"
    learning_rate: Annotated[float, Meaning("of AdamW, at the peak", 0)] = 5e-4
    muon_learning_rate: Annotated[float, Meaning("of Muon, at the peak", 0)] = 0.02
    classifier_learning_rate: Annotated[float, Meaning("of the class vectors (AdamW), at the peak", 0)] = 5e-4
    warmup_steps: Annotated[int, Meaning("steps to the peak; at most half of all steps are used", 0)] = 2000
    b1: Annotated[float, Meaning("of AdamW, for the mean", 0, 0.99999)] = 0.9
    b2: Annotated[float, Meaning("of AdamW, for the mean square", 0, 0.99999)] = 0.98
    weight_decay: Annotated[float, Meaning("of the towers' matrices, times the learning rate", 0)] = 0.2
    clip_norm: Annotated[float, Meaning("largest norm of all gradients together; 0 switches clipping off", 0)] = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that defines a training run except its data, workdir and mesh."""

    name: Annotated[str, Meaning("of this config")]
    steps: Annotated[int, Meaning("batches to train on", 1)]
    seed: Annotated[int, Meaning("of record order, initial parameters and all other random choices", 0, 2**32 - 1)] = 0
    embedding_dim: Annotated[int, Meaning("of images and texts", 1)] = 512
    dtype: Annotated[
        Literal["float32", "bfloat16"], Meaning("of the towers' matrix products; parameters are float32")
    ] = "float32"
    remat: Annotated[
        Literal["none", "light", "dots", "full"],
        Meaning(
            "recompute the blocks' activations in the backward pass: none of them; the inner steps of norms and GELU; "
            "all but the matrix products; all. Less memory, from light on more time"
        ),
    ] = "none"
    scan_layers: Annotated[
        bool,
        Meaning("stack the blocks' parameters and run them in a loop: towers of any depth compile in the same time"),
    ] = False
    scan_unroll: Annotated[
        int,
        Meaning("blocks in each turn of that loop; more take less time on a GPU, and longer to compile", 1),
    ] = 1
    deterministic: Annotated[
        bool, Meaning("on accelerators: the same sums in the same order at every run, which takes a sixth more time")
    ] = True
    init_from: Annotated[
        str, Meaning("encoder or workdir whose parameters are the initial ones; empty: random ones")
    ] = ""
    micro_batches: Annotated[
        int,
        Meaning("parts of a batch that go through the towers one after the other; each loss still sees all of it", 1),
    ] = 1
    image: ImageTower = ImageTower()
    text: TextTower = TextTower()
    loss: Loss = Loss()
    data: Data = Data()
    augment: Augment = Augment()
    optimizer: Optimizer = Optimizer()
    log_every: Annotated[int, Meaning("steps between lines of the log", 1)] = 20
    evaluate_every: Annotated[
        int, Meaning("steps between measurements on the records that are held out; 0: none", 0)
    ] = 0
    checkpoint_every: Annotated[int, Meaning("steps between checkpoints", 1)] = 1000
    checkpoints_kept: Annotated[int, Meaning("how many of the latest checkpoints are kept", 1)] = 2

    @property
    def classifies(self) -> bool:
        return self.loss.classification_weight > 0

    @property
    def samples(self) -> bool:
        """Whether a step sees only a sample of the classes."""
        return self.classifies and self.loss.sample_rate < 1

    @property
    def contrasts(self) -> bool:
        return self.loss.contrastive_weight > 0


def override(experiment: Experiment, assignments: Iterable[str]) -> Experiment:
    """Returns `experiment` with fields changed by `a.b=value` strings.

    Raises:
        UserError: an assignment does not name a field (the message names the nearest), or its value has a wrong type.
    """
    for assignment in assignments:
        path, separator, value = assignment.partition("=")
        if not separator:
            raise UserError(
                f"--set {assignment} has no '='; write it as FIELD=VALUE, e.g. optimizer.learning_rate=1e-3"
            )
        experiment = _replaced(experiment, path.strip(), path.strip().split("."), value.strip())
    return experiment


def experiment_of(config: dict[str, Any]) -> Experiment:
    """Returns the experiment that `dataclasses.asdict` made `config` of; fields that it lacks have their defaults."""
    experiment: Experiment = _of_dict(Experiment, config)
    return experiment


def _of_dict(kind: Any, values: dict[str, Any]) -> Any:
    kinds = typing.get_type_hints(kind)
    known = {field.name: kinds[field.name] for field in dataclasses.fields(kind)}
    return kind(
        **{
            name: _of_dict(known[name], value) if dataclasses.is_dataclass(known[name]) else value
            for name, value in values.items()
            if name in known
        }
    )


def fields_of(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Meaning]]:
    """Yields (dotted name, value, meaning) of every leaf field."""
    kinds = typing.get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from fields_of(value, f"{prefix}{field.name}.")
        else:
            (meaning,) = kinds[field.name].__metadata__
            yield prefix + field.name, value, meaning


def closest(name: str, known: Iterable[str]) -> str:
    """Returns the known name closest to `name`."""
    known = list(known)
    return max(known, key=lambda candidate: difflib.SequenceMatcher(None, name, candidate).ratio())


def check(experiment: Experiment) -> None:
    """Checks that the fields are in their ranges and fit each other.

    Raises:
        UserError: they do not; the message names the field, its value and what to set.
    """
    for name, value, meaning in fields_of(experiment):
        if isinstance(value, int | float) and not meaning.least <= value <= meaning.greatest:
            limit, bound = ("most", meaning.greatest) if value > meaning.greatest else ("least", meaning.least)
            raise UserError(
                f"{name} is {value}, but must be at {limit} {bound:.10g}; set it with --set {name}={bound:.10g}"
            )
    image, text = experiment.image, experiment.text
    if not experiment.classifies and not experiment.contrasts:
        raise UserError("both loss weights are 0; set loss.classification_weight or loss.contrastive_weight above 0")
    if experiment.evaluate_every and not experiment.data.held_out_batches:
        raise UserError(
            f"evaluate_every is {experiment.evaluate_every}, but data.held_out_batches is 0; hold out a batch with "
            "--set data.held_out_batches=1"
        )
    data = experiment.data
    total = data.name_probability + data.description_probability + data.alt_text_probability
    if abs(total - 1) > _SUM_ERROR:
        raise UserError(
            f"data.name_probability {data.name_probability:g}, data.description_probability "
            f"{data.description_probability:g} and data.alt_text_probability {data.alt_text_probability:g} add up to "
            f"{total:g}, but must add up to 1; set all three"
        )
    if image.image_size_px % image.patch_px:
        raise UserError(
            f"image.image_size_px {image.image_size_px} is not a multiple of image.patch_px {image.patch_px}; "
            "change either"
        )
    if image.stem_fold_px and image.patch_px % image.stem_fold_px:
        raise UserError(
            f"image.patch_px {image.patch_px} is not a multiple of image.stem_fold_px {image.stem_fold_px}; "
            "change either"
        )
    if image.stem_fold_px and not image.stem_channels:
        raise UserError(
            f"image.stem_fold_px {image.stem_fold_px} needs image.stem_channels of at least 1; set it, e.g. "
            "--set image.stem_channels=64"
        )
    for name, tower in (("image", image), ("text", text)):
        if tower.width % tower.num_heads:
            raise UserError(
                f"{name}.width {tower.width} is not a multiple of {name}.num_heads {tower.num_heads}; change either"
            )


def _replaced(config: Any, path: str, parts: list[str], value: str) -> Any:
    names = [field.name for field in dataclasses.fields(config)]
    if parts[0] not in names:
        known = {name: name for name in names}
        if path == parts[0]:  # perhaps the field of a group, without the group
            known = {name.rpartition(".")[2]: name for name, _, _ in fields_of(config)} | known
        nearest = known[closest(parts[0], known)]
        raise UserError(f"--set {path}: there is no field '{parts[0]}'; the nearest is '{nearest}'")
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
    try:
        # 1e5 is a number of steps all the same.
        return int(decimal.Decimal(value)) if kind is int and _is_whole(value) else kind(value)
    except ValueError:
        raise UserError(f"--set {path}={value}: this field takes a value of type {kind.__name__}") from None


def _is_whole(value: str) -> bool:
    """Returns whether `value` is a whole number in scientific notation, e.g. 1e5 or 2.5e3."""
    return re.fullmatch(r"[+-]?\d+(\.\d+)?[eE][+]?\d{1,2}", value) is not None and decimal.Decimal(value) % 1 == 0
