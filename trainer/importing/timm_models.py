"""Models of timm: `timm:NAME` fetches the weights, `timm:NAME:FILE` reads them."""

from __future__ import annotations

import difflib
import math
from typing import Any

import timm
from timm.data.config import resolve_model_data_config

from pipeline.schema import UserError
from trainer.importing.folders import one_line
from trainer.importing.parts import ChannelsFirst, ImageOptions, Parts, preprocessing_of
from trainer.importing.weights import fill, state_in


def read(model: str, options: ImageOptions, *, allow_pickle: bool) -> Parts:
    """Returns the parts of a model of timm.

    Raises:
        UserError: it cannot be imported; the message says why.
    """
    _, name, *file = model.split(":", 2)
    if not timm.is_model(name):
        near = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=1) or ["vit_base_patch16_224"]
        raise UserError(f"MODEL is {model}: timm {timm.__version__} has no model {name}; the nearest is {near[0]}")
    made: Any
    if file:
        made = timm.create_model(name, num_classes=0)
        fill(made, state_in(file[0], allow_pickle), where=file[0])
    else:
        made = _fetched(name, model)
    return Parts(
        family="timm",
        image=ChannelsFirst(made),
        text=None,
        preprocessing=preprocessing_of(_stated(made, name), options, where=f"timm's {name}"),
        licence=made.pretrained_cfg.get("license") or None,
        source={"model": model, "architecture": name, "timm": timm.__version__},
    )


def _fetched(name: str, model: str) -> Any:
    try:
        return timm.create_model(name, num_classes=0, pretrained=True)
    except Exception as error:  # whatever the network, the hub or its client does
        raise UserError(
            f"MODEL is {model}: its weights could not be fetched ({one_line(error)}); fetch them "
            f"where there is a network, and give MODEL=timm:{name}:FILE"
        ) from error


def _stated(made: Any, name: str) -> dict[str, Any]:
    config = resolve_model_data_config(made)
    _, height, width = config["input_size"]
    if height != width:
        raise UserError(f"timm's {name} takes pictures of {height} x {width}; an encoder takes square pictures")
    if config["crop_mode"] not in ("center", "squash"):
        raise UserError(f"timm's {name} crops by {config['crop_mode']!r}; an encoder crops by center or squash")
    return {
        "image_size_px": height,
        "resize_px": math.floor(height / config["crop_pct"]),
        "fit": "squash" if config["crop_mode"] == "squash" else "short_side",
        "resize": config["interpolation"],
        "antialias": True,
        "round_pixels": True,
        "alpha": "drop",
        "crop_start": "rounded",
        "mean": tuple(config["mean"]),
        "std": tuple(config["std"]),
    }
