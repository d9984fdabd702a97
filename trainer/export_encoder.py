"""Writes a trained encoder in a format of others: `python -m trainer.export_encoder --encoder DIR --output DIR`."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import tyro

from pipeline.commands import ending_on_user_errors
from pipeline.storage.disk import reporting_disk_errors
from trainer.exporting import hugging_face, onnx
from trainer.exporting.model_card import model_card, read_results
from trainer.exporting.trained import read_trained


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Writes a trained encoder in a format that other tools read, with a model card."""

    encoder: str
    """Directory of an encoder that `make train` or `make encoder` wrote."""
    format: Literal["hf", "onnx"] = "hf"
    """hf: a folder of Hugging Face's CLIP, for towers with a class token, such as B/16 and L/14; onnx: a file of ONNX
    for each tower, for all."""
    output: str
    """Directory to write to; files of an earlier export are replaced."""
    results: tuple[str, ...] = ()
    """Directories that `make eval` wrote for this encoder; their metrics are written into the model card."""
    antialias: bool = False
    """With hf: accept that pictures are shrunk with antialias, where the encoder shrinks them without."""


def export(options: Options) -> None:
    """Writes the folder.

    Raises:
        UserError: the encoder cannot be read or expressed, or results are not its own.
    """
    encoder = read_trained(options.encoder)
    results = read_results(options.results, encoder)
    if options.format == "hf":
        usage, notes = hugging_face.usage(encoder), hugging_face.differences(encoder)
        card = model_card(encoder, results, library="transformers", usage=usage, notes=notes)
        hugging_face.write_clip_folder(encoder, options.output, card=card, antialias=options.antialias)
    else:
        card = model_card(encoder, results, library="onnx", usage=onnx.usage(encoder), notes=onnx.differences(encoder))
        onnx.write_onnx_folder(encoder, options.output, card=card)


def main() -> None:
    options = tyro.cli(Options, prog="python -m trainer.export_encoder")
    jax.config.update("jax_platforms", "cpu")
    with ending_on_user_errors(), reporting_disk_errors(options.output, option="--output"):
        export(options)
    print(f"wrote {options.output}; README.md there says how it is used")


if __name__ == "__main__":
    main()
