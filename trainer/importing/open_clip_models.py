"""Models of OpenCLIP: `open_clip:NAME:WEIGHTS`, where WEIGHTS is a file or one of its tags, which is fetched."""

from __future__ import annotations

import difflib
import os
from typing import Any

import open_clip
import tokenizers
import torch
from tokenizers import models, normalizers, pre_tokenizers, processors

from pipeline.schema import UserError
from trainer.importing.parts import ChannelsFirst, ImageOptions, Parts, TextParts, preprocessing_of
from trainer.importing.weights import fill, state_in

# As in OpenCLIP's tokenizer.
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class TextTower(torch.nn.Module):
    """Token ids [B, L] to embeddings. Takes the image tower out of `model`."""

    def __init__(self, model: Any):
        super().__init__()
        for name in ("visual", "logit_scale", "logit_bias"):
            if hasattr(model, name):
                delattr(model, name)
        self.model = model

    def forward(self, tokens: torch.Tensor) -> Any:
        return self.model.encode_text(tokens)


def read(
    model: str, options: ImageOptions, *, context_length: int | None, allow_pickle: bool, with_text: bool
) -> Parts:
    """Returns the parts of a model of OpenCLIP.

    Raises:
        UserError: it cannot be imported; the message says why.
    """
    _, name, *weights = model.split(":", 2)
    if name not in open_clip.list_models():
        near = difflib.get_close_matches(name, open_clip.list_models(), n=1) or ["ViT-B-32"]
        raise UserError(f"MODEL is {model}: OpenCLIP has no model {name}; the nearest is {near[0]}")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if not weights or not (os.path.isfile(weights[0]) or weights[0] in tags):
        raise UserError(
            f"MODEL is {model}; give open_clip:{name}:WEIGHTS, where WEIGHTS is a file or one of {', '.join(tags)}"
        )
    made = _filled(name, weights[0], model, allow_pickle)
    if context_length is not None:
        raise UserError(f"--context-length is {context_length}, but models of OpenCLIP take a fixed one; leave it out")
    preprocessing = preprocessing_of(_stated(made, name), options, where=f"OpenCLIP's {name}")
    image = ChannelsFirst(made.visual)
    return Parts(
        family="open_clip",
        image=image,
        text=_text_parts(name, made) if with_text else None,
        preprocessing=preprocessing,
        licence=None,
        source={"model": model, "architecture": name, "weights": weights[0], "open_clip": open_clip.__version__},
    )


def _filled(name: str, weights: str, model: str, allow_pickle: bool) -> Any:
    if os.path.isfile(weights):
        made = open_clip.create_model(name, pretrained_text=False)
        fill(made, state_in(weights, allow_pickle), where=weights)
        return made
    try:
        return open_clip.create_model(name, pretrained=weights)
    except Exception as error:  # whatever the network, the hub or its client does
        raise UserError(
            f"MODEL is {model}: its weights could not be fetched ({str(error).strip().splitlines()[0]}); fetch them "
            f"where there is a network, and give MODEL=open_clip:{name}:FILE"
        ) from error


def _stated(made: Any, name: str) -> dict[str, Any]:
    config = open_clip.get_model_preprocess_cfg(made)
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise UserError(f"OpenCLIP's {name} takes pictures of {height} x {width}; an encoder takes square pictures")
    mode = config.get("resize_mode", "shortest")
    if mode not in ("shortest", "squash"):
        raise UserError(f"OpenCLIP's {name} resizes by {mode!r}; an encoder resizes by shortest or squash")
    return {
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


def _text_parts(name: str, made: Any) -> TextParts:
    tokenizer = open_clip.get_tokenizer(name)
    if type(tokenizer) is not open_clip.SimpleTokenizer or tokenizer.reduction_fn is not None:
        raise UserError(
            f"OpenCLIP's {name} has the tokenizer {type(tokenizer).__name__}, which cannot be imported; import the "
            "model from its folder in the layout of transformers, or give --no-text for the image tower alone"
        )
    length = tokenizer.context_length
    return TextParts(module=TextTower(made), tokenizer=_fast(tokenizer, length), context_length=length)


def _fast(tokenizer: Any, length: int) -> tokenizers.Tokenizer:
    """Returns OpenCLIP's own tokenizer as a fast one. HTML entities and misread encodings in texts are not repaired."""
    fast = tokenizers.Tokenizer(
        models.BPE(
            vocab=dict(tokenizer.encoder),
            merges=[tuple(pair) for pair in tokenizer.bpe_ranks],
            end_of_word_suffix="</w>",
        )
    )
    fast.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
            normalizers.Strip(),
            normalizers.Lowercase(),
        ]
    )
    fast.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(_WORDS), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    start, end = ("<start_of_text>", tokenizer.sot_token_id), ("<end_of_text>", tokenizer.eot_token_id)
    fast.post_processor = processors.RobertaProcessing(end, start, trim_offsets=False, add_prefix_space=False)
    fast.enable_truncation(length)
    fast.enable_padding(length=length, pad_id=0, pad_token="!")
    return fast
