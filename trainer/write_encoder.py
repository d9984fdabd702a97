"""Writes an encoder from a checkpoint of a run: `python -m trainer.write_encoder --run DIR --step N`."""

from __future__ import annotations

import dataclasses
import json
import os
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
import tyro
from absl import logging as absl_logging
from etils import epath
from jax.sharding import Mesh

from pipeline.commands import ending_on_user_errors
from pipeline.schema import UserError
from pipeline.storage.disk import reporting_disk_errors
from trainer.checkpoints import check_architecture, read_params, steps_in
from trainer.configs.base import Experiment, experiment_of
from trainer.encoder import Classifier, Preprocessing
from trainer.encoder.format import HASHED_FILES, METADATA_FILE
from trainer.encoder.write import save_encoder
from trainer.files import normalised, reporting_store_errors, written_locally
from trainer.mesh import DATA_AXIS, MODEL_AXIS
from trainer.optimizer import make_optimizer
from trainer.state import abstract_state, make_models
from trainer.workdir import CHECKPOINTS_FOLDER, CLASSES_FILE, CONFIG_FILE, TOKENIZER_FILE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Writes an encoder from a checkpoint of a run, which may go on meanwhile."""

    run: str
    """The --workdir of the run, on a disk or on gs://."""
    step: int
    """The step of the checkpoint."""
    output: str | None = None
    """Directory of the encoder, or its address on gs://. [default: encoder-STEP in the run's folder]"""


def write_encoder(path: str, workdir: str, step: int) -> str:
    """Writes the encoder of a run at `step` to directory `path`, and returns its hash.

    All is read from the run's folder, so that no process holds more than this one needs.

    Raises:
        UserError: `workdir` is no run, or has no good checkpoint of this step.
    """
    resolved = _read_json(workdir, CONFIG_FILE)
    experiment = experiment_of(resolved["config"])
    classes = _read_json(workdir, CLASSES_FILE)
    entity_ids = tuple(classes["entity_ids"])
    params = _read_checkpoint(workdir, step, experiment, len(entity_ids))
    classifier = None
    if experiment.classifies:
        classifier = Classifier(
            weights=params["class_vectors"][: len(entity_ids)],
            entity_ids=entity_ids,
            names=tuple(classes.get("names", ())),  # runs of older versions have none
            scale=float(np.exp(params["log_class_scale"])),
        )
    provenance = {**resolved, "step": step, "packages": {name: version(name) for name in ("jax", "flax", "optax")}}
    if experiment.contrasts:
        provenance["contrastive_scale"] = float(np.exp(params["log_scale"]))
    models = make_models(experiment)
    image, text = models.image, models.text
    tokenizer = None
    if text is not None:
        tokenizer = tokenizers.Tokenizer.from_str(epath.Path(workdir, TOKENIZER_FILE).read_text())
    with written_locally(path, [*HASHED_FILES, METADATA_FILE]) as folder:
        return save_encoder(
            folder,
            image_function=lambda p, images: jnp.asarray(image.apply({"params": p}, images)),
            image_params=params["image"],
            preprocessing=Preprocessing(
                image_size_px=experiment.image.image_size_px, antialias=experiment.image.antialias
            ),
            text_function=None if text is None else lambda p, tokens: jnp.asarray(text.apply({"params": p}, tokens)),
            text_params=params.get("text"),
            tokenizer=tokenizer,
            context_length=experiment.text.context_length if text is not None else None,
            classifier=classifier,
            provenance=provenance,
        )


def _read_checkpoint(workdir: str, step: int, experiment: Experiment, num_classes: int) -> Any:
    """Returns the parameters of a checkpoint as a nested dict of NumPy arrays."""
    folder = os.path.join(workdir, CHECKPOINTS_FOLDER)
    path = os.path.join(folder, str(step))
    found = steps_in(folder)
    if step not in found:
        raise UserError(
            f"{folder} has no checkpoint of step {step}; it has those of steps {', '.join(map(str, found)) or 'none'}"
        )
    optimizer = make_optimizer(experiment.optimizer, experiment.steps)
    alone = Mesh(np.asarray(jax.local_devices()[:1]).reshape(1, 1), (DATA_AXIS, MODEL_AXIS))
    abstract = abstract_state(experiment, make_models(experiment), optimizer, alone, num_classes)
    check_architecture(path, abstract.params)
    return read_params(path)


def _read_json(workdir: str, name: str) -> Any:
    path = epath.Path(workdir, name)
    if not path.exists():
        raise UserError(
            f"{path} is missing, so {workdir} is no run of this version; give the --workdir of one, or start it again "
            "with the same command, which writes the file"
        )
    return json.loads(path.read_text())


def main() -> None:
    absl_logging.set_verbosity(absl_logging.ERROR)
    options = tyro.cli(Options, prog="python -m trainer.write_encoder")
    jax.config.update("jax_platforms", "cpu")  # the accelerator is the run's
    run = normalised(options.run)
    output = normalised(options.output or os.path.join(run, f"encoder-{options.step}"))
    with (
        ending_on_user_errors(),
        reporting_disk_errors(output, option="--output"),
        reporting_store_errors(run, option="--run"),
    ):
        encoder_hash = write_encoder(output, run, options.step)
    print(f"wrote {output} (hash {encoder_hash[:12]})")


if __name__ == "__main__":
    main()
