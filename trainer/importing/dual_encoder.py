"""Two models that transformers joins by projections: a vision-text-dual-encoder."""

from __future__ import annotations

from typing import Any

import torch

from trainer.importing.clip import ImageTower


class TextTower(torch.nn.Module):
    """Token ids [B, L] to embeddings; what follows the last token that is not padding is masked."""

    pad_id = 0  # set by the reader, who knows the tokenizer

    def __init__(self, model: Any):
        super().__init__()
        self.text_model, self.text_projection = model.text_model, model.text_projection

    def forward(self, tokens: torch.Tensor) -> Any:
        # A text may hold the padding token itself, so a token counts if it or one after it is none.
        mask = (tokens != self.pad_id).int().flip(1).cumsum(1).flip(1).clamp(max=1)
        pooled = self.text_model(input_ids=tokens, attention_mask=mask).pooler_output
        return self.text_projection(pooled)


def towers(model: Any) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Returns both towers of a `VisionTextDualEncoderModel`."""
    return ImageTower(model), TextTower(model)
