"""VTAB: 19 tasks over TFDS sets, natural, specialised and structured; accuracy on each test split, and means.

Protocol (version 2), after Zhai et al. 2019 and its code (google-research/task_adaptation):

- Sets, configs, splits and labels as there. Splits are cut at whole numbers of pictures, rounded down. Thresholds of
  distances are strict: a distance that equals a threshold belongs to the class below it.
- Mode "1k": settings are chosen with the first 800 pictures of the training part and the first 200 of the validation
  part, then the model is trained on those 1,000. Mode "full": the same with both parts whole. All pictures of the test
  part are scored, the last ones too, which the original drops when they do not fill a batch.
- Pictures become squares as a whole, whatever their shape, by bilinear sampling without antialias, then the encoder's
  own normalisation follows. `resize=encoder` leaves the encoder's own resizing and crop instead.
- Method "linear": multinomial logistic regression on the embeddings, see `evaluation.metrics.logistic`. Method
  "finetune": `evaluation.models.fine_tune`. The sweep over two learning rates, at 2,500 steps of 512 pictures with a
  cosine schedule, is this project's choice; of equal accuracies the earlier rate is kept, and a rate at which the loss
  is not finite is out. (Version 1 had another rule for equal accuracies of "linear".)
- The mean is over tasks. It is called "mean" only when all tasks of its group (or all 19) were scored; with some left
  out it is called "mean_of_<n>_tasks", and is not VTAB.

Sets of embeddings made elsewhere are named `vtab_<set>_<part>` with the parts train800, val200, train, val and test,
such as "vtab_clevr_train800"; their ids are `<split>:<number in the split>`.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import io
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from evaluation.metrics.logistic import fit_best
from evaluation.models.fine_tune import Diverged, FineTuneConfig
from evaluation.protocol import Context, Result, Tuner, Unavailable, register
from evaluation.report.figures import Bars
from evaluation.sets.images import ImageSet, LabelledImages, decode
from evaluation.sets.tfds import PreparedSet, open_tfds, read_examples
from pipeline.schema import UserError

CLEVR_DISTANCES = (0.0, 8.0, 8.5, 9.0, 9.5, 10.0)  # in CLEVR's own units
KITTI_DISTANCES = (-100.0, 8.0, 20.0, 999.0)  # in metres; above the last: no vehicle
KITTI_NO_VEHICLE = 1000.0
KITTI_NUM_VEHICLES = 3  # the first types of object are car, van and truck
LEARNING_RATES = (0.01, 0.001)
NUM_TRAIN, NUM_VAL = 800, 200  # of mode 1k


def clevr_count(sizes: np.ndarray) -> int:
    """Returns the class of a CLEVR picture by its number of objects, 3 to 10: 0 to 7."""
    return len(sizes) - 3


def clevr_distance(depths: np.ndarray) -> int:
    """Returns the class, 0 to 5, of the closest object: which of `CLEVR_DISTANCES` it is strictly beyond."""
    return _beyond(min(depths), CLEVR_DISTANCES)


def kitti_distance(types: np.ndarray, depths: np.ndarray) -> int:
    """Returns the class, 0 to 3, of the closest vehicle: which of `KITTI_DISTANCES` it is strictly beyond; 3: none.

    Args:
        types: int `[objects]`; those below `KITTI_NUM_VEHICLES` are vehicles.
        depths: `[objects]`, along the camera's axis, in metres.
    """
    vehicles = [depth for kind, depth in zip(types, depths, strict=True) if kind < KITTI_NUM_VEHICLES]
    return _beyond(min([*vehicles, KITTI_NO_VEHICLE]), KITTI_DISTANCES)


def binned(value: int, *, num_values: int, num_bins: int) -> int:
    """Returns which of `num_bins` equal ranges of 0 to `num_values` - 1 has `value`, such as 16 bins of 40 angles."""
    return int(value) * num_bins // num_values


def _beyond(distance: float, thresholds: tuple[float, ...]) -> int:
    """Returns the last threshold that is below `distance`; -1: none."""
    return int(np.searchsorted(np.asarray(thresholds), distance, side="left")) - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """Splits of a TFDS set that a task trains on, chooses its settings by, and is scored on."""

    train: str
    val: str
    test: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cuts:
    """How a set is cut into training, validation and test part; each is (split, from per cent, to per cent)."""

    train: tuple[str, int, int]
    val: tuple[str, int, int]
    test: tuple[str, int, int] = ("test", 0, 100)

    def parts(self, sizes: Mapping[str, int], mode: str) -> Parts:
        """Returns the parts, of a set with splits of `sizes`.

        Raises:
            UserError: a split is missing, or has too few pictures for mode 1k.
        """
        bounds: dict[str, tuple[str, int, int]] = {}
        for part, (split, start, stop) in (("train", self.train), ("val", self.val), ("test", self.test)):
            if split not in sizes:
                raise UserError(f"the split {split!r} is missing, there is {', '.join(sizes)}; prepare the set whole")
            bounds[part] = (split, sizes[split] * start // 100, sizes[split] * stop // 100)
        if mode == "1k":
            for part, count in (("train", NUM_TRAIN), ("val", NUM_VAL)):
                split, first, last = bounds[part]
                if last - first < count:
                    raise UserError(
                        f"the {part} part has {last - first} pictures, mode 1k needs {count}; prepare the set whole, "
                        "or give --option vtab.mode=full"
                    )
                bounds[part] = (split, first, first + count)
        return Parts(**{part: f"{split}[{first}:{last}]" for part, (split, first, last) in bounds.items()})


def _from_train(percent: int, test: str = "test") -> Cuts:
    return Cuts(train=("train", 0, percent), val=("train", percent, 100), test=(test, 0, 100))


def _all_from_train(train: int, val: int) -> Cuts:
    return Cuts(train=("train", 0, train), val=("train", train, train + val), test=("train", train + val, 100))


_OWN = Cuts(train=("train", 0, 100), val=("validation", 0, 100))
# Test pictures of SmallNORB show other toys than the training ones; validation shares the toys of the test.
_SMALLNORB = Cuts(train=("train", 0, 100), val=("test", 0, 50), test=("test", 50, 100))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One of the 19."""

    group: str  # natural, specialised or structured
    sources: tuple[str, ...]  # TFDS sets that serve, the first that is there is taken
    num_classes: int
    cuts: Cuts
    features: tuple[str, ...] = ("label",)
    label_of: Callable[[Mapping[str, Any]], int] = lambda example: example["label"]
    brightness: int = 1

    @property
    def set_name(self) -> str:
        """The set without config and version."""
        return self.sources[0].split(":")[0].split("/")[0]


def _clevr(num_classes: int, label_of: Callable[[Mapping[str, Any]], int]) -> Task:
    # The test split has no objects: the validation split is the test part.
    return Task(
        group="structured",
        sources=("clevr:3.*.*",),
        num_classes=num_classes,
        cuts=_from_train(90, "validation"),
        features=("objects",),
        label_of=label_of,
    )


def _dsprites(feature: str, num_values: int) -> Task:
    # Pixels are 0 and 1.
    return Task(
        group="structured",
        sources=("dsprites:2.*.*",),
        num_classes=16,
        cuts=_all_from_train(80, 10),
        features=(feature,),
        label_of=lambda example: binned(example[feature], num_values=num_values, num_bins=16),
        brightness=255,
    )


def _smallnorb(feature: str, num_classes: int) -> Task:
    return Task(
        group="structured",
        sources=("smallnorb:2.*.*",),
        num_classes=num_classes,
        cuts=_SMALLNORB,
        features=(feature,),
        label_of=lambda example: example[feature],
    )


def _depths(places: list[np.ndarray]) -> np.ndarray:
    return np.array([place[2] for place in places], np.float32)


TASKS: dict[str, Task] = {
    "caltech101": Task(group="natural", sources=("caltech101:3.*.*",), num_classes=102, cuts=_from_train(90)),
    "cifar100": Task(group="natural", sources=("cifar100:3.*.*",), num_classes=100, cuts=_from_train(90)),
    "dtd": Task(group="natural", sources=("dtd:3.*.*",), num_classes=47, cuts=_OWN),
    "oxford_flowers102": Task(group="natural", sources=("oxford_flowers102:2.*.*",), num_classes=102, cuts=_OWN),
    # Version 4 mends broken files and adds features; today's TFDS prepares nothing older.
    "oxford_iiit_pet": Task(
        group="natural",
        sources=("oxford_iiit_pet:3.*.*", "oxford_iiit_pet:4.*.*"),
        num_classes=37,
        cuts=_from_train(80),
    ),
    "sun397": Task(group="natural", sources=("sun397/tfds:4.*.*",), num_classes=397, cuts=_OWN),
    "svhn": Task(group="natural", sources=("svhn_cropped:3.*.*",), num_classes=10, cuts=_from_train(90)),
    "patch_camelyon": Task(group="specialised", sources=("patch_camelyon:2.*.*",), num_classes=2, cuts=_OWN),
    "eurosat": Task(group="specialised", sources=("eurosat/rgb:2.*.*",), num_classes=10, cuts=_all_from_train(60, 20)),
    "resisc45": Task(group="specialised", sources=("resisc45:3.*.*",), num_classes=45, cuts=_all_from_train(60, 20)),
    "diabetic_retinopathy": Task(
        group="specialised",
        sources=("diabetic_retinopathy_detection/btgraham-300:3.*.*",),
        num_classes=5,
        cuts=_OWN,
    ),
    "clevr_count": _clevr(8, lambda example: clevr_count(example["objects"]["size"])),
    "clevr_distance": _clevr(6, lambda example: clevr_distance(_depths(example["objects"]["pixel_coords"]))),
    "dmlab": Task(group="structured", sources=("dmlab:2.*.*",), num_classes=6, cuts=_OWN),
    "kitti_distance": Task(
        group="structured",
        sources=("kitti:3.*.*",),
        num_classes=4,
        cuts=_OWN,
        features=("objects",),
        label_of=lambda example: kitti_distance(example["objects"]["type"], _depths(example["objects"]["location"])),
    ),
    "dsprites_x_position": _dsprites("label_x_position", 32),
    "dsprites_orientation": _dsprites("label_orientation", 40),
    "smallnorb_azimuth": _smallnorb("label_azimuth", 18),
    "smallnorb_elevation": _smallnorb("label_elevation", 9),
}


@register("vtab", version=2)
def vtab(context: Context) -> Result:
    """VTAB's 19 tasks over TFDS: 1k or full, linear or finetune; the means of its groups and of all.

    Options: tasks (names with commas between; all), mode (1k or full; 1k), method (linear or finetune; linear), resize
    (square or encoder; square), and of fine-tuning num_steps (2500), batch_size (512), learning_rates (0.01,0.001).

    Raises:
        Unavailable: none of the tasks has its data, or there is no encoder to fine-tune.
        UserError: an option is unknown, or no task could be run and one went wrong.
    """
    names = _names(context.option("tasks", "all"))
    mode = _one_of(context, "mode", ("1k", "full"))
    method = _one_of(context, "method", ("linear", "finetune"))
    resize = _one_of(context, "resize", ("square", "encoder"))
    configs = _sweep(context) if method == "finetune" else []
    context.check_options()  # fine-tuning embeds nothing, and so would not see an unknown one before its end
    tuner = context.model.tuner if method == "finetune" else None
    # Embeddings made elsewhere are of pictures that nobody decodes here.
    size_px = context.model.preprocessing.get("image_size_px") if resize == "square" else None

    found, unprepared, failed = _sets(names, context.data_dir, mode)
    missing: dict[str, str] = {}
    metrics: dict[str, float] = {}
    items: dict[str, np.ndarray] = {}
    ran: dict[str, Any] = {}
    truths: dict[str, bytes] = collections.defaultdict(bytes)  # two tasks may share a set
    for name, prepared in found.items():
        # What is read for a task that goes wrong is no part of the result.
        of_task = dataclasses.replace(context, data={})
        try:
            with _named(name, prepared):
                data = read_task(TASKS[name], prepared, mode, size_px=size_px)
                so_far = {one.images.name: truths[one.images.name] + one.truth for one in data.values()}
                if tuner is not None:
                    read = {part: _read(of_task, one, so_far[one.images.name]) for part, one in data.items()}
                    num_read = {part: len(one.labels) for part, one in read.items()}
                    labels, predicted, chosen = _fine_tuned(tuner, read, TASKS[name].num_classes, configs)
                else:
                    num_read, labels, predicted, chosen = _probed(of_task, data, so_far, TASKS[name].num_classes)
        except UserError as error:  # it costs this task; those before and after it are worth hours
            (missing if isinstance(error, Unavailable) else failed)[name] = str(error)
            continue
        context.data.update(of_task.data)
        truths.update(so_far)
        right = (predicted == labels).astype(np.float64)
        items[f"{name}.accuracy"] = right
        metrics[f"{name}.accuracy"] = float(right.mean())
        ran[name] = {"set": prepared.full_name, "num_classes": TASKS[name].num_classes, "chosen": chosen}
        ran[name] |= {f"num_{part}": num_read[part] for part in data}
        ran[name]["num_unreadable"] = sum(len(data[part].labels) - num_read[part] for part in data)
    without_data = [*_told(unprepared), *(f"{name}: {error}" for name, error in missing.items())]
    if not ran and failed:
        raise UserError("; ".join(failed.values()))
    if not ran:
        raise Unavailable(f"none of {len(names)} tasks of VTAB has its data; {without_data[0]}")
    bars = {name: metrics[f"{name}.accuracy"] for name in ran}
    return Result(
        metrics=metrics | means(bars),
        counts={
            "num_tasks": len(ran),
            "tasks": ran,
            "not_asked_for": [name for name in TASKS if name not in names],
        },
        settings={"mode": mode, "method": method, "resize": resize} | _settings(configs),
        items=items,
        means={name: [f"{one}.accuracy" for one in of] for name, of in members(ran).items()},
        figures={"tasks": Bars(title="accuracy by task", values=bars, label="accuracy")},
        not_measured=without_data,
        failed=list(failed.values()),
    )


def _sets(
    names: Sequence[str], data_dir: Path, mode: str
) -> tuple[dict[str, PreparedSet], dict[str, str], dict[str, str]]:
    """Returns the sets of the tasks, why others have none, and what is wrong with the rest, before hours of work."""
    found: dict[str, PreparedSet] = {}
    unprepared: dict[str, str] = {}
    failed: dict[str, str] = {}
    for name in names:
        try:
            prepared = _prepared(TASKS[name], data_dir)
            with _named(name, prepared):
                parts_of(TASKS[name], prepared, mode)
            found[name] = prepared
        except Unavailable as error:
            unprepared[name] = str(error)
        except UserError as error:
            failed[name] = str(error) if str(error).startswith(f"{name} (") else f"{name}: {error}"
            print(f"warning: VTAB will lack {failed[name]}", file=sys.stderr)
    return found, unprepared, failed


def _told(unprepared: Mapping[str, str]) -> list[str]:
    """Returns one line for all tasks whose set is not prepared: the first one's says how to do it."""
    if not unprepared:
        return []
    (first, error), *others = unprepared.items()
    named = ", ".join(f"{name} ({TASKS[name].sources[-1]})" for name, _ in others)
    return [f"{first}: {error}" + (f"; likewise {named}" if named else "")]


def means(accuracies: Mapping[str, float]) -> dict[str, float]:
    """Returns the means of each group and of all tasks.

    Args:
        accuracies: task to accuracy, at least one.

    Returns:
        `<group>.mean` and `mean` where every task of the group (of all 19) is there, else `mean_of_<n>_tasks`; a group
        without any task has none.
    """
    return {name: float(np.mean([accuracies[one] for one in of])) for name, of in members(accuracies).items()}


def members(tasks: Iterable[str]) -> dict[str, list[str]]:
    """Returns the names of the means of `tasks`, each with the tasks that it is of; see `means`."""
    found = {}
    asked = set(tasks)
    for group in ("natural", "specialised", "structured", None):
        of_group = [name for name, task in TASKS.items() if group in (None, task.group)]
        there = [name for name in of_group if name in asked]
        if there:
            mean = "mean" if len(there) == len(of_group) else f"mean_of_{len(there)}_tasks"
            found[mean if group is None else f"{group}.{mean}"] = there
    return found


def read_task(task: Task, prepared: PreparedSet, mode: str, *, size_px: int | None = None) -> dict[str, LabelledImages]:
    """Returns the training, validation and test pictures of `task`, by "train", "val" and "test".

    Args:
        task: one of `TASKS`.
        prepared: its set.
        mode: "1k" or "full".
        size_px: make squares of so many pixels; None: leave pictures as they are.

    Raises:
        UserError: the set is not as VTAB has it.
    """
    parts = parts_of(task, prepared, mode)
    suffixes = {"train": str(NUM_TRAIN), "val": str(NUM_VAL)} if mode == "1k" else {}
    found = {}
    for part in ("train", "val", "test"):
        one = read_examples(
            f"vtab_{task.set_name}_{part}{suffixes.get(part, '')}",
            prepared,
            getattr(parts, part),
            features=task.features,
            label_of=task.label_of,
            class_names=[str(number) for number in range(task.num_classes)],
            brightness=task.brightness,
        )
        if len(one.labels) == 0:
            raise UserError(f"the {part} part has no pictures, at least 1 is needed; prepare the set whole")
        found[part] = one if size_px is None else dataclasses.replace(one, images=squares(one.images, size_px))
    return found


def parts_of(task: Task, prepared: PreparedSet, mode: str) -> Parts:
    """Returns the parts of `prepared` for `task`.

    Raises:
        UserError: the set has another number of classes, or not the splits and pictures that VTAB needs.
    """
    if task.features == ("label",):
        num_classes = prepared.features["label"].num_classes
        if num_classes != task.num_classes:
            raise UserError(f"the set has {num_classes} classes, VTAB's has {task.num_classes}; prepare that one")
    return task.cuts.parts(prepared.split_sizes, mode)


def squares(images: ImageSet, size_px: int) -> ImageSet:
    """Returns `images`, each as a whole made a square of `size_px` pixels; they are read, resized and encoded anew."""

    def read(position: int) -> bytes:
        picture = decode(images.read(position), str(images.ids[position]))
        buffer = io.BytesIO()
        Image.fromarray(square(np.asarray(picture), size_px)).save(buffer, "PPM")
        return buffer.getvalue()

    fingerprint = hashlib.sha256(f"{images.fingerprint} square {size_px}".encode()).hexdigest()
    return dataclasses.replace(images, read=read, fingerprint=fingerprint)


def square(pixels: np.ndarray, size_px: int) -> np.ndarray:
    """Returns uint8 `[size_px, size_px, 3]`: uint8 `[height, width, 3]` sampled bilinearly, without antialias.

    As TensorFlow's `tf.image.resize`, rounded to whole grey levels.
    """
    values = pixels.astype(np.float32)
    for axis in (0, 1):
        old = values.shape[axis]
        centres = ((np.arange(size_px) + 0.5) * (old / size_px) - 0.5).clip(0, old - 1)
        low = centres.astype(int)
        shape = [size_px if one == axis else 1 for one in range(3)]
        share = (centres - low).astype(np.float32).reshape(shape)
        high = np.minimum(low + 1, old - 1)
        values = values.take(low, axis) * (1 - share) + values.take(high, axis) * share
    return np.rint(values).astype(np.uint8)


def _probed(
    context: Context, data: Mapping[str, LabelledImages], truths: Mapping[str, bytes], num_classes: int
) -> tuple[dict[str, int], np.ndarray, np.ndarray, Any]:
    """Returns how many pictures of each part could be read; labels and predictions of those of the test; the choice."""
    vectors, labels = {}, {}
    for part, one in data.items():
        embedded = context.embed(one.images, truth=truths[one.images.name])
        vectors[part], labels[part] = embedded.vectors, one.labels[embedded.positions]
    probe = fit_best(vectors["train"], labels["train"], vectors["val"], labels["val"], num_classes)
    chosen = {
        "c": probe.chosen,
        "val_accuracies": probe.validation_accuracies,
        "val_losses": probe.validation_losses,
        "converged": probe.converged,
    }
    num_read = {part: len(of_part) for part, of_part in labels.items()}
    return num_read, labels["test"], probe.predict(vectors["test"]), chosen


def _read(context: Context, data: LabelledImages, truth: bytes) -> LabelledImages:
    """Returns what of `data` can be read."""
    images, positions = context.read(data.images, truth=truth)
    return dataclasses.replace(data, images=images, labels=data.labels[positions])


def _fine_tuned(
    tuner: Tuner, data: Mapping[str, LabelledImages], num_classes: int, configs: list[FineTuneConfig]
) -> tuple[np.ndarray, np.ndarray, Any]:
    """Returns labels and predictions of the test pictures, and the settings that were chosen.

    Raises:
        UserError: no learning rate gives a finite loss.
    """
    train, val, test = data["train"], data["val"], data["test"]
    rates = [config.learning_rate for config in configs]
    accuracies: dict[float, float] = {}
    for config in configs:
        with contextlib.suppress(Diverged):
            accuracies[config.learning_rate] = float(
                np.mean(tuner.fine_tuned(train, val.images, num_classes, config) == val.labels)
            )
    both = _joined(train, val)
    finite = [config for config in configs if config.learning_rate in accuracies]
    for best in sorted(finite, key=lambda config: -accuracies[config.learning_rate]):
        try:
            found = tuner.fine_tuned(both, test.images, num_classes, best)
        except Diverged:
            continue
        chosen = {"learning_rate": best.learning_rate, "val_accuracies": {rate: accuracies.get(rate) for rate in rates}}
        return test.labels, found, chosen
    raise UserError(f"the loss is not finite at any of the learning rates {rates}; give a lower one")


def _settings(configs: list[FineTuneConfig]) -> dict[str, Any]:
    """Returns what of the sweep makes results comparable."""
    if not configs:
        return {}
    one = configs[0].settings()
    del one["learning_rate"]
    return {"fine_tune": one | {"learning_rates": [config.learning_rate for config in configs]}}


def _joined(first: LabelledImages, second: LabelledImages) -> LabelledImages:
    one, two = first.images, second.images

    def read(position: int) -> bytes:
        return one.read(position) if position < len(one) else two.read(position - len(one))

    images = dataclasses.replace(
        one,
        name=f"{one.name}_and_val",
        ids=np.concatenate([one.ids, two.ids]),
        read=read,
        fingerprint=hashlib.sha256(f"{one.fingerprint} {two.fingerprint}".encode()).hexdigest(),
    )
    return dataclasses.replace(first, images=images, labels=np.concatenate([first.labels, second.labels]))


@contextlib.contextmanager
def _named(name: str, prepared: PreparedSet) -> Iterator[None]:
    """Names the task in an error that something inside raises."""
    try:
        yield
    except Unavailable:
        raise
    except UserError as error:
        raise UserError(f"{name} ({prepared.full_name}): {error}") from error


def _prepared(task: Task, data_dir: Path) -> PreparedSet:
    for source in task.sources[:-1]:
        try:
            return open_tfds(source, data_dir)
        except Unavailable:
            continue
    return open_tfds(task.sources[-1], data_dir)


def _names(stated: str) -> list[str]:
    if stated == "all":
        return list(TASKS)
    asked = [name.strip() for name in stated.split(",") if name.strip()]
    unknown = [name for name in asked if name not in TASKS]
    if unknown or not asked:
        raise UserError(f"VTAB has no task {(unknown or [stated])[0]!r}; it has {', '.join(TASKS)}, or give all")
    return [name for name in TASKS if name in asked]


def _one_of(context: Context, name: str, values: tuple[str, ...]) -> str:
    value = context.option(name, values[0])
    if value not in values:
        raise UserError(f"vtab.{name} is {value!r}; it must be one of {', '.join(values)}")
    return value


def _sweep(context: Context) -> list[FineTuneConfig]:
    rates = context.option("learning_rates", ",".join(map(str, LEARNING_RATES)))
    default = FineTuneConfig()
    try:
        num_steps = int(context.option("num_steps", str(default.num_steps)))
        batch_size = int(context.option("batch_size", str(default.batch_size)))
        return [
            FineTuneConfig(
                learning_rate=float(rate),
                num_steps=num_steps,
                batch_size=batch_size,
                warmup_steps=min(default.warmup_steps, num_steps // 10),
            )
            for rate in rates.split(",")
        ]
    except ValueError as error:
        raise UserError(
            f"an option of vtab is no number ({error}); give such as vtab.num_steps=500, vtab.learning_rates=0.01,0.001"
        ) from error
