"""Writes an encoder from a published model: `python -m trainer.import_encoder --model MODEL --output DIR`."""

from __future__ import annotations

import dataclasses
import os
import warnings
from importlib.metadata import version
from typing import Any

import jax
import tyro

from pipeline.commands import ending_on_user_errors
from pipeline.storage.disk import reporting_disk_errors
from trainer.encoder.write import save_encoder
from trainer.importing.parts import ImageOptions, Parts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Writes an encoder from a published model, for wherever an ENCODER is asked for. Needs no accelerator."""

    model: str
    """Folder or hub name of a Hugging Face model (CLIP, SigLIP, vision-text-dual-encoder, ViT, DINOv2, DINOv3);
    open_clip:NAME:WEIGHTS, where WEIGHTS is a file or a tag; timm:NAME or timm:NAME:FILE; module:function, Python code
    that returns a torch.nn.Module and a trainer.encoder.Preprocessing."""
    output: str
    """Directory of the encoder."""
    context_length: int | None = None
    """Tokens per text; longer texts are truncated. Fewer are faster. [default: as many as the model takes]"""
    text: bool = True
    """Take the text tower, where the model has one."""
    allow_pickle: bool = False
    """Read weights that are in a pickle file, which can run code: only from a source that you trust."""
    licence: str | None = None
    """Of the model, for the encoder's provenance. [default: what the model's README.md states]"""
    image: ImageOptions = ImageOptions()
    """How pictures become the model's input, where its files do not say it."""


def import_encoder(options: Options) -> str:
    """Writes the encoder of a published model to `options.output`, and returns its hash.

    Raises:
        UserError: the model cannot be imported.
    """
    from trainer.importing.read import read

    parts = read(
        options.model,
        options.image,
        context_length=options.context_length,
        allow_pickle=options.allow_pickle,
        with_text=options.text,
    )
    return write_parts(options.output, dataclasses.replace(parts, licence=options.licence or parts.licence))


def write_parts(path: str, parts: Parts) -> str:
    """Writes an encoder to directory `path` and returns its hash."""
    from trainer.importing.to_jax import to_jax

    where = str(parts.source.get("model", parts.family))
    image_params, image_function = to_jax(parts.image, where=where)
    text: dict[str, Any] = {}
    if parts.text is not None:
        text_params, text_function = to_jax(parts.text.module, where=where)
        text = {
            "text_params": text_params,
            "text_function": text_function,
            "tokenizer": parts.text.tokenizer,
            "context_length": parts.text.context_length,
        }
    return save_encoder(
        path,
        image_function=image_function,
        image_params=image_params,
        preprocessing=parts.preprocessing,
        provenance={
            "imported_from": {**parts.source, "family": parts.family, "licence": parts.licence},
            "packages": {name: version(name) for name in ("jax", "torch", "torchax", "transformers")},
        },
        **text,
    )


def main() -> None:
    os.environ.setdefault("USE_TF", "0")  # transformers would load TensorFlow
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    options = tyro.cli(Options, prog="python -m trainer.import_encoder")
    jax.config.update("jax_platforms", "cpu")
    warnings.simplefilter("ignore")  # of torch and transformers, about their own insides
    with ending_on_user_errors(), reporting_disk_errors(options.output, option="--output"):
        encoder_hash = import_encoder(options)
    print(f"wrote {options.output} (hash {encoder_hash[:12]})")


if __name__ == "__main__":
    main()
