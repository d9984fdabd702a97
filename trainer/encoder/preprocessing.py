"""Turns an image of any size into the input of an encoder's image function."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from pipeline.images.decode import on_white, to_rgb

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
RESIZES = ("bilinear", "bicubic")
FITS = ("short_side", "squash")
ALPHAS = ("white", "drop")
CROP_STARTS = ("rounded", "floor")
_MOST_SQUARES = 16  # ours: of the size of the crop, in a picture that is resized as a whole


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Resizes an image, takes the centre crop of `image_size_px`, and normalises its pixels.

    With the defaults of `fit` and `crop_start` it equals torchvision's `Resize(resize_px)` and
    `CenterCrop(image_size_px)` to one grey level: of a PIL image with antialias, of a tensor without. EXIF orientation
    is not applied.

    Raises:
        ValueError: a value is unknown, or the image is resized to less than the crop.
    """

    image_size_px: int
    """Side of the crop, which is what the image function takes."""
    resize_px: int | None = None
    """Length of the short side, or of both sides with `squash`, before the crop; None: that of the crop."""
    fit: str = "short_side"
    """short_side: the proportions are kept; squash: both sides get `resize_px`."""
    resize: str = "bilinear"
    """The filter: bilinear or bicubic."""
    antialias: bool = True
    """False: reads only the nearest 2 x 2 or 4 x 4 pixels, however much the image shrinks."""
    round_pixels: bool = True
    """Resized pixels are rounded to whole grey levels; False: they keep their fractions, as floats that are resized."""
    alpha: str = "white"
    """white: transparent images are put on white; drop: what lies under the transparency shows."""
    crop_start: str = "rounded"
    """Where half the surplus is no whole number, the crop starts at the nearest even one (rounded) or below (floor)."""
    mean: tuple[float, float, float] = CLIP_MEAN
    """Of each channel, from 0 to 1; subtracted."""
    std: tuple[float, float, float] = CLIP_STD
    """Of each channel; divided by, after `mean` is subtracted."""

    def __post_init__(self) -> None:
        for name, known in (("fit", FITS), ("resize", RESIZES), ("alpha", ALPHAS), ("crop_start", CROP_STARTS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}")
        for name, size in (("image_size_px", self.image_size_px), ("resize_px", self.resize_px or 1)):
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"{name} is {size!r}; it must be a whole number of pixels")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if not (isinstance(values, tuple) and len(values) == 3 and all(isinstance(x, int | float) for x in values)):
                raise ValueError(f"{name} is {values!r}; it must be three numbers")
        if not min(self.std) > 0:
            raise ValueError(f"std is {self.std}; pixels are divided by it, so it must be above 0")
        if self.resize_px is not None and self.resize_px < self.image_size_px:
            raise ValueError(
                f"resize_px is {self.resize_px}, less than the crop of {self.image_size_px} pixels; give at least that"
            )

    @classmethod
    def of_json(cls, image_size_px: int, stated: dict[str, Any]) -> Preprocessing:
        """Returns the preprocessing that `as_json` stated; fields that it lacks have defaults."""
        values = {**stated, "mean": tuple(stated["mean"]), "std": tuple(stated["std"])}
        return cls(image_size_px=image_size_px, **values)

    def as_json(self) -> dict[str, Any]:
        """Returns all fields but `image_size_px`, as JSON values."""
        stated = dataclasses.asdict(self)
        del stated["image_size_px"]
        return {**stated, "mean": list(self.mean), "std": list(self.std)}

    def pixels(self, image: Image.Image | np.ndarray) -> np.ndarray:
        """Returns [S, S, 3]: the image without transparency, resized and cropped.

        With `round_pixels` uint8, otherwise float32 around 0 to 255, which bicubic resizing can exceed.

        Args:
            image: or its pixels in RGB, uint8 [height, width, 3], which without antialias are read as they lie.
        """
        size, resized = self.image_size_px, self.resize_px or self.image_size_px
        if isinstance(image, np.ndarray):
            old = (image.shape[1], image.shape[0])
        else:
            image = on_white(image) if self.alpha == "white" else to_rgb(image)
            old = image.size
        width, height = (resized if self.fit == "squash" else int(resized * side / min(old)) for side in old)
        left, top = (self._start(side - size) for side in (width, height))
        if (width, height) != old and not self.antialias:
            rows = _neighbours(old[1], height, top, size, self.resize)
            columns = _neighbours(old[0], width, left, size, self.resize)
            total = _weighted_sum(np.asarray(image), rows, columns)
            return _rounded(total, self.resize) if self.round_pixels else total
        if isinstance(image, np.ndarray):
            image = Image.frombuffer("RGB", old, image, "raw", "RGB", 0, 1)
        kernel = Image.Resampling[self.resize.upper()]
        if width * height > _MOST_SQUARES * size * size:  # a very long picture: not the whole of it is resized
            across, down = old[0] / width, old[1] / height
            box = (left * across, top * down, (left + size) * across, (top + size) * down)
            return self._each(image, lambda plane: plane.resize((size, size), kernel, box=box))
        box = (left, top, left + size, top + size)
        if (width, height) == old:
            return self._each(image, lambda plane: plane.crop(box))
        if (width, height) == (size, size):  # to crop would copy it
            return self._each(image, lambda plane: plane.resize((size, size), kernel))
        return self._each(image, lambda plane: plane.resize((width, height), kernel).crop(box))

    def _each(self, image: Image.Image, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
        """Returns [height, width, 3] of the changed image; if it is not rounded, each channel changes as floats."""
        if self.round_pixels:
            return np.array(change(image))
        return np.stack([np.asarray(change(channel.convert("F"))) for channel in image.split()], axis=-1)

    def _start(self, surplus: int) -> int:
        """Returns where the crop starts along a side that is `surplus` pixels longer."""
        return surplus // 2 if self.crop_start == "floor" else round(surplus / 2)  # torchvision rounds half to even

    def normalise(self, pixels: Any) -> Any:
        """Returns float32 of the same shape [..., width, 3], scaled to [0, 1], then by mean and standard deviation."""
        # A row of pixels at a time: NumPy takes five times as long where its innermost loop is the three channels.
        *others, width, channels = pixels.shape
        rows = pixels.reshape(*others, width * channels)
        mean, std = (np.tile(np.asarray(one, np.float32), width) for one in (self.mean, self.std))
        return ((rows.astype(np.float32) / np.float32(255) - mean) / std).reshape(pixels.shape)


def _rounded(total: np.ndarray, resize: str) -> np.ndarray:
    """Returns uint8, written over the floats; only bicubic resizing makes values beyond 0 to 255."""
    np.rint(total, out=total)
    if resize == "bicubic":
        np.clip(total, 0, 255, out=total)
    return total.astype(np.uint8)


def _neighbours(old: int, new: int, first: int, count: int, resize: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the old pixels that each new pixel from `first` on reads, int [2 or 4, count], and float32 weights."""
    centres = (np.arange(first, first + count) + 0.5) * old / new - 0.5
    if resize == "bilinear":
        centres = np.minimum(np.maximum(centres, 0), old - 1)
        low = centres.astype(int)
        beyond = centres - low
        neighbours, weights = np.stack([low, np.minimum(low + 1, old - 1)]), np.stack([1 - beyond, beyond])
    else:
        low = np.floor(centres).astype(int)
        offsets = np.arange(-1, 3)[:, None]
        distances = np.abs(low + offsets - centres)
        # Keys' kernel with torch's coefficient, -0.75; with antialias both Pillow and torch use -0.5.
        near = 1.25 * distances**3 - 2.25 * distances**2 + 1
        far = -0.75 * (distances**3 - 5 * distances**2 + 8 * distances - 4)
        neighbours, weights = np.clip(low + offsets, 0, old - 1), np.where(distances <= 1, near, far)
    return neighbours, weights.astype(np.float32)


def _weighted_sum(
    pixels: np.ndarray, rows: tuple[np.ndarray, np.ndarray], columns: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """Returns float32 [rows, columns, 3]. Weighs only the listed rows, so tall images cost little more."""
    left, right = columns[0].min(), columns[0].max() + 1
    lines = np.ascontiguousarray(pixels[:, left:right]).reshape(len(pixels), -1)
    # Rows first: numpy copies whole lines fast, and single values of four bytes faster than pixels of three.
    down = _sum(np.multiply(lines[row], weight[:, None]) for row, weight in zip(*rows, strict=True))
    across = _sum(_weighed_columns(down, column - left, weight) for column, weight in zip(*columns, strict=True))
    return across.reshape(len(across), -1, 3)


def _weighed_columns(down: np.ndarray, column: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Returns float32 [rows, 3 len(column)]: of `down` [rows, 3 columns] the columns `column`, times their weights."""
    values = down[:, (column[:, None] * 3 + np.arange(3)).ravel()]
    values *= np.repeat(weight, 3)
    return values


def _sum(terms: Iterator[np.ndarray]) -> np.ndarray:
    """Returns the sum of all terms, in the memory of the first."""
    total = next(terms)
    for term in terms:
        total += term
    return total
