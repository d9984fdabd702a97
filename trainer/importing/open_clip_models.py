"""Models of OpenCLIP: a folder with its config, or `open_clip:NAME:WEIGHTS`.

WEIGHTS is a file, or one of OpenCLIP's tags for the name, which is fetched.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import os
from typing import Any

import open_clip
import torch

from pipeline.schema import UserError
from trainer.importing.folders import licence_in, one_line, read_json, weights_in
from trainer.importing.open_clip_tokenizer import fast_tokenizer
from trainer.importing.parts import ChannelsFirst, ImageOptions, Parts, TextParts, preprocessing_of
from trainer.importing.weights import check_pickle, fill, state_in

CONFIG_FILE = "open_clip_config.json"
# Fields of preprocessing: in OpenCLIP's words, and in ours.
_PREPROCESSING = {"mean": "mean", "std": "std", "interpolation": "resize", "resize_mode": "fit"}


class TextTower(torch.nn.Module):
    """Token ids [B, L] to embeddings. Takes the image tower out of `model`."""

    def __init__(self, model: Any):
        super().__init__()
        for name in ("visual", "logit_scale", "logit_bias", "text_decoder"):
            if hasattr(model, name):
                delattr(model, name)
        self.model = model

    def forward(self, tokens: torch.Tensor) -> Any:
        return self.model.encode_text(tokens)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Model:
    """A model with its weights, and what is known of it."""

    where: str
    """Names it in messages."""
    made: Any
    config: dict[str, Any]
    """OpenCLIP's `model_cfg`."""
    tokenizer: str | None
    """Folder or hub name of a tokenizer of transformers; None: OpenCLIP's own."""
    source: dict[str, Any]
    """For the provenance."""
    unknown: frozenset[str] = frozenset()
    """Of preprocessing, in OpenCLIP's words: what differs between the weights of this architecture."""


def read(
    model: str, options: ImageOptions, *, context_length: int | None, allow_pickle: bool, with_text: bool
) -> Parts:
    """Returns the parts of a model of OpenCLIP.

    Raises:
        UserError: it cannot be imported; the message says why.
    """
    found = _of_folder(model, allow_pickle) if os.path.isdir(model) else _of_name(model, allow_pickle)
    if context_length is not None:
        raise UserError(f"--context-length is {context_length}, but models of OpenCLIP take a fixed one; leave it out")
    preprocessing = preprocessing_of(_stated(found), options, where=found.where)
    image = ChannelsFirst(found.made.visual)
    return Parts(
        family="open_clip",
        image=image,
        text=_text_parts(found) if with_text else None,
        preprocessing=preprocessing,
        licence=licence_in(model) if os.path.isdir(model) else None,
        source={"model": model, **found.source, "open_clip": open_clip.__version__},
    )


def _of_folder(folder: str, allow_pickle: bool) -> _Model:
    path = os.path.join(folder, CONFIG_FILE)
    config = read_json(path)
    if not isinstance(config.get("model_cfg"), dict):
        raise UserError(f"{path} has no model_cfg, so it is not a config of OpenCLIP; fetch it again")
    weights = weights_in(folder, ("*.bin", "*.pt"))
    check_pickle(weights, allow_pickle)
    made = _made(f"local-dir:{folder}", where=path)
    fill(made, state_in(weights, allow_pickle), where=weights)
    text = config["model_cfg"].get("text_cfg", {})
    return _Model(
        where=path,
        made=made,
        config=config["model_cfg"],
        tokenizer=folder if text.get("hf_tokenizer_name") else None,
        source={"weights": os.path.basename(weights)},
    )


def _of_name(model: str, allow_pickle: bool) -> _Model:
    _, name, *weights = model.split(":", 2)
    if name not in open_clip.list_models():
        near = difflib.get_close_matches(name, open_clip.list_models(), n=1) or ["ViT-B-32"]
        raise UserError(f"MODEL is {model}: OpenCLIP has no model {name}; the nearest is {near[0]}")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if not weights or not (os.path.isfile(weights[0]) or weights[0] in tags):
        raise UserError(
            f"MODEL is {model}; give open_clip:{name}:WEIGHTS, where WEIGHTS is a file or one of {', '.join(tags)}"
        )
    config = open_clip.get_model_config(name)
    unknown = frozenset[str]()
    if os.path.isfile(weights[0]):
        agreed, unknown = _of_all(name, tags)
        made = _made(name, where=f"OpenCLIP's {name}", preprocessing=agreed)
        fill(made, state_in(weights[0], allow_pickle), where=weights[0])
    else:
        made = _fetched(name, weights[0], model)
    return _Model(
        where=f"OpenCLIP's {name}",
        made=made,
        config=config,
        tokenizer=config["text_cfg"].get("hf_tokenizer_name") or None,
        source={"architecture": name, "weights": weights[0]},
        unknown=unknown,
    )


def _of_all(name: str, tags: list[str]) -> tuple[dict[str, Any], frozenset[str]]:
    """Returns the preprocessing that all weights of an architecture share, and the fields in which they differ."""
    configs = [open_clip.get_pretrained_cfg(name, tag) for tag in tags]
    values = {field: {config.get(field) for config in configs} for field in _PREPROCESSING}
    agreed = {field: next(iter(found)) for field, found in values.items() if len(found) == 1}
    return agreed, frozenset(field for field, found in values.items() if len(found) > 1)


def _made(name: str, *, where: str, preprocessing: dict[str, Any] | None = None) -> Any:
    """Returns the model without weights; a text tower of transformers needs its config, which may be fetched."""
    try:
        return open_clip.create_model(
            name, load_weights=False, pretrained_text=False, force_preprocess_cfg=preprocessing
        )
    except Exception as error:  # whatever a wrong config, the network or the hub brings about
        raise UserError(f"{where}: OpenCLIP cannot make the model ({one_line(error)})") from error


def _fetched(name: str, weights: str, model: str) -> Any:
    try:
        return open_clip.create_model(name, pretrained=weights)
    except Exception as error:  # whatever the network, the hub or its client does
        raise UserError(
            f"MODEL is {model}: its weights could not be fetched ({one_line(error)}); fetch them "
            f"where there is a network, and give MODEL=open_clip:{name}:FILE"
        ) from error


def _stated(model: _Model) -> dict[str, Any]:
    config = open_clip.get_model_preprocess_cfg(model.made)
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise UserError(f"{model.where} takes pictures of {height} x {width}; an encoder takes square pictures")
    mode = config.get("resize_mode", "shortest")
    if mode not in ("shortest", "squash"):
        raise UserError(f"{model.where} resizes by {mode!r}; an encoder resizes by shortest or squash")
    stated = {
        "image_size_px": height,
        "resize_px": height,
        "fit": "squash" if mode == "squash" else "short_side",
        "resize": config.get("interpolation", "bicubic"),
        "antialias": True,
        "round_pixels": True,
        "alpha": "drop",
        "crop_start": "rounded",
        "mean": tuple(config["mean"]),
        "std": tuple(config["std"]),
    }
    unknown = {_PREPROCESSING[field] for field in model.unknown}
    return {field: value for field, value in stated.items() if field not in unknown}


def _text_parts(model: _Model) -> TextParts:
    text = model.config.get("text_cfg", {})
    fast = fast_tokenizer(text, model.tokenizer, where=model.where)
    if text.get("hf_model_name"):
        _attend_eagerly(model.made.text)
    return TextParts(module=TextTower(model.made), tokenizer=fast, context_length=int(fast.truncation["max_length"]))


def _attend_eagerly(text: Any) -> None:
    """Changes the attention of a text tower of transformers: the one that it chooses fails under `vmap`."""
    made = text.transformer
    if "add_pooling_layer" not in inspect.signature(type(made).__init__).parameters:
        made.set_attn_implementation("eager")
        return
    # BERT and its like choose when they are made.
    text.transformer = type(made)._from_config(
        made.config, attn_implementation="eager", add_pooling_layer=made.pooler is not None
    )
    text.transformer.load_state_dict(made.state_dict(), assign=True)
