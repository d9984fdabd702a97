"""Image models without texts, as in transformers: ViT, DINOv2, DINOv3."""

from __future__ import annotations

from typing import Any

import torch


class ClassToken(torch.nn.Module):
    """Pictures [B, S, S, 3] to the class token of the last layer, after the norm."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> Any:
        return self.model(pixel_values=images.permute(0, 3, 1, 2)).last_hidden_state[:, 0]


def class_token(model: Any) -> tuple[torch.nn.Module, None]:
    """Returns the tower of a model whose first token is the class token."""
    if model.config.model_type == "dinov3_vit":
        _compute_coordinates_anew()
    return ClassToken(model), None


def settle_positions(tower: torch.nn.Module, size: int) -> None:
    """Puts positions that are interpolated to pictures of `size` pixels in the place of DINOv2's own.

    Interpolated once, by torch, they need no interpolation in the export.
    """
    model: Any = getattr(tower, "model", None)
    if model is None or not model.config.model_type.startswith("dinov2"):
        return
    embeddings, width = model.embeddings, model.config.hidden_size
    side = size // embeddings.patch_size
    tokens = torch.zeros(1, side * side + 1, width, dtype=embeddings.position_embeddings.dtype)
    with torch.no_grad():
        positions = embeddings.interpolate_pos_encoding(tokens, size, size)
    embeddings.position_embeddings = torch.nn.Parameter(positions)


def _compute_coordinates_anew() -> None:
    """Takes the cache from DINOv3's coordinates: a tensor of one program must not get into another."""
    from transformers.models.dinov3_vit import modeling_dinov3_vit as modeling

    cached = modeling.get_patches_center_coordinates
    modeling.get_patches_center_coordinates = getattr(cached, "__wrapped__", cached)
