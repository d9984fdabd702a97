"""VTAB's 19 tasks: their TFDS sets, how each is cut into parts, labels that are made from features, square pictures."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from evaluation.protocol import Unavailable
from evaluation.sets.images import ImageSet, LabelledImages, decode
from evaluation.sets.tfds import PreparedSet, open_tfds, read_examples
from pipeline.schema import UserError

CLEVR_DISTANCES = (0.0, 8.0, 8.5, 9.0, 9.5, 10.0)  # in CLEVR's own units
KITTI_DISTANCES = (-100.0, 8.0, 20.0, 999.0)  # in metres; above the last: no vehicle
KITTI_NO_VEHICLE = 1000.0
KITTI_NUM_VEHICLES = 3  # the first types of object are car, van and truck
NUM_TRAIN, NUM_VAL = 800, 200  # of mode 1k


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """Splits of a TFDS set that a task trains on, chooses its settings by, and is scored on."""

    train: str
    val: str
    test: str


@dataclasses.dataclass(frozen=True)
class Cut:
    """A part of a split; `start` and `stop` are sums of shares in per cent, each rounded to whole pictures."""

    split: str
    start: tuple[int, ...] = ()
    stop: tuple[int, ...] = (100,)
    to_nearest: bool = (
        False  # round half to even, as TFDS does with a slice in per cent; else down, as VTAB's code does
    )

    def bounds(self, size: int) -> tuple[int, int]:
        """Returns the first picture, and that after the last, of a split of `size` pictures."""
        first, last = (sum(self._rounded(size, share) for share in shares) for shares in (self.start, self.stop))
        return first, last

    def _rounded(self, size: int, percent: int) -> int:
        return round(size * percent / 100) if self.to_nearest else size * percent // 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cuts:
    """How a set is cut into training, validation and test part."""

    train: Cut
    val: Cut
    test: Cut = Cut("test")

    def parts(self, sizes: Mapping[str, int], mode: str) -> Parts:
        """Returns the parts, of a set with splits of `sizes`.

        Raises:
            UserError: a split is missing, or has too few pictures for mode 1k.
        """
        bounds: dict[str, tuple[str, int, int]] = {}
        for part, cut in (("train", self.train), ("val", self.val), ("test", self.test)):
            if cut.split not in sizes:
                raise UserError(
                    f"the split {cut.split!r} is missing, there is {', '.join(sizes)}; prepare the set whole"
                )
            bounds[part] = (cut.split, *cut.bounds(sizes[cut.split]))
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


def _from_train(percent: int, test: str = "test") -> Cuts:
    return Cuts(train=Cut("train", stop=(percent,)), val=Cut("train", start=(percent,)), test=Cut(test))


def _all_from_train(train: int, val: int) -> Cuts:
    # VTAB's code counts training and validation pictures, each rounded down, and tests on those after both.
    return Cuts(
        train=Cut("train", stop=(train,)),
        val=Cut("train", start=(train,), stop=(train, val)),
        test=Cut("train", start=(train, val)),
    )


_OWN = Cuts(train=Cut("train"), val=Cut("validation"))
# Test pictures of SmallNORB show other toys than the training ones; validation shares the toys of the test.
_SMALLNORB = Cuts(
    train=Cut("train"),
    val=Cut("test", stop=(50,), to_nearest=True),
    test=Cut("test", start=(50,), to_nearest=True),
)


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
    # Version 4 repairs broken files and adds features; today's TFDS prepares nothing older.
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


def prepared_set(task: Task, data_dir: Path) -> PreparedSet:
    """Returns the first of the task's sources that is prepared below `data_dir`.

    Raises:
        Unavailable: none of them is.
    """
    for source in task.sources[:-1]:
        try:
            return open_tfds(source, data_dir)
        except Unavailable:
            continue
    return open_tfds(task.sources[-1], data_dir)


def squares(images: ImageSet, size_px: int) -> ImageSet:
    """Returns `images`, each as a whole made a square of `size_px` pixels; they are read, resized and encoded again."""

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
