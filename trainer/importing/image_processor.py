"""Reads the preprocessor_config.json of a Hugging Face folder."""

from __future__ import annotations

import os
from typing import Any

from pipeline.schema import UserError
from trainer.importing.folders import one_line, read_json

PROCESSOR_FILE = "preprocessor_config.json"
_OF_FLOATS = {"DINOv3ViTImageProcessorFast"}  # scales pixels to floats first, and resizes those
_FILTERS = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def stated_preprocessing(folder: str) -> dict[str, Any]:
    """Returns the fields of `Preprocessing` that the folder states; none if it has no preprocessor_config.json.

    Raises:
        UserError: it asks for something that encoders cannot do.
    """
    path = os.path.join(folder, PROCESSOR_FILE)
    if not os.path.exists(path):
        return {}
    from transformers import AutoImageProcessor

    written = read_json(path)
    fast = str(written.get("image_processor_type", "")).endswith("Fast")
    try:
        processor = AutoImageProcessor.from_pretrained(folder, use_fast=fast, trust_remote_code=False)
    except Exception as error:  # whatever a wrong value brings about
        raise UserError(
            f"{path} cannot be read ({one_line(error)}); fetch it again, or remove it and say how "
            "pictures are preprocessed with --image options"
        ) from error
    return _fields(processor, path)


def _fields(processor: Any, path: str) -> dict[str, Any]:
    _check(processor, path)
    size = dict(processor.size)
    if set(size) == {"shortest_edge"}:
        resized, fit = size["shortest_edge"], "short_side"
    elif set(size) == {"height", "width"}:
        resized, fit = _side(size, f"{path}: size"), "squash"
    else:
        raise UserError(f"{path}: size is {size}; an encoder needs shortest_edge, or height and width")
    crops = getattr(processor, "do_center_crop", None)
    crop = _side(dict(processor.crop_size), f"{path}: crop_size") if crops else resized
    if fit == "short_side" and not crops:
        raise UserError(f"{path}: without do_center_crop pictures are not square; an encoder needs square ones")
    resample = getattr(processor, "resample", None)
    if resample not in _FILTERS:
        raise UserError(f"{path}: resample is {resample}; an encoder resizes by 2 (bilinear) or 3 (bicubic)")
    if processor.do_normalize:
        mean, std = _of_channels(processor.image_mean), _of_channels(processor.image_std)
    else:
        mean, std = (0.0,) * 3, (1.0,) * 3
    return {
        "image_size_px": crop,
        "resize_px": resized,
        "fit": fit,
        "resize": _FILTERS[resample],
        "antialias": True,  # both Pillow, which the slow processors use, and the fast ones
        "round_pixels": type(processor).__name__ not in _OF_FLOATS,
        "alpha": "drop",  # they convert to RGB, or take RGB alone
        "crop_start": "floor",
        "mean": mean,
        "std": std,
    }


def _of_channels(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _check(processor: Any, path: str) -> None:
    for name in ("do_resize", "do_rescale"):
        if not getattr(processor, name, True):
            raise UserError(f"{path}: {name} is false; pictures of any size must become the model's input")
    factor = getattr(processor, "rescale_factor", 1 / 255)
    if abs(factor * 255 - 1) > 1e-6:
        raise UserError(f"{path}: rescale_factor is {factor}; an encoder scales pixels by 1/255")
    for name in ("do_pad", "do_thumbnail", "do_align_long_axis", "do_flip_channel_order", "do_color_quantize"):
        if getattr(processor, name, None):
            raise UserError(f"{path}: {name} is true, which an encoder's preprocessing cannot do")
    if getattr(processor, "crop_pct", None) is not None:
        raise UserError(f"{path}: crop_pct is {processor.crop_pct}; encoders know no such crop")


def _side(size: dict[str, int], what: str) -> int:
    height, width = size.get("height"), size.get("width")
    if height is None or height != width:
        raise UserError(f"{what} is {height} x {width}; an encoder takes square pictures")
    return height
