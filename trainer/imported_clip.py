"""An imported CLIP as the start of a training run: its parameters under our names, and its tokenizer with our ids.

Our text tower takes the id 0 for padding, and reads the last token that is none. CLIP's tokenizers use 0 for a piece of
text, so all ids move up by one, and the table gets a row that no text reads.
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import tokenizers

from pipeline.schema import UserError
from trainer.tokenizer import PAD_ID

ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "gelu": "gelu", "quick_gelu": "quick_gelu"}
_PARTS = {
    "layer_norm1": ("norm_attention",),
    "self_attn.q_proj": ("attention", "query"),
    "self_attn.k_proj": ("attention", "key"),
    "self_attn.v_proj": ("attention", "value"),
    "self_attn.out_proj": ("attention", "out"),
    "layer_norm2": ("norm_mlp",),
    "mlp.fc1": ("up",),
    "mlp.fc2": ("down",),
}


def image_params(theirs: dict[str, np.ndarray]) -> dict[str, Any]:
    """Returns the parameters of our image tower, float32, nested, from those of CLIP's, by name."""
    weights = {name: np.asarray(value, np.float32) for name, value in theirs.items()}
    patches = weights["vision_model.embeddings.patch_embedding.weight"]  # [W, 3, P, P]
    width = patches.shape[0]
    return {
        "stem": {
            # A patch's pixels lie row by row, with the channels of a pixel side by side.
            "kernel": patches.transpose(2, 3, 1, 0).reshape(-1, width),
            "bias": np.zeros(width, np.float32),
        },
        "class_token": weights["vision_model.embeddings.class_embedding"].reshape(1, 1, width),
        "position": weights["vision_model.embeddings.position_embedding.weight"][np.newaxis],
        "pre_norm": _norm(weights, "vision_model.pre_layrnorm"),  # their spelling
        "blocks": _blocks(weights, "vision_model", "post_layernorm"),
        "head": {"kernel": weights["visual_projection.weight"].T},
    }


def text_params(theirs: dict[str, np.ndarray]) -> dict[str, Any]:
    """Returns the parameters of our text tower, float32, nested, from those of CLIP's, by name."""
    weights = {name: np.asarray(value, np.float32) for name, value in theirs.items()}
    table = weights["text_model.embeddings.token_embedding.weight"]
    return {
        "table": {"embedding": np.concatenate([np.zeros_like(table[:1]), table])},
        "position": weights["text_model.embeddings.position_embedding.weight"][np.newaxis],
        "blocks": _blocks(weights, "text_model", "final_layer_norm"),
        "head": {"kernel": weights["text_projection.weight"].T},
    }


def with_our_ids(tokenizer: tokenizers.Tokenizer, *, where: str) -> tokenizers.Tokenizer:
    """Returns CLIP's tokenizer with every id one higher, and 0 as padding.

    Raises:
        UserError: its texts do not end with one token for the end, which our tower would read.
    """
    content: dict[str, Any] = json.loads(tokenizer.to_str())
    vocabulary = content["model"]["vocab"]
    processor = content["post_processor"]
    ends = _ids_of_end(processor)
    if not isinstance(vocabulary, dict) or ends is None:
        raise UserError(f"{where}: its tokenizer does not end texts as CLIP's do, so it cannot start a training run")
    content["model"]["vocab"] = {token: token_id + 1 for token, token_id in vocabulary.items()}
    for token in content["added_tokens"]:
        token["id"] += 1
    content["padding"]["pad_id"], content["padding"]["pad_token"] = PAD_ID, "<pad>"
    if "sep" in processor:
        for name in ("sep", "cls"):
            processor[name][1] += 1
    else:
        for special in processor["special_tokens"].values():
            special["ids"] = [token_id + 1 for token_id in special["ids"]]
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def _ids_of_end(processor: Any) -> int | None:
    """Returns the id that a post-processor puts at the end of a text; None if it puts none there."""
    if processor is None:
        return None
    if processor["type"] == "RobertaProcessing":
        return int(processor["sep"][1])
    if processor["type"] == "TemplateProcessing" and "SpecialToken" in processor["single"][-1]:
        return int(processor["special_tokens"][processor["single"][-1]["SpecialToken"]["id"]]["ids"][0])
    return None


def _blocks(weights: dict[str, np.ndarray], tower: str, last_norm: str) -> dict[str, Any]:
    pattern = re.compile(rf"{tower}\.encoder\.layers\.(\d+)\.")
    depth = 1 + max(int(found[1]) for name in weights if (found := pattern.match(name)))
    blocks: dict[str, Any] = {"norm": _norm(weights, f"{tower}.{last_norm}")}
    for index in range(depth):
        block: dict[str, Any] = {}
        for part, path in _PARTS.items():
            name = f"{tower}.encoder.layers.{index}.{part}"
            inner = block
            for parent in path[:-1]:
                inner = inner.setdefault(parent, {})
            inner[path[-1]] = _norm(weights, name) if "norm" in part else _dense(weights, name)
        blocks[f"block_{index}"] = block
    return blocks


def _norm(weights: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {"scale": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]}


def _dense(weights: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {"kernel": weights[f"{name}.weight"].T, "bias": weights[f"{name}.bias"]}
