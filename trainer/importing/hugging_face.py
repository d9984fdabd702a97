"""Reads a Hugging Face folder, or a name of the hub, whose files are fetched first."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

import torch
from tokenizers import normalizers

from pipeline.schema import UserError
from trainer.importing import clip, dual_encoder, image_only, siglip
from trainer.importing.folders import licence_in, one_line, read_json, weights_in
from trainer.importing.image_processor import PROCESSOR_FILE, stated_preprocessing
from trainer.importing.parts import ImageOptions, Parts, TextParts, preprocessing_of
from trainer.importing.tokenizer import fixed_length
from trainer.importing.weights import check_pickle

# By model_type: the class of transformers, its arguments, and what makes towers of the model.
Loader = Callable[[Any], tuple[torch.nn.Module, torch.nn.Module | None]]
FAMILIES: dict[str, tuple[str, dict[str, Any], Loader]] = {
    "clip": ("CLIPModel", {}, clip.towers),
    "clip_vision_model": ("CLIPVisionModelWithProjection", {}, clip.image_tower),
    "siglip": ("SiglipModel", {}, siglip.towers),
    "siglip_vision_model": ("SiglipVisionModel", {}, siglip.image_tower),
    "vision-text-dual-encoder": ("VisionTextDualEncoderModel", {}, dual_encoder.towers),
    "vit": ("ViTModel", {"add_pooling_layer": False}, image_only.class_token),
    "dinov2": ("Dinov2Model", {}, image_only.class_token),
    "dinov2_with_registers": ("Dinov2WithRegistersModel", {}, image_only.class_token),
    "dinov3_vit": ("DINOv3ViTModel", {}, image_only.class_token),
}
_TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
)
_FETCHED = ["*.json", "*.txt", "*.model", "*.safetensors", "README.md", "LICENSE*"]


def read(
    model: str, options: ImageOptions, *, context_length: int | None, allow_pickle: bool, with_text: bool
) -> Parts:
    """Returns the parts of the model in folder `model`, or of that name on the hub.

    Args:
        model: the folder or name.
        options: preprocessing that the folder does not state.
        context_length: tokens per text, if not as many as the model can take.
        allow_pickle: read weights from a pickle file where there are no safetensors.
        with_text: take the text tower too, where there is one.

    Raises:
        UserError: the model cannot be imported; the message says why.
    """
    folder = model if os.path.isdir(model) else _fetched(model, allow_pickle)
    config = _config(folder)
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UserError(
            f"{folder}/config.json has model_type {model_type!r}, which is not known; known are {', '.join(FAMILIES)}"
        )
    weights = weights_in(folder)
    check_pickle(weights, allow_pickle)
    class_name, arguments, towers = FAMILIES[model_type]
    loaded = _loaded(folder, class_name, arguments, safe=weights.endswith(".safetensors"))
    image, text = towers(loaded)
    preprocessing = preprocessing_of(stated_preprocessing(folder), options, where=os.path.join(folder, PROCESSOR_FILE))
    _check_size(loaded.config, preprocessing.image_size_px, folder)
    image_only.settle_positions(image, preprocessing.image_size_px)
    return Parts(
        family=model_type,
        image=image,
        text=_text_parts(folder, loaded, text, context_length) if with_text and text is not None else None,
        preprocessing=preprocessing,
        licence=licence_in(folder),
        source={
            "model": model,
            "model_type": model_type,
            "class": class_name,
            "revision": _revision(folder),
            **(clip.facts(loaded) if model_type == "clip" else {}),
        },
    )


def _fetched(name: str, allow_pickle: bool) -> str:
    """Returns the folder of a model of the hub, fetched if it is not in the cache."""
    import huggingface_hub

    if os.path.isabs(name) or name.startswith(".") or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise UserError(f"MODEL is {name}, and there is no such folder")
    patterns = _FETCHED + (["*.bin"] if allow_pickle else [])
    try:
        folder: str = huggingface_hub.snapshot_download(name, allow_patterns=patterns)
    except Exception as error:  # whatever the network, the hub or its client does
        raise UserError(
            f"MODEL is {name}: there is no such folder, and the hub could not be asked ({one_line(error)}); fetch the "
            "model's files where there is a network, and give MODEL= their folder"
        ) from error
    return folder


def _config(folder: str) -> dict[str, Any]:
    path = os.path.join(folder, "config.json")
    if not os.path.exists(path):
        raise UserError(f"{folder} has no config.json, so it is no Hugging Face folder; name one that has it")
    config = read_json(path)
    if "auto_map" in config:
        raise UserError(f"{path} asks for code of its own (auto_map), which is never run; use a model of transformers")
    return config


def _loaded(folder: str, class_name: str, arguments: dict[str, Any], *, safe: bool) -> Any:
    """Returns the model in the precision of its files, with all of its weights."""
    import transformers

    # With "sdpa" the text tower of BERT fails under `vmap`.
    try:
        model, report = getattr(transformers, class_name).from_pretrained(
            folder,
            dtype="auto",
            attn_implementation="eager",
            use_safetensors=safe,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **arguments,
        )
    except Exception as error:  # whatever damaged weights or a wrong config bring about
        raise UserError(f"{folder} cannot be read as {class_name}: {one_line(error)}") from error
    missing = sorted(report["missing_keys"]) + sorted(str(key) for key in report.get("mismatched_keys", ()))
    if missing:
        raise UserError(
            f"the weights in {folder} lack {missing[0]} ({len(missing)} in all), which {class_name} needs; "
            "fetch all of the model's files"
        )
    if left := [key for key in report["unexpected_keys"] if re.search(r"\.layers?\.\d+\.", key)]:
        raise UserError(
            f"the weights in {folder} have {left[0]} ({len(left)} such in all), but {class_name} has fewer layers by "
            "config.json; fetch both from one place"
        )
    return model


def _check_size(config: Any, size: int, folder: str) -> None:
    stated: Any = getattr(getattr(config, "vision_config", config), "image_size", size)
    sides = {stated} if isinstance(stated, int) else set(stated)
    if len(sides) > 1:
        raise UserError(f"{folder}/config.json: image_size is {list(stated)}; an encoder takes square pictures")
    free = {"dinov2", "dinov2_with_registers", "dinov3_vit"}  # of any size: their positions are computed for it
    if sides != {size} and config.model_type not in free:
        raise UserError(
            f"{folder}: the model takes pictures of {sides.pop()} pixels (image_size in config.json), but the "
            f"preprocessing makes {size}; give --image.image-size-px and --image.resize-px"
        )


def _text_parts(folder: str, model: Any, module: torch.nn.Module, context_length: int | None) -> TextParts:
    from transformers import AutoTokenizer

    if not any(os.path.exists(os.path.join(folder, name)) for name in _TOKENIZER_FILES):
        raise UserError(
            f"{folder} has no tokenizer ({' or '.join(_TOKENIZER_FILES)}); fetch its files, or give --no-text for the "
            "image tower alone"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a damaged file brings about
        raise UserError(f"{folder}: the tokenizer cannot be read: {one_line(error)}") from error
    longest = min(model.config.text_config.max_position_embeddings, tokenizer.model_max_length)
    if longest < 2:
        raise UserError(f"{folder}: the tokenizer takes {longest} tokens (model_max_length in tokenizer_config.json)")
    if context_length is not None and model.config.model_type == "siglip" and context_length != longest:
        raise UserError(
            f"--context-length is {context_length}, but SigLIP reads the last of {longest} tokens; leave it out"
        )
    if context_length is not None and not 1 < context_length <= longest:
        raise UserError(f"--context-length is {context_length}; the model takes from 2 to {longest} tokens")
    length = context_length or longest
    fast = fixed_length(tokenizer, length, where=folder)
    if model.config.model_type == "siglip" and type(tokenizer).__name__.startswith("Gemma"):
        # SigLIP 2 was trained on lower case, which the tokenizer in its folder leaves to the caller.
        fast.normalizer = normalizers.Sequence([normalizers.Lowercase(), fast.normalizer])
    known, highest = model.config.text_config.vocab_size, max(fast.get_vocab().values())
    if highest >= known:
        raise UserError(
            f"{folder}: the tokenizer has the id {highest}, but the text tower knows only {known} tokens; use the one "
            "of the model"
        )
    if hasattr(module, "pad_id"):
        module.pad_id = tokenizer.pad_token_id
    return TextParts(module=module, tokenizer=fast, context_length=length)


def _revision(folder: str) -> str | None:
    """Returns the hub's commit, which is the name of a fetched folder; None for another folder."""
    name = os.path.basename(os.path.normpath(folder))
    return name if re.fullmatch(r"[0-9a-f]{40}", name) else None
