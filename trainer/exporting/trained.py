"""An encoder that this trainer wrote, with its towers' configs and its parameters by name."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
import tokenizers

from pipeline.schema import UserError
from trainer.configs.base import Experiment, experiment_of
from trainer.encoder import Preprocessing
from trainer.encoder.format import METADATA_FILE, TOKENIZER_FILE, WEIGHTS_FILE
from trainer.encoder.read import read_metadata
from trainer.models.layers import STACKED
from trainer.state import make_models


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
        """Returns the parameters by name, such as "image/blocks/block_0/up/kernel", also those of scanned blocks.

        Raises:
            UserError: they are not those of the config's towers, or not finite.
        """
        path = os.path.join(self.path, WEIGHTS_FILE)
        try:
            stored = safetensors.numpy.load_file(path)
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(f"{path} cannot be read ({error}); write the encoder again") from error
        expected = self._shapes()
        for name in sorted(expected.keys() | stored.keys()):
            shape = stored[name].shape if name in stored else None
            if shape != expected.get(name):
                raise UserError(
                    f"{path}: {name} has the shape {shape}, but the config in {METADATA_FILE} asks for "
                    f"{expected.get(name)}; write the encoder again"
                )
            if not (np.issubdtype(stored[name].dtype, np.floating) and np.isfinite(stored[name]).all()):
                raise UserError(f"{path}: {name} has values that are not finite floats; write the encoder again")
        weights: dict[str, np.ndarray] = {}
        for name, value in stored.items():
            before, scanned, after = name.partition(f"/{STACKED}/")
            if scanned:
                weights |= {f"{before}/block_{index}/{after}": layer for index, layer in enumerate(value)}
            else:
                weights[name] = value
        return weights

    def read_tokenizer(self) -> dict[str, Any]:
        """Returns the content of the tokenizer's file.

        Raises:
            UserError: it is no tokenizer.
        """
        try:
            content: dict[str, Any] = json.loads(tokenizers.Tokenizer.from_file(self.tokenizer_path).to_str())
        except Exception as error:  # the package raises nothing narrower
            raise UserError(f"{self.tokenizer_path} cannot be read ({error}); write the encoder again") from error
        return content

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of the parameters of the config's towers, by the names in the encoder's file."""
        image, text = self.experiment.image, self.experiment.text
        pictures = jax.ShapeDtypeStruct((1, image.image_size_px, image.image_size_px, 3), jnp.float32)
        tokens = jax.ShapeDtypeStruct((1, text.context_length), jnp.int32)
        try:
            models = make_models(self.experiment)
            towers = {"image": jax.eval_shape(models.image.init, jax.random.key(0), pictures)["params"]}
            if models.text is not None:
                towers["text"] = jax.eval_shape(models.text.init, jax.random.key(0), tokens)["params"]
        except Exception as error:  # whatever a wrong config brings about
            said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise UserError(f"{self.path}/{METADATA_FILE}: no tower can be made of its config ({said})") from error
        return {
            jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
            for path, leaf in jax.tree_util.tree_leaves_with_path(towers)
        }


def read_trained(path: str) -> TrainedEncoder:
    """Returns the encoder in directory `path`.

    Raises:
        UserError: there is none, its files were changed, or this trainer did not write it.
    """
    try:
        metadata = read_metadata(path)
    except ValueError as error:
        raise UserError(str(error)) from None
    config = (metadata.get("provenance") or {}).get("config")
    if not isinstance(config, dict):
        raise UserError(
            f"{path}/{METADATA_FILE} states no config of a training, so the architecture of its towers is not known; "
            "give an encoder that make train or make encoder wrote"
        )
    return TrainedEncoder(path=path, metadata=metadata, experiment=experiment_of(config))
