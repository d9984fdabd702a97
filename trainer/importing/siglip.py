"""SigLIP, and SigLIP 2 of fixed resolution, as in transformers."""

from __future__ import annotations

from typing import Any

import torch


class ImageTower(torch.nn.Module):
    """Pictures [B, S, S, 3] to embeddings."""

    def __init__(self, model: Any):
        super().__init__()
        self.vision_model = model.vision_model

    def forward(self, images: torch.Tensor) -> Any:
        return self.vision_model(pixel_values=images.permute(0, 3, 1, 2)).pooler_output


class TextTower(torch.nn.Module):
    """Token ids [B, L] to embeddings. Padding is attended to, as in training, and the last position is read."""

    def __init__(self, model: Any):
        super().__init__()
        self.text_model = model.text_model

    def forward(self, tokens: torch.Tensor) -> Any:
        return self.text_model(input_ids=tokens).pooler_output


def towers(model: Any) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Returns both towers of a `SiglipModel`."""
    return ImageTower(model), TextTower(model)


def image_tower(model: Any) -> tuple[torch.nn.Module, None]:
    """Returns the tower of a `SiglipVisionModel`."""
    return ImageTower(model), None
