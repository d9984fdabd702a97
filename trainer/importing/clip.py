"""CLIP as in transformers: OpenAI's, MetaCLIP's, those of OpenCLIP that were converted, MOFI's."""

from __future__ import annotations

from typing import Any

import torch


class ImageTower(torch.nn.Module):
    """Pictures [B, S, S, 3] to embeddings."""

    def __init__(self, model: Any):
        super().__init__()
        self.vision_model, self.visual_projection = model.vision_model, model.visual_projection

    def forward(self, images: torch.Tensor) -> Any:
        pooled = self.vision_model(pixel_values=images.permute(0, 3, 1, 2)).pooler_output
        return self.visual_projection(pooled)


class TextTower(torch.nn.Module):
    """Token ids [B, L] to embeddings. Attention is causal, so padding after the end needs no mask."""

    def __init__(self, model: Any):
        super().__init__()
        self.text_model, self.text_projection = model.text_model, model.text_projection

    def forward(self, tokens: torch.Tensor) -> Any:
        return self.text_projection(self.text_model(input_ids=tokens).pooler_output)


def towers(model: Any) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Returns both towers of a `CLIPModel`."""
    return ImageTower(model), TextTower(model)


def image_tower(model: Any) -> tuple[torch.nn.Module, None]:
    """Returns the tower of a `CLIPVisionModelWithProjection`."""
    return ImageTower(model), None


def facts(model: Any) -> dict[str, Any]:
    """Returns what a training run that starts from a `CLIPModel` must know, besides its parameters."""
    towers = {"image": model.config.vision_config, "text": model.config.text_config}
    return {
        "log_scale": model.logit_scale.item(),
        "activation": {name: tower.hidden_act for name, tower in towers.items()},
        "norm_epsilon": {name: tower.layer_norm_eps for name, tower in towers.items()},
        "num_heads": {name: tower.num_attention_heads for name, tower in towers.items()},
    }
