"""What an encoder is made from, whichever family of models it comes from."""

from __future__ import annotations

import dataclasses
from typing import Any

import tokenizers
import torch

from pipeline.schema import UserError
from trainer.encoder import Preprocessing


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """How pictures become the model's input, where its files do not say it. What is given here counts."""

    image_size_px: int | None = None
    """Side of the square that the model takes."""
    resize_px: int | None = None
    """Length of the short side before the crop, or of both sides with --image.fit squash."""
    fit: str | None = None
    """short_side (keep the proportions, then crop) or squash."""
    resize: str | None = None
    """Filter: bilinear or bicubic."""
    antialias: bool | None = None
    """Average over all pixels when a picture shrinks, as Pillow does."""
    round_pixels: bool | None = None
    """Round resized pixels to whole grey levels, as of a picture of 8 bits; False: resize floats."""
    alpha: str | None = None
    """white (put transparent pictures on white) or drop (what lies under the transparency shows)."""
    crop_start: str | None = None
    """Where half the surplus is no whole number: rounded (to even, as torchvision) or floor."""
    mean: tuple[float, float, float] | None = None
    """Of each channel, from 0 to 1."""
    std: tuple[float, float, float] | None = None
    """Of each channel."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextParts:
    """A text tower and its tokenizer."""

    module: torch.nn.Module
    """Token ids int32 [B, L] to embeddings [B, D]."""
    tokenizer: tokenizers.Tokenizer
    """Pads and truncates every text to L."""
    context_length: int
    """L."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """What an encoder is made from."""

    family: str
    image: torch.nn.Module
    """Pictures float32 [B, S, S, 3], normalised, to embeddings [B, D]."""
    text: TextParts | None
    preprocessing: Preprocessing
    licence: str | None
    """As the source names it; None: it names none."""
    source: dict[str, Any]
    """JSON values that say where the model came from."""


class ChannelsFirst(torch.nn.Module):
    """Pictures [B, S, S, 3] to embeddings, by a module that takes [B, 3, S, S]."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> Any:
        return self.model(images.permute(0, 3, 1, 2))


def preprocessing_of(stated: dict[str, Any], options: ImageOptions, *, where: str) -> Preprocessing:
    """Returns the preprocessing that `stated` and `options` describe together; the options count.

    Args:
        stated: fields of `Preprocessing` that the model's files say.
        options: what the user says.
        where: names those files in the error.

    Raises:
        UserError: a field is in neither, or has a value that does not exist.
    """
    given = {name: value for name, value in dataclasses.asdict(options).items() if value is not None}
    fields = {**stated, **given}
    missing = [field.name for field in dataclasses.fields(Preprocessing) if field.name not in fields]
    if missing:
        flags = " ".join(f"--image.{name.replace('_', '-')}" for name in missing)
        raise UserError(f"{where} does not say how pictures are preprocessed; say it with {flags}")
    try:
        return Preprocessing(**fields)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error
