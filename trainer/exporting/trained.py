"""An encoder that this trainer wrote, with its towers' configs and its parameters by name."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import numpy as np
import safetensors.numpy

from pipeline.schema import UserError
from trainer.configs.base import Experiment, experiment_of
from trainer.encoder import Preprocessing
from trainer.encoder.format import METADATA_FILE, TOKENIZER_FILE, WEIGHTS_FILE
from trainer.encoder.read import read_metadata
from trainer.models.layers import STACKED


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainedEncoder:
    """What is known of an encoder that this trainer wrote."""

    path: str
    metadata: dict[str, Any]
    """The content of `encoder.json`."""
    experiment: Experiment
    """The config that it was trained with."""

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing.of_json(self.metadata["image_size_px"], self.metadata["preprocessing"])

    @property
    def tokenizer_path(self) -> str:
        """Of a file that is there where `metadata["has_text"]`."""
        return os.path.join(self.path, TOKENIZER_FILE)

    def read_weights(self) -> dict[str, np.ndarray]:
        """Returns the parameters by name, such as "image/blocks/block_0/up/kernel", also those of scanned blocks."""
        weights: dict[str, np.ndarray] = {}
        for name, value in safetensors.numpy.load_file(os.path.join(self.path, WEIGHTS_FILE)).items():
            before, scanned, after = name.partition(f"/{STACKED}/")
            if scanned:
                weights |= {f"{before}/block_{index}/{after}": layer for index, layer in enumerate(value)}
            else:
                weights[name] = value
        return weights


def read_trained(path: str) -> TrainedEncoder:
    """Returns the encoder in directory `path`.

    Raises:
        UserError: there is none, its files were changed, or this trainer did not write it.
    """
    try:
        metadata = read_metadata(path)
    except ValueError as error:
        raise UserError(str(error)) from None
    config = metadata.get("provenance", {}).get("config")
    if config is None:
        raise UserError(
            f"{path}/{METADATA_FILE} states no config of a training, so the architecture of its towers is not known; "
            "give an encoder that make train or make encoder wrote"
        )
    return TrainedEncoder(path=path, metadata=metadata, experiment=experiment_of(config))
