"""Writes an encoder as a folder of Hugging Face's CLIP, which `AutoModel` and its like open without code of ours.

Their image tower starts without a bias, so the stem's is added to the positions of the patches. Their text tower finds
the end of a text by its id, and takes an id of 2 for a mark of old configs, so <eos> and the last token swap ids.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import safetensors.numpy
from PIL import Image

from pipeline.schema import UserError
from pipeline.storage.disk import new_file, write_whole
from trainer.configs.base import ImageTower, TextTower
from trainer.encoder import Preprocessing
from trainer.encoder.format import METADATA_FILE
from trainer.exporting.trained import TrainedEncoder
from trainer.tokenizer import EOS_ID, PAD_ID

_CONFIG_FILE, _WEIGHTS_FILE = "config.json", "model.safetensors"
_ACTIVATIONS = {"gelu_tanh": "gelu_pytorch_tanh", "gelu": "gelu", "quick_gelu": "quick_gelu"}
_CLIP_SCALE = 1 / 0.07  # where an encoder does not state its own
# Our names of the parts of a block, and theirs.
_OF_BLOCK = {
    "norm_attention": "layer_norm1",
    "attention/query": "self_attn.q_proj",
    "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj",
    "attention/out": "self_attn.out_proj",
    "norm_mlp": "layer_norm2",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
}


def reasons_against(encoder: TrainedEncoder, *, antialias: bool) -> list[str]:
    """Returns what Hugging Face's CLIP cannot express of an encoder, one clause each; none: it can be written.

    Args:
        encoder: what would be written.
        antialias: whether pictures may be shrunk with antialias although the encoder shrinks them without.
    """
    image, text, preprocessing = encoder.experiment.image, encoder.experiment.text, encoder.preprocessing
    found = []
    if image.pool != "class_token":
        found.append(f"its image tower pools by {image.pool}, CLIP's reads a class token")
    if image.stem_fold_px:
        found.append(f"its stem mixes blocks of {image.stem_fold_px} pixels first, CLIP's projects patches directly")
    if not image.pre_norm:
        found.append("its image tower has no norm before the blocks (image.pre_norm), CLIP's has one")
    if image.scale_init_by_data:
        found.append("its head has a bias (image.scale_init_by_data), CLIP's has none")
    if not encoder.metadata["has_text"]:
        found.append("it has no text tower, CLIP has two towers")
    elif text.pool != "last":
        found.append(f"its text tower pools by {text.pool}, CLIP's reads the last token")
    if not preprocessing.antialias and not antialias:
        found.append(
            "it shrinks pictures without antialias, CLIP's processor always does with; --antialias accepts that "
            "(embeddings of pictures then differ), and a run without --set image.antialias=false trains as CLIP does"
        )
    return found


def usage(encoder: TrainedEncoder) -> str:
    """Returns the part of the model card that says how the folder is used."""
    return f"""```python
from PIL import Image
from transformers import AutoModel, AutoProcessor

model, processor = AutoModel.from_pretrained("."), AutoProcessor.from_pretrained(".")
inputs = processor(text=["a red panda", "a tree"], images=[Image.open("picture.png")], return_tensors="pt")
print(model(**inputs).logits_per_image.softmax(dim=1))
```

The processor pads texts and cuts them to {encoder.experiment.text.context_length} tokens. With the tokenizer alone,
give `padding=True, truncation=True`.
"""


def differences(encoder: TrainedEncoder) -> list[str]:
    """Returns sentences on how the folder's embeddings differ from those of the encoder."""
    found = [
        "Texts, and pictures of 8 bits without transparency, have the same embeddings to 1e-5 but for what follows.",
        "The encoder puts transparent pictures on white and scales greys of 16 bits; CLIP's processor drops the "
        "transparency and cuts the greys. It does not turn pictures by their EXIF orientation. Convert such pictures "
        "before.",
        "Where a picture's resized long side is longer than the crop by 3, 7, 11, … pixels, CLIP's processor starts "
        "the crop one pixel before the encoder's.",
    ]
    if not encoder.preprocessing.antialias:
        found.append(
            "The encoder shrinks pictures without antialias, CLIP's processor with. Give it pictures that are shrunk "
            "already for the same embeddings."
        )
    if encoder.experiment.dtype != "float32":
        found.append(
            f"The encoder computes its matrix products in {encoder.experiment.dtype}; this model computes in float32, "
            "and equals the encoder up to that rounding."
        )
    if encoder.experiment.classifies:
        found.append("The encoder has a classifier of entities, which is not part of this folder.")
    if "contrastive_scale" not in encoder.metadata["provenance"]:
        found.append("The scale of the logits is CLIP's first one, 1 / 0.07: the encoder does not state its own.")
    return found


def write_clip_folder(encoder: TrainedEncoder, output: str, *, card: str, antialias: bool = False) -> None:
    """Writes config, weights, tokenizer, processor and model card to the folder `output`, which is created.

    Args:
        encoder: what is written.
        output: the folder. Files of an earlier export are replaced.
        card: the text of the model card, README.md.
        antialias: whether pictures may be shrunk with antialias although the encoder shrinks them without.

    Raises:
        UserError: Hugging Face's CLIP cannot express the encoder, or `output` holds an encoder.
        OSError: the files cannot be written.
    """
    if reasons := reasons_against(encoder, antialias=antialias):
        raise UserError(
            f"{encoder.path} cannot be written as Hugging Face's CLIP: {'; '.join(reasons)}. --format onnx writes it "
            "as it is"
        )
    if os.path.exists(os.path.join(output, METADATA_FILE)):
        raise UserError(f"--output {output} is an encoder, whose tokenizer would be replaced; choose another folder")
    weights_of_encoder = encoder.read_weights()
    tokenizer = encoder.read_tokenizer()
    special = special_tokens(tokenizer, where=encoder.tokenizer_path)
    eos_id = swapped_eos(tokenizer, special)
    tensors = dict(_tensors(encoder, weights_of_encoder, (special.eos_id, eos_id)))
    os.makedirs(output, exist_ok=True)
    path = os.path.join(output, _WEIGHTS_FILE)
    with new_file(path) as weights:
        weights.write(safetensors.numpy.save(tensors, metadata={"format": "pt"}))
    contents: dict[str, Any] = {
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": _tokenizer_config(encoder.experiment.text, tokenizer, special),
        "special_tokens_map.json": special.names(),
        "preprocessor_config.json": _processor_config(encoder.preprocessing),
        _CONFIG_FILE: _config(encoder, special.bos_id, eos_id),
    }
    for name, content in contents.items():
        write_whole(os.path.join(output, name), json.dumps(content, indent=1, ensure_ascii=False).encode())
    write_whole(os.path.join(output, "README.md"), card.encode())


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """The tokens that a tokenizer puts around a text."""

    bos: str
    bos_id: int
    eos: str
    eos_id: int
    pad: str

    def names(self) -> dict[str, str]:
        """Returns them as Hugging Face's tokenizers name them."""
        return {"bos_token": self.bos, "eos_token": self.eos, "pad_token": self.pad}


def special_tokens(tokenizer: dict[str, Any], *, where: str) -> SpecialTokens:
    """Returns the tokens around a text of a tokenizer, the content of a `tokenizer.json`: ours, or an imported CLIP's.

    Raises:
        UserError: texts do not start and end with a token each.
    """
    processor = tokenizer["post_processor"] or {"type": "none"}
    if processor["type"] == "RobertaProcessing":
        (bos, bos_id), (eos, eos_id) = processor["cls"], processor["sep"]
    elif processor["type"] == "TemplateProcessing" and all(
        "SpecialToken" in processor["single"][position] for position in (0, -1)
    ):
        bos, eos = (processor["single"][position]["SpecialToken"]["id"] for position in (0, -1))
        bos_id, eos_id = (processor["special_tokens"][token]["ids"][0] for token in (bos, eos))
    else:
        raise UserError(f"{where} puts no tokens at the start and the end of a text, which CLIP's text tower reads")
    pad = tokenizer["padding"]["pad_token"]
    # After the end, CLIP's tower reads nothing: any token pads, and one that is unknown would get a new id.
    known = tokenizer["model"]["vocab"]
    return SpecialTokens(bos=bos, bos_id=bos_id, eos=eos, eos_id=eos_id, pad=pad if pad in known else eos)


def swapped_eos(tokenizer: dict[str, Any], special: SpecialTokens) -> int:
    """Returns the id of the end of a text; one of 2 is swapped with that of the tokenizer's last token, in place.

    Merges name tokens by their strings, so they stay.
    """
    if special.eos_id != EOS_ID:
        return special.eos_id
    vocabulary = tokenizer["model"]["vocab"]
    last = max(vocabulary, key=lambda token: int(vocabulary[token]))
    vocabulary[last], vocabulary[special.eos] = EOS_ID, vocabulary[last]
    tokenizer["post_processor"]["special_tokens"][special.eos]["ids"] = [vocabulary[special.eos]]
    return int(vocabulary[special.eos])


def _config(encoder: TrainedEncoder, bos_id: int, eos_id: int) -> dict[str, Any]:
    experiment = encoder.experiment
    image, text, dim = experiment.image, experiment.text, experiment.embedding_dim
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "torch_dtype": "float32",
        "projection_dim": dim,
        "logit_scale_init_value": math.log(_scale(encoder)),
        "initializer_factor": 1.0,
        "vision_config": {
            **_tower_config(image, dim),
            "model_type": "clip_vision_model",
            "image_size": image.image_size_px,
            "patch_size": image.patch_px,
            "num_channels": 3,
        },
        "text_config": {
            **_tower_config(text, dim),
            "model_type": "clip_text_model",
            "vocab_size": text.vocabulary_size,
            "max_position_embeddings": text.context_length,
            "pad_token_id": PAD_ID,
            "bos_token_id": bos_id,
            "eos_token_id": eos_id,
        },
    }


def _tower_config(tower: ImageTower | TextTower, embedding_dim: int) -> dict[str, Any]:
    return {
        "hidden_size": tower.width,
        "intermediate_size": tower.mlp_ratio * tower.width,
        "num_hidden_layers": tower.depth,
        "num_attention_heads": tower.num_heads,
        "projection_dim": embedding_dim,
        "hidden_act": _ACTIVATIONS[tower.activation],
        "layer_norm_eps": tower.norm_epsilon,
        "attention_dropout": 0.0,
    }


def _tokenizer_config(text: TextTower, tokenizer: dict[str, Any], special: SpecialTokens) -> dict[str, Any]:
    return {
        **special.names(),
        "tokenizer_class": "PreTrainedTokenizerFast",
        "processor_class": "CLIPProcessor",
        "model_max_length": text.context_length,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        # In our tokenizers "<eos>" in a text is text, in those of CLIP it is the token.
        "split_special_tokens": not tokenizer["added_tokens"],
        # What the processor does unless it is asked for something else.
        "padding": True,
        "truncation": True,
    }


def _processor_config(preprocessing: Preprocessing) -> dict[str, Any]:
    size = preprocessing.image_size_px
    return {
        "processor_class": "CLIPProcessor",
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": int(Image.Resampling[preprocessing.resize.upper()]),
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }


def _scale(encoder: TrainedEncoder) -> float:
    return float(encoder.metadata["provenance"].get("contrastive_scale", _CLIP_SCALE))


def _tensors(
    encoder: TrainedEncoder, weights: dict[str, np.ndarray], swapped: tuple[int, int]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the tensors of a CLIPModel by name, those of two tokens swapped.

    Each of `weights` is taken out, and none may be left.
    """
    image, text = encoder.experiment.image, encoder.experiment.text
    positions = weights.pop("image/position")[0].copy()
    positions[1:] += weights.pop("image/stem/bias")  # the first is the class token's
    kernel = weights.pop("image/stem/kernel").reshape(image.patch_px, image.patch_px, 3, image.width)
    yield "vision_model.embeddings.class_embedding", weights.pop("image/class_token").reshape(-1)
    yield "vision_model.embeddings.patch_embedding.weight", np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))
    yield "vision_model.embeddings.position_embedding.weight", positions
    yield from _norm(weights, "image/pre_norm", "vision_model.pre_layrnorm")  # their spelling
    yield from _blocks(weights, "image", "vision_model", image.depth)
    yield from _norm(weights, "image/blocks/norm", "vision_model.post_layernorm")
    yield "visual_projection.weight", np.ascontiguousarray(weights.pop("image/head/kernel").T)

    table = weights.pop("text/table/embedding").copy()
    table[list(swapped)] = table[list(swapped[::-1])]
    yield "text_model.embeddings.token_embedding.weight", table
    yield "text_model.embeddings.position_embedding.weight", weights.pop("text/position")[0]
    yield from _blocks(weights, "text", "text_model", text.depth)
    yield from _norm(weights, "text/blocks/norm", "text_model.final_layer_norm")
    yield "text_projection.weight", np.ascontiguousarray(weights.pop("text/head/kernel").T)
    yield "logit_scale", np.asarray(math.log(_scale(encoder)), np.float32)
    if weights:
        raise AssertionError(f"{', '.join(weights)} have no place in a CLIPModel")


def _blocks(weights: dict[str, np.ndarray], tower: str, theirs: str, depth: int) -> Iterator[tuple[str, np.ndarray]]:
    for index in range(depth):
        for part, their_part in _OF_BLOCK.items():
            source, target = f"{tower}/blocks/block_{index}/{part}", f"{theirs}.encoder.layers.{index}.{their_part}"
            if part.startswith("norm"):
                yield from _norm(weights, source, target)
            else:
                yield f"{target}.weight", np.ascontiguousarray(weights.pop(f"{source}/kernel").T)
                yield f"{target}.bias", weights.pop(f"{source}/bias")


def _norm(weights: dict[str, np.ndarray], source: str, target: str) -> Iterator[tuple[str, np.ndarray]]:
    yield f"{target}.weight", weights.pop(f"{source}/scale")
    yield f"{target}.bias", weights.pop(f"{source}/bias")
